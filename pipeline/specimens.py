"""The patches that a page shows: which, where they lie, how they look."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.drawing import INK, PALE, WHITE, Colour, Page
from pipeline.slide import Slide

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, page px."""


@dataclass(frozen=True)
class Specimen:
    """A patch shown on the page: its row in the bag, its name ("1", "a"), its pixels (None if unreadable)."""

    row: int
    name: str
    pixels: NDArray[np.uint8] | None


def choose(
    score: NDArray[np.floating], coords: NDArray[np.int32], *, edge_px: float, count: int
) -> tuple[list[int], list[int]]:
    """Choose the most and the least attended tiles, none of which overlaps another.

    Parameters
    ----------
    score, coords
        Shapes (N,) and (N, 2), level-0 px.
    edge_px
        Edge of a tile, level-0 px.
    count
        Tiles wanted at each end; fewer where the slide has not enough.

    Returns
    -------
    Rows of the most attended, highest first, and of the least attended, lowest first. Ties go by row.
    """
    chosen: list[int] = []

    def take(order: NDArray[np.intp], wanted: int) -> list[int]:
        found: list[int] = []
        for row in order:
            if len(found) == wanted:
                break
            if not chosen or np.abs(coords[chosen] - coords[row]).max(axis=1).min() >= edge_px - 0.5:
                found.append(int(row))
                chosen.append(int(row))
        return found

    order = np.argsort(-score, kind="stable")
    most = take(order, min(count, (score.size + 1) // 2))
    return most, take(order[::-1], min(count, score.size // 2))


def named(most: Sequence[int], least: Sequence[int], pixels: Sequence[NDArray[np.uint8] | None]) -> list[Specimen]:
    """Name the most attended 1, 2, 3 ... and the least attended a, b, c ...; `pixels` are in this order."""
    names = [str(rank) for rank in range(1, len(most) + 1)] + [chr(ord("a") + rank) for rank in range(len(least))]
    return [Specimen(*parts) for parts in zip([*most, *least], names, pixels, strict=True)]


def read(slide: Slide, coords: NDArray[np.int32], *, patch_px: int, mpp: float) -> list[NDArray[np.uint8] | None]:
    """Read patches as the encoder saw them, uint8 [patch_px, patch_px, 3]; None for one that cannot be read."""
    pixels: list[NDArray[np.uint8] | None] = [None] * len(coords)
    if len(coords):
        for indices, batch in slide.patches(coords, patch_px=patch_px, mpp=mpp, threads=1):
            for index, patch in zip(indices, batch, strict=True):
                pixels[int(index)] = patch.copy()
    return pixels


def draw(page: Page, specimen: Specimen, *, x: float, y: float, edge: float, colour: Colour) -> None:
    """Show one patch with its name in the corner; place and edge in mm."""
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


def grid(count: int, width: float, height: float) -> tuple[int, float]:
    """Give the number of columns, and the edge in mm, that show `count` squares with captions largest."""

    def edge(columns: int) -> float:
        rows = math.ceil(count / columns)
        return min((width - (columns - 1) * 1.5) / columns, height / rows - 4.2)

    columns = max(range(1, count + 1), key=edge)
    return columns, max(4.0, edge(columns))


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


def _free_place(page: Page, outline: Box, taken: Sequence[Box], panel: Box) -> Box:
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


def _overlap(one: Box, other: Box) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]
