"""What the report's viewer shows of a slide: one small file with its pictures, which the report takes in."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import drawing, store
from pipeline.maps import UNREADABLE, Attention, Layer, Style, further
from pipeline.sheet import View, lay_over
from pipeline.specimens import Specimen

BASE_PX, THUMBNAIL_PX = 1440, 320
"""Longest edge of the viewer's picture, and of the gallery's."""
BASE_QUALITY, THUMBNAIL_QUALITY = 74, 78
CLEAR, HATCHED, CROSSED, FIRST_COLOUR = 0, 1, 2, 3
"""Colours of a layer's picture: nothing, the lines over tiles left out, those over unreadable ones, then the map's."""


def write(
    path: Path,
    attention: Attention,
    view: View,
    *,
    shown: list[Specimen],
    style: Style,
    made_by: Mapping[str, object],
) -> None:
    """Write the viewer's file of a usable slide.

    Parameters
    ----------
    view
        The slide at the viewer's resolution.
    shown
        Patches whose places are marked.
    made_by
        What the file was made by and from.
    """
    main = Layer("Attention", attention.percentile, style.colormap, "least attended", "most attended")
    height, width = view.thumbnail.shape[:2]
    small, _ = lay_over(_thumbnail(view), attention, main, opacity=style.opacity)
    edge = attention.attributes["patch_level0_px"]
    boxes = drawing.tile_boxes(attention.coords, edge_px=edge, origin=view.bounds[:2], scale=view.scale)
    found: dict[str, Any] = {
        "thumbnail": jpeg(small, THUMBNAIL_QUALITY),
        "base": jpeg(view.thumbnail, BASE_QUALITY),
        "width": width,
        "height": height,
        "um_per_px": view.um_per_px,
        "opacity": style.opacity,
        "layers": [layer_picture(attention, view, layer) for layer in (main, *further(attention))],
        "marks": [
            {"name": one.name, "box": boxes[one.row].tolist(), "times": float(attention.score[one.row] * len(boxes))}
            for one in shown
        ],
        "left_out": attention.left_out.counts(),
        "made_by": made_by,
    }
    store.write_text(path, json.dumps(found))


def write_without(path: Path, thumbnail: NDArray[np.uint8] | None, *, made_by: Mapping[str, object]) -> None:
    """Write the file of a slide that was not analysed: how it looks, if it opens."""
    found: dict[str, Any] = {"made_by": made_by}
    if thumbnail is not None:
        found["thumbnail"] = jpeg(_bounded(thumbnail, THUMBNAIL_PX), THUMBNAIL_QUALITY)
    store.write_text(path, json.dumps(found))


def _thumbnail(view: View) -> View:
    small = _bounded(view.thumbnail, THUMBNAIL_PX)
    return View(small, view.bounds, view.mpp)


def _bounded(pixels: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    scale = min(1.0, longest / max(pixels.shape[:2]))
    return drawing.resize(pixels, (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))))


def layer_picture(attention: Attention, view: View, layer: Layer) -> dict[str, Any]:
    """Draw a map as a picture that is clear where no tile lies, and its colour bar as colours."""
    shape, edge = view.thumbnail.shape[:2], attention.attributes["patch_level0_px"]
    boxes = drawing.tile_boxes(attention.coords, edge_px=edge, origin=view.bounds[:2], scale=view.scale)
    values, covered = drawing.paint(layer.values, boxes, shape=shape)
    steps = 256 - FIRST_COLOUR
    index = np.full(shape, CLEAR, np.uint8)
    index[covered] = FIRST_COLOUR + np.rint(values[covered] / 100.0 * (steps - 1)).astype(np.uint8)
    out = attention.left_out
    boxes = drawing.tile_boxes(out.coords, edge_px=edge, origin=view.bounds[:2], scale=view.scale)
    for is_lost, mark in ((False, HATCHED), (True, CROSSED)):
        rows = boxes[(out.flags == UNREADABLE) == is_lost]
        if len(rows):
            _, lies = drawing.paint(np.ones(len(rows)), rows, shape=shape)
            index[lies & ~covered & drawing.hatching(shape, crossed=is_lost)] = mark
    colours = drawing.colours(np.linspace(0.0, 100.0, steps), layer.colormap)
    palette = np.concatenate([np.array([(0, 0, 0), drawing.GREY, drawing.INK], np.uint8), colours])
    ramp = [f"rgb({red},{green},{blue})" for red, green, blue in colours[:: steps // 16].tolist()]
    return {
        "title": layer.title,
        "image": png(index, palette),
        "ramp": ramp,
        "low": layer.low,
        "high": layer.high,
    }


def jpeg(pixels: NDArray[np.uint8], quality: int) -> str:
    """Give pixels [H, W, 3] as the data URL of a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, optimize=True)
    return _data_url("image/jpeg", buffer.getvalue())


def png(index: NDArray[np.uint8], palette: NDArray[np.uint8]) -> str:
    """Give indices [H, W] into a palette [256, 3], whose first colour is clear, as the data URL of a PNG."""
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=CLEAR, compress_level=6)
    return _data_url("image/png", buffer.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
