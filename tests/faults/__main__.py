"""The long form of the fault tests: ``python -m tests.faults --kills 1000 --inputs 1000000 --write``.

Every part prints a line; the exit code is 1 where anything was found. ``--write`` puts the table into
``docs/reliability.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from ostinato.report.tables import replace_between, to_markdown
from tests.faults.inputs import Fed, feed, shares

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2
CHUNK = 20_000
FLIPS = 3000
"""Bits of a file that are flipped, one after another."""
GUIDED = ("overrides", "toml", "artifact.json, sealed anew", "record.json, sealed anew", "summary.json")
"""Targets in Python, where coverage leads the fuzzer on."""


@dataclass
class Part:
    """A line of the table.

    Attributes:
        what: was done.
        figures: how often, in words.
        found: what must not be.
        seconds: it took.
    """

    what: str
    figures: str
    found: list[str] = field(default_factory=list)
    seconds: float = 0.0


def timed(part: Callable[[], Part]) -> Part:
    """Run a part, time it and print it."""
    began = time.perf_counter()
    done = part()
    done.seconds = time.perf_counter() - began
    sys.stdout.write(f"{done.what}: {done.figures}; found {len(done.found)}; {done.seconds:.0f} s\n")
    for one in done.found:
        sys.stdout.write(f"  {one}\n")
    sys.stdout.flush()
    return done


def program(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a module of this package."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, env=env, capture_output=True, text=True)


def kills(each: list[subprocess.Popen[str]]) -> Part:
    """SIGKILL before changes of the disk, by processes that were started before."""
    outputs = [one.communicate() for one in each]
    totals: dict[str, int] = {}
    found: list[str] = []
    for text, errors in outputs:
        if not text.strip():
            found.append(errors[-500:])
            continue
        result = json.loads(text)
        found += result["wrong"]
        for name, count in result["by_command"].items():
            totals[name] = totals.get(name, 0) + count
    words = ", ".join(f"{count} of `{name}`" for name, count in sorted(totals.items()))
    return Part("SIGKILL before a change of the disk", f"{sum(totals.values()):,} kills ({words})", found)


def program_of_kills(n: int, seed: int) -> subprocess.Popen[str]:
    """A process that forks and kills."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.faults.kills", str(n), str(seed)]
    return subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def inputs(n: int, seed: int) -> list[Part]:
    """Mutated inputs for all targets."""
    jobs = []
    for name, share in shares(n).items():
        jobs += [(name, min(CHUNK, share - begin), seed + begin) for begin in range(0, share, CHUNK)]
    by_name: dict[str, Fed] = {}
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        for fed in pool.map(partial(feed, scratch=scratch), *zip(*jobs, strict=True)):
            total = by_name.setdefault(fed.name, Fed(fed.name))
            total.inputs += fed.inputs
            total.accepted += fed.accepted
            total.seconds += fed.seconds
            total.found |= fed.found
    for fed in by_name.values():
        share = 100 * fed.accepted / fed.inputs
        sys.stdout.write(f"  {fed.name}: {fed.inputs:,} inputs, {share:.0f} % read, {fed.seconds:.0f} s\n")
    found = [f"{fed.name}: {kind}: {text}" for fed in by_name.values() for kind, text in fed.found.items()]
    count = sum(fed.inputs for fed in by_name.values())
    part = Part("Mutated inputs", f"{count:,} inputs of {len(by_name)} kinds", found, time.perf_counter() - began)
    sys.stdout.write(f"{part.what}: {part.figures}; found {len(found)}; {part.seconds:.0f} s\n")
    for one in found:
        sys.stdout.write(f"  {one}\n")
    return [part]


def guided(n: int, seed: int) -> Part:
    """Inputs that coverage guides."""
    if find_spec("atheris") is None:
        return Part("Inputs guided by coverage", "not run: atheris has no wheel for this machine")
    found = []
    for name in GUIDED:
        done = program("tests.faults.guided", name, str(n // len(GUIDED)), str(seed))
        if done.returncode != 0 or "Done" not in done.stderr:
            found.append(f"{name}: exit {done.returncode}: {done.stderr[-600:]}")
    return Part("Inputs guided by coverage", f"{n:,} inputs of {len(GUIDED)} kinds", found)


def flips(seed: int) -> Part:
    """One flipped bit of every file of a model and a checkpoint."""
    from ostinato import artifact
    from ostinato.errors import DataError
    from ostinato.runs.checkpoint import Checkpoints
    from tests.faults.fields import Grounds

    draw, silent, count = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        root = Grounds(Path(folder)).root
        run_id = json.loads((root / "unfinished/record.json").read_text())["run_id"]
        (root / "one").mkdir()
        newest = sorted((root / "unfinished/checkpoints").iterdir())[-1]
        newest.rename(root / "one/000000")
        places = [
            (root / "finished/artifact", partial(artifact.read, root / "finished/artifact")),
            (root / "one/000000", Checkpoints(root / "one", run_id).latest),
        ]
        for place, read in places:
            read()
            for file in sorted(place.iterdir()):
                data = file.read_bytes()
                for bit in draw.sample(range(8 * len(data)), min(FLIPS, 8 * len(data))):
                    changed = bytearray(data)
                    changed[bit // 8] ^= 1 << bit % 8
                    file.write_bytes(changed)
                    count += 1
                    try:
                        read()
                        silent.append(f"{file.name}: bit {bit}")
                    except DataError:
                        pass
                file.write_bytes(data)
    return Part("One flipped bit in a file of a model or a checkpoint", f"{count:,} flips", silent)


def fields(n: int, seed: int) -> Part:
    """Changed fields of small files."""
    from tests.faults.fields import hold_some

    found = []
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            n = hold_some(Path(folder), n, random.Random(seed))
        except AssertionError as error:
            found.append(str(error)[:1500])
        finally:
            tempfile.tempdir = None
    return Part("A changed field in a small file of a run, then every command", f"{n:,} fields", found)


def suite(what: str, *files: str) -> Part:
    """Tests of the suite that hold one kind of fault."""
    done = program("pytest", "-p", "no:cacheprovider", "-v", *(f"tests/faults/{file}" for file in files), "-rN")
    passed = re.search(r"(\d+) passed", done.stdout)
    count = int(passed[1]) if passed else 0
    return Part(what, f"{count} tests", [] if done.returncode == 0 else [done.stdout[-1500:]])


def main() -> int:
    """Run all parts.

    Returns:
        1 where something was found.
    """
    options = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    options.add_argument("--kills", type=int, default=1000)
    options.add_argument("--inputs", type=int, default=1_000_000)
    options.add_argument("--fields", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    given = options.parse_args()
    led = given.inputs // 5
    mutated = inputs(given.inputs - led, given.seed)
    began = time.perf_counter()
    killing = [program_of_kills(given.kills // PROCESSES, given.seed + i) for i in range(PROCESSES)]
    parts = [  # which need one processor each, while the others kill
        *mutated,
        timed(lambda: guided(led, given.seed)),
        timed(lambda: flips(given.seed)),
        timed(lambda: fields(given.fields, given.seed)),
        timed(lambda: suite("Code in received files", "test_code.py", "test_hub_models.py")),
        timed(lambda: suite("A full disk; two processes and one run", "test_disk_and_processes.py")),
        timed(lambda: kills(killing)),
    ]
    parts[-1].seconds = time.perf_counter() - began
    if given.write:
        head = ["fault", "how often", "undocumented, different or silent", "seconds"]
        rows = [[p.what, p.figures, str(len(p.found)), f"{p.seconds:.0f}"] for p in parts]
        where = f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
        sizes = f"--kills {given.kills} --inputs {given.inputs} --fields {given.fields} --seed {given.seed}"
        made = f"`python -m tests.faults {sizes}`, {datetime.now(UTC):%Y-%m-%d}, {where}."
        body = f"{to_markdown(head, rows, texts=(0, 1))}\n{made}\n"
        replace_between(ROOT / "docs/reliability.md", "faults", body)
    return 1 if any(part.found for part in parts) else 0


if __name__ == "__main__":
    sys.exit(main())
