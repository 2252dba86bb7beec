"""The A4 page of one slide: tissue, attention, prediction, most and least attended patches, quality notes.

Places and lengths are mm on the page unless a name says otherwise; see `drawing.Page`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import drawing
from pipeline.drawing import GREY, INK, PALE, TIMES, WHITE, Colour, Page
from pipeline.wording import (
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
SIDEBAR = (223.0, 64.0)
"""Left edge and width of the column with the prediction and the patches."""
BARS_TOP, SIDEBAR_BOTTOM, FOOTER_TOP, FOOTER_BOTTOM = 168.0, 181.0, 187.5, 206.0
MAX_CLASSES = 5
"""Bars of class probabilities that fit; of more classes the most probable are shown."""


@dataclass(frozen=True)
class Style:
    """How a page looks: colour map, opacity of the tint in [0, 1], patches shown at each end."""

    colormap: str
    opacity: float
    top_patches: int


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

    @property
    def um_per_px(self) -> float:
        """Width of a thumbnail pixel on the slide."""
        return self.mpp / self.scale[0]


@dataclass(frozen=True)
class Attention:
    """Attention over a slide's tiles and what it predicts.

    Parameters
    ----------
    score
        Sums to 1, shape (N,).
    percentile
        Rank of the score in the slide, in [0, 100], shape (N,).
    coords
        Top-left corners of the tiles, int32, shape (N, 2), level-0 px.
    probability
        What each fold says: class probabilities (F, C), log hazards or numbers (F, 1).
    attributes
        The attention artefact's attributes.
    """

    score: NDArray[np.float64]
    percentile: NDArray[np.float64]
    coords: NDArray[np.int32]
    probability: NDArray[np.float32]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Specimen:
    """A patch shown on the page: its row in the bag, its name ("1", "a"), its pixels (None if unreadable)."""

    row: int
    name: str
    pixels: NDArray[np.uint8] | None


def panel_layout(page: Page, *, width: float, height: float) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Place two panels of one size, beside or above each other, whichever shows the slide larger.

    Parameters
    ----------
    width, height
        Size of the slide, level-0 px; panels do not enlarge it.

    Returns
    -------
    Width and height of a panel, and the top-left corners of both, page px.
    """
    left, top, area_width, area_height = PANELS
    beside = ((area_width - GAP) / 2, area_height - CAPTION)
    stacked = (area_width, (area_height - GAP) / 2 - CAPTION)

    def fit(cell: tuple[float, float]) -> float:
        return min(page.px(cell[0]) / width, page.px(cell[1]) / height, 1.0)

    scale = max(fit(beside), fit(stacked))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if fit(beside) >= fit(stacked):
        steps = [(0.0, 0.0), (beside[0] + GAP, 0.0)]
    else:
        steps = [(0.0, 0.0), (0.0, page.mm(size[1]) + CAPTION + GAP)]
    return size, [(page.px(left + x), page.px(top + CAPTION + y)) for x, y in steps]


def draw_sheet(
    attention: Attention,
    view: View,
    *,
    corners: Sequence[tuple[int, int]],
    most: Sequence[Specimen],
    least: Sequence[Specimen],
    page: Page,
    style: Style,
) -> None:
    """Draw a usable slide's page; `view.thumbnail` has the size that `panel_layout` gave with `corners`."""
    boxes = drawing.tile_boxes(
        attention.coords,
        edge_px=attention.attributes["patch_level0_px"],
        origin=view.bounds[:2],
        scale=view.scale,
    )
    percentile, covered = drawing.paint(attention.percentile, boxes, shape=view.thumbnail.shape[:2])
    overlay = drawing.tint(view.thumbnail, percentile, covered, colormap=style.colormap, opacity=style.opacity)
    draw_header(page, attention.attributes)
    for (left, top), pixels, caption in zip(
        corners, (view.thumbnail, overlay), ("Tissue", "Attention on tissue"), strict=True
    ):
        page.text(page.mm(left), page.mm(top) - 1.8, caption, 9, bold=True)
        page.paste(pixels, left, top)
    marked = [(specimen, colour_of(100.0, style)) for specimen in most]
    marked += [(specimen, colour_of(0.0, style)) for specimen in least]
    draw_marks(page, marked, boxes=boxes, corner=corners[0], shape=view.thumbnail.shape)
    draw_scale_bar(page, view)
    tissue = view.thumbnail[covered].mean(axis=0) if covered.any() else np.full(3, 255.0)
    draw_colour_bar(page, attention, style=style, tissue=tissue)
    top_mm = draw_prediction(page, attention)
    draw_patches(page, attention, most=most, least=least, style=style, top=top_mm)
    draw_notes(page, attention)


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


def draw_marks(
    page: Page,
    marked: Sequence[tuple[Specimen, Colour]],
    *,
    boxes: NDArray[np.int64],
    corner: tuple[int, int],
    shape: tuple[int, ...],
) -> None:
    """Outline the specimens' places on the panel at `corner`, and name each beside its outline in its colour."""
    line, smallest = max(1, page.px(0.3)), page.px(1.6)
    outlines = []
    for specimen, _ in marked:
        left, top, right, bottom = (int(edge) for edge in boxes[specimen.row])
        grow = max(line, math.ceil((smallest - (right - left)) / 2))
        x, y = corner
        outlines.append((x + left - grow, y + top - grow, x + right + grow - 1, y + bottom + grow - 1))
    for left, top, right, bottom in outlines:
        page.frame((left - line, top - line, right + line, bottom + line), WHITE, line_px=line)
        page.frame((left, top, right, bottom), INK, line_px=line)
    panel = (corner[0], corner[1], corner[0] + shape[1] - 1, corner[1] + shape[0] - 1)
    taken = list(outlines)
    for (specimen, colour), outline in zip(marked, outlines, strict=True):
        tag = _free_place(page, outline, taken, panel)
        taken.append(tag)
        centre = ((tag[0] + tag[2]) // 2, (tag[1] + tag[3]) // 2)
        nearest = (min(max(centre[0], outline[0]), outline[2]), min(max(centre[1], outline[1]), outline[3]))
        page.line(nearest, centre, INK, line_px=line)
        page.tag(tag, specimen.name, 7, colour)


def _free_place(
    page: Page,
    outline: tuple[int, int, int, int],
    taken: Sequence[tuple[int, int, int, int]],
    panel: tuple[int, int, int, int],
) -> tuple[int, int, int, int]:
    """Find the place for a tag that is nearest to an outline, inside the panel and on top of nothing taken."""
    width, height, margin = page.px(3.6), page.px(3.2), page.px(0.6)
    middle_x, middle_y = (outline[0] + outline[2]) / 2, (outline[1] + outline[3]) / 2
    reach_x = (outline[2] - outline[0] + width) / 2 + margin
    reach_y = (outline[3] - outline[1] + height) / 2 + margin
    first = None
    for ring in range(1, 6):
        steps = [s for s in product(range(-ring, ring + 1), repeat=2) if max(map(abs, s)) == ring]
        for step_y, step_x in sorted(steps, key=lambda s: (abs(s[0]) + abs(s[1]), s)):
            x = middle_x + math.copysign(reach_x + (abs(step_x) - 1) * (width + margin), step_x) * (step_x != 0)
            y = middle_y + math.copysign(reach_y + (abs(step_y) - 1) * (height + margin), step_y) * (step_y != 0)
            left, top = round(x - width / 2), round(y - height / 2)
            tag = (left, top, left + width, top + height)
            first = first or tag
            inside = panel[0] <= left and panel[1] <= top and tag[2] <= panel[2] and tag[3] <= panel[3]
            if inside and not any(_overlap(tag, other) for other in taken):
                return tag
    assert first is not None
    return first


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


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
    for block, (title, specimens, percent) in enumerate(groups):
        if not specimens:
            continue
        y = top + block * height + 5.0
        page.text(left, y, title, 9, bold=True)
        page.text(left + width, y, f"{patch_um} wide  ·  {TIMES} mean", 7, colour=GREY, anchor="rs")
        columns, edge = patch_grid(len(specimens), width, height - 7.5)
        for index, specimen in enumerate(specimens):
            x, top_y = left + index % columns * (edge + 1.5), y + 1.8 + index // columns * (edge + 4.2)
            draw_specimen(page, specimen, x=x, y=top_y, edge=edge, colour=colour_of(percent, style))
            times = times_text(float(attention.score[specimen.row] * attention.score.size))
            page.text(x + edge / 2, top_y + edge + 3.0, f"{times}{TIMES}", 7, colour=GREY, anchor="ms")


def patch_grid(count: int, width: float, height: float) -> tuple[int, float]:
    """Give the number of columns, and the edge in mm, that show `count` squares with captions largest."""

    def edge(columns: int) -> float:
        rows = math.ceil(count / columns)
        return min((width - (columns - 1) * 1.5) / columns, height / rows - 4.2)

    columns = max(range(1, count + 1), key=edge)
    return columns, max(4.0, edge(columns))


def draw_specimen(page: Page, specimen: Specimen, *, x: float, y: float, edge: float, colour: Colour) -> None:
    """Show one patch with its name in the corner."""
    left, top, edge_px = page.px(x), page.px(y), page.px(edge)
    if specimen.pixels is None:
        page.fill(x, y, edge, edge, PALE)
        page.text(x + edge / 2, y + edge / 2, "unreadable", 7, anchor="mm")
    else:
        shrinks = edge_px < specimen.pixels.shape[0]
        resized = cv2.resize(
            specimen.pixels, (edge_px, edge_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        page.paste(np.asarray(resized, dtype=np.uint8), left, top)
    page.tag((left, top, left + page.px(3.6), top + page.px(3.2)), specimen.name, 7, colour)


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
    note = reading_note(attention.score)
    page.paragraph(middle, FOOTER_TOP + 4.2, note, 7.5, width=RIGHT - middle, bottom=FOOTER_BOTTOM)


def draw_placeholder(
    page: Page, *, slide_id: str, reason: str, remedy: str, thumbnail: NDArray[np.uint8] | None
) -> None:
    """Draw the page of a slide that could not be analysed: which, why, what to do, and how it looks if it opens."""
    text_width = RIGHT - LEFT if thumbnail is None else 150.0
    draw_header(page, {"slide_id": slide_id})
    page.text(LEFT, 48.0, "Not analysed", 28, bold=True, colour=(150, 32, 32))
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
