"""Accuracy of trained models under the protocols: per sample, by vote, and by the first images of a batch."""

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
    """Scores of a run by protocol and rule; ``run`` is the name of its directory."""

    run: str
    method: str
    rows: list[Scored]

    def gain(self, row: Scored) -> float | None:
        """Accuracy minus that of the same rule per sample; None if there is no such rule."""
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
    """Score a finished run on its test samples under every protocol.

    Args:
        run: directory of the run.
        size: images per batch.
        shots: numbers of first images of a batch that vote; the whole batch is added.
        rules: task inference rules; None for all of the method.
        data: path of the run's data, if they moved.
        device: device to compute on.
        weights: path of the backbone's weights, if they moved.
        method: file of the run's method, if it moved or changed.
        cache: folder of frozen features shared between runs.
        state_cache: GiB of memory for frozen token states.
        callback: called after every batch.

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
    """Format a table in percent, with gains over the same rule per sample."""
    rows = []
    for result in studies:
        for row in result.rows:
            gain = result.gain(row)
            added = NOTHING if gain is None or row.protocol == SAMPLE else f"{100 * gain:+.1f}"
            rule = f"`{row.rule}`" if gain is not None else NOTHING
            shares = f"{percent(row.accuracy)} %", added, f"{percent(row.task_id_accuracy)} %"
            rows.append([f"`{result.run}`", rule, row.protocol, *shares])
    return to_markdown(["run", "task by", "protocol", "accuracy", "gain", "task right"], rows, texts=range(3))
