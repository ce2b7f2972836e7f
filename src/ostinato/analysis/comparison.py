"""Comparison of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ostinato.evaluation.metrics import AccuracyMatrix
from ostinato.report.plots import compare_curves
from ostinato.runs.lifecycle import taught_since


def draw_runs(runs: Sequence[Path], summaries: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the accuracy curves of run directories, with their summaries in the same order, into one figure."""
    shown = [run if sum(other.name == run.name for other in runs) > 1 else run.name for run in runs]
    matrices = {
        f"{summary['method']} ({name})": AccuracyMatrix.from_csv(run / "accuracy_matrix.csv")
        for summary, run, name in zip(summaries, runs, shown, strict=True)
    }
    compare_curves(matrices, path, "Accuracy on all classes seen")


def remarks(runs: Sequence[Path], summaries: Sequence[dict[str, Any]]) -> list[str]:
    """List the remarks, warnings and continuations of runs in sentences."""
    lines: list[str] = []
    for run, summary in zip(runs, summaries, strict=True):
        lines += [f"{run}: {text}" for text in summary.get("remarks", [])]
        lines += [f"{run}: warning: {text}" for text in summary.get("warnings", [])]
        if since := taught_since(run):
            lines.append(since)
    return lines
