"""Feed a target inputs that coverage guides: ``python -m tests.faults.guided TARGET INPUTS SEED``.

Atheris replaces the process's main loop, so that this is a program of its own. It ends with another code than 0 where
it finds an undocumented exception, and prints the input.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path


def main(name: str, inputs: int, seed: int) -> None:
    """Run the fuzzer; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["ostinato"], enable_loader_override=False):
        from tests.faults.fuzz import accepts
        from tests.faults.inputs import targets

        target = targets()[name]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as corpus:
        for i, data in enumerate(target.seeds()):
            (Path(corpus) / str(i)).write_bytes(data)
        options = [f"-atheris_runs={inputs}", f"-seed={seed}", "-timeout=10", "-rss_limit_mb=6000", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *options, corpus], lambda data: accepts(target, data) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
