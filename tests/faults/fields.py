"""Change every field of every small file of a run: only documented errors may come of it.

A file is edited as it lies there, which its seal must show, and sealed anew, as somebody hostile would. Then every
command that reads it runs.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from ostinato.files import sealed
from ostinato.runs.session import Session
from tests.cli.command import ostinato
from tests.conftest import photos

GONE = "this field is removed"
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 7, 2**70, 1.5, 1e308, "", "x", "../x", "/dev/zero", "\x00", [], [None], [0], ["x"], {}, {"a": 1},
    [[[[]]]], GONE,
)  # fmt: skip

COMMANDS = {
    "artifact/artifact.json": (("predict", "r", "photos/c0/0.jpg"), ("eval", "r", "data=photos"), ("analyse", "r")),
    "record.json": (("predict", "r", "photos/c0/0.jpg"), ("analyse", "r", "task_confusion"), ("report", "r")),
    "summary.json": (("report", "r"), ("show", "r", "--json"), ("resume", "r"), ("report", "r", "--markdown")),
    "config.toml": (("show", "r", "--json"), ("predict", "r", "photos/c0/0.jpg"), ("analyse", "r", "task_confusion")),
    "learn-001/record.json": (("predict", "r", "photos/c0/0.jpg"), ("report", "r")),
}
"""Commands that read the files of a finished run."""

RESUMED = ("record.json", "config.toml", "checkpoint.json")
"""Files that ``resume`` reads of an unfinished run."""


@dataclass(frozen=True)
class Case:
    """A change of one field.

    Attributes:
        file: within the run.
        path: keys to the field.
        value: in its place, or ``GONE``.
        unfinished: whether the run is one that goes on.
    """

    file: str
    path: tuple[str | int, ...]
    value: Any
    unfinished: bool


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all fields, and one that is not there."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))
    if isinstance(value, dict):
        yield (*path, "unheard_of")


def changed(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy with another value at a path."""
    out = copy.deepcopy(value)
    node = out
    for key in path[:-1]:
        node = node[key]
    if new != GONE:
        node[path[-1]] = new
    elif isinstance(node, list) or path[-1] in node:
        del node[path[-1]]
    return out


class Grounds:
    """A finished and continued run, and one that was stopped inside its second task.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        photos(root / "photos", {f"c{i}": (60 * i, 255 - 60 * i, 0) for i in range(4)}, n=5)
        photos(root / "more", {"d": (9, 9, 9), "e": (90, 9, 9)}, n=4)
        words = ("data=photos", "stream.step=2", "precision=fp32", "device=cpu", "train.epochs=1", "checkpoint.every=1")
        ostinato("run", "dualprompt", *words, "out=finished", cwd=root)
        ostinato("learn", "finished", "data=more", "train.epochs=1", cwd=root)
        self._stop_inside(words)

    def _stop_inside(self, words: tuple[str, ...]) -> None:
        whole = Session.checkpoint_inside

        def stops(session: Session, *arguments: Any) -> None:
            whole(session, *arguments)
            if session.progress.task == 1:
                raise KeyboardInterrupt

        Session.checkpoint_inside = stops
        try:
            ostinato("run", "dualprompt", *words, "out=unfinished", code=130, cwd=self.root)
        finally:
            Session.checkpoint_inside = whole

    def run_of(self, case: Case) -> Path:
        """Where the run of a case is copied from."""
        return self.root / ("unfinished" if case.unfinished else "finished")

    def cases(self) -> list[Case]:
        """A case for every field of every file and every wrong value."""
        out = []
        for unfinished, files in ((False, tuple(COMMANDS)), (True, RESUMED)):
            for file in files:
                value = self.read(Case(file, (), None, unfinished))
                spots = [path for path in places(value) if path != ("sha256",)]
                out += [Case(file, spot, new, unfinished) for spot in spots for new in WRONG]
        return out

    def files_of(self, run: Path, case: Case) -> list[Path]:
        """The file of a case in a run; of checkpoints all, since a damaged one is passed over."""
        return sorted(run.glob("checkpoints/*/checkpoint.json")) if "checkpoint" in case.file else [run / case.file]

    def read(self, case: Case) -> dict[str, Any]:
        """The content of a case's file."""
        text = self.files_of(self.run_of(case), case)[-1].read_text()
        return tomllib.loads(text) if case.file.endswith(".toml") else json.loads(text)

    def hold(self, case: Case, *, reseal: bool) -> None:
        """Change the field and run all commands.

        Raises:
            AssertionError: for an exit code that is not documented.
        """
        shutil.rmtree(self.root / "r", ignore_errors=True)
        shutil.copytree(self.run_of(case), self.root / "r")
        value = changed(self.read(case), case.path, case.value)
        try:
            text = tomli_w.dumps(value) if case.file.endswith(".toml") else json.dumps(value, indent=2) + "\n"
        except (TypeError, ValueError):  # TOML has no word for None
            return
        if reseal and "sha256" in value:
            text = sealed(value)
        for file in self.files_of(self.root / "r", case):
            file.write_text(text)
        for words in (("resume", "r"),) if case.unfinished else COMMANDS[case.file]:
            ostinato(*words, code=(0, 2, 3), cwd=self.root)


def hold_some(root: Path, n: int | None, draw: random.Random) -> int:
    """Hold ``n`` cases drawn at random, or all.

    Returns:
        How many there were.

    Raises:
        AssertionError: naming the case.
    """
    grounds = Grounds(root)
    cases = grounds.cases()
    if n is not None:
        cases = draw.sample(cases, min(n, len(cases)))
    for i, case in enumerate(cases):
        try:
            grounds.hold(case, reseal=i % 10 != 0)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from None
    return len(cases)
