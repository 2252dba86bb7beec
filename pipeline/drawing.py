"""Numbers to pixels: attention ranks, tinted thumbnails, scale bars, and a page measured in millimetres.

The page is drawn with Pillow and the fonts that come with matplotlib, without matplotlib's figures: images land on
whole pixels and are never resampled by the page, the same input gives the same bytes, and the stage starts in a third
of the time.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from pipeline import palettes

PAGE_MM = (297.0, 210.0)
"""Width and height of a page: A4, landscape."""

Colour = tuple[int, int, int]
INK: Colour = (28, 35, 43)
GREY: Colour = (92, 102, 112)
PALE: Colour = (222, 226, 230)
WARNING: Colour = (150, 32, 32)
WHITE: Colour = (255, 255, 255)
TIMES = "\N{MULTIPLICATION SIGN}"

HATCH_PX, HATCH_LINE_PX = 9, 2
"""Distance and width of the lines over tiles that were not judged."""

_MM_PER_PT = 25.4 / 72.0


def percentile_ranks(score: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rank scores within a slide, from 0 (least attended) to 100 (most attended).

    Parameters
    ----------
    score
        Shape (N,).

    Returns
    -------
    Shape (N,). Equal scores get the mean of their ranks; where all are equal, and for N = 1, that is 50.
    """
    if score.size < 2:
        return np.full(score.size, 50.0)
    _, group, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts + 1) / 2
    return np.asarray(100.0 * mean_rank[group] / (score.size - 1), dtype=np.float64)


def tile_boxes(
    coords: NDArray[np.integer], *, edge_px: float, origin: tuple[float, float], scale: tuple[float, float]
) -> NDArray[np.int64]:
    """Give the tiles' boxes on a thumbnail.

    Parameters
    ----------
    coords
        Top-left corners, shape (N, 2), columns x, y, level-0 px.
    edge_px
        Edge of a tile, level-0 px.
    origin
        Level-0 position (x, y) of the thumbnail's first pixel.
    scale
        Thumbnail px per level-0 px along x and y.

    Returns
    -------
    Shape (N, 4): left, top, right, bottom (exclusive), thumbnail px. Neighbours share their edge: both round the same
    position, so that tiles without overlap neither overlap nor leave gaps here. A box has at least one pixel.
    """
    factor, offset = np.asarray(scale), np.asarray(origin)
    low = np.floor((coords - offset) * factor + 0.5).astype(np.int64)
    high = np.floor((coords + edge_px - offset) * factor + 0.5).astype(np.int64)
    return np.concatenate([low, np.maximum(high, low + 1)], axis=1)


def paint(
    values: NDArray[np.floating], boxes: NDArray[np.int64], *, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Spread the tiles' values over a grid; where tiles overlap, average them.

    Parameters
    ----------
    values, boxes
        Shapes (N,) and (N, 4), as `tile_boxes` gives them; what lies outside the grid is clipped.
    shape
        Height and width of the grid.

    Returns
    -------
    Values, shape (H, W), 0 where no tile lies; and where tiles lie, shape (H, W).
    """
    height, width = shape
    left, right = (np.clip(boxes[:, i], 0, width) for i in (0, 2))
    top, bottom = (np.clip(boxes[:, i], 0, height) for i in (1, 3))
    # each box adds at two corners and subtracts at the other two; a double running sum fills all boxes at once
    sums = np.zeros((height + 1, width + 1))
    counts = np.zeros((height + 1, width + 1), dtype=np.int32)
    for rows, cols, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
        np.add.at(sums, (rows, cols), sign * values)
        np.add.at(counts, (rows, cols), sign)
    for running in (sums, counts):  # in place: a copy a step would be half of the stage's memory
        for axis in (0, 1):
            np.cumsum(running, axis=axis, out=running)
    total, depth = sums[:height, :width], counts[:height, :width]
    covered = depth > 0
    mean = np.divide(total, depth, out=np.zeros((height, width)), where=covered)
    return mean, covered


@cache
def palette(colormap: str) -> NDArray[np.uint8]:
    """Give a matplotlib colour map as 256 colours, shape (256, 3).

    The configured default is viridis: perceptually uniform and safe for colour-blind readers. Its dark violet end is
    close to haematoxylin and recedes; its green and yellow end occurs in no pink and purple tissue, so that a tinted
    patch cannot be mistaken for stain. cividis is as safe, but its blue and grey lie nearer to haematoxylin; magma and
    inferno run through eosin's own pink.
    """
    if colormap in palettes.KNOWN:
        return np.frombuffer(bytes.fromhex(palettes.KNOWN[colormap]), np.uint8).reshape(256, 3)
    import matplotlib

    return np.asarray(matplotlib.colormaps[colormap](np.linspace(0.0, 1.0, 256), bytes=True)[:, :3], dtype=np.uint8)


def colours(percentile: NDArray[np.floating], colormap: str) -> NDArray[np.uint8]:
    """Give the colour of each percentile in [0, 100]; shape (..., 3)."""
    return np.asarray(palette(colormap)[_steps(percentile)], dtype=np.uint8)


def _steps(percentile: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Give the place of each percentile among 256 colours."""
    steps: NDArray[np.uint8] = np.clip(np.rint(percentile * 2.55), 0, 255).astype(np.uint8)
    return steps


def tint(
    thumbnail: NDArray[np.uint8],
    percentile: NDArray[np.floating],
    covered: NDArray[np.bool_],
    *,
    colormap: str,
    opacity: float,
) -> NDArray[np.uint8]:
    """Lay colours over the covered pixels of a thumbnail and leave all others as they are.

    Parameters
    ----------
    thumbnail
        Shape (H, W, 3).
    percentile, covered
        Shape (H, W), as `paint` gives them.
    opacity
        Share of the colour in a covered pixel, in [0, 1].
    """
    tinted = thumbnail.copy()
    # tables of 256 instead of arithmetic on every pixel
    tissue = (1.0 - opacity) * np.arange(256, dtype=np.float32)
    layer = opacity * palette(colormap).astype(np.float32)
    mixed = tissue[thumbnail[covered]]
    mixed += layer[_steps(percentile[covered])]
    tinted[covered] = np.rint(mixed, out=mixed).astype(np.uint8)
    return tinted


def hatch(pixels: NDArray[np.uint8], where: NDArray[np.bool_], *, crossed: bool) -> None:
    """Draw slanted lines, or crossed ones, over the pixels [H, W, 3] that lie in `where` [H, W]; changes `pixels`."""
    pixels[where] = np.rint(0.6 * pixels[where] + 0.4 * 255).astype(np.uint8)
    pixels[where & hatching(where.shape, crossed=crossed)] = INK if crossed else GREY


def hatching(shape: tuple[int, ...], *, crossed: bool) -> NDArray[np.bool_]:
    """Give slanted lines, or crossed ones, as a mask of `shape` (height, width)."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    lines: NDArray[np.bool_] = (x + y) % HATCH_PX < HATCH_LINE_PX
    return lines | ((x - y) % HATCH_PX < HATCH_LINE_PX) if crossed else lines


def resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring pixels [H, W, 3] to `size` (width, height): by area averaging where they shrink."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return np.ascontiguousarray(pixels)
    shrinks = pixels.shape[1] > size[0]
    found = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(found, dtype=np.uint8)


def round_length_um(longest_um: float) -> float:
    """Give the longest of 1, 2, 5, 10, 20, 50 ... um that is at most `longest_um`."""
    power = 10.0 ** math.floor(math.log10(longest_um))
    return max(step * power for step in (1, 2, 5) if step * power <= longest_um * (1 + 1e-9))


def length_text(length_um: float) -> str:
    """Write a length in um below a millimetre and in mm from there on."""
    return f"{length_um:g} µm" if length_um < 1000 else f"{length_um / 1000:g} mm"


@cache
def _font(bold: bool, size_px: int) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    # found without an import of matplotlib, which takes longer than to write all text of a page
    package = find_spec("matplotlib")
    if package is None or package.origin is None:
        raise ImportError("matplotlib, whose fonts the pages use, is not installed; install requirements.lock")
    path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    # the basic engine is part of Pillow: the same text on every machine, with or without libraqm
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)


@dataclass
class Page:
    """A white A4 page, landscape. Places and lengths are in mm from the top left, sizes of text in pt.

    Parameters
    ----------
    width_px
        Width of the page in pixels; the height and the resolution in dpi follow.
    """

    width_px: int
    image: Image.Image = field(init=False)

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (self.width_px, self.px(PAGE_MM[1])), WHITE)
        self._draw = ImageDraw.Draw(self.image)

    @property
    def dpi(self) -> float:
        """Pixels per inch when printed on A4."""
        return self.width_px / PAGE_MM[0] * 25.4

    def px(self, length_mm: float) -> int:
        """Give a length or place in whole pixels."""
        return math.floor(length_mm * self.width_px / PAGE_MM[0] + 0.5)

    def mm(self, length_px: float) -> float:
        """Give a length or place on the page in mm."""
        return length_px * PAGE_MM[0] / self.width_px

    def _sized(self, size_pt: float, bold: bool) -> ImageFont.FreeTypeFont:
        return _font(bold, max(1, self.px(size_pt * _MM_PER_PT)))

    def text_width(self, text: str, size_pt: float, *, bold: bool = False) -> float:
        """Give the width of a line of text in mm."""
        return self.mm(self._sized(size_pt, bold).getlength(text))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size_pt: float,
        *,
        bold: bool = False,
        colour: Colour = INK,
        anchor: str = "ls",
        width: float | None = None,
    ) -> None:
        """Write one line.

        Parameters
        ----------
        x, y
            Place of the anchor.
        anchor
            Pillow's two letters: left, middle or right; and the baseline (s), top (a), middle (m) or bottom (d).
        width
            The line is cut, with an ellipsis, to this width.
        """
        line = clean(text) if width is None else self.cut(text, size_pt, width=width, bold=bold)
        self._draw.text((self.px(x), self.px(y)), line, font=self._sized(size_pt, bold), fill=colour, anchor=anchor)

    def cut(self, text: str, size_pt: float, *, width: float, bold: bool = False) -> str:
        """Shorten a line to a width in mm, in its middle: the two ends tell one slide id from another."""
        line = clean(text)
        if self.text_width(line, size_pt, bold=bold) <= width:
            return line
        for kept in range(len(line) - 1, 1, -1):
            head = (kept + 1) // 2
            shorter = f"{line[:head]}…{line[len(line) - (kept - head) :]}"
            if self.text_width(shorter, size_pt, bold=bold) <= width:
                return shorter
        return "…"

    def wrap(self, text: str, size_pt: float, *, width: float, bold: bool = False) -> list[str]:
        """Break a text into lines at most `width` mm wide; a word that is wider is cut."""
        lines: list[str] = []
        for word in clean(text).split(" "):
            joined = f"{lines[-1]} {word}" if lines else word
            if lines and self.text_width(joined, size_pt, bold=bold) <= width:
                lines[-1] = joined
            else:
                lines.append(self.cut(word, size_pt, width=width, bold=bold))
        return lines

    def paragraph(
        self,
        x: float,
        y: float,
        text: str,
        size_pt: float,
        *,
        width: float,
        bold: bool = False,
        colour: Colour = INK,
        bottom: float = PAGE_MM[1],
    ) -> float:
        """Write a text in lines, as far as they fit above `bottom`, and give the baseline of the next line."""
        leading = size_pt * _MM_PER_PT * 1.38
        lines = self.wrap(text, size_pt, width=width, bold=bold)
        for index, line in enumerate(lines):
            is_last = y + leading > bottom
            shown = f"{line} …" if is_last and index + 1 < len(lines) else line
            self.text(x, y, shown, size_pt, bold=bold, colour=colour)
            y += leading
            if is_last:
                break
        return y

    def paste(self, pixels: NDArray[np.uint8], left_px: int, top_px: int) -> None:
        """Put pixels, shape (H, W, 3), on the page as they are, with a hairline around them."""
        height, width = pixels.shape[:2]
        self.frame((left_px - 1, top_px - 1, left_px + width, top_px + height), PALE)
        self.image.paste(Image.fromarray(pixels), (left_px, top_px))

    def frame(self, box_px: tuple[int, int, int, int], colour: Colour, *, line_px: int = 1) -> None:
        """Draw the outline of a box (left, top, right, bottom, all inclusive, px), its line inside."""
        self._draw.rectangle(box_px, outline=colour, width=line_px)

    def fill(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """Fill a box, given in mm; what has a size has at least one pixel."""
        left, top = self.px(x), self.px(y)
        right, bottom = max(left + 1, self.px(x + width)), max(top + 1, self.px(y + height))
        self._draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)

    def line(self, start_px: tuple[int, int], end_px: tuple[int, int], colour: Colour, *, line_px: int) -> None:
        """Draw a line between two pixels."""
        self._draw.line((start_px, end_px), fill=colour, width=line_px)

    def tag(self, box_px: tuple[int, int, int, int], text: str, size_pt: float, colour: Colour) -> None:
        """Draw a filled label (left, top, right, bottom, px) whose text contrasts with its colour."""
        left, top, right, bottom = box_px
        self._draw.rectangle(box_px, fill=colour, outline=WHITE)
        ink = INK if luminance(colour) > 0.4 else WHITE
        middle = ((left + right + 1) / 2, (top + bottom + 1) / 2)
        self._draw.text(middle, text, font=self._sized(size_pt, True), fill=ink, anchor="mm")

    def save_png(self, path: Path, *, made_by: Mapping[str, object]) -> None:
        """Write the page, with a text that says what made it; no time, so that the same page has the same bytes."""
        chunks = PngInfo()
        chunks.add_text("Software", f"asmil-wsi {made_by['asmil_wsi']}")
        chunks.add_itxt("made_by", json.dumps(made_by, ensure_ascii=False))
        # level 3 halves the time of the default for a file 4 % larger
        dpi = (round(self.dpi), round(self.dpi))
        self.image.save(path, format="PNG", compress_level=3, dpi=dpi, pnginfo=chunks)


def luminance(colour: Colour) -> float:
    """Give a colour's relative luminance in [0, 1], without sRGB's curve: enough to choose black or white text."""
    red, green, blue = colour
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255.0


def clean(text: str) -> str:
    """Replace what is not printable (line breaks, control and direction marks) by spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
