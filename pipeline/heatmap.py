"""Draw one slide's attention: a page to read (PNG) and squares for QuPath (GeoJSON)."""

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import drawing, store
from pipeline.drawing import Page
from pipeline.errors import SlideError
from pipeline.fingerprint import UNREADABLE
from pipeline.outcomes import values_array
from pipeline.outline import to_qupath
from pipeline.sheet import Attention, Specimen, Style, View, draw_placeholder, draw_sheet, panel_layout
from pipeline.slide import Slide, open_slide

logger = logging.getLogger(__name__)

PLACEHOLDER_MPP = 1.0
"""Stands in for a missing mpp when a quarantined slide is opened for its thumbnail alone; no length is drawn there."""

MOST_SPECIMENS = 24
"""Patches at each end that still fit on the page, and letters that still name them."""


def run(
    slide_path: Path,
    *,
    attention: Path,
    png: Path,
    geojson: Path,
    colormap: str,
    opacity: float,
    top_patches: int,
    width_px: int,
    mpp: float | None = None,
    default_mpp: float | None = None,
    mpp_from_objective: bool = False,
    unreadable: SlideError | None = None,
) -> None:
    """Draw the page of one slide, and write its tiles for QuPath.

    Parameters
    ----------
    slide_path
        The slide.
    attention
        Its attention artefact. For a quarantined slide the page says why, and the GeoJSON has no features.
    png, geojson
        Where to write. The page is A4, landscape.
    colormap
        Name of a matplotlib colour map; see `drawing.palette` for the choice of the default.
    opacity
        Share of the colour on analysed tissue, in [0, 1].
    top_patches
        Number of most, and of least, attended patches to show; at most 24.
    width_px
        Width of the page; 2480 is 212 dpi on A4.
    mpp, default_mpp, mpp_from_objective
        As `slide.open_slide` takes them.
    unreadable
        Why the slide cannot be opened any more; it is then not touched, and the page says so.

    Raises
    ------
    ArtefactError
        If the attention artefact is missing or damaged.
    """
    artefact = store.read(attention, names=())
    page = Page(width_px)
    error = store.inherited_error(artefact.attributes)
    if error is None:
        artefact = store.read(attention, names=("score", "coords", values_array(artefact.attributes)))
        values = load_attention(artefact)
        style = Style(colormap, opacity, min(top_patches, MOST_SPECIMENS))
        write_geojson(geojson, values)
        try:
            if unreadable is not None:
                raise unreadable
            with open_slide(
                slide_path, mpp=mpp, default_mpp=default_mpp, mpp_from_objective=mpp_from_objective
            ) as slide:
                _draw(page, slide, values, style)
        except SlideError as failure:
            logger.warning("%s: %s", slide_path.name, failure)
            error, page = failure, Page(width_px)
    else:
        store.write_text(geojson, _collection([]))
    if error is not None:
        # a slide whose reader crashed or hung is not opened once more for a thumbnail
        closed = unreadable is not None or artefact.attributes["fingerprint"] == UNREADABLE
        draw_placeholder(
            page,
            slide_id=artefact.attributes["slide_id"],
            reason=error.reason,
            remedy=error.remedy,
            thumbnail=None if closed else placeholder_thumbnail(slide_path, page),
        )
    with store.replacing(png) as part:
        page.save_png(part)
    logger.info("%s: page of %d x %d px", artefact.attributes["slide_id"], *page.image.size)


def load_attention(artefact: store.Artefact) -> Attention:
    """Take what the page needs from an attention artefact, and rank its scores."""
    score = artefact.arrays["score"].astype(np.float64)
    return Attention(
        score=score,
        percentile=drawing.percentile_ranks(score),
        coords=artefact.arrays["coords"],
        probability=artefact.arrays[values_array(artefact.attributes)].reshape(len(artefact.attributes["folds"]), -1),
        attributes=artefact.attributes,
    )


def _draw(page: Page, slide: Slide, attention: Attention, style: Style) -> None:
    x, y, width, height = attention.attributes.get("bounds") or (0, 0, slide.width, slide.height)
    size, corners = panel_layout(page, width=width, height=height)
    view = View(
        thumbnail=read_thumbnail(slide, bounds=(x, y, width, height), size=size),
        bounds=(x, y, width, height),
        mpp=attention.attributes["mpp_x"],
    )
    most, least = extremes(
        attention.score,
        attention.coords,
        edge_px=attention.attributes["patch_level0_px"],
        count=style.top_patches,
    )
    rows = [*most, *least]
    names = [str(rank) for rank in range(1, len(most) + 1)] + [chr(ord("a") + rank) for rank in range(len(least))]
    pixels = read_patches(slide, attention, rows)
    specimens = [Specimen(*parts) for parts in zip(rows, names, pixels, strict=True)]
    shown, faint = specimens[: len(most)], specimens[len(most) :]
    draw_sheet(attention, view, corners=corners, most=shown, least=faint, page=page, style=style)


def read_thumbnail(
    slide: Slide, *, bounds: tuple[float, float, float, float], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Read the part `bounds` (left, top, width, height, level-0 px) of a slide as uint8 [size[1], size[0], 3]."""
    left, top, width, height = bounds
    pixels, realised_mpp = slide.thumbnail(slide.mpp * width / size[0])
    fine = slide.mpp / realised_mpp  # thumbnail px per level-0 px; its last row and column may lie beyond the slide
    first_row, first_col = round(top * fine), round(left * fine)
    cropped = pixels[
        first_row : max(first_row + 1, round((top + height) * fine)),
        first_col : max(first_col + 1, round((left + width) * fine)),
    ]
    if cropped.shape[:2] == (size[1], size[0]):
        return np.ascontiguousarray(cropped)
    shrinks = cropped.shape[1] > size[0]
    return np.asarray(
        cv2.resize(cropped, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), dtype=np.uint8
    )


def placeholder_thumbnail(slide_path: Path, page: Page) -> NDArray[np.uint8] | None:
    """Read a quarantined slide's thumbnail for its page, or None where the slide does not open."""
    try:
        with open_slide(slide_path, mpp=PLACEHOLDER_MPP) as slide:
            scale = min(page.px(110.0) / slide.width, page.px(150.0) / slide.height, 1.0)
            size = (max(1, round(slide.width * scale)), max(1, round(slide.height * scale)))
            return read_thumbnail(slide, bounds=(0, 0, slide.width, slide.height), size=size)
    except SlideError:
        return None


def extremes(
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

    def choose(order: NDArray[np.intp], wanted: int) -> list[int]:
        found: list[int] = []
        for row in order:
            if len(found) == wanted:
                break
            if not chosen or np.abs(coords[chosen] - coords[row]).max(axis=1).min() >= edge_px - 0.5:
                found.append(int(row))
                chosen.append(int(row))
        return found

    order = np.argsort(-score, kind="stable")
    most = choose(order, min(count, (score.size + 1) // 2))
    return most, choose(order[::-1], min(count, score.size // 2))


def read_patches(slide: Slide, attention: Attention, rows: Sequence[int]) -> list[NDArray[np.uint8] | None]:
    """Read patches as the encoder saw them, uint8 [patch_px, patch_px, 3]; None for one that cannot be read."""
    pixels: list[NDArray[np.uint8] | None] = [None] * len(rows)
    if rows:
        batches = slide.patches(
            attention.coords[list(rows)],
            patch_px=attention.attributes["patch_px"],
            mpp=attention.attributes["target_mpp"],
            threads=1,
        )
        for indices, batch in batches:
            for index, patch in zip(indices, batch, strict=True):
                pixels[int(index)] = patch.copy()
    return pixels


def write_geojson(path: Path, attention: Attention) -> None:
    """Write a QuPath tile object a tile, unclassified, with its attention as measurements.

    Corners are level-0 px in QuPath's frame (`outline.to_qupath`), rounded; a 25,000-tile slide takes about 6 MB.
    QuPath 0.4 and later read measurements as an object.
    """
    edge, bounds = attention.attributes["patch_level0_px"], attention.attributes.get("bounds") or (0, 0, 0, 0)
    low, high = (np.rint(to_qupath(attention.coords + add, bounds=bounds)).astype(np.int64) for add in (0.0, edge))
    mean = 1.0 / attention.score.size
    features = [
        '{"type":"Feature","geometry":{"type":"Polygon","coordinates":'
        f"[[[{x0},{y0}],[{x1},{y0}],[{x1},{y1}],[{x0},{y1}],[{x0},{y0}]]]}},"
        '"properties":{"objectType":"tile","measurements":'
        f'{{"attention":{score:.6g},"attention percentile":{percentile:.5g},"attention x mean":{score / mean:.5g}}}}}}}'
        for (x0, y0), (x1, y1), score, percentile in zip(
            low.tolist(), high.tolist(), attention.score.tolist(), attention.percentile.tolist(), strict=True
        )
    ]
    store.write_text(path, _collection(features))


def _collection(features: Sequence[str]) -> str:
    return '{"type":"FeatureCollection","features":[' + ",\n".join(features) + "]}\n"
