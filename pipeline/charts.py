"""Small line charts as inline SVG: text stays text, and nothing is loaded from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike

SIZE, LEFT, BOTTOM, TOP, RIGHT = 320.0, 58.0, 42.0, 10.0, 12.0
COLOURS = ("#0b4f6c", "#b5541c", "#4b7f3a", "#7a3e8e", "#8a6d00", "#5b6770")
"""Dark enough on white for a contrast of 4.5 to 1; told apart by dashes too, for readers who do not see the hue."""
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 2")
TICKS = ((0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1"))
MAX_POINTS = 400
"""Points of a line; more than the chart has pixels would only make the page heavier."""


@dataclass(frozen=True)
class Line:
    """One line of a chart: a name for the legend, and its points, each float [n], in [0, 1]."""

    name: str
    x: ArrayLike
    y: ArrayLike
    markers: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    diagonal: bool = False,
    x_ticks: Sequence[tuple[float, str]] = TICKS,
    y_ticks: Sequence[tuple[float, str]] = TICKS,
) -> str:
    """Draw lines in the unit square.

    Parameters
    ----------
    lines
        At most six are told apart.
    title
        What the chart shows, in words: read out by screen readers.
    diagonal
        Whether to draw the line y = x as a reference.
    x_ticks, y_ticks
        Places in [0, 1] and what is written there: lines with another scale are given as shares of it.

    Returns
    -------
    An `<svg>` element; every text in it is escaped.
    """
    height = SIZE + 18.0 * (len(lines) if len(lines) > 1 else 0)
    parts = [
        f'<svg class="chart" viewBox="0 0 {SIZE:g} {height:g}" role="img" aria-label="{escape(title)}">',
        *_axes(x_label, y_label, x_ticks, y_ticks),
    ]
    if diagonal:
        parts.append(f'<polyline class="reference" points="{_points([0, 1], [0, 1])}"/>')
    for index, line in enumerate(lines):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        style = f'stroke="{colour}" stroke-dasharray="{dash}"'
        parts.append(f'<polyline class="line" {style} points="{_points(line.x, line.y)}"/>')
        if line.markers:
            parts += [
                f'<circle cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="3.5" fill="{colour}"/>'
                for x, y in zip(np.asarray(line.x), np.asarray(line.y), strict=True)
            ]
        if len(lines) > 1:
            y = SIZE + 18.0 * index + 6.0
            parts.append(f'<line x1="{LEFT:g}" x2="{LEFT + 26:g}" y1="{y:g}" y2="{y:g}" class="line" {style}/>')
            parts.append(f'<text x="{LEFT + 34:g}" y="{y + 4:g}">{escape(line.name)}</text>')
    return "".join([*parts, "</svg>"])


def _x(value: float) -> float:
    return LEFT + value * (SIZE - LEFT - RIGHT)


def _y(value: float) -> float:
    return SIZE - BOTTOM - value * (SIZE - BOTTOM - TOP)


def _axes(
    x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]
) -> list[str]:
    parts = []
    for tick, text in x_ticks:
        parts.append(f'<line class="grid" x1="{_x(tick):.1f}" x2="{_x(tick):.1f}" y1="{_y(0):.1f}" y2="{_y(1):.1f}"/>')
        parts.append(f'<text x="{_x(tick):.1f}" y="{_y(0) + 15:.1f}" text-anchor="middle">{escape(text)}</text>')
    for tick, text in y_ticks:
        parts.append(f'<line class="grid" x1="{_x(0):.1f}" x2="{_x(1):.1f}" y1="{_y(tick):.1f}" y2="{_y(tick):.1f}"/>')
        parts.append(f'<text x="{_x(0) - 6:.1f}" y="{_y(tick) + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    parts.append(f'<text x="{_x(0.5):.1f}" y="{SIZE - 8:.1f}" text-anchor="middle">{escape(x_label)}</text>')
    place = f"{11:g} {_y(0.5):.1f}"
    parts.append(f'<text transform="translate({place}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>')
    return parts


def _points(x: ArrayLike, y: ArrayLike) -> str:
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) > MAX_POINTS:
        kept = np.unique(np.linspace(0, len(xs) - 1, MAX_POINTS).round().astype(np.int64))
        xs, ys = xs[kept], ys[kept]
    return " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in zip(xs, ys, strict=True))
