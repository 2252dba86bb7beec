"""The report's viewer: one Bokeh plot that pans and zooms, into which the page's script puts a slide's pictures."""

from typing import Any

from bokeh.models import ColumnDataSource, Range1d
from bokeh.models.annotations import ScaleBar
from bokeh.models.annotations.dimensional import MetricLength
from bokeh.plotting import figure

INK = "#1c232b"


def plot() -> figure:
    """Make the empty plot.

    Its axes are metres on the slide, y upwards, so that the scale bar is exact. The page's script finds the parts by
    their names: sources `base`, `layer` (a picture each: url, w, h) and `marks` (left, right, top, bottom, name), the
    renderers `base-picture`, `layer-picture`, `mark-boxes` and `mark-names`.
    """
    made = figure(
        sizing_mode="stretch_both",
        x_range=Range1d(start=0.0, end=1.0),
        y_range=Range1d(start=0.0, end=1.0),
        tools="pan,wheel_zoom",
        active_scroll="wheel_zoom",
        toolbar_location=None,
        name="viewer",
        min_border=0,
    )
    made.axis.visible = False
    made.grid.visible = False
    made.outline_line_color = None
    made.background_fill_color = made.border_fill_color = "#ffffff"
    for name in ("base", "layer"):
        source = ColumnDataSource({"url": [], "w": [], "h": []}, name=name)
        made.image_url(
            "url", x=0, y="h", w="w", h="h", anchor="top_left", source=source, name=f"{name}-picture", retry_attempts=0
        )
    marks: dict[str, list[Any]] = {"left": [], "right": [], "top": [], "bottom": [], "name": []}
    source = ColumnDataSource(marks, name="marks")
    edges: dict[str, Any] = {"left": "left", "right": "right", "top": "top", "bottom": "bottom", "source": source}
    made.quad(**edges, fill_alpha=0, line_color="#ffffff", line_width=5, name="mark-halo")
    made.quad(**edges, fill_alpha=0, line_color=INK, line_width=2, name="mark-boxes")
    tag: dict[str, Any] = {"background_fill_color": INK, "padding": 4}
    made.text(
        "left",
        "top",
        text="name",
        source=source,
        text_color="#ffffff",
        text_font_size="14px",
        text_font_style="bold",
        text_baseline="top",
        **tag,
        name="mark-names",
    )
    made.add_layout(
        ScaleBar(
            range=made.x_range,
            unit="m",
            dimensional=MetricLength(),
            location="bottom_left",
            background_fill_alpha=0.85,
            border_line_color=None,
            label_text_font_size="14px",
            length_sizing="adaptive",
        )
    )
    return made
