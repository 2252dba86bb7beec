"""Draw one slide's attention: a page to read (PNG) and squares for QuPath (GeoJSON)."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import drawing, maps, pseudonyms, specimens, store, views
from pipeline.drawing import Page
from pipeline.errors import SlideError
from pipeline.fingerprint import UNREADABLE
from pipeline.maps import Attention, Style, further
from pipeline.outline import to_qupath
from pipeline.sheet import View, draw_placeholder, draw_sheet, panel_layout
from pipeline.slide import Slide, open_slide
from pipeline.versions import made_by

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
    view: Path | None = None,
    tiles: Path | None = None,
    colormap: str,
    opacity: float,
    top_patches: int,
    width_px: int,
    mpp: float | None = None,
    default_mpp: float | None = None,
    mpp_from_objective: bool = False,
    private: Path | None = None,
    unreadable: SlideError | None = None,
) -> None:
    """Draw the page of one slide, and write its tiles for QuPath.

    Parameters
    ----------
    slide_path
        The slide.
    attention
        Its attention artefact. For a quarantined slide the page says why, and the GeoJSON has no features.
    png, geojson, view
        Where to write. The page is A4, landscape; `view` is what the report's viewer shows, None writes none.
    tiles
        The slide's tiles, so that those that were left out are shown as such; None: they are not known.
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
    private
        Folder of the key by which the page names slide and patient (see `pseudonyms`); None: it shows their names.
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
    shown: dict[str, Any] = artefact.attributes
    told: Callable[[str], str] = str
    if private is not None:
        hashed = pseudonyms.load(private)
        shown, told = pseudonyms.masked_page(artefact.attributes, hashed, slide_path)
    made = _made_by(artefact.attributes, colormap=colormap, opacity=opacity, private=private is not None)
    if error is None:
        values = maps.load(store.read(attention), None if tiles is None else store.read(tiles))
        values = replace(values, attributes=shown)
        style = Style(colormap, opacity, min(top_patches, MOST_SPECIMENS))
        write_geojson(geojson, values, made=made)
        try:
            if unreadable is not None:
                raise unreadable
            with open_slide(
                slide_path, mpp=mpp, default_mpp=default_mpp, mpp_from_objective=mpp_from_objective
            ) as slide:
                _draw(page, slide, values, style, view, made)
        except SlideError as failure:
            logger.warning("%s: %s", slide_path.name, failure)
            error, page = failure, Page(width_px)
    else:
        store.write_text(geojson, _collection([], made))
    if error is not None:
        # a slide whose reader crashed or hung is not opened once more for a thumbnail
        closed = unreadable is not None or artefact.attributes["fingerprint"] == UNREADABLE
        thumbnail = None if closed else placeholder_thumbnail(slide_path, page)
        draw_placeholder(
            page,
            slide_id=shown["slide_id"],
            reason=told(error.reason),
            remedy=told(error.remedy),
            thumbnail=thumbnail,
        )
        if view is not None:
            views.write_without(view, thumbnail, made_by=made)
    with store.replacing(png) as part:
        page.save_png(part, made_by=made)
    logger.info("%s: page of %d x %d px", artefact.attributes["slide_id"], *page.image.size)


def _made_by(attributes: Mapping[str, Any], *, private: bool, **style: object) -> dict[str, object]:
    """Say what made a picture: versions, the file, the encoder, the models, and how it is drawn."""
    known = ("encoder", "weights_sha256", "folds", "models_sha256")
    origin = {name: attributes[name] for name in known if name in attributes}
    # who has a slide file could find its page by the file's hash, where names are hidden
    named = {} if private else {"fingerprint": attributes["fingerprint"]}
    return made_by("heatmap", **named, **origin, parameters=style)


def _draw(
    page: Page,
    slide: Slide,
    attention: Attention,
    style: Style,
    view_file: Path | None,
    made: Mapping[str, object],
) -> None:
    attributes = attention.attributes
    x, y, width, height = attributes.get("bounds") or (0, 0, slide.width, slide.height)
    layout = panel_layout(page, width=width, height=height, further=len(further(attention)))
    # read once, for the viewer and the page: the finer of both
    scale = min(max(views.BASE_PX / max(width, height), layout.size[0] / width), 1.0)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    view = View(
        thumbnail=read_thumbnail(slide, bounds=(x, y, width, height), size=size),
        bounds=(x, y, width, height),
        mpp=attributes["mpp_x"],
    )
    most, least = specimens.choose(
        attention.score, attention.coords, edge_px=attributes["patch_level0_px"], count=style.top_patches
    )
    pixels = specimens.read(
        slide,
        attention.coords[[*most, *least]],
        patch_px=attributes["patch_px"],
        mpp=attributes["target_mpp"],
    )
    shown = specimens.named(most, least, pixels)
    draw_sheet(attention, view.shrunk(layout.size), layout=layout, shown=shown, most=len(most), page=page, style=style)
    if view_file is not None:
        views.write(view_file, attention, view, shown=shown, style=style, made_by=made)


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
    return drawing.resize(cropped, size)


def placeholder_thumbnail(slide_path: Path, page: Page) -> NDArray[np.uint8] | None:
    """Read a quarantined slide's thumbnail for its page, or None where the slide does not open."""
    try:
        with open_slide(slide_path, mpp=PLACEHOLDER_MPP) as slide:
            scale = min(page.px(110.0) / slide.width, page.px(150.0) / slide.height, 1.0)
            size = (max(1, round(slide.width * scale)), max(1, round(slide.height * scale)))
            return read_thumbnail(slide, bounds=(0, 0, slide.width, slide.height), size=size)
    except SlideError:
        return None


def write_geojson(path: Path, attention: Attention, *, made: Mapping[str, object]) -> None:
    """Write a QuPath tile object a tile, unclassified, with its attention as measurements, and what made it.

    Corners are level-0 px in QuPath's frame (`outline.to_qupath`), rounded; a 25,000-tile slide takes about 6 MB.
    QuPath 0.4 and later read measurements as an object.
    """
    edge, bounds = attention.attributes["patch_level0_px"], attention.attributes.get("bounds") or (0, 0, 0, 0)
    low, high = (np.rint(to_qupath(attention.coords + add, bounds=bounds)).astype(np.int64) for add in (0.0, edge))
    measured = measurements(attention)
    names = "".join(f"{',' if index else ''}{json.dumps(name)}:%.6g" for index, name in enumerate(measured))
    features = [
        '{"type":"Feature","geometry":{"type":"Polygon","coordinates":'
        f"[[[{x0},{y0}],[{x1},{y0}],[{x1},{y1}],[{x0},{y1}],[{x0},{y0}]]]}},"
        f'"properties":{{"objectType":"tile","measurements":{{{names % values}}}}}}}'
        for (x0, y0), (x1, y1), values in zip(
            low.tolist(), high.tolist(), zip(*measured.values(), strict=True), strict=True
        )
    ]
    store.write_text(path, _collection(features, made))


def measurements(attention: Attention) -> dict[str, list[float]]:
    """Give what is known of each tile, by QuPath's name of the measurement, in the order of the tiles."""
    found = {
        "attention": attention.score,
        "attention percentile": attention.percentile,
        "attention x mean": attention.score * attention.score.size,
    }
    if attention.disagreement is not None:
        found["sd of percentile over folds"] = attention.disagreement
    if attention.evidence is not None:
        for index, name in enumerate(attention.attributes["classes"]):
            found[f"evidence {name}"] = attention.evidence[:, index]
    return {name.replace("%", "%%"): values.tolist() for name, values in found.items()}


def _collection(features: Sequence[str], made: Mapping[str, object]) -> str:
    return '{"type":"FeatureCollection","features":[' + ",\n".join(features) + f'],"made_by":{json.dumps(made)}}}\n'
