"""Compare finished runs on the same test samples, and separate runs that cannot be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.errors import DataError, InputError
from ostinato.evaluation.answers import Answers, read_answers
from ostinato.evaluation.pairing import Difference, paired_difference
from ostinato.records import RunRecord, read_record
from ostinato.report.tables import read_summary

REFERENCE = "ranpac"
"""Method of the default reference: a closed form on frozen features."""


class Scored:
    """Results of a finished run.

    Args:
        run: its directory.

    Attributes:
        path: the directory as given.
        summary: summary of the run.
        record: record of the run; None if it is missing or cannot be read.
        problem: reason why the record cannot be read, or None.
    """

    def __init__(self, run: str | Path) -> None:
        self.path = Path(run)
        self.summary = read_summary(run)
        self.record: RunRecord | None = None
        self.problem: str | None = None
        if (self.path / "record.json").exists():
            try:
                self.record = read_record(self.path / "record.json")
            except DataError as error:  # the summary of an earlier version is still readable
                self.problem = str(error)

    @cached_property
    def answers(self) -> Answers | None:
        """Answers to test samples; None if the run has no ``answers.npz``.

        Raises:
            DataError: if the file is damaged, or contradicts the summary.
        """
        path = self.path / "answers.npz"
        if not path.exists():
            return None
        answers = read_answers(path)
        last = self.summary["last_accuracy"]
        if last is not None and answers.whole and len(answers) and abs(answers.right.mean() - last) > 1e-6:
            raise DataError(
                f"{path} says that {100 * answers.right.mean():.2f} % of its samples are right, and the summary beside "
                f"it {100 * last:.2f} %: one of the two is of another run. Restore them from a copy, or remove {path}."
            )
        return answers

    @property
    def seed(self) -> int | None:
        """Seed of the run; None if it is unknown."""
        return self.summary.get("seed")

    @property
    def per_class(self) -> float | None:
        """Mean number of training samples per class; None if it is unknown."""
        if self.record is None:
            return None
        tasks = self.record.stream.tasks
        return sum(task.counts.get("train", 0) for task in tasks) / max(1, sum(len(task.classes) for task in tasks))

    @property
    def experiment(self) -> str:
        """Key that is equal for runs that differ only in the seed."""
        of = self.record
        known = [of.options, of.recipe, of.backbone.sha256 if of.backbone else None, len(of.stream.tasks)] if of else []
        return json.dumps([self.summary["method"], *known], sort_keys=True)


def obstacles(run: Scored, other: Scored) -> tuple[str, ...]:
    """Reasons why two results cannot be compared; empty if none is known."""
    found = []
    mine, theirs = run.summary, other.summary
    if _differ(mine.get("scored_on"), theirs.get("scored_on")):
        found.append(f"scored on {mine['scored_on']}, not on {theirs['scored_on']}")
    if _differ(mine.get("protocol"), theirs.get("protocol")):
        found.append(f"protocol {mine['protocol']}, not {theirs['protocol']}")
    if _differ(run.per_class, other.per_class):
        found.append(f"{run.per_class:.4g} training samples a class, not {other.per_class:.4g}")
    if run.answers is not None and other.answers is not None:
        if not np.array_equal(run.answers.samples, other.answers.samples):
            n = len(np.intersect1d(run.answers.samples, other.answers.samples))
            found.append(
                f"scored on {len(run.answers)} samples, {n or 'none'} of them among the {len(other.answers)} there"
            )
    elif _differ(mine.get("stream"), theirs.get("stream")):
        found.append(f"scored on {mine['stream']}, not on {theirs['stream']}")
    return tuple(found)


def _differ(a: Any, b: Any) -> bool:
    """Whether both values are known and differ."""
    return a is not None and b is not None and a != b


@dataclass(frozen=True)
class Compared:
    """A run compared with another.

    Attributes:
        run: the run.
        base: the other run: the reference with the same seed, else the first reference, else the first run.
        reasons: reasons why the two cannot be compared, or empty.
        pair: answers of the run and of the reference with the same seed; None if either is missing.
        difference: paired difference; None without a pair, or with fewer than two common samples.
        is_reference: whether the run is a reference.
    """

    run: Scored
    base: Scored
    reasons: tuple[str, ...]
    pair: tuple[Answers, Answers] | None
    difference: Difference | None
    is_reference: bool

    @property
    def cell(self) -> str | None:
        """Cell of a table: the difference in points."""
        return "reference" if self.is_reference else None if self.difference is None else str(self.difference)


def compare(run: Scored, base: Scored, *, paired: bool = True) -> Compared:
    """Compare a run with another.

    Args:
        run: the run.
        base: another run, or the same.
        paired: whether ``base`` is the reference of the run's seed, so that answers are paired.
    """
    if run is base:
        return Compared(run, base, (), None, None, is_reference=paired)
    reasons, pair = obstacles(run, base), None
    if paired and not reasons and run.answers and base.answers:
        pair = run.answers, base.answers
    return Compared(run, base, reasons, pair, paired_difference([pair]) if pair else None, is_reference=False)


@dataclass(frozen=True)
class Group:
    """Runs shown in one table.

    Attributes:
        heading: reason why they are separate; None for runs that can be compared with the reference.
        summaries: summaries of the runs, with the difference in points as ``paired``.
    """

    heading: str | None
    summaries: list[dict[str, Any]]


class Comparison:
    """Compare several runs with a reference of each seed.

    Args:
        runs: directories of finished runs.
        against: references, one per seed, in ``runs`` or not; by default the runs by :data:`REFERENCE`.

    Attributes:
        references: references by seed.
        all: all runs; first those of ``against`` that are not in ``runs``.

    Raises:
        DataError: if a run is not finished, or a file is damaged.
        InputError: if two references have the same seed.
    """

    def __init__(self, runs: Sequence[str | Path], against: Sequence[str | Path] = ()) -> None:
        places = {Path(run).resolve() for run in runs}
        more = [run for run in dict.fromkeys(against) if Path(run).resolve() not in places]
        scored = [Scored(run) for run in (*more, *runs)]
        self._ambiguous: str | None = None
        self.references = self._chosen(scored, {Path(run).resolve() for run in against})
        self.all = [self._compared(run, scored[0]) for run in scored]
        self._over_seeds = self._pooled()

    def _chosen(self, scored: Sequence[Scored], named: set[Path]) -> dict[int | None, Scored]:
        """Find the references by seed."""
        found: dict[int | None, Scored] = {}
        for one in scored:
            if one.path.resolve() not in named if named else one.summary["method"] != REFERENCE:
                continue
            if one.seed in found:
                twice = f"{found[one.seed].path} and {one.path} both have seed {one.seed}"
                if named:
                    raise InputError(f"--against must name one run per seed, but {twice}. Give one of them.")
                self._ambiguous = f"No reference: {twice}. Choose one with --against RUN."
                return {}
            found[one.seed] = one
        return found

    def _compared(self, run: Scored, first: Scored) -> Compared:
        """Compare a run with the reference of its seed, else the first reference, else the first run."""
        if any(run is one for one in self.references.values()):
            return compare(run, run)
        base = self.references.get(run.seed)
        return compare(run, base or next(iter(self.references.values()), first), paired=base is not None)

    @property
    def reference(self) -> str | None:
        """Methods and paths of the references, for a note."""
        if not self.references:
            return None
        methods = list(dict.fromkeys(one.summary["method"] for one in self.references.values()))
        return f"{' and '.join(methods)} ({', '.join(str(one.path) for one in self.references.values())})"

    def _pooled(self) -> dict[str, tuple[list[Compared], Difference]]:
        """Runs and difference over seeds, by experiment; only for experiments with several seeds."""
        groups: dict[str, list[Compared]] = {}
        for one in self.all:
            if one.difference is not None:
                groups.setdefault(one.run.experiment, []).append(one)
        found = {}
        for experiment, some in groups.items():
            seeds = {one.run.seed for one in some}
            difference = paired_difference([one.pair for one in some if one.pair])
            if difference is not None and len(some) == len(seeds) > 1:
                found[experiment] = some, difference
        return found

    def summaries(self) -> list[dict[str, Any]]:
        """Summaries with differences in fractions, and reasons in one text."""
        if len(self.all) < 2:
            return [one.run.summary for one in self.all]
        out = []
        for one in self.all:
            of, over = one.difference, self._over_seeds.get(one.run.experiment)
            pooled = over[1] if over and one in over[0] else None
            out.append(one.run.summary | {
                "against": str(one.base.path) if of else None,
                "difference": of.mean if of else None,
                "difference_error": of.error if of else None,
                "difference_samples": of.samples if of else None,
                "difference_over_seeds": pooled.mean if pooled else None,
                "difference_over_seeds_error": pooled.error if pooled else None,
                "not_comparable": "; ".join(one.reasons) or None,
            })  # fmt: skip
        return out

    def groups(self) -> list[Group]:
        """Group the runs: first those that can be compared, then the others by reason."""
        apart: dict[tuple[str, ...], list[Compared]] = {(): []}
        for one in self.all:
            apart.setdefault(one.reasons, []).append(one)
        return [
            Group(_heading(some) if reasons else None, [one.run.summary | {"paired": one.cell} for one in some])
            for reasons, some in apart.items()
            if some
        ]

    def notes(self) -> list[str]:
        """Notes below the tables."""
        if len(self.all) < 2:
            return []
        lines = [self._ambiguous] if self._ambiguous else []
        lines += [
            f"{one.run.path}: its data are not compared. {one.run.problem}" for one in self.all if one.run.problem
        ]
        if any(one.difference for one in self.all):
            lines.append(
                f"difference: points against {self.reference}, the mean over the test samples of both ± its standard "
                "error; within noise if it is below two standard errors."
            )
        for some, difference in self._over_seeds.values():
            seeds = ", ".join(str(one.run.seed) for one in some)
            lines.append(f"{some[0].run.summary['method']} over seeds {seeds}: {difference} points.")
        if self.references:
            lines += [f"{one.run.path}: {why}" for one in self.all if (why := self._why_unpaired(one))]
        return lines

    def _why_unpaired(self, one: Compared) -> str | None:
        """Reason why a comparable run has no difference, or None."""
        if one.is_reference or one.reasons or one.difference is not None:
            return None
        if one.run.seed not in self.references:
            return f"no difference, since no reference has its seed ({one.run.seed})."
        if one.run.answers is None or one.base.answers is None:
            without = one.run if one.run.answers is None else one.base
            return f"no difference, since {without.path} keeps no answers to its test samples; run it again."
        return "no difference, since both were scored on fewer than two samples."


def _heading(some: Sequence[Compared]) -> str:
    names = ", ".join(str(one.run.path) for one in some)
    return f"Not comparable with {some[0].base.path}: {'; '.join(some[0].reasons)} ({names})"
