# Everything runs inside .venv, which the first target makes from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Where it is set, every command compiles torch and the rest anew: 15 seconds each on a slow machine.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check format benchmark lock clean

demo: $(STAMP)
	$(BIN)/ostinato demo

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

# Speed beside a plain implementation and the machine's own limit, into docs/performance.md; about 15 minutes.
benchmark: $(STAMP)
	$(BIN)/python -m benchmarks --write

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Try: make demo PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep '^uv==' constraints.txt)"
	$(BIN)/uv pip install -q --python $(BIN)/python -e ".[dev]" -c constraints.txt
	touch $(STAMP)

# Resolve constraints.txt anew from pyproject.toml, with the newest releases.
lock: $(STAMP)
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
		--no-header --no-annotate -q -o constraints.txt

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache
