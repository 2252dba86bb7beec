"""Line charts of the report: Bokeh figures, drawn by the script that the page carries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.core.types import ID
from bokeh.embed import json_item
from bokeh.models import BasicTicker, ColumnDataSource, HoverTool, PrintfTickFormatter, Range1d
from bokeh.models.annotations import Legend, LegendItem
from bokeh.plotting import figure
from bokeh.resources import Resources
from numpy.typing import ArrayLike

COLOURS = ("#0b4f6c", "#b5541c", "#4b7f3a", "#7a3e8e", "#8a6d00", "#5b6770")
"""Dark enough on white for a contrast of 4.5 to 1; told apart by dashes too, for readers who do not see the hue."""
DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot", "4 4")
INK, SOFT, RULE = "#1c232b", "#55606b", "#dfe4e8"
MOST_LINES = 18
"""Lines of a chart; colour and dash tell them apart."""
MAX_POINTS = 400
"""Points of a line; more than the chart has pixels would only make the page heavier."""

SMALLEST = 1e-3
"""Span of an axis below which its numbers are written as powers of ten."""

HEIGHT_PX, LEGEND_ROW_PX = 330, 24


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Parameters
    ----------
    name
        For the legend.
    x, y
        Its points, float [n], in the axes' units.
    markers, line, steps
        Whether points are marked, whether they are joined, and whether in steps: y holds from its x to the next.
    low, high
        A band about the line, float [n], or a whisker at each point where points are not joined; None draws none.
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    markers: bool = False
    line: bool = True
    steps: bool = False
    low: ArrayLike | None = None
    high: ArrayLike | None = None


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] = (0.0, 1.0),
    y_range: tuple[float, float] = (0.0, 1.0),
    diagonal: bool = False,
) -> figure:
    """Draw lines.

    Parameters
    ----------
    lines
        At most `MOST_LINES`.
    title
        What the chart shows, in words: read out by screen readers.
    x_range, y_range
        What the axes span.
    diagonal
        Whether to draw the line y = x as a reference.

    Returns
    -------
    A Bokeh figure, for `item`.
    """
    margin_x, margin_y = (0.02 * (high - low) for low, high in (x_range, y_range))
    legend_rows = len(lines) if len(lines) > 1 else 0
    plot = figure(
        height=HEIGHT_PX + LEGEND_ROW_PX * legend_rows,
        sizing_mode="stretch_width",
        x_range=Range1d(start=x_range[0] - margin_x, end=x_range[1] + margin_x),
        y_range=Range1d(start=y_range[0] - margin_y, end=y_range[1] + margin_y),
        x_axis_label=x_label,
        y_axis_label=y_label,
        tools="",
        toolbar_location=None,
        name=title,
    )
    _dress(plot)
    if y_range[1] - y_range[0] < SMALLEST:
        plot.yaxis.formatter = PrintfTickFormatter(format="%.0e")
    if diagonal:
        ends = [max(x_range[0], y_range[0]), min(x_range[1], y_range[1])]
        plot.line(ends, ends, color="#8b959e", line_dash="dotted", line_width=1.5)
    items = []
    for index, line in enumerate(lines):
        rounds, place = divmod(index, len(COLOURS))  # the same colour comes again with another dash
        drawn = _draw(plot, line, colour=COLOURS[place], dash=DASHES[(place + rounds) % len(DASHES)])
        items.append(LegendItem(label=line.name, renderers=drawn))
        tooltips = [(x_label, "@x{0.[000]}"), (y_label, "@y{0.[000]}")]
        if len(lines) > 1:
            tooltips.insert(0, ("", "@name"))
        plot.add_tools(HoverTool(renderers=drawn[:1], tooltips=tooltips, mode="mouse", point_policy="snap_to_data"))
    if legend_rows:
        legend = Legend(
            items=items, orientation="vertical", location="top_left", click_policy="hide", label_text_font_size="13px"
        )
        legend.update(border_line_color=None, margin=4, padding=2, spacing=2, label_text_color=INK)
        plot.add_layout(legend, "below")
    return plot


def _draw(plot: figure, line: Line, *, colour: str, dash: str) -> list[Any]:
    x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(np.int64))
    # lists, not arrays: plain JSON, which a reader can check
    source = ColumnDataSource({"x": x[kept].tolist(), "y": y[kept].tolist(), "name": [line.name] * len(kept)})
    drawn: list[Any] = []
    if line.low is not None and line.high is not None:
        low, high = (np.asarray(edge, dtype=np.float64)[kept].tolist() for edge in (line.low, line.high))
        if line.line:
            plot.varea(x[kept].tolist(), low, high, fill_color=colour, fill_alpha=0.14)
        else:
            plot.segment(x[kept].tolist(), low, x[kept].tolist(), high, color=colour, line_width=1.5)
    if line.line and line.steps:
        drawn.append(plot.step("x", "y", source=source, mode="after", color=colour, line_dash=dash, line_width=2.2))
    elif line.line:
        drawn.append(plot.line("x", "y", source=source, color=colour, line_dash=dash, line_width=2.2))
    if line.markers:
        drawn.insert(0, plot.scatter("x", "y", source=source, color=colour, size=8, fill_alpha=0.75))
    return drawn


def _dress(plot: figure) -> None:
    plot.outline_line_color = None
    plot.background_fill_color = plot.border_fill_color = "#ffffff"
    plot.grid.grid_line_color = RULE
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_font_size = plot.axis.major_label_text_font_size = "13px"
    plot.axis.axis_label_text_color = plot.axis.major_label_text_color = SOFT
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = "#8b959e"
    plot.axis.minor_tick_line_color = None
    plot.axis.ticker = BasicTicker(desired_num_ticks=5)


def item(plot: Any, target: str) -> dict[str, Any]:
    """Give what `Bokeh.embed.embed_item` takes to draw `plot` in the element with the id `target`."""
    found: dict[str, Any] = dict(json_item(plot, ID(target)))
    numbers: dict[str, str] = {}

    def renumbered(value: Any) -> Any:
        # by their order in the document, not by how many models this process has made before
        if isinstance(value, Mapping):
            return {
                key: numbers.setdefault(part, f"{target}-{len(numbers)}") if key == "id" else renumbered(part)
                for key, part in value.items()
            }
        return [renumbered(part) for part in value] if isinstance(value, list | tuple) else value

    doc = renumbered(found["doc"])
    return {"target_id": target, "root_id": numbers[found["root_id"]], "doc": doc, "version": found["version"]}


def script() -> str:
    """Give the text of Bokeh's own script, as it lies in the installed package; it needs no network."""
    return "\n".join(Resources(mode="inline", components=["bokeh"], minified=True).js_raw)
