"""Pictures of runs: PNG files 1200 pixels wide, accuracies in percent.

matplotlib is imported on first use and drawn through Agg figures: no window, no global state. Labels stand at
the lines they name; colours are told apart by colour-blind readers (Okabe and Ito's palette, a one-way heat
scale).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from ostinato.errors import InputError
from ostinato.evaluation.metrics import AccuracyMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 1200
"""Width of every picture in pixels."""

_DPI = 150
_INK = "#222222"
_MUTED = "#6b6b6b"
_RULE = "#d9d9d9"
_BLUE = "#0072B2"
_VERMILION = "#D55E00"
_PALETTE = (_BLUE, _VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_POINTS = 72 / _DPI  # points per pixel


def accuracy_curve(
    matrix: AccuracyMatrix,
    path: str | Path,
    title: str,
    task_incremental: Sequence[float | None] | None = None,
) -> None:
    """Draw how accuracy goes as tasks are learned.

    A bold line for all classes seen, thin grey lines for each task's own test samples.

    Args:
        matrix: with at least one row.
        path: PNG to write; folders are made as needed.
        title: of the picture; any text.
        task_incremental: (R,) fractions per row when the true task is given, drawn as a dashed line; None
            where not measured.

    Raises:
        InputError: if the matrix is empty or ``task_incremental`` does not have an entry per row.
    """
    _check_rows("accuracy_curve", matrix)
    if task_incremental is not None and len(task_incremental) != matrix.n_rows:
        raise InputError(
            f"accuracy_curve: task_incremental must have an entry per row of the matrix ({matrix.n_rows}), "
            f"got {len(task_incremental)}; use None for rows that were not measured."
        )
    x = _learned(matrix)
    lines = [_Line("all classes seen", x, _all_seen(matrix), _BLUE, width=2.8, zorder=5)]
    subtitle = "bold: test samples of all classes seen so far   |   thin grey: test samples of one task each"
    if matrix.n_tasks == 1:
        subtitle = "test samples of all classes seen so far"
    if task_incremental is not None:
        y = 100 * np.array([math.nan if v is None else v for v in task_incremental], dtype=float)
        lines.append(_Line("true task given", x, y, _VERMILION, width=1.8, dashes=_DASHES[1], zorder=4))

    figure, axes = _line_axes(title, subtitle, 720)
    values = 100 * matrix.values()
    if matrix.n_tasks > 1:
        for i in range(matrix.n_tasks):
            start = matrix.first_row(i)
            width, marker = (0.9, "o") if matrix.n_tasks <= 25 else (0.6, "")
            axes.plot(
                x[start:],
                values[start:, i],
                color="#b4b4b4",
                lw=width,
                marker=marker,
                ms=1.6,
                clip_on=False,
                zorder=2,
            )
    _draw_lines(figure, axes, lines, first_label=matrix.n_rows > 1)
    _save(figure, path)


def compare_curves(matrices: Mapping[str, AccuracyMatrix], path: str | Path, title: str) -> None:
    """Draw the accuracy on all classes seen of several runs, one line each, named at its end.

    Args:
        matrices: name of each run to its matrix; runs may differ in length. Names beyond 30 characters are
            cut in the middle.
        path: PNG to write; folders are made as needed.
        title: of the picture; any text.

    Raises:
        InputError: if there is no run or a matrix is empty.
    """
    if not matrices:
        raise InputError("compare_curves: there must be at least one run to draw, got none.")
    for name, matrix in matrices.items():
        _check_rows(f"compare_curves, run {name!r}", matrix)
    lines = [
        _Line(
            name,
            _learned(matrix),
            _all_seen(matrix),
            _PALETTE[i % len(_PALETTE)],
            width=2.0,
            dashes=_DASHES[i // len(_PALETTE) % len(_DASHES)],
            zorder=4,
        )
        for i, (name, matrix) in enumerate(matrices.items())
    ]
    figure, axes = _line_axes(title, "test samples of all classes seen so far", max(720, 190 + 26 * len(lines)))
    _draw_lines(figure, axes, lines)
    _save(figure, path)


def accuracy_heatmap(
    matrix: AccuracyMatrix,
    path: str | Path,
    title: str,
    task_labels: Sequence[str] | None = None,
) -> None:
    """Draw the accuracy matrix: a row per evaluation, a column per task, brighter is better.

    Numbers stand in the cells up to 20 tasks. The scale always runs from 0 to 100%, so that pictures compare.

    Args:
        matrix: with at least one row.
        path: PNG to write; folders are made as needed.
        title: of the picture; any text.
        task_labels: (T,) names of the tasks; 0, 1, ... if None. Names beyond 24 characters are cut in the
            middle.

    Raises:
        InputError: if the matrix is empty or there is not a label per task.
    """
    _check_rows("accuracy_heatmap", matrix)
    n_tasks, n_rows = matrix.n_tasks, matrix.n_rows
    labels = [str(i) for i in range(n_tasks)] if task_labels is None else [_cut(str(v), 24) for v in task_labels]
    if len(labels) != n_tasks:
        raise InputError(
            f"accuracy_heatmap: task_labels must have an entry per task ({n_tasks}), got {len(labels)}; "
            "leave them out to number the tasks."
        )
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure = _figure(WIDTH)
    widest = max(_text_width(figure, label, 8.5) for label in labels)
    step = _tick_step(n_tasks, 25)
    # Everything is placed in pixels: left labels, cells as large as fit, colour bar, right margin.
    left, right = 90 + widest, 150
    cell = min(150.0, (WIDTH - left - right) / n_tasks)
    upright = widest > 0.85 * cell * step
    below = 66 + (widest if upright else 22)
    above = 84 + 34 * _title_lines(title)
    width, height = cell * n_tasks, max(cell * n_rows, 1.0)
    bar_height = max(height, 190.0)
    total = round(above + bar_height + below)
    left += max(0.0, (WIDTH - left - right - width) / 2)
    figure.set_size_inches(WIDTH / _DPI, total / _DPI)

    top = below + (bar_height - height) / 2
    axes = figure.add_axes((left / WIDTH, top / total, width / WIDTH, height / total))
    colours, norm = colormaps["viridis"], Normalize(0, 100)
    values = 100 * matrix.values()
    axes.pcolormesh(
        np.ma.masked_invalid(values),
        cmap=colours,
        norm=norm,
        edgecolors="white",
        linewidth=1.2 if n_tasks <= 20 else 0.4,
    )
    axes.set_xlim(0, n_tasks)
    axes.set_ylim(n_rows, 0)
    if n_tasks <= 20:
        size = min(11.0, 0.34 * cell * _POINTS if n_tasks <= 12 else 0.42 * cell * _POINTS)
        for r, row in enumerate(matrix.correct):
            for i in range(len(row)):
                missing = math.isnan(values[r, i])
                text = "-" if missing else f"{values[r, i]:.1f}" if n_tasks <= 12 else f"{values[r, i]:.0f}"
                ink = _MUTED if missing else _ink_on(colours(norm(values[r, i])))
                axes.text(i + 0.5, r + 0.5, text, ha="center", va="center", fontsize=size, color=ink)
    rows = [r for r, row in enumerate(matrix.correct) if n_rows <= 25 or (len(row) - 1) % step == 0]
    columns = range(0, n_tasks, step)
    rotation: dict[str, Any] = {"rotation": 90, "va": "top"} if upright else {}
    axes.set_xticks([i + 0.5 for i in columns], [labels[i] for i in columns], parse_math=False, **rotation)
    axes.set_yticks([r + 0.5 for r in rows], [labels[len(matrix.correct[r]) - 1] for r in rows], parse_math=False)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=_INK, pad=5)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("test samples of task", fontsize=10, color=_INK, labelpad=6)
    axes.set_ylabel("after learning task", fontsize=10, color=_INK, labelpad=8)

    bar_axes = figure.add_axes(((left + width + 34) / WIDTH, below / total, 18 / WIDTH, bar_height / total))
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=bar_axes, ticks=range(0, 101, 20))
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - Spine, typed as a SubplotSpec
    bar_axes.set_yticklabels([f"{v}%" for v in range(0, 101, 20)])
    bar_axes.tick_params(length=0, labelsize=8.5, labelcolor=_INK, pad=5)
    _titles(figure, title, "accuracy on each task's test samples, among all classes seen", total)
    _save(figure, path)


class _Line:
    """One curve: its points, and how it looks."""

    def __init__(
        self,
        name: str,
        x: np.ndarray,
        y: np.ndarray,
        colour: str,
        *,
        width: float,
        zorder: int,
        dashes: Any = "-",
    ) -> None:
        self.name, self.x, self.y, self.colour = _cut(name, 30), x, y, colour
        self.width, self.dashes, self.zorder = width, dashes, zorder

    def end(self) -> tuple[float, float] | None:
        """The last point that was measured."""
        known = np.flatnonzero(~np.isnan(self.y))
        return (float(self.x[known[-1]]), float(self.y[known[-1]])) if len(known) else None


def _check_rows(where: str, matrix: AccuracyMatrix) -> None:
    if not matrix.n_rows:
        raise InputError(f"{where}: the accuracy matrix must have at least one row, got none; learn a task first.")


def _learned(matrix: AccuracyMatrix) -> np.ndarray:
    """(R,) how many tasks were learned at each row."""
    return np.array([len(row) for row in matrix.correct])


def _all_seen(matrix: AccuracyMatrix) -> np.ndarray:
    """(R,) accuracy on all classes seen, in percent."""
    return np.array([100 * matrix.row_accuracy(r) for r in range(matrix.n_rows)])


def _figure(height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _line_axes(title: str, subtitle: str, height: int) -> tuple[Figure, Axes]:
    """A figure with room for titles, and axes from 0 to 100%."""
    total = height + 34 * (_title_lines(title) - 1)
    figure = _figure(total)
    left, below, above = 110, 84, total - height + 122
    axes = figure.add_axes((left / WIDTH, below / total, 0.8, (total - below - above) / total))
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20), [f"{v}%" for v in range(0, 101, 20)])
    axes.grid(axis="y", color=_RULE, lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_MUTED)
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=_INK, pad=6)
    axes.tick_params(axis="x", length=3, color=_MUTED, labelsize=9, labelcolor=_INK)
    axes.set_xlabel("tasks learned", fontsize=10, color=_INK)
    axes.set_ylabel("accuracy", fontsize=10, color=_INK)
    _titles(figure, title, subtitle, total)
    return figure, axes


def _draw_lines(figure: Figure, axes: Axes, lines: Sequence[_Line], *, first_label: bool = False) -> None:
    """Draw curves with a name and the last value at the right of each, none over another."""
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3, foreground="white")]
    low = min(int(line.x[0]) for line in lines)
    high = max(int(line.x[-1]) for line in lines)
    axes.set_xticks(_counts(low, high))

    ends = [(line, *end) for line in lines if (end := line.end())]
    size = 10.0
    texts = [f"{y:.1f}%  {line.name}" for line, _, y in ends]
    widest = max((_text_width(figure, text, size, bold=True) for text in texts), default=0.0)
    total = figure.get_size_inches()[1] * _DPI
    box = axes.get_position()
    gap, sample = 84.0, 34.0  # pixels from the axes to the names, and of the piece of line before each name
    width = WIDTH - box.x0 * WIDTH - gap - widest - 18
    axes.set_position((box.x0, box.y0, width / WIDTH, box.height))
    pixels = box.height * total / 100  # per percent
    room = 100 if first_label else 16  # pixels left of the first point
    pad = room / (width - room) * (high - low)
    axes.set_xlim(*((low - 0.5, high + 0.5) if low == high else (low - pad, high)))

    for line in lines:
        marker = "o" if len(line.x) <= 25 else ""
        axes.plot(
            line.x,
            line.y,
            color=line.colour,
            lw=line.width,
            ls=line.dashes,
            marker=marker,
            ms=2 + line.width,
            mec="white" if line.dashes == "-" else line.colour,
            mew=0.8,
            clip_on=False,
            zorder=line.zorder,
            solid_joinstyle="round",
        )
    places = _spread([y * pixels for _, _, y in ends], 24.0, -10.0, 100 * pixels + 10)
    for (line, x, y), place, text in zip(ends, places, texts, strict=True):
        colour = _darker(line.colour)
        start = axes.transData.transform((x, y))
        edge, floor = axes.transAxes.transform((1, 0))
        left, height = edge + gap, floor + place
        xs = (start[0] + 6, edge + 8, left - sample - 8, left - sample - 8, left - 8)
        ys = (start[1], start[1], height, height, height)
        points = figure.transFigure.inverted().transform(np.column_stack([xs, ys]))
        thin, bold = points[:3], points[3:]
        figure.add_artist(Line2D(thin[:, 0], thin[:, 1], color=line.colour, lw=0.8, alpha=0.5, zorder=1))
        figure.add_artist(Line2D(bold[:, 0], bold[:, 1], color=line.colour, lw=line.width, ls=line.dashes))
        position = figure.transFigure.inverted().transform((left, height))
        figure.text(
            float(position[0]),
            float(position[1]),
            text,
            fontsize=size,
            color=colour,
            va="center_baseline",
            fontweight="bold",
            parse_math=False,
        )
    if first_label and ends:
        line = lines[0]
        known = np.flatnonzero(~np.isnan(line.y))
        if len(known) > 1:
            axes.annotate(
                f"{line.y[known[0]]:.1f}%",
                (float(line.x[known[0]]), float(line.y[known[0]])),
                (-7, 0),
                textcoords="offset points",
                ha="right",
                va="center_baseline",
                fontsize=size,
                color=_darker(line.colour),
                fontweight="bold",
                path_effects=halo,
                zorder=9,
            )


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones in the same order, ``gap`` apart and in [low, high] if that fits."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], -i))
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    # Least-squares positions: merge neighbours that are too close into blocks that share their mean shift.
    blocks: list[list[float]] = []  # [sum of (wanted - offset), count]
    for rank, i in enumerate(order):
        blocks.append([wanted[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    shifts = [total / count for total, count in blocks for _ in range(int(count))]
    out = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        shift = min(max(shifts[rank], low), high - (len(order) - 1) * gap)
        out[i] = shift + rank * gap
    return out


def _titles(figure: Figure, title: str, subtitle: str, total: float) -> None:
    lines = _wrap(title)
    figure.text(
        24 / WIDTH,
        1 - 22 / total,
        "\n".join(lines),
        fontsize=13,
        fontweight="bold",
        color=_INK,
        va="top",
        linespacing=1.25,
        parse_math=False,
    )
    y = 1 - (26 + 34 * len(lines)) / total
    figure.text(24 / WIDTH, y, subtitle, fontsize=9, color=_MUTED, va="top", parse_math=False)


def _wrap(title: str) -> list[str]:
    return wrap(title, 66) or [""]


def _title_lines(title: str) -> int:
    return len(_wrap(title))


def _cut(text: str, limit: int) -> str:
    """A text on one line, its middle left out beyond ``limit`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit // 2] + "…" + text[-(limit - limit // 2 - 1) :]


def _text_width(figure: Figure, text: str, size: float, *, bold: bool = False) -> float:
    """Width of a text in pixels."""
    artist = figure.text(0, 0, text, fontsize=size, fontweight="bold" if bold else "normal", parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        width = artist.get_window_extent().width
    artist.remove()
    return width


def _tick_step(count: int, labels: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that leaves at most that many labels."""
    step = 1
    while count > labels * step:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return step


def _counts(low: int, high: int) -> list[int]:
    """Tick positions: both ends, and round numbers between them that do not crowd the ends."""
    step = _tick_step(high - low, 20)
    inner = range(low - low % step + step, high, step)
    return sorted({low, high, *(v for v in inner if 2 * min(v - low, high - v) >= step)})


def _ink_on(fill: tuple[float, float, float, float]) -> str:
    """White or dark ink, whichever has the larger contrast (WCAG 2 relative luminance) on a fill."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in fill[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / (0.016 + 0.05) else _INK


def _darker(colour: str) -> str:
    """A line's colour, darkened so that text in it is legible on white."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = to_rgb(colour)
    return to_hex((0.78 * red, 0.78 * green, 0.78 * blue))


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # a name in a script that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, format="png", dpi=_DPI, metadata={"Software": None})
