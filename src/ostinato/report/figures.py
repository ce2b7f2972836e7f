"""Figures of analyses: heat maps, histograms, bars, placement curves, attention maps.

Each function writes a .png, .pdf or .svg file and raises InputError if the suffix is unknown. ``across`` labels the
horizontal axis, ``down`` the vertical one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ostinato.report.drawing import (
    BLUE,
    DASHES,
    INK,
    MUTED,
    PALETTE,
    RULE,
    WIDTH,
    Line,
    cut,
    draw_lines,
    ink_on,
    new_figure,
    plain,
    save,
    tick_step,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LARGEST_CELL = 0.8
"""Side of a heat map's cell, in inches."""

_LETTER = 0.075
"""Width of a letter of a tick's label, in inches."""


@dataclass(frozen=True)
class Panel:
    """A heat map.

    Attributes:
        values: (R, C); NaN is shown as "-", masked entries have no cell.
        down: row labels.
        across: column labels.
        title: title above the map; may be empty.
        unit: unit of the colour bar.
        top: upper end of the colour scale, which starts at 0; None for the largest value.
        digits: decimals of the numbers in cells; None for three significant digits at the top of the scale.
    """

    values: np.ndarray
    down: Sequence[str]
    across: Sequence[str]
    title: str = ""
    unit: str = ""
    top: float | None = None
    digits: int | None = None


@dataclass(frozen=True)
class Series:
    """A line of accuracies.

    Attributes:
        name: label; may be empty if there is only one series.
        x: (n,) positions, whole numbers.
        last: (n,) fractions.
        given: (n,) fractions with the true task given; NaN if unknown.
    """

    name: str
    x: np.ndarray
    last: np.ndarray
    given: np.ndarray


@dataclass(frozen=True)
class Looked:
    """An image with its attention maps.

    Attributes:
        image: (S, S, 3) uint8.
        name: file name.
        label: predicted class.
        weights: (L, rows, columns), fractions of all attention.
    """

    image: np.ndarray
    name: str
    label: str
    weights: np.ndarray


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
    """Draw at least one heat map in a grid with ``per_row`` columns, each with a colour scale from 0.

    Cells show numbers where they fit.
    """
    per_row = min(per_row, len(panels))
    rows = -(-len(panels) // per_row)
    most_down, most_across = (max(panel.values.shape[axis] for panel in panels) for axis in (0, 1))
    longest_down = max(len(label) for panel in panels for label in panel.down)
    longest_across = max(len(label) for panel in panels for label in panel.across)
    room = WIDTH / per_row - 1.5 - _LETTER * longest_down  # without labels and the colour bar
    side = min(_LARGEST_CELL, room / most_across, max(7 / most_down, 0.15))
    labels = 0.85 + _LETTER * longest_across * (_LETTER * longest_across > side)
    figure, content = new_figure(title, subtitle, 0.8 + rows * (max(side * most_down, 0.8) + labels), "compressed")
    grid = content.subplots(rows, per_row, squeeze=False).flat
    for axes, panel in zip(grid, panels, strict=False):
        _heat_map(axes, panel, side)
        axes.set_xlabel(across, fontsize=10, color=INK)
        axes.set_ylabel(down, fontsize=10, color=INK)
    for axes in list(grid)[len(panels) :]:
        axes.set_axis_off()
    save(figure, path)


def _heat_map(axes: Axes, panel: Panel, side: float) -> None:
    """Draw a panel with cells of ``side`` inches."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values = np.ma.array(panel.values, dtype=float)
    known = values.compressed()[~np.isnan(values.compressed())]
    top = panel.top if panel.top is not None else float(known.max()) if known.size else 1.0
    top = top if top > 0 else 1.0
    colours, norm = colormaps["viridis"], Normalize(0, top)
    rows, columns = values.shape
    edge = 1.0 if max(rows, columns) <= 25 else 0.3
    axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolors="white", linewidth=edge)
    axes.set_aspect("equal")
    axes.set_ylim(rows, 0)
    across, down = _shown(columns, side, 0.2), _shown(rows, side, 0.15)
    upright = _LETTER * max(map(len, panel.across)) > side * across.step
    axes.set_xticks(
        [i + 0.5 for i in across], [panel.across[i] for i in across], parse_math=False, rotation=90 if upright else 0
    )
    axes.set_yticks([i + 0.5 for i in down], [panel.down[i] for i in down], parse_math=False)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK, pad=5)
    axes.spines[:].set_visible(False)
    axes.set_title(panel.title, fontsize=10, color=INK, loc="left")
    texts = [[_number(value, top, panel.digits) for value in row] for row in values.filled(math.nan)]
    size = min(11.0, 0.9 * 72 * side / (0.65 * max(len(text) for row in texts for text in row)), 0.4 * 72 * side)
    if size >= 5.5:
        for (r, c), hidden in np.ndenumerate(np.ma.getmaskarray(values)):
            if not hidden:
                value = float(values.data[r, c])
                ink = MUTED if math.isnan(value) else ink_on(colours(norm(value)))
                axes.text(c + 0.5, r + 0.5, texts[r][c], ha="center", va="center", fontsize=size, color=ink)
    bar = axes.figure.colorbar(ScalarMappable(norm, colours), ax=axes, aspect=24, pad=0.02)
    bar.ax.spines[:].set_visible(False)
    bar.ax.yaxis.set_major_formatter(lambda v, _: f"{v:.1e}{panel.unit}" if 0 < v < 1e-3 else f"{v:g}{panel.unit}")
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=INK, pad=5)


def _shown(labels: int, side: float, least: float) -> range:
    """Indices of the cell labels to show, at least ``least`` inches apart."""
    return range(0, labels, tick_step(labels, max(1, int(labels * side / least))))


def histograms(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    edges: np.ndarray,
    path: str | Path,
    title: str,
    subtitle: str,
    *,
    across: str,
) -> None:
    """Draw histograms over shared bins on a logarithmic scale: a panel per layer, a line per map.

    ``panels`` has shares (bins,) by panel title and line name; ``edges`` is (bins + 1,).
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, content = new_figure(title, subtitle, 1.2 + 2.2 * rows)
    grid = list(content.subplots(rows, columns, squeeze=False, sharey=True).flat)
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    shares = np.concatenate([line for panel in panels.values() for line in panel.values()])
    for axes, (name, panel) in zip(grid, panels.items(), strict=False):
        for part, line in panel.items():
            axes.stairs(np.where(line > 0, line, np.nan), edges, color=colours[part], lw=1.6, baseline=None)
        plain(axes)
        axes.set_yscale("log")
        axes.set_ylim(float(shares[shares > 0].min()) / 2, float(shares.max()) * 1.6)
        axes.set_xlim(float(edges[0]), float(edges[-1]))
        axes.grid(axis="y", color=RULE, lw=0.8)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(name, fontsize=10, color=INK, loc="left")
        axes.set_xlabel(across, fontsize=10, color=INK)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    from matplotlib.lines import Line2D

    samples = [Line2D([], [], color=colours[name], lw=2.4) for name in names]
    figure.legend(samples, names, loc="outside lower left", ncols=8, frameon=False, fontsize=10)
    save(figure, path)


def bar_rows(
    rows: Mapping[str, np.ndarray], path: str | Path, title: str, subtitle: str, *, across: str, first: int = 0
) -> None:
    """Draw a row of bars per task on one scale.

    Args:
        rows: heights (M,), not negative, by name.
        path: file to write.
        title: title of the figure.
        subtitle: line below it.
        across: name of the bars.
        first: number of the first bar.
    """
    figure, content = new_figure(title, subtitle, 1.3 + 0.55 * len(rows))
    grid = content.subplots(len(rows), 1, squeeze=False, sharex=True, sharey=True).flat
    top = max(max(float(row.max()) for row in rows.values()), 1e-9)
    for axes, (name, row) in zip(grid, rows.items(), strict=True):
        axes.bar(first + np.arange(len(row)), row, width=0.8, color=BLUE)
        plain(axes)
        axes.set_xlim(first - 0.6, first + len(row) - 0.4)
        axes.set_ylim(0, top)
        axes.yaxis.tick_right()
        axes.set_yticks([0, top], ["0", f"{top:.2g}"])
        axes.set_xticks(range(first, first + len(row), tick_step(len(row), 30)))
        axes.tick_params(length=0)
        axes.set_ylabel(cut(name, 24), fontsize=10, color=INK, rotation=0, ha="right", va="center", parse_math=False)
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel(across, fontsize=10, color=INK)
    save(figure, path)


def placements(
    series: Sequence[Series], places: Sequence[str], path: str | Path, title: str, subtitle: str, *, across: str
) -> None:
    """Draw accuracies against labelled positions, a colour per series."""
    lines: list[Line] = []
    for i, s in enumerate(series):
        colour = PALETTE[i % len(PALETTE)]
        lines.append(Line(s.name or "last accuracy", s.x, 100 * s.last, colour, width=2.2, zorder=5))
        if not np.isnan(s.given).all():
            name = f"{cut(s.name, 18)}, task given" if s.name else "true task given"
            lines.append(Line(name, s.x, 100 * s.given, colour, width=1.6, dashes=DASHES[1]))
    draw_lines(lines, path, title, subtitle, across=across, places=places)


def attention_maps(looked: Sequence[Looked], path: str | Path, title: str, subtitle: str) -> None:
    """Draw images above each other, each beside its attention map per layer."""
    depth = len(looked[0].weights)
    per_line = min(depth, 12)
    lines = -(-depth // per_line)
    span = min(lines, 2)  # size of an image in rows and columns of maps
    side = (WIDTH - 0.6) / (span + per_line)
    figure, content = new_figure(title, subtitle, 0.8 + len(looked) * lines * (side + 0.4))
    grid = content.add_gridspec(len(looked) * lines, span + per_line)
    for i, image in enumerate(looked):
        place = grid[i * lines : i * lines + span, :span]
        axes = bare(content.add_subplot(place), f"{cut(image.name, 17)}\n{cut(image.label, 17)}")
        axes.imshow(image.image, interpolation="nearest")
        for layer, weights in enumerate(image.weights):
            row, column = divmod(layer, per_line)
            below = f"layer {layer}\n{100 * float(weights.sum()):.0f}%"
            axes = bare(content.add_subplot(grid[i * lines + row, span + column]), below)
            axes.imshow(weights, cmap="viridis", vmin=0, vmax=max(float(weights.max()), 1e-12), interpolation="nearest")
    save(figure, path)


def bare(axes: Axes, below: str) -> Axes:
    """Remove the frame of axes, and write a text below."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(below, fontsize=7.5, color=INK, labelpad=4, parse_math=False)
    return axes


def _number(value: float, top: float, digits: int | None) -> str:
    """Format the number of a cell; "-" for NaN."""
    if math.isnan(value):
        return "-"
    if digits is not None:
        return f"{value:.{digits}f}"
    if top < 0.01:
        return f"{value:.0e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(top)))}f}"


def radar(values: Mapping[str, np.ndarray], rays: Sequence[str], path: str | Path, title: str, subtitle: str) -> None:
    """Draw a polygon per line over rays of equal angle, from the centre, 0 %, to 100 %.

    Args:
        values: (R,) fractions by the line's name; NaN leaves a gap.
        rays: R labels of the rays.
        path: file to write.
        title: title of the figure.
        subtitle: text below the title.
    """
    figure, content = new_figure(title, subtitle, 6.2 + 0.2 * len(values))
    axes = content.subplots(subplot_kw={"projection": "polar"})
    angles = np.linspace(0, 2 * np.pi, len(rays), endpoint=False)
    closed = [*range(len(rays)), 0]
    for i, (name, accuracy) in enumerate(values.items()):
        colour, dashes = PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)]
        axes.plot(angles[closed], 100 * accuracy[closed], color=colour, ls=dashes, lw=2, marker="o", ms=4,
                  label=cut(name, 60))  # fmt: skip
    axes.set_xticks(angles, [cut(ray, 24) for ray in rays], fontsize=9, color=INK)
    axes.set_ylim(0, 100)
    axes.set_yticks(range(20, 101, 20), [f"{v}%" for v in range(20, 101, 20)], fontsize=8, color=MUTED)
    axes.grid(color=RULE, lw=0.8)
    axes.spines["polar"].set_color(RULE)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), fontsize=9, frameon=False, labelcolor=INK)
    save(figure, path)
