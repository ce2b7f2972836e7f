"""How many points a protocol adds: trained models scored per sample, by vote, and by the first images of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ostinato.analysis.base import Subject
from ostinato.evaluation.protocols import SAMPLE, Scored, compare_protocols
from ostinato.learner import Learner
from ostinato.report.tables import NOTHING, percent, to_markdown
from ostinato.training.callbacks import Callback


@dataclass(frozen=True)
class Study:
    """One run under all protocols.

    Attributes:
        run: name of its directory.
        method: registered name.
        rows: what was measured.
    """

    run: str
    method: str
    rows: list[Scored]

    def gain(self, row: Scored) -> float | None:
        """Accuracy over that of the same rule per sample; None where there is no such rule."""
        alone = [r for r in self.rows if r.rule == row.rule and r.protocol == SAMPLE]
        return row.accuracy - alone[0].accuracy if alone else None


def study(
    run: str | Path,
    *,
    size: int = 24,
    shots: Sequence[int] = (3, 5, 7),
    rules: Sequence[str] | None = None,
    data: str | None = None,
    device: str = "auto",
    weights: str | None = None,
    method: str | None = None,
    cache: str | None = None,
    state_cache: float = 0.0,
    callback: Callback | None = None,
) -> Study:
    """Score a finished run on what it was scored on, under every protocol.

    Args:
        run: its directory.
        size: images per batch.
        shots: how many first images of a batch decide; the whole batch is added.
        rules: of the method; None for all.
        data: where the run's data are now; None for where they were.
        device: where to compute.
        weights: where the backbone's weights are now, if they moved.
        method: the file to take the run's method from, if it moved or changed.
        cache: folder of frozen features shared between runs.
        state_cache: GiB for frozen states.
        callback: told about every batch of a pass.

    Returns:
        The measurements.

    Raises:
        InputError: if the run's method infers no task, or has no such rule.
    """
    learner = Learner.load(run, weights=weights, method=method, device=device, cache=cache, state_cache=state_cache)
    groups = [
        group.with_transform(learner.eval_transform) for group in Subject(Path(run), learner, data=data).held_out()
    ]
    rows = compare_protocols(
        learner.method,
        groups,
        learner.settings,
        size=size,
        shots=shots,
        rules=rules,
        label_groups=learner.answers(),
        callback=callback,
    )
    return Study(Path(run).resolve().name, learner.method.name, rows)


def markdown(studies: Sequence[Study]) -> str:
    """A table in percent; gains are against the same rule per sample."""
    rows = []
    for one in studies:
        for row in one.rows:
            gain = one.gain(row)
            added = NOTHING if gain is None or row.protocol == SAMPLE else f"{100 * gain:+.1f}"
            rule = f"`{row.rule}`" if gain is not None else NOTHING
            shares = f"{percent(row.accuracy)} %", added, f"{percent(row.task_id_accuracy)} %"
            rows.append([f"`{one.run}`", rule, row.protocol, *shares])
    return to_markdown(["run", "task by", "protocol", "accuracy", "gain", "task right"], rows, texts=range(3))
