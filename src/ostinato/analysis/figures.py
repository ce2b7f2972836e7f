"""Pictures of analyses, in the style of :mod:`ostinato.report.plots`; everything is placed in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ostinato.report.plots import (
    _BLUE,
    _DASHES,
    _DPI,
    _INK,
    _MUTED,
    _PALETTE,
    _RULE,
    WIDTH,
    _cut,
    _draw_lines,
    _figure,
    _ink_on,
    _Line,
    _line_axes,
    _save,
    _text_width,
    _tick_step,
    _title_lines,
    _titles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """A heat map.

    Attributes:
        values: (R, C); NaN stays white.
        down: labels of the rows.
        across: labels of the columns.
        title: above the map; may be empty.
        unit: behind the numbers of the colour bar.
        top: upper end of the colour scale, which begins at 0; None for the largest value.
    """

    values: np.ndarray
    down: Sequence[str]
    across: Sequence[str]
    title: str = ""
    unit: str = ""
    top: float | None = None


@dataclass(frozen=True)
class Series:
    """A line of accuracies.

    Attributes:
        name: may be empty where there is only one.
        x: (n,) positions, whole numbers.
        last: (n,) fractions.
        given: (n,) fractions where the true task is given; NaN where unknown.
    """

    name: str
    x: np.ndarray
    last: np.ndarray
    given: np.ndarray


@dataclass(frozen=True)
class Looked:
    """An image and where was looked at in it.

    Attributes:
        image: (S, S, 3) uint8.
        name: of the file.
        label: predicted class.
        weights: (L, rows, columns), fractions of all attention.
    """

    image: np.ndarray
    name: str
    label: str
    weights: np.ndarray


def _top(title: str) -> float:
    """Pixels above the content."""
    return 84 + 34 * _title_lines(title)


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes by their distance from the upper left corner, in pixels."""
    total = figure.get_size_inches()[1] * _DPI
    return figure.add_axes((left / WIDTH, (total - top - height) / total, width / WIDTH, height / total))


def heat_maps(
    panels: Sequence[Panel],
    path: str | Path,
    title: str,
    subtitle: str,
    *,
    across: str,
    down: str,
    per_row: int = 1,
) -> None:
    """Draw heat maps in a grid, each with its own colour scale from 0 on.

    Numbers stand in the cells where they fit.

    Args:
        panels: at least one.
        path: PNG to write.
        title: of the picture.
        subtitle: under it.
        across: what the columns are.
        down: what the rows are.
        per_row: panels side by side.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    probe = _figure(WIDTH)
    widest = max(_text_width(probe, label, 8.5) for panel in panels for label in panel.down)
    left, right, above, below = 70 + widest, 132, 34 if any(panel.title for panel in panels) else 6, 74
    share = WIDTH / per_row
    cells = []
    for panel in panels:
        width = min(120.0, (share - left - right) / panel.values.shape[1])
        cells.append((width, min(width, max(22.0, 660 / panel.values.shape[0]), 80.0)))
    lines = [range(i, min(i + per_row, len(panels))) for i in range(0, len(panels), per_row)]
    heights = [max(max(cells[i][1] * panels[i].values.shape[0], 120.0) for i in line) for line in lines]
    head = _top(title)
    total = round(head + sum(heights) + len(lines) * (above + below))
    figure = _figure(total)
    colours, y = colormaps["viridis"], head
    for line, height in zip(lines, heights, strict=True):
        y += above
        for place, i in enumerate(line):
            panel, (w, h) = panels[i], cells[i]
            rows, columns = panel.values.shape
            known = panel.values[~np.isnan(panel.values)]
            top = panel.top if panel.top is not None else float(known.max()) if known.size else 1.0
            norm = Normalize(0, top if top > 0 else 1.0)
            x = place * share + left
            axes = _place(figure, x, y, w * columns, h * rows)
            edge = 1.0 if max(rows, columns) <= 25 else 0.3
            axes.pcolormesh(
                np.ma.masked_invalid(panel.values), cmap=colours, norm=norm, edgecolors="white", linewidth=edge
            )
            axes.set_ylim(rows, 0)
            axes.set_xticks(*_labels(panel.across, w, 30), parse_math=False)
            axes.set_yticks(*_labels(panel.down, h, 16), parse_math=False)
            axes.tick_params(length=0, labelsize=8.5, labelcolor=_INK, pad=5)
            axes.spines[:].set_visible(False)
            axes.set_xlabel(across, fontsize=10, color=_INK, labelpad=6)
            if place == 0:
                axes.set_ylabel(down, fontsize=10, color=_INK, labelpad=8)
            if panel.title:
                axes.set_title(panel.title, fontsize=10, color=_INK, loc="left", pad=6)
            texts = [[_number(v, norm.vmax or 1.0) for v in row] for row in panel.values]
            if h >= 20 and max(_text_width(figure, t, 8) for row in texts for t in set(row)) < 0.92 * w:
                for r, row in enumerate(texts):
                    for c, text in enumerate(row):
                        value = panel.values[r, c]
                        ink = _MUTED if math.isnan(value) else _ink_on(colours(norm(value)))
                        axes.text(c + 0.5, r + 0.5, text, ha="center", va="center", fontsize=8, color=ink)
            bar_axes = _place(figure, x + w * columns + 22, y, 14, max(h * rows, 100.0))
            bar = figure.colorbar(ScalarMappable(norm, colours), cax=bar_axes)
            bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - Spine, typed as a SubplotSpec
            bar_axes.yaxis.set_major_formatter(
                lambda v, _, unit=panel.unit: f"{v:.1e}{unit}" if 0 < v < 1e-3 else f"{v:g}{unit}"
            )
            bar_axes.tick_params(length=0, labelsize=8.5, labelcolor=_INK, pad=5)
        y += height + below
    _titles(figure, title, subtitle, total)
    _save(figure, path)


def histograms(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    edges: np.ndarray,
    path: str | Path,
    title: str,
    subtitle: str,
    *,
    across: str,
) -> None:
    """Draw histograms over shared bins: a panel per layer, a line per map, logarithmic upwards.

    Args:
        panels: title of the panel to name of the line to shares (bins,).
        edges: (bins + 1,).
        path: PNG to write.
        title: of the picture.
        subtitle: under it.
        across: what the bins are of.
    """
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    left, right, height, gap, head = 96, 24, 250, 84, _top(title) + 50
    figure = _figure(head + lines * (height + gap))
    width = (WIDTH - columns * left - right) / columns
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    colours = {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(names)}
    shares = np.concatenate([line for panel in panels.values() for line in panel.values()])
    low, high = float(shares[shares > 0].min()) / 2, float(shares.max()) * 1.6
    axes = None
    for i, (name, panel) in enumerate(panels.items()):
        row, column = divmod(i, columns)
        axes = _place(figure, left + column * (left + width), head + row * (height + gap), width, height)
        for part, line in panel.items():
            axes.stairs(np.where(line > 0, line, np.nan), edges, color=colours[part], lw=1.6, label=part, baseline=None)
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.set_xlim(float(edges[0]), float(edges[-1]))
        axes.grid(axis="y", color=_RULE, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_MUTED)
        axes.tick_params(axis="y", which="both", length=0, labelsize=8.5, labelcolor=_INK)
        axes.tick_params(axis="x", length=3, color=_MUTED, labelsize=8.5, labelcolor=_INK)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(name, fontsize=10, color=_INK, loc="left", pad=6)
        axes.set_xlabel(across, fontsize=10, color=_INK)
    total = figure.get_size_inches()[1] * _DPI
    x = 24.0
    for name in names:
        figure.text(
            x / WIDTH, 1 - (head - 56) / total, name, fontsize=10, fontweight="bold", color=colours[name], va="top"
        )
        x += _text_width(figure, name, 10, bold=True) + 28
    _titles(figure, title, subtitle, total)
    _save(figure, path)


def bar_rows(rows: Mapping[str, np.ndarray], path: str | Path, title: str, subtitle: str, *, across: str) -> None:
    """Draw a row of bars per task, all on one scale.

    Args:
        rows: name to heights (M,), not negative, the same M for all.
        path: PNG to write.
        title: of the picture.
        subtitle: under it.
        across: what the bars are for.
    """
    probe = _figure(WIDTH)
    widest = max(_text_width(probe, _cut(name, 24), 10) for name in rows)
    left, height, gap, head = 60 + widest, 58, 26, _top(title)
    figure = _figure(head + len(rows) * (height + gap) + 60)
    top = max(max(float(row.max()) for row in rows.values()), 1e-9)
    for i, (name, row) in enumerate(rows.items()):
        axes = _place(figure, left, head + i * (height + gap), WIDTH - left - 90, height)
        axes.bar(np.arange(len(row)), row, width=0.8, color=_BLUE)
        axes.set_xlim(-0.6, len(row) - 0.4)
        axes.set_ylim(0, top)
        axes.yaxis.tick_right()
        axes.set_yticks([0, top], ["0", f"{top:.2g}"])
        step = _tick_step(len(row), 30)
        ticks = range(0, len(row), step)
        axes.set_xticks(ticks, [str(t) for t in ticks] if i == len(rows) - 1 else [""] * len(ticks))
        axes.tick_params(length=0, labelsize=8.5, labelcolor=_INK, pad=4)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(_MUTED)
        axes.set_ylabel(_cut(name, 24), fontsize=10, color=_INK, rotation=0, ha="right", va="center", labelpad=10)
        if i == len(rows) - 1:
            axes.set_xlabel(across, fontsize=10, color=_INK)
    _titles(figure, title, subtitle, figure.get_size_inches()[1] * _DPI)
    _save(figure, path)


def placements(
    series: Sequence[Series], places: Sequence[str], path: str | Path, title: str, subtitle: str, *, across: str
) -> None:
    """Draw accuracies against places, a colour per series.

    Args:
        series: at least one.
        places: labels of the positions.
        path: PNG to write.
        title: of the picture.
        subtitle: under it.
        across: what the places are.
    """
    lines: list[_Line] = []
    for i, one in enumerate(series):
        colour = _PALETTE[i % len(_PALETTE)]
        lines.append(_Line(one.name or "last accuracy", one.x, 100 * one.last, colour, width=2.2, zorder=5))
        if not np.isnan(one.given).all():
            name = f"{_cut(one.name, 18)}, task given" if one.name else "true task given"
            lines.append(_Line(name, one.x, 100 * one.given, colour, width=1.6, dashes=_DASHES[1], zorder=4))
    figure, axes = _line_axes(title, subtitle, max(720, 190 + 26 * len(lines)))
    axes.set_xlabel(across, fontsize=10, color=_INK)
    _draw_lines(figure, axes, lines)
    crowded = sum(len(place) for place in places) > 70
    axes.set_xticks(range(len(places)), [_cut(place, 16) for place in places], rotation=35 if crowded else 0)
    _save(figure, path)


def attention_maps(looked: Sequence[Looked], path: str | Path, title: str, subtitle: str) -> None:
    """Draw images above each other, with a map per layer beside each.

    Args:
        looked: images and their maps.
        path: PNG to write.
        title: of the picture.
        subtitle: under it.
    """
    side, gap, left, size, below = 116, 7, 24, 77, 46
    start = left + side + 22
    per_line = int((WIDTH - left - start + gap) // (size + gap))
    depth = len(looked[0].weights)
    lines = -(-depth // per_line)
    block = max(side + 52, lines * (size + below)) + 14
    head = _top(title)
    figure = _figure(head + block * len(looked))
    for i, one in enumerate(looked):
        y = head + i * block
        axes = _bare(_place(figure, left, y, side, side))
        axes.imshow(one.image, interpolation="nearest")
        axes.set_xlabel(
            f"{_cut(one.name, 17)}\n{_cut(one.label, 17)}", fontsize=7.5, color=_INK, labelpad=4, parse_math=False
        )
        for layer, weights in enumerate(one.weights):
            row, column = divmod(layer, per_line)
            axes = _bare(_place(figure, start + column * (size + gap), y + row * (size + below), size, size))
            axes.imshow(weights, cmap="viridis", vmin=0, vmax=max(float(weights.max()), 1e-12), interpolation="nearest")
            axes.set_xlabel(f"layer {layer}\n{100 * float(weights.sum()):.0f}%", fontsize=7.5, color=_INK, labelpad=4)
    _titles(figure, title, subtitle, figure.get_size_inches()[1] * _DPI)
    _save(figure, path)


def _bare(axes: Axes) -> Axes:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def _labels(labels: Sequence[str], cell: float, least: float) -> tuple[list[float], list[str]]:
    """Middles of cells and their labels, as many as fit."""
    step = _tick_step(len(labels), max(1, int(len(labels) * cell / least)))
    shown = range(0, len(labels), step)
    return [i + 0.5 for i in shown], [labels[i] for i in shown]


def _number(value: float, top: float) -> str:
    """A cell's number, with three digits at the top of its scale unless that is tiny; "-" where it is unknown."""
    if math.isnan(value):
        return "-"
    if top < 0.01:
        return f"{value:.0e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(top)))}f}"
