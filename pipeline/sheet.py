"""The A4 page of one slide: tissue, attention, prediction, most and least attended patches, quality notes.

Places and lengths are mm on the page unless a name says otherwise; see `drawing.Page`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import drawing, specimens
from pipeline.drawing import GREY, INK, PALE, TIMES, WARNING, Colour, Page
from pipeline.maps import LEFT_OUT_NAMES, UNREADABLE, Attention, Layer, LeftOut, Style, further
from pipeline.specimens import Specimen
from pipeline.wording import (
    decision_text,
    headline,
    label_text,
    meaning_text,
    probability_text,
    quality_notes,
    reading_note,
    source_text,
    spread_text,
    times_text,
)

LEFT, RIGHT = 10.0, 287.0
PANELS = (10.0, 27.5, 206.0, 137.0)
"""Left, top, width and height of the area that both panels share, captions included."""
CAPTION, GAP = 5.5, 4.0
FURTHER, SMALL_CAPTION, FURTHER_OPACITY = 44.0, 9.0, 0.65
"""Height of the row of further maps with their captions, height of these, and opacity of the maps."""
SIDEBAR = (223.0, 64.0)
"""Left edge and width of the column with the prediction and the patches."""
BARS_TOP, SIDEBAR_BOTTOM, FOOTER_TOP, FOOTER_BOTTOM = 168.0, 181.0, 187.5, 206.0
MAX_CLASSES = 5
"""Bars of class probabilities that fit; of more classes the most probable are shown."""


@dataclass(frozen=True)
class View:
    """A thumbnail and where it lies on the slide.

    Parameters
    ----------
    thumbnail
        uint8, shape (H, W, 3).
    bounds
        Left, top, width, height of the thumbnail's part of the slide, level-0 px.
    mpp
        um per level-0 pixel along x.
    """

    thumbnail: NDArray[np.uint8]
    bounds: tuple[float, float, float, float]
    mpp: float

    @property
    def scale(self) -> tuple[float, float]:
        """Thumbnail px per level-0 px, along x and y."""
        height, width = self.thumbnail.shape[:2]
        return width / self.bounds[2], height / self.bounds[3]

    def shrunk(self, size: tuple[int, int]) -> "View":
        """Give the same part of the slide, `size` (width, height) px large."""
        return View(drawing.resize(self.thumbnail, size), self.bounds, self.mpp)

    @property
    def um_per_px(self) -> float:
        """Width of a thumbnail pixel on the slide."""
        return self.mpp / self.scale[0]


@dataclass(frozen=True)
class Layout:
    """Where a page's pictures lie, page px.

    Parameters
    ----------
    size
        Width and height of the two panels.
    corners
        Top-left corners of both.
    small_size, small_corners
        The same of the further maps, which are smaller.
    """

    size: tuple[int, int]
    corners: list[tuple[int, int]]
    small_size: tuple[int, int] = (0, 0)
    small_corners: list[tuple[int, int]] = field(default_factory=list)


def panel_layout(page: Page, *, width: float, height: float, further: int = 0) -> Layout:
    """Place two panels of one size, beside or above each other, whichever shows the slide larger.

    Parameters
    ----------
    width, height
        Size of the slide, level-0 px; panels do not enlarge it.
    further
        Number of smaller maps to place in a row below.
    """
    left, top, area_width, area_height = PANELS
    if further:
        area_height -= FURTHER + GAP
    beside = ((area_width - GAP) / 2, area_height - CAPTION)
    stacked = (area_width, (area_height - GAP) / 2 - CAPTION)

    def fit(cell: tuple[float, float]) -> float:
        return min(page.px(cell[0]) / width, page.px(cell[1]) / height, 1.0)

    def size(scale: float) -> tuple[int, int]:
        return max(1, round(width * scale)), max(1, round(height * scale))

    main = size(max(fit(beside), fit(stacked)))
    if fit(beside) >= fit(stacked):
        steps = [(0.0, 0.0), (beside[0] + GAP, 0.0)]
    else:
        steps = [(0.0, 0.0), (0.0, page.mm(main[1]) + CAPTION + GAP)]
    corners = [(page.px(left + x), page.px(top + CAPTION + y)) for x, y in steps]
    if not further:
        return Layout(main, corners)
    step = max(area_width / further, 0.0) if further > 3 else area_width / 3
    small = size(fit((step - GAP, FURTHER - SMALL_CAPTION)))
    row = page.px(top + area_height + GAP + SMALL_CAPTION)
    return Layout(main, corners, small, [(page.px(left + step * index), row) for index in range(further)])


def draw_sheet(
    attention: Attention, view: View, *, layout: Layout, shown: Sequence[Specimen], most: int, page: Page, style: Style
) -> None:
    """Draw a usable slide's page.

    Parameters
    ----------
    view
        Its thumbnail has the size of a panel.
    shown, most
        The patches to show; the first `most` are the most attended, the others the least.
    """
    edge = attention.attributes["patch_level0_px"]
    boxes = drawing.tile_boxes(attention.coords, edge_px=edge, origin=view.bounds[:2], scale=view.scale)
    layer = Layer("Attention on tissue", attention.percentile, style.colormap, "", "")
    overlay, covered = lay_over(view, attention, layer, opacity=style.opacity)
    draw_header(page, attention.attributes)
    for (left, top), pixels, caption in zip(
        layout.corners, (view.thumbnail, overlay), ("Tissue", layer.title), strict=True
    ):
        page.text(page.mm(left), page.mm(top) - 1.8, caption, 9, bold=True)
        page.paste(pixels, left, top)
    ends = [colour_of(100.0 if index < most else 0.0, style) for index in range(len(shown))]
    specimens.draw_marks(
        page, list(zip(shown, ends, strict=True)), boxes=boxes, corner=layout.corners[0], shape=view.thumbnail.shape
    )
    draw_further(page, attention, view, layout=layout)
    draw_scale_bar(page, view)
    tissue = view.thumbnail[covered].mean(axis=0) if covered.any() else np.full(3, 255.0)
    draw_colour_bar(page, attention, style=style, tissue=tissue)
    draw_left_out(page, attention.left_out)
    top_mm = draw_prediction(page, attention)
    draw_patches(page, attention, most=shown[:most], least=shown[most:], style=style, top=top_mm)
    draw_notes(page, attention)


def lay_over(
    view: View, attention: Attention, layer: Layer, *, opacity: float
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Tint a thumbnail with a map, and hatch the tiles that were not judged.

    Returns
    -------
    Pixels, uint8 [H, W, 3], and where tiles lie, bool [H, W].
    """
    shape, edge = view.thumbnail.shape[:2], attention.attributes["patch_level0_px"]
    boxes = drawing.tile_boxes(attention.coords, edge_px=edge, origin=view.bounds[:2], scale=view.scale)
    values, covered = drawing.paint(layer.values, boxes, shape=shape)
    pixels = drawing.tint(view.thumbnail, values, covered, colormap=layer.colormap, opacity=opacity)
    out = attention.left_out
    boxes = drawing.tile_boxes(out.coords, edge_px=edge, origin=view.bounds[:2], scale=view.scale)
    for is_lost in (False, True):
        rows = boxes[(out.flags == UNREADABLE) == is_lost]
        if len(rows):
            _, lies = drawing.paint(np.ones(len(rows)), rows, shape=shape)
            drawing.hatch(pixels, lies & ~covered, crossed=is_lost)
    return pixels, covered


def draw_further(page: Page, attention: Attention, view: View, *, layout: Layout) -> None:
    """Draw the further maps, each with a small colour bar."""
    if not layout.small_corners:
        return
    small = view.shrunk(layout.small_size)
    for (left, top), layer in zip(layout.small_corners, further(attention), strict=True):
        pixels, _ = lay_over(small, attention, layer, opacity=FURTHER_OPACITY)
        page.paste(pixels, left, top)
        x, y = page.mm(left), page.mm(top)
        page.text(x, y - 5.6, layer.title, 8, bold=True, width=60.0)
        ramp = drawing.colours(np.linspace(0.0, 100.0, page.px(14.0)), layer.colormap)
        page.text(x, y - 1.6, layer.low, 7, colour=GREY)
        start = x + page.text_width(layer.low, 7) + 1.2
        page.paste(np.repeat(ramp[None], page.px(2.2), axis=0), page.px(start), page.px(y - 3.5))
        page.text(start + 15.2, y - 1.6, layer.high, 7, colour=GREY)


def draw_left_out(page: Page, out: LeftOut) -> None:
    """Say what the hatched tiles are, where there are some."""
    counts, x, y = out.counts(), LEFT, BARS_TOP + 14.0
    lost = counts.pop(LEFT_OUT_NAMES[UNREADABLE], 0)
    parts = [(False, f"left out: {', '.join(f'{count:,} {name}' for name, count in counts.items())}")] if counts else []
    parts += [(True, f"unreadable: {lost:,}")] if lost else []
    for crossed, sentence in parts:
        swatch = np.full((page.px(3.0), page.px(5.0), 3), 255, np.uint8)
        drawing.hatch(swatch, np.ones(swatch.shape[:2], np.bool_), crossed=crossed)
        page.paste(swatch, page.px(x), page.px(y - 2.6))
        page.text(x + 6.2, y, sentence, 7.5, colour=GREY)
        x += 6.2 + page.text_width(sentence, 7.5) + 6.0


def colour_of(percentile: float, style: Style) -> Colour:
    """Give the undiluted colour of one percentile."""
    red, green, blue = (int(part) for part in drawing.colours(np.array(percentile), style.colormap))
    return red, green, blue


def draw_header(page: Page, attributes: Mapping[str, Any]) -> None:
    """Write whose page it is; identifiers only."""
    page.text(LEFT, 15.5, str(attributes["slide_id"]), 16, bold=True, width=RIGHT - LEFT - 62)
    known = [f"Patient {attributes['patient_id']}"] if attributes.get("patient_id") else []
    known += [f"model {attributes['model']}"] if attributes.get("model") else []
    known += [f"features {attributes['encoder']}"] if attributes.get("encoder") else []
    page.text(LEFT, 21.5, "  ·  ".join(known), 9, colour=GREY, width=RIGHT - LEFT - 62)
    page.text(RIGHT, 15.5, "Attention heatmap", 10, colour=GREY, anchor="rs")
    page.text(RIGHT, 21.5, "Research use only", 9, colour=GREY, anchor="rs")
    page.fill(LEFT, 25.0, RIGHT - LEFT, 0.2, PALE)


def draw_scale_bar(page: Page, view: View) -> None:
    """Draw a bar of a round length that fits in a third of a panel; it holds for both panels."""
    length_um = drawing.round_length_um(view.um_per_px * view.thumbnail.shape[1] / 3)
    length_px = max(1, round(length_um / view.um_per_px))
    page.fill(LEFT, BARS_TOP + 4.5, page.mm(length_px), 1.2, INK)
    page.text(LEFT, BARS_TOP + 3.0, drawing.length_text(length_um), 9, bold=True)
    page.text(LEFT, BARS_TOP + 10.0, "same scale in both panels", 7, colour=GREY)


def draw_colour_bar(page: Page, attention: Attention, *, style: Style, tissue: NDArray[np.floating]) -> None:
    """Draw the colours as they look on this slide's tissue, with percentiles above and raw attention below."""
    left, width = 106.0, 105.0
    columns = page.px(left + width) - page.px(left)
    ramp = drawing.colours(np.linspace(0.0, 100.0, columns), style.colormap)
    mixed = np.rint((1.0 - style.opacity) * tissue + style.opacity * ramp).astype(np.uint8)
    page.paste(np.repeat(mixed[None], page.px(3.2), axis=0), page.px(left), page.px(BARS_TOP + 3.8))
    for tick in (0, 25, 50, 75, 100):
        x = left + width * tick / 100
        times = float(np.percentile(attention.score, tick)) * attention.score.size
        page.fill(x - 0.1, BARS_TOP + 3.0, 0.2, 4.8, INK)
        page.text(x, BARS_TOP + 2.2, str(tick), 7.5, anchor="ms")
        page.text(x, BARS_TOP + 10.8, f"{times_text(times)}{TIMES}", 7.5, anchor="ms")
    page.text(left - 6.5, BARS_TOP + 2.2, "Attention, percentile", 7.5, colour=GREY, anchor="rs")
    page.text(left - 6.5, BARS_TOP + 10.8, "times the slide's mean", 7.5, colour=GREY, anchor="rs")


def draw_prediction(page: Page, attention: Attention) -> float:
    """Write the prediction, its probabilities, its spread and its source; give the bottom of the block."""
    left, width = SIDEBAR
    attributes = attention.attributes
    classes, probabilities = list(attributes["classes"]), list(attributes["probabilities"])
    predicted, value = headline(attributes)
    page.text(left, 31.2, "PREDICTION", 7.5, colour=GREY)
    page.text(left, 38.7, predicted, 17, bold=True, width=width - 24)
    page.text(left + width, 38.7, value, 17, bold=True, anchor="rs")
    shown = sorted(sorted(range(len(classes)), key=lambda c: -probabilities[c])[:MAX_CLASSES])
    y = 44.5
    for index in shown:
        is_predicted = classes[index] == predicted
        page.text(left, y, classes[index], 8, width=22, bold=is_predicted)
        page.fill(left + 24, y - 2.4, width - 36, 2.6, PALE)
        page.fill(left + 24, y - 2.4, (width - 36) * probabilities[index], 2.6, INK if is_predicted else GREY)
        page.text(left + width, y, probability_text(probabilities[index]), 8, anchor="rs")
        y += 4.6
    y += 1.0
    decided = decision_text(attributes)
    if decided:
        y = page.paragraph(left, y, decided, 9, width=width, colour=WARNING, bold=True) + 0.6
    sentences = (meaning_text(attributes), spread_text(attributes, attention.probability), label_text(attributes))
    for sentence in filter(None, (*sentences, source_text(attributes))):
        y = page.paragraph(left, y, sentence, 8, width=width) + 0.6
    return y


def draw_patches(
    page: Page, attention: Attention, *, most: Sequence[Specimen], least: Sequence[Specimen], style: Style, top: float
) -> None:
    """Show both groups of specimens, as large as the column allows."""
    left, width = SIDEBAR
    attributes = attention.attributes
    patch_um = drawing.length_text(round(attributes["patch_px"] * attributes["realised_mpp"]))
    height = (SIDEBAR_BOTTOM - top) / 2
    groups = (("Most attended", most, 100.0), ("Least attended", least, 0.0))
    for block, (title, group, percent) in enumerate(groups):
        if not group:
            continue
        y = top + block * height + 5.0
        page.text(left, y, title, 9, bold=True)
        page.text(left + width, y, f"{patch_um} wide  ·  {TIMES} mean", 7, colour=GREY, anchor="rs")
        columns, edge = specimens.grid(len(group), width, height - 7.5)
        for index, specimen in enumerate(group):
            x, top_y = left + index % columns * (edge + 1.5), y + 1.8 + index // columns * (edge + 4.2)
            specimens.draw(page, specimen, x=x, y=top_y, edge=edge, colour=colour_of(percent, style))
            times = times_text(float(attention.score[specimen.row] * attention.score.size))
            page.text(x + edge / 2, top_y + edge + 3.0, f"{times}{TIMES}", 7, colour=GREY, anchor="ms")


def draw_notes(page: Page, attention: Attention) -> None:
    """Write the quality notes, and how attention was normalised."""
    middle = 150.0
    page.fill(LEFT, FOOTER_TOP - 4.0, RIGHT - LEFT, 0.2, PALE)
    page.text(LEFT, FOOTER_TOP, "Quality notes", 8, bold=True)
    y = FOOTER_TOP + 4.2
    for note in quality_notes(attention.attributes, attention.score.size):
        if y <= FOOTER_BOTTOM:
            y = page.paragraph(LEFT, y, note, 7.5, width=middle - LEFT - 6, bottom=FOOTER_BOTTOM)
    page.text(middle, FOOTER_TOP, "How attention is shown", 8, bold=True)
    note = reading_note(attention.score, evidence=attention.evidence is not None)
    page.paragraph(middle, FOOTER_TOP + 4.2, note, 7.5, width=RIGHT - middle, bottom=FOOTER_BOTTOM)


def draw_placeholder(
    page: Page, *, slide_id: str, reason: str, remedy: str, thumbnail: NDArray[np.uint8] | None
) -> None:
    """Draw the page of a slide that could not be analysed: which, why, what to do, and how it looks if it opens."""
    text_width = RIGHT - LEFT if thumbnail is None else 150.0
    draw_header(page, {"slide_id": slide_id})
    page.text(LEFT, 48.0, "Not analysed", 28, bold=True, colour=WARNING)
    y = 66.0
    for title, sentence in (("Why", reason), ("What to do", remedy)):
        page.text(LEFT, y, title, 12, bold=True, colour=GREY)
        y = page.paragraph(LEFT, y + 8.0, _sentence(sentence), 17, width=text_width, bottom=y + 54.0) + 6.0
    page.text(LEFT, 200.0, "The rest of the cohort is not affected.", 10, colour=GREY)
    if thumbnail is not None:
        left, top = page.px(RIGHT) - thumbnail.shape[1], page.px(40.0)
        page.paste(thumbnail, left, top)
        page.text(page.mm(left), page.mm(top + thumbnail.shape[0]) + 5.5, "The slide as it opens", 9, colour=GREY)


def _sentence(clause: str) -> str:
    stripped = clause.strip().rstrip(".")
    return f"{stripped[:1].upper()}{stripped[1:]}."
