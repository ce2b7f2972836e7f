"""Shared parts of figures: layout, colours, titles, curves with labels at their ends, files.

Matplotlib is imported on first use, without a window or global state. Its constrained layout places axes, labels and
titles; the height of a figure follows from its content. The colours suit colour-blind readers (Okabe and Ito's palette,
viridis).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ostinato.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

WIDTH = 8.0
"""Width of figures in inches."""

DPI = 150
"""Pixels per inch of PNG files."""

INK = "#222222"
MUTED = "#6b6b6b"
RULE = "#d9d9d9"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PALETTE = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

# No dates, so that files of the same figure are equal.
_FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
}

_ROW = 0.16
"""Height of a line of text in inches, with spacing."""

_AROUND_AXES = 1.5
"""Height of titles and axis labels in inches."""


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: label at its end.
        x: (n,) positions.
        y: (n,) percent; NaN if unknown.
        colour: colour of the line.
        width: line width in points.
        dashes: line style of matplotlib.
        zorder: lines with a larger number are drawn over others.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    width: float = 2.0
    dashes: Any = "-"
    zorder: int = 4


def picture_path(path: str | Path) -> Path:
    """Check the suffix of a figure's file.

    Raises:
        InputError: if the suffix is unknown or absent.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"The file of a figure must end in {', '.join(_FORMATS)}, got {str(path)!r}.")
    return path


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the suffix; folders are made as needed.

    Raises:
        InputError: if the suffix is unknown or absent.
    """
    from matplotlib import rc_context

    path = picture_path(path)
    suffix = path.suffix.lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed salt replaces random names, so that SVG files of the same figure are equal.
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "ostinato"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # drawn as boxes
        figure.savefig(path, format=suffix[1:], dpi=DPI, metadata=_FORMATS[suffix])


def new_figure(
    title: str, subtitle: str, height: float, layout: Literal["constrained", "compressed"] = "constrained"
) -> tuple[Figure, SubFigure]:
    """Make a figure with its titles.

    Args:
        title: title, wrapped if long.
        subtitle: small text below the title.
        height: height in inches with a title of one line.
        layout: "compressed" for axes with square cells.

    Returns:
        The figure, and the part below the titles for the axes.
    """
    from matplotlib.figure import Figure
    from matplotlib.transforms import blended_transform_factory

    lines = wrap(title, 66) or [""]
    figure = Figure((WIDTH, height + 0.23 * (len(lines) - 1)), DPI, facecolor="white")
    figure.set_layout_engine(layout, w_pad=0.08, h_pad=0.05)
    left: dict[str, Any] = {"x": 0.02, "ha": "left", "parse_math": False}
    figure.suptitle("\n".join(lines), fontsize=13, fontweight="bold", color=INK, linespacing=1.25, **left)
    content = figure.add_subfigure(figure.add_gridspec(1, 1)[0, 0])
    below = content.suptitle(subtitle, fontsize=9, color=MUTED, **left)
    # The compressed layout makes the content narrower than the figure.
    below.set_transform(blended_transform_factory(figure.transFigure, content.transSubfigure))
    return figure, content


def plain(axes: Axes) -> None:
    """Remove the frame except the bottom line, and colour the labels."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", which="both", length=0, labelsize=8.5, labelcolor=INK)
    axes.tick_params(axis="x", length=3, color=MUTED, labelsize=8.5, labelcolor=INK)


def draw_lines(
    lines: Sequence[Line],
    path: str | Path,
    title: str,
    subtitle: str,
    *,
    across: str,
    places: Sequence[str] | None = None,
    behind: Sequence[Line] = (),
    first_label: bool = False,
) -> None:
    """Draw accuracy curves, each with its name and last value at its end, without overlap.

    Args:
        lines: at least one curve.
        path: file to write.
        title: title of the figure.
        subtitle: text below the title.
        across: label of the horizontal axis.
        places: labels of the positions 0, 1, ...; None numbers them.
        behind: thin lines without labels.
        first_label: label the first value of the first line.
    """
    height = max(4.8, _AROUND_AXES + _ROW * (len(lines) + 2))
    figure, content = new_figure(title, subtitle, height)
    axes = content.subplots()
    plain(axes)
    axes.grid(axis="y", color=RULE, lw=0.8)
    axes.set_xlabel(across, fontsize=10, color=INK)
    axes.set_ylabel("accuracy", fontsize=10, color=INK)
    axes.set_yticks(range(0, 101, 20), [f"{v}%" for v in range(0, 101, 20)])
    low, high = min(int(line.x[0]) for line in lines), max(int(line.x[-1]) for line in lines)
    if places is None:
        axes.set_xticks(tick_counts(low, high))
    else:
        crowded = sum(map(len, places)) > 70
        axes.set_xticks(range(len(places)), [cut(place, 16) for place in places], rotation=35 if crowded else 0)
    for line in [*behind, *lines]:
        marker = "o" if len(line.x) <= 25 else ""
        edge = "white" if line.dashes == "-" else line.colour
        axes.plot(
            line.x,
            line.y,
            color=line.colour,
            lw=line.width,
            ls=line.dashes,
            marker=marker,
            ms=min(2 + line.width, 2 * line.width),
            mec=edge,
            mew=0.8,
            clip_on=False,
            zorder=line.zorder,
            solid_joinstyle="round",
        )
    _names(figure, axes, lines, 100 * _ROW / (height - _AROUND_AXES))
    if first_label:
        _first_value(axes, lines[0])
    # Set after the curves, which would change the limits.
    axes.set_ylim(0, 100)
    axes.set_xlim(*((low - 0.5, high + 0.5) if low == high else (low - 0.02 * (high - low), high)))
    save(figure, path)


def _names(figure: Figure, axes: Axes, lines: Sequence[Line], gap: float) -> None:
    """Write names and last values to the right of the axes, at least ``gap`` percent apart."""
    from matplotlib.transforms import offset_copy

    known = [(line, np.flatnonzero(~np.isnan(line.y))) for line in lines]
    ends = [(line, float(line.x[rows[-1]]), float(line.y[rows[-1]])) for line, rows in known if len(rows)]
    # x in points right of the axes, y in percent: a leader, a line sample, the name.
    beside = axes.get_yaxis_transform()
    sample, edge, text = (offset_copy(beside, figure, x, units="points") for x in (28, 44, 48))
    for (line, x, y), place in zip(ends, spread([y for _, _, y in ends], gap, 0.0, 100.0), strict=True):
        there: dict[str, Any] = {"xytext": (1, place), "annotation_clip": False}
        thin = {"arrowstyle": "-", "color": line.colour, "lw": 0.8, "alpha": 0.5, "shrinkA": 2, "shrinkB": 3}
        bold = thin | {"lw": line.width, "ls": line.dashes, "alpha": 1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x, y), textcoords=sample, arrowprops=thin, **there)
        axes.annotate("", (1, place), xycoords=sample, textcoords=edge, arrowprops=bold, **there)
        axes.annotate(
            f"{y:.1f}%  {cut(line.name, 30)}",
            (x, y),
            textcoords=text,
            va="center",
            fontsize=10,
            fontweight="bold",
            color=_darker(line.colour),
            parse_math=False,
            **there,
        )


def _first_value(axes: Axes, line: Line) -> None:
    from matplotlib.patheffects import withStroke

    known = np.flatnonzero(~np.isnan(line.y))
    if len(known) > 1:
        axes.annotate(
            f"{line.y[known[0]]:.1f}%",
            (float(line.x[known[0]]), float(line.y[known[0]])),
            (0, 7),
            textcoords="offset points",
            fontsize=10,
            fontweight="bold",
            color=_darker(line.colour),
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=9,
        )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions at least ``gap`` apart within [low, high], in the same order; a smaller gap if they do not fit."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], -i))
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    # Least-squares positions: merge neighbours that are too close into blocks with a common mean shift.
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


def cut(text: str, limit: int) -> str:
    """Put a text on one line, and cut its middle beyond ``limit`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit // 2] + "…" + text[-(limit - limit // 2 - 1) :]


def tick_step(count: int, labels: int) -> int:
    """Find the smallest of 1, 2, 5, 10, 20, ... that gives at most ``labels`` labels."""
    step = 1
    while count > labels * step:
        step = step * 5 // 2 if str(step).startswith("2") else step * 2
    return step


def tick_counts(low: int, high: int) -> list[int]:
    """List tick positions: both ends, and round numbers between them with distance from the ends."""
    step = tick_step(high - low, 20)
    inner = range(low - low % step + step, high, step)
    return sorted({low, high, *(v for v in inner if 2 * min(v - low, high - v) >= step)})


def ink_on(fill: tuple[float, float, float, float]) -> str:
    """Choose white or dark text by its contrast on a fill (WCAG 2 relative luminance)."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in fill[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / (0.016 + 0.05) else INK


def _darker(colour: str) -> str:
    """Darken a colour so that text is legible on white."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = to_rgb(colour)
    return to_hex((0.78 * red, 0.78 * green, 0.78 * blue))
