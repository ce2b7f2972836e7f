"""Kill a command before its k-th change of the disk, go on, and hold the result against that of a whole one.

``python -m tests.faults.kills 1000`` prints figures as JSON; ``python -m tests.faults.kills 0 SEED METHOD ...`` does so
for the named methods alone. One warm process forks every command, so that a kill costs half a second. An audit hook
counts changes of the disk; SIGKILL comes before the one that is asked for.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_VARYING = {"time", "seconds", "sha256", "run_id", "run"}

IMAGES = {
    "finetune": (), "joint": (), "simplecil": (), "slda": (), "fecam": (), "ranpac": ("method.n_random=20",),
    "duet": ("method.n_random=20",), "l2p": ("method.pool_size=4", "method.top_k=1"), "dualprompt": (),
    "coda_prompt": (), "lieprompt": ("method.align.epochs=1", "method.align.samples=4"),
    "layer_grouped": ("method.align.epochs=1", "method.align.samples=4"), "soft_tf": ("method.layers=10,11",),
    "wsn": ("method.layers=10,11",), "adapter": (), "lora": (), "cl_lora": (), "slm": (), "mbpa": (),
    "aligned": ("method.align.epochs=1", "method.align.samples=4"), "ewc": (), "lwf": (), "er": (), "icarl": (),
    "bic": (), "der": (), "gdumb": (), "s_prompt": ("method.clusters=2",), "inflora": (), "sd_lora": (), "ease": (),
    "aper": (), "slca": ("method.align.epochs=1", "method.align.samples=4"),
    "hide_prompt": ("method.align.epochs=1", "method.align.samples=4"),
}  # fmt: skip
"""Methods on images, with options that keep a run short."""


@dataclass
class Outcome:
    """What came of the kills.

    Attributes:
        kills: commands that were killed.
        by_command: the same for each command.
        wrong: what was not as it must be.
    """

    kills: int = 0
    by_command: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def changes_disk(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is a change of the disk."""
    if event == "open":
        flags = arguments[2]
        return (
            isinstance(arguments[0], str | bytes | os.PathLike)
            and bool(flags & _WRITES)
            and "/dev/" not in str(arguments[0])
        )
    return event in _CHANGES


def command(folder: Path, *words: str, kill_at: int | None = None) -> tuple[int, int, str]:
    """Run a command in a fork of this process.

    Args:
        folder: where it runs.
        words: of the command.
        kill_at: the change of the disk, from 1, before which it is killed.

    Returns:
        Exit code, -9 after a kill; changes of the disk; and what was printed.
    """
    log, counter = folder / ".printed", folder / ".changes"
    child = os.fork()
    if child == 0:
        _child(folder, list(words), kill_at, log, counter)
    _, status = os.waitpid(child, 0)
    changes = int(counter.read_text()) if counter.exists() else 0
    counter.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status), changes, log.read_text(errors="replace")


def _child(folder: Path, words: list[str], kill_at: int | None, log: Path, counter: Path) -> None:
    code = 99
    try:
        os.chdir(folder)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if changes_disk(event, arguments):
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        from ostinato.cli import main

        sys.addaudithook(hook)
        try:
            main(words)
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        done, kill_at = seen, None
        counter.write_text(str(done))
        sys.stdout.flush()
    finally:
        os._exit(code)


def plain(value: Any) -> Any:
    """A value without what differs between two runs of one experiment."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in _VARYING and "second" not in k and "memory" not in k}
    return [plain(v) for v in value] if isinstance(value, list) else value


def result_of(run: Path) -> dict[str, Any]:
    """All that must be the same after a kill."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {
        "matrix": (run / "accuracy_matrix.csv").read_text(),
        "answers": (run / "answers.npz").read_bytes(),
        "summary": plain(json.loads((run / "summary.json").read_text())),
        "artifact": plain(json.loads((run / "artifact/artifact.json").read_text())),
        "tensors": {p.name: p.read_bytes() for p in sorted((run / "artifact").iterdir()) if p.suffix != ".json"},
        "events": [plain(e) for e in events if e["event"] != "stage"],  # a stage that goes on is told of again
        "left": sorted(p.name for p in run.rglob("*") if p.name.endswith(".part") or "check" in p.name),
    }


def differences(run: Path, want: dict[str, Any]) -> list[str]:
    """Which parts of a result are not as they must be."""
    try:
        got = result_of(run)
    except (OSError, ValueError) as error:
        return [f"unreadable: {error}"]
    return [key for key in want if got[key] != want[key]]


class Ground:
    """Data, a finished run and a finished continuation to compare with.

    Args:
        root: an empty folder.
        words: of ``run``: method, data and options.
        more: of ``learn``; None where the method learns nothing later.
    """

    def __init__(self, root: Path, words: tuple[str, ...], more: tuple[str, ...] | None) -> None:
        self.root, self.words = root, words
        self.more = None if more is None else (*more, "--accept")  # random weights learn nothing of few photos
        self.work = root / "work"
        self.fresh()
        _, self.run_changes, _ = self.must("run", *words, "out=r")
        self.run_result = result_of(self.work / "r")
        shutil.copytree(self.work / "r", root / "finished")
        if self.more is not None:
            _, self.learn_changes, _ = self.must("learn", "r", *self.more)
            self.learn_result = result_of(self.work / "r/learn-001")
            self.learned = self.answer()

    def fresh(self, *, finished: bool = False) -> None:
        """Empty the folder of work, or put the finished run into it."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        for name in ("photos", "more", "old"):
            if (self.root / name).exists():
                (self.work / name).symlink_to(self.root / name)
        if finished:
            shutil.copytree(self.root / "finished", self.work / "r")

    def must(self, *words: str) -> tuple[int, int, str]:
        """Run a command that must succeed."""
        done = command(self.work, *words)
        if done[0] != 0:
            raise RuntimeError(f"{words}: exit {done[0]}\n{done[2]}")
        return done

    def answer(self) -> str:
        """What the model says of a photo."""
        return self.must("predict", "r", "photos/c0/0.jpg", "--json")[2]

    def kill_run(self, at: int, then: int | None, outcome: Outcome) -> None:
        """Kill ``run``, and for ``then`` also the ``resume`` after it, and compare."""
        self.fresh()
        code, _, _ = command(self.work, "run", *self.words, "out=r", kill_at=at)
        self._note(outcome, "run", code)
        if then is not None and (self.work / "r/config.toml").exists():
            code, _, _ = command(self.work, "resume", "r", kill_at=then)
            self._note(outcome, "resume", code)
        where = f"run killed at {at}, {then}"
        self._go_on(("run", *self.words, "out=r"), self.work / "r", self.run_result, where, outcome)

    def kill_learn(self, at: int, then: int | None, outcome: Outcome) -> None:
        """Kill ``learn``, ask the model, and compare what it becomes."""
        self.fresh(finished=True)
        code, _, _ = command(self.work, "learn", "r", *(self.more or ()), kill_at=at)
        self._note(outcome, "learn", code)
        where = f"learn killed at {at}, {then}"
        before, _, said = command(self.work, "predict", "r", "photos/c0/0.jpg", "--json")
        if before != 0:
            outcome.wrong.append(f"{where}: predict exits {before}: {said}")
        if then is not None and (self.work / "r/learn-001/config.toml").exists():
            code, _, _ = command(self.work, "resume", "r", kill_at=then)
            self._note(outcome, "resume of learn", code)
        sub = self.work / "r/learn-001"
        self._go_on(("learn", "r", *(self.more or ())), sub, self.learn_result, where, outcome)
        if not outcome.wrong and self.answer() != self.learned:
            outcome.wrong.append(f"{where}: another answer")

    def _note(self, outcome: Outcome, name: str, code: int) -> None:
        if code == -signal.SIGKILL:
            outcome.kills += 1
            outcome.by_command[name] += 1
        elif code != 0:
            outcome.wrong.append(f"{name}: exit {code}: {(self.work / '.printed').read_text(errors='replace')}")

    def _go_on(self, anew: tuple[str, ...], run: Path, want: dict[str, Any], where: str, outcome: Outcome) -> None:
        """Resume what was begun, begin anew what was not, and compare."""
        words = ("resume", "r") if (run / "config.toml").exists() else anew
        code, _, said = command(self.work, *words)
        if code != 0:
            outcome.wrong.append(f"{where}: {words[0]} exits {code}: {said}")
        elif found := differences(run, want):
            outcome.wrong.append(f"{where}: {found} differ")


def photographs(root: Path) -> None:
    """Tiny photos of six classes, two of them for later."""
    from tests.conftest import photos

    colours = {f"c{i}": (50 * i, 255 - 50 * i, 40 * (i % 3)) for i in range(6)}
    photos(root / "photos", {k: v for k, v in colours.items() if k < "c4"}, n=4)
    photos(root / "more", {k: v for k, v in colours.items() if k >= "c4"}, n=4, seed=1)
    photos(root / "old", {k: v for k, v in colours.items() if k < "c4"}, n=2, seed=2)


PLAIN = ("data=photos", "stream.step=2", "device=cpu")


def ground(root: Path, method: str, options: tuple[str, ...], *, trains: bool, learns: bool = True) -> Ground:
    """The ground of a method on tiny photos, with a continuation if it ``learns`` more."""
    root.mkdir(parents=True)
    photographs(root)
    short = ("train.epochs=1", "train.batch_size=4", "checkpoint.every=1") if trains else ()
    more = None if method == "joint" or not learns else ("data=more", "eval=old", *short)
    return Ground(root, (method, *PLAIN, *options, *short), more)


def exhaustive(root: Path, budget: int, draw: random.Random, outcome: Outcome) -> None:
    """``simplecil``: every change of run and of learn while the budget lasts, a third with a kill of ``resume``."""
    one = ground(root, "simplecil", (), trains=False)
    changes = {"run": one.run_changes, "learn": one.learn_changes}
    cases = [(kind, k) for kind, n in changes.items() for k in range(1, n + 1)]
    if budget < len(cases) * 4 // 3:
        cases = draw.sample(cases, min(len(cases), max(1, budget * 3 // 4)))
    for i, (kind, at) in enumerate(cases):
        then = draw.randint(1, one.run_changes) if i % 3 == 0 else None
        (one.kill_run if kind == "run" else one.kill_learn)(at, then, outcome)


def sampled(root: Path, budget: int, draw: random.Random, outcome: Outcome) -> None:
    """All methods on images: kills at random changes until the budget is spent."""
    end = outcome.kills + budget
    methods = [name for name in IMAGES if name != "simplecil"]
    draw.shuffle(methods)
    methods = methods[: max(2, budget // 8)]
    each = -(-budget // len(methods))
    for name in methods:
        if outcome.kills >= end:
            return
        one = ground(root / name, name, IMAGES[name], trains=True)
        stop = min(end, outcome.kills + each)
        while outcome.kills < stop:
            then = draw.randint(1, one.run_changes) if draw.random() < 0.3 else None
            if one.more is not None and draw.random() < 0.4:
                one.kill_learn(draw.randint(1, one.learn_changes), then, outcome)
            else:
                one.kill_run(draw.randint(1, one.run_changes), then, outcome)
        shutil.rmtree(root / name)


def each(root: Path, names: list[str], draw: random.Random, outcome: Outcome) -> None:
    """The named methods: one kill of ``run``, and one of its ``resume``."""
    for name in names:
        one = ground(root / name, name, IMAGES[name], trains=name != "simplecil", learns=False)
        # After a fifth of the changes, the options are written and the first steps are taken.
        one.kill_run(draw.randint(one.run_changes // 5, one.run_changes), draw.randint(1, one.run_changes), outcome)
        shutil.rmtree(root / name)


def warm_up() -> None:
    """Import all that commands use, once, so that no child does."""
    import matplotlib.figure  # noqa: F401
    import torch

    from ostinato import lookup
    from ostinato.training.precision import choose_precision

    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)]).step()  # the first step imports a compiler
    lookup.methods()
    choose_precision("auto", torch.device("cpu"))  # kept for the machine, by whoever asks first


def main(kills: int, seed: int = 0, names: list[str] | None = None) -> Outcome:
    """Kill as often as asked: simplecil at every change, and all other methods at random ones.

    With names, kill a run of each of these methods alone.
    """
    warm_up()
    outcome, draw = Outcome(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        if names:
            each(Path(folder), names, draw, outcome)
            return outcome
        exhaustive(Path(folder) / "simplecil", kills * 2 // 3, draw, outcome)
        sampled(Path(folder), kills - outcome.kills, draw, outcome)
    return outcome


if __name__ == "__main__":
    began = time.perf_counter()
    found = main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, sys.argv[3:])
    figures = {"kills": found.kills, "by_command": found.by_command, "wrong": found.wrong}
    sys.stdout.write(json.dumps(figures | {"seconds": round(time.perf_counter() - began)}) + "\n")
    sys.exit(1 if found.wrong else 0)
