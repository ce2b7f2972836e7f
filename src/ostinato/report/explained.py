"""Files that explain the answers to labelled samples: confused classes, wrong answers, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.errors import InputError
from ostinato.evaluation.calibration import BINS
from ostinato.evaluation.confusion import Confusion, Pair, similarity_order, wrongest
from ostinato.evaluation.evaluator import Evaluation
from ostinato.files import write_json
from ostinato.report.drawing import BLUE, INK, MUTED, RULE, cut, new_figure, plain, save
from ostinato.report.figures import Panel, bare, heat_maps
from ostinato.report.tables import NOTHING, percent, write_csv
from ostinato.streams import LabeledDataset

MOST_DRAWN = 24
"""Largest number of classes in the figure of confusion, so that every name can be read."""

ON_SHEET, PER_ROW = 20, 5
"""Largest number of images on the contact sheet, and in a row of it."""

_THUMBNAIL = 256
"""Longer side of an image on the sheet, in pixels."""

_FILES = frozenset(
    f"{name}.{suffix}"
    for name, suffixes in {
        "classes": "csv", "confused": "csv", "confusion": "csv png", "wrong": "csv", "wrongest": "png",
        "calibration": "csv png", "report": "json",
    }.items()
    for suffix in suffixes.split()
)  # fmt: skip


@dataclass(frozen=True)
class Wrong:
    """A wrong answer.

    Attributes:
        sample: name of the sample.
        true: name of its class.
        predicted: name of the answer.
        probability: of the answer.
    """

    sample: str
    true: str
    predicted: str
    probability: float


def wrong_answers(samples: LabeledDataset, result: Evaluation, names: Sequence[str]) -> list[Wrong]:
    """List the wrong answers, the most probable first.

    Args:
        samples: in the order of ``result.answers``.
        result: of the samples.
        names: of the classes seen.
    """
    places, labels = wrongest(result), samples.labels.numpy()
    of_samples = samples.subset(places).names()
    return [
        Wrong(name, names[int(labels[i])], names[result.answers[i]], result.probabilities[i])
        for name, i in zip(of_samples, places, strict=True)
    ]


def report_folder(path: str | Path) -> Path:
    """Check that a folder can take a report; files of an earlier report are replaced.

    Raises:
        InputError: if it holds other files, or is a file.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(file.name not in _FILES for file in folder.iterdir())):
        raise InputError(f"out={folder} must be a new folder or one of an earlier report. Choose another name.")
    return folder


def write_report(
    folder: Path, samples: LabeledDataset, result: Evaluation, confusion: Confusion, summary: dict[str, Any]
) -> list[str]:
    """Write tables and figures of an evaluation into a folder of :func:`report_folder`.

    Args:
        folder: made if it does not exist.
        samples: scored, in the order of ``result.answers``.
        result: of the evaluation.
        confusion: of the same answers.
        summary: content of ``report.json``.

    Returns:
        Names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    wrong = wrong_answers(samples, result, confusion.names)
    _write_classes(folder / "classes.csv", confusion)
    pairs = confusion.pairs()
    write_csv(folder / "confused.csv", ("true", "predicted", "samples", "of"), map(_pair, pairs))
    write_csv(folder / "confusion.csv", ("true", *confusion.names), _matrix(confusion))
    draw_confusion(confusion, folder / "confusion.png")
    _write_wrong(folder / "wrong.csv", wrong, samples, result)
    if wrong and samples.modality == "image":
        draw_sheet(wrong[:ON_SHEET], samples, result, folder / "wrongest.png")
    _write_bins(folder / "calibration.csv", result)
    draw_calibration(result, folder / "calibration.png")
    write_json(folder / "report.json", summary)
    return sorted(name for name in _FILES if (folder / name).exists())


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _pair(pair: Pair) -> tuple[Any, ...]:
    return pair.true, pair.predicted, pair.count, pair.of


def _matrix(confusion: Confusion) -> list[list[Any]]:
    return [[name, *row] for name, row in zip(confusion.names, confusion.counts.tolist(), strict=True)]


def _write_classes(path: Path, confusion: Confusion) -> None:
    rows = (
        (one.name, one.samples, one.answered, one.right, _digits(one.recall), _digits(one.precision))
        for one in confusion.classes()
    )
    write_csv(path, ("class", "samples", "answered", "right", "recall", "precision"), rows)


def _write_wrong(path: Path, wrong: Sequence[Wrong], samples: LabeledDataset, result: Evaluation) -> None:
    """Write all wrong answers; those to texts with the text."""
    texts = [(samples.raw(i),) for i in wrongest(result)] if samples.modality == "text" else [()] * len(wrong)
    rows = ((w.sample, w.true, w.predicted, _digits(w.probability), *t) for w, t in zip(wrong, texts, strict=True))
    write_csv(path, ("sample", "true", "predicted", "probability", *(["text"] * bool(texts and texts[0]))), rows)


def _write_bins(path: Path, result: Evaluation) -> None:
    rows = [
        (kind, _digits(b / BINS), _digits((b + 1) / BINS), int(n), *(_digits(s / n if n else None) for s in sums))
        for kind, bins in zip(("softmax", "probability"), result.bins, strict=False)
        for b, (n, *sums) in enumerate(bins)
    ]
    write_csv(path, ("of", "above", "up_to", "samples", "mean", "accuracy"), rows)


def draw_confusion(confusion: Confusion, path: Path) -> None:
    """Draw the share of each class's samples with each answer, classes that are confused beside each other.

    Of more than :data:`MOST_DRAWN` classes with samples or answers, those with the most wrong answers are drawn.
    """
    counts = confusion.counts
    shown = np.flatnonzero(counts.sum(1) + counts.sum(0))
    subtitle = "share of the samples of a class (row) with each answer (column); no cell where there is none"
    if len(shown) > MOST_DRAWN:
        wrong = counts.sum(1) + counts.sum(0) - 2 * np.diag(counts)
        subtitle = f"the {MOST_DRAWN} classes of {len(shown)} with the most wrong answers; confusion.csv has all"
        shown = np.sort(shown[np.argsort(-wrong[shown], kind="stable")[:MOST_DRAWN]])
    order = shown[similarity_order(confusion.similarity()[np.ix_(shown, shown)])]
    of = counts.sum(1, keepdims=True)
    cells = counts[np.ix_(order, order)]
    values = np.ma.array(100 * cells / np.maximum(of[order], 1), mask=(cells == 0) & ~np.eye(len(order), dtype=bool))
    values[np.flatnonzero(of[order, 0] == 0)] = np.ma.masked
    names = [cut(confusion.names[int(c)], 20) for c in order]
    panel = Panel(values, names, names, unit="%", top=100, digits=0)
    heat_maps([panel], path, "Confused classes", subtitle, across="answer", down="class")


def draw_sheet(wrong: Sequence[Wrong], samples: LabeledDataset, result: Evaluation, path: Path) -> None:
    """Draw the images of the first wrong answers of :func:`wrong_answers`, with names and probabilities below.

    Args:
        wrong: at least one, as many as are drawn.
        samples: images, in the order of ``result.answers``.
        result: of the samples.
        path: file to write.
    """
    rows = -(-len(wrong) // PER_ROW)
    n, total = sum(not right for right in result.right), len(samples)
    subtitle = f"{len(wrong)} of {n} wrong answers to {total} images, the most probable first"
    figure, content = new_figure("Most confident wrong answers", subtitle, 0.8 + 2.1 * rows)
    grid = list(content.subplots(rows, PER_ROW, squeeze=False).flat)
    for axes, one, i in zip(grid, wrong, wrongest(result), strict=False):
        image = samples.raw(i).convert("RGB")
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        answer = f"answer {cut(one.predicted, 14)} {percent(one.probability)}%"
        bare(axes, f"{answer}\nclass {cut(one.true, 20)}\n{cut(one.sample, 26)}").imshow(np.asarray(image))
    for axes in grid[len(wrong) :]:
        axes.set_axis_off()
    save(figure, path)


def draw_calibration(result: Evaluation, path: Path) -> None:
    """Draw the accuracy of answers against their probability, and the number of answers in each bin."""
    calibrated = result.calibration_error is not None
    error = result.calibration_error if calibrated else result.uncalibrated_error
    subtitle = f"expected calibration error {NOTHING if error is None else percent(error)} points"
    if calibrated:
        subtitle += f"; grey: the softmax before calibration, {percent(result.uncalibrated_error)} points"
    figure, content = new_figure("Probability and accuracy of answers", subtitle, 6.2)
    above, below = content.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 100], [0, 100], color=RULE, lw=1.5, zorder=1)
    looks = [(MUTED, 1.2, 3), (BLUE, 2.4, 5)] if calibrated else [(BLUE, 2.4, 5)]
    for bins, (colour, width, zorder) in zip(result.bins, looks, strict=True):
        n, probability, right = np.array(bins).T
        some = n > 0
        x, y = 100 * probability[some] / n[some], 100 * right[some] / n[some]
        above.plot(x, y, color=colour, lw=width, marker="o", ms=2 + 2 * width, mec="white", zorder=zorder)
    counts = np.array(result.bins[-1])[:, 0]
    below.bar((np.arange(BINS) + 0.5) * 100 / BINS, counts, width=0.85 * 100 / BINS, color=BLUE)
    ticks, labels = range(0, 101, 20), [f"{v}%" for v in range(0, 101, 20)]
    for axes, name in ((above, "accuracy"), (below, "answers")):
        plain(axes)
        axes.grid(axis="y", color=RULE, lw=0.8)
        axes.set_ylabel(name, fontsize=10, color=INK)
    above.set_yticks(ticks, labels)
    above.set(xlim=(0, 100.5), ylim=(0, 101))
    below.set_xticks(ticks, labels)
    below.set_xlabel("probability of the answer" if calibrated else "softmax of the scores", fontsize=10, color=INK)
    save(figure, path)
