# Everything runs inside .venv, which the first target makes from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Only wheels whose hash is in constraints.txt, so that installing a package runs none of its code.
LOCKED := --require-hashes --only-binary :all:
INSTALL = $(BIN)/uv pip install -q $(LOCKED) -r pyproject.toml -c constraints.txt
LOCK = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --upgrade \
	--no-annotate --custom-compile-command "make lock" -q
# Where it is set, every command compiles torch and the rest anew: 15 seconds each on a slow machine.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-oldest faults check format benchmark golden audit docs lock clean

demo: $(STAMP)
	$(BIN)/ostinato demo

test: check
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Tests that start processes, kill them, damage files by the hundred, measure memory, compile or build the site.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# The suite with the lowest versions that pyproject.toml allows; about 3 GB of packages. They warn about newer
# releases of what they need themselves, so that a warning is no failure here.
OLDEST := .venv/oldest/bin/python
test-oldest: $(STAMP)
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv/oldest
	$(BIN)/uv pip install -q --python $(OLDEST) --resolution lowest-direct --only-binary :all: \
		-r pyproject.toml --extra build --extra test
	$(BIN)/uv pip install -q --python $(OLDEST) --no-deps --no-build-isolation -e .
	$(OLDEST) -m pytest -n 2 --dist worksteal -W default --disable-warnings

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache --no-logo

# Kills, damaged files and hostile inputs by the thousand, into docs/reliability.md; about twenty minutes.
faults: $(STAMP)
	$(BIN)/python -m tests.faults --write

# Speed beside a plain implementation and the machine's own limit, into docs/performance.md; about 15 minutes.
benchmark: $(STAMP)
	$(BIN)/python -m benchmarks --write

# Whether every method computes what it did in a revision, to the last bit; minutes. scripts/golden.py says more.
SINCE ?= HEAD
golden: $(STAMP)
	rm -rf dist/golden
	mkdir -p dist/golden
	git archive $(SINCE) src scripts | tar -x -C dist/golden
	PYTHONPATH=dist/golden/src $(BIN)/python dist/golden/scripts/golden.py record dist/golden.json --jobs 2
	$(BIN)/python scripts/golden.py check dist/golden.json --jobs 2

# The documentation site, into dist/site/index.html; no network is needed.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Try: make demo PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > .venv/uv.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check $(LOCKED) -r .venv/uv.txt
	$(INSTALL) --python $(BIN)/python --extra dev
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $(STAMP)

# A bill of materials of what the project needs to run, its packages' known vulnerabilities, and flaws in its own code.
audit: $(STAMP)
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv/audit
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv/runtime
	$(INSTALL) --python .venv/audit/bin/python --extra audit
	$(INSTALL) --python .venv/runtime/bin/python
	mkdir -p dist
	.venv/audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		-o dist/sbom.cdx.json .venv/runtime/bin/python
	.venv/audit/bin/python scripts/vulnerabilities.py constraints.txt
	.venv/audit/bin/bandit -q -c pyproject.toml -r src

# Resolve both locks anew from pyproject.toml, with the newest releases: all extras, and what running needs.
lock: $(STAMP)
	$(LOCK) --all-extras -o constraints.txt
	$(LOCK) --extra build -c constraints.txt -o requirements.txt

clean:
	rm -rf .venv runs dist .pytest_cache .ruff_cache
