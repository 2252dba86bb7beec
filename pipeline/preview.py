"""Draw a slide's tissue and tiles for people to check at a glance."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline import store
from pipeline.errors import SlideError
from pipeline.flags import WORDS

LONG_EDGE_PX = 1400
"""Long edge of a preview: fills a screen, and a JPEG of some 200 kB."""

MIN_WIDTH_PX = 560
"""A narrower slide gets white margins, so that the legend fits."""

MARGIN_PX, TEXT_PX, TITLE_PX = 16, 15, 20
INK, MUTED, PAPER = (34, 40, 49), (110, 118, 129), (255, 255, 255)
TISSUE, TILE = (0, 150, 110), (25, 80, 200)
"""Outline of tissue, green, and of tiles, blue: neither is a colour of H&E, and the two differ for the colour-blind."""

REGION: tuple[int, int, int] = (240, 150, 0)
COLOURS: dict[str, tuple[int, int, int]] = {
    "pen": (215, 90, 0),
    "bubble": (0, 140, 190),
    "blur": (40, 40, 40),
    "fold": (190, 0, 90),
}
"""Colours of the tiles that are left out; they are crossed out, so that colour alone does not tell."""

SCALE_BAR_PX = 240
"""Width that the scale bar and its text take."""

SCALE_BARS_UM = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)


def preview_mpp(width: int, height: int, *, mpp: float) -> float:
    """Give the um per pixel at which a slide of `width` x `height` level-0 px fills a preview."""
    return mpp * max(1.0, max(width, height) / LONG_EDGE_PX)


def draw_preview(
    overview: NDArray[np.uint8],
    *,
    downsample: float,
    mpp: float,
    mask: NDArray[np.bool_],
    mask_downsample: float,
    coords: NDArray[np.int32],
    patch_level0_px: float,
    excluded: Mapping[str, NDArray[np.int32]],
    roi: NDArray[np.bool_] | None,
    slide_id: str,
    warnings: Sequence[str],
) -> NDArray[np.uint8]:
    """Draw tissue, tiles, those left out and the user's regions on a slide's overview, with a legend below.

    Parameters
    ----------
    overview, downsample
        RGB, shape (H, W, 3), and the level-0 px per pixel of it.
    mpp
        um per level-0 pixel.
    mask, mask_downsample
        Tissue, shape (h, w), and the level-0 px per mask pixel.
    coords, patch_level0_px
        Tiles' top-left corners, shape (N, 2), columns x, y, and their edge, level-0 px.
    excluded
        Corners of the tiles that were left out, by flag (a key of `COLOURS`).
    roi
        The user's regions, shape (h, w).

    Returns
    -------
    RGB, shape (H', W', 3).
    """
    edge_px, scale = patch_level0_px / downsample, mask_downsample / downsample
    picture = _draw_tiles(overview, coords / downsample, edge_px, TILE)
    area_mm2 = np.count_nonzero(mask) * (mask_downsample * mpp / 1000) ** 2
    legend = [
        (TISSUE, f"tissue, {area_mm2:.3g} mm²"),
        (TILE, f"{len(coords):,} tiles of {patch_level0_px * mpp:.0f} µm"),
    ]
    for flag, corners in excluded.items():
        if len(corners):
            colour, words = COLOURS[flag], WORDS[flag]
            picture = _draw_tiles(picture, corners / downsample, edge_px, colour, crossed=True)
            legend.append((colour, f"{len(corners):,} left out: {words}"))
    _draw_outline(picture, mask, scale, TISSUE)
    if roi is not None:
        _draw_outline(picture, roi, scale, REGION)
        legend.append((REGION, "regions to keep to"))
    return _compose(picture, title=slide_id, legend=legend, notes=list(warnings), um_per_px=mpp * downsample)


def draw_placeholder(
    slide_id: str, error: SlideError, *, overview: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Draw a picture that says why a slide is not used, with its overview where there is one.

    Parameters
    ----------
    overview
        RGB, shape (H, W, 3).

    Returns
    -------
    RGB, shape (H', W', 3).
    """
    if overview is None:
        overview = np.full((1, MIN_WIDTH_PX, 3), 255, np.uint8)
    elif max(overview.shape) > LONG_EDGE_PX // 2:
        overview = _resize(overview, LONG_EDGE_PX / 2 / max(overview.shape))
    notes = ["Not used: " + error.reason + ".", "What to do: " + error.remedy + "."]
    return _compose(overview, title=slide_id, legend=[], notes=notes, um_per_px=None)


def write_pictures(
    preview: Path,
    picture: NDArray[np.uint8],
    tissue: Path,
    outline: Mapping[str, Any] | None,
    *,
    made_by: Mapping[str, object],
) -> None:
    """Write what people look at, a JPEG and the tissue's outline as GeoJSON (None: empty); both say what made them."""
    outline = outline or {"type": "FeatureCollection", "features": []}
    buffer = BytesIO()
    comment = json.dumps({"made_by": made_by})
    Image.fromarray(picture).save(buffer, format="JPEG", quality=88, optimize=True, comment=comment)
    with store.replacing(preview) as part:
        part.write_bytes(buffer.getvalue())
    store.write_text(tissue, json.dumps({**outline, "made_by": made_by}))


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """Load the font that comes with matplotlib: Pillow's own has no µ; matplotlib itself is not imported."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)


def _resize(picture: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _draw_tiles(
    overview: NDArray[np.uint8],
    corners: NDArray[np.float64],
    edge_px: float,
    colour: tuple[int, int, int],
    *,
    crossed: bool = False,
) -> NDArray[np.uint8]:
    """Outline tiles, faintly where they are small, so that the tissue stays visible; cross out those left out."""
    picture = np.ascontiguousarray(overview)
    lines, thickness = picture.copy(), 2 if crossed and edge_px > 40 else 1
    starts = np.rint(corners).astype(np.int64)
    ends = np.rint(corners + edge_px).astype(np.int64)
    for (left, top), (right, bottom) in zip(starts.tolist(), ends.tolist(), strict=True):
        cv2.rectangle(lines, (left, top), (right, bottom), colour, thickness)
        if crossed:
            cv2.line(lines, (left, top), (right, bottom), colour, thickness, cv2.LINE_AA)
            cv2.line(lines, (left, bottom), (right, top), colour, thickness, cv2.LINE_AA)
    strength = 0.8 if crossed else float(np.clip(edge_px / 40, 0.25, 0.6))
    return cv2.addWeighted(lines, strength, picture, 1 - strength, 0).astype(np.uint8, copy=False)


def _draw_outline(
    picture: NDArray[np.uint8], mask: NDArray[np.bool_], scale: float, colour: tuple[int, int, int]
) -> None:
    """Draw the outline of `mask`, `scale` picture pixels per mask pixel, smoothed where it is enlarged."""
    height, width = picture.shape[:2]
    shrink = np.array([[scale, 0, 0.5 * scale - 0.5], [0, scale, 0.5 * scale - 0.5]])
    soft = cv2.warpAffine(mask.astype(np.float32), shrink, (width, height), flags=cv2.INTER_LINEAR)
    if scale > 1:
        soft = cv2.GaussianBlur(soft, (0, 0), 0.6 * scale)
    contours, _ = cv2.findContours((soft > 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, PAPER, 4, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, colour, 2, cv2.LINE_AA)


def _compose(
    picture: NDArray[np.uint8],
    *,
    title: str,
    legend: Sequence[tuple[tuple[int, int, int], str]],
    notes: Sequence[str],
    um_per_px: float | None,
) -> NDArray[np.uint8]:
    """Put a title above and a legend, a scale bar and notes below a picture."""
    height, width = picture.shape[:2]
    sheet_width = max(width, MIN_WIDTH_PX) + 2 * MARGIN_PX
    text_font, title_font = _font(TEXT_PX), _font(TITLE_PX)
    lines = [line for note in notes for line in _wrap(note, text_font, sheet_width - 2 * MARGIN_PX)]
    top = 2 * MARGIN_PX + TITLE_PX
    below = top + height + MARGIN_PX
    row = TEXT_PX + 9
    entries = _lay_out(legend, text_font, sheet_width, bar_px=SCALE_BAR_PX if um_per_px is not None else 0)
    rows = entries[-1][1] + 1 if entries else int(um_per_px is not None)
    sheet = Image.new("RGB", (sheet_width, below + row * (rows + len(lines)) + MARGIN_PX), PAPER)
    sheet.paste(Image.fromarray(picture), ((sheet_width - width) // 2, top))
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PX, MARGIN_PX), _fit(title, title_font, sheet_width - 2 * MARGIN_PX), INK, title_font)
    for (x, number), (colour, text) in zip(entries, legend, strict=True):
        y = below + row * number
        draw.rectangle((x, y + 1, x + 14, y + 15), outline=colour, width=3)
        draw.text((x + 22, y), text, INK, text_font)
    if um_per_px is not None:
        _draw_scale_bar(draw, right=sheet_width - MARGIN_PX, y=below + 8, um_per_px=um_per_px, font=text_font)
    for number, line in enumerate(lines):
        draw.text((MARGIN_PX, below + row * (rows + number)), line, MUTED if rows else INK, text_font)
    return np.asarray(sheet)


def _lay_out(
    legend: Sequence[tuple[tuple[int, int, int], str]], font: ImageFont.FreeTypeFont, width: int, *, bar_px: int
) -> list[tuple[int, int]]:
    """Give x and row of each entry; the first row leaves `bar_px` for the scale bar."""
    places: list[tuple[int, int]] = []
    x, row = MARGIN_PX, 0
    for _, text in legend:
        needed = 22 + round(font.getlength(text))
        if x > MARGIN_PX and x + needed > width - MARGIN_PX - (0 if row else bar_px):
            x, row = MARGIN_PX, row + 1
        places.append((x, row))
        x += needed + 28
    return places


def _draw_scale_bar(
    draw: ImageDraw.ImageDraw, *, right: int, y: int, um_per_px: float, font: ImageFont.FreeTypeFont
) -> None:
    """Draw a bar of a round length, at most 160 px, that ends at `right`."""
    length_um = max((bar for bar in SCALE_BARS_UM if bar / um_per_px <= 160), default=SCALE_BARS_UM[0])
    left = right - round(length_um / um_per_px)
    draw.line((left, y, right, y), fill=INK, width=3)
    for end in (left, right):
        draw.line((end, y - 5, end, y + 5), fill=INK, width=2)
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um} µm"
    draw.text((left - 10 - font.getlength(text), y - 8), text, INK, font)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break `text` into lines of at most `width` px; a word that is wider is shortened in its middle."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_fit(word, font, width))
    return lines


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Shorten `text` in its middle until it fits."""
    if font.getlength(text) <= width:
        return text
    half = len(text) // 2
    while half and font.getlength(f"{text[:half]}…{text[-half:]}") > width:
        half -= 1
    return f"{text[:half]}…{text[-half:]}"
