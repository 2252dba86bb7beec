"""The tiles of a tiled TIFF slide: where they lie in the file, and how to decode one as OpenSlide does.

Only what is certain to give OpenSlide's pixels is accepted (JPEG and Aperio's RGB JPEG 2000, 8-bit, contiguous, upright
and complete); everything else is refused with a reason, and read through OpenSlide.

JPEG is decoded by simplejpeg with `strict=True`: imagecodecs, OpenCV and Pillow return grey for the rest of a tile that
is cut short, without a word. OpenSlide takes the colour space from the TIFF's Photometric tag, whatever the JPEG says
of itself; a JPEG decoder is told the same by an Adobe marker.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

DIRECT_VENDORS = frozenset({"aperio", "generic-tiff"})
"""Formats, as OpenSlide names them, whose levels are plain grids of tiles that do not overlap."""

TILE_OFFSETS, TILE_BYTE_COUNTS = 324, 325
JPEG, APERIO_JP2K_RGB = 7, 33005
PHOTOMETRIC_RGB, PHOTOMETRIC_YCBCR = 2, 6
LARGEST_TILE_PX = 4096
"""Edge beyond which a tile is not taken: each thread holds one, decoded."""

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
DHT, SOS, DQT, APP0, APP14 = 0xC4, 0xDA, 0xDB, 0xE0, 0xEE
SEGMENT = struct.Struct(">BBH")
"""How a JPEG segment begins: 0xFF, its marker, and its length without these two bytes."""
FRAMES = frozenset({0xC0, 0xC1, 0xC2})
"""Frame headers that are decoded: baseline, extended and progressive, all Huffman-coded."""
BARE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
"""Second bytes that start no segment; before the first scan none of them may occur."""


class NotDirectError(Exception):
    """A level whose tiles are not certain to decode to OpenSlide's pixels; the message says why."""


class TileError(Exception):
    """A tile that cannot be read or decoded."""


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one level, row by row.

    Parameters
    ----------
    width, height
        The level's size in its pixels.
    tile_width, tile_height
        A tile's size; the last column and row may reach beyond the level.
    columns, rows
        How many tiles there are.
    offsets, counts
        Where each tile lies in the file, and its length: bytes, int64 [rows * columns].
    codec
        What a tile is compressed with.
    header
        What goes before a JPEG tile's own segments: start of image, colour marker, the level's tables.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    columns: int
    rows: int
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    codec: Literal["jpeg", "jpeg2000"]
    header: bytes


def read_grid(file: Path, *, vendor: str, level: int, level_dimensions: Sequence[tuple[int, int]]) -> TileGrid:
    """Read where the tiles of a level lie.

    Parameters
    ----------
    file
        A slide that OpenSlide opened.
    vendor, level_dimensions
        Its format and the (width, height) of its levels, as OpenSlide found them.
    level
        The level that is wanted.

    Raises
    ------
    NotDirectError
        If the level has to be read through OpenSlide.
    """
    if vendor not in DIRECT_VENDORS:
        raise NotDirectError(f"its format is {vendor}")
    try:
        with tifffile.TiffFile(file) as tiff:
            pages = _level_pages(tiff, vendor)
            if [(page.imagewidth, page.imagelength) for page in pages] != list(level_dimensions):
                raise NotDirectError("its TIFF directories are not the levels that OpenSlide found")
            tables = [_tile_tables(page) for page in pages[: level + 1]]
            page = pages[level]
            _check_layout(page)
            codec, header = _codec(page)
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise NotDirectError(f"its TIFF tables are unusual ({error})") from error
    # an Aperio level draws the tiles it lacks from the next finer one, also where only that one lacks them
    if any((counts == 0).any() for _, counts in tables):
        raise NotDirectError("it has missing tiles")
    offsets, counts = tables[level]
    if ((offsets < 8) | (counts < 0) | (offsets + counts > file.stat().st_size)).any():
        raise NotDirectError("some of its tiles lie outside the file")
    columns, rows = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    if not len(offsets) == len(counts) == columns * rows:
        raise NotDirectError(f"it lists {len(offsets)} tiles where {columns} x {rows} are needed")
    return TileGrid(
        page.imagewidth,
        page.imagelength,
        page.tilewidth,
        page.tilelength,
        columns,
        rows,
        offsets,
        counts,
        codec,
        header,
    )


def decode_tile(grid: TileGrid, content: bytes, scratch: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decode one tile.

    Parameters
    ----------
    content
        The tile's bytes.
    scratch
        At least `tile_height * tile_width * 3` bytes, flat, that the result may lie in.

    Returns
    -------
    RGB, shape (tile_height, tile_width, 3).

    Raises
    ------
    TileError
        If the tile is damaged in any way that a decoder notices, or is not of the grid's size.
    """
    try:
        if grid.codec == "jpeg":
            stream = grid.header + _own_segments(grid, content)
            pixels = simplejpeg.decode_jpeg(stream, "RGB", strict=True, buffer=scratch)
        else:
            _check_codestream(grid, content)
            pixels = imagecodecs.jpeg2k_decode(content)
    except (ValueError, imagecodecs.Jpeg2kError) as error:
        raise TileError(str(error)) from error
    if pixels.shape != (grid.tile_height, grid.tile_width, 3) or pixels.dtype != np.uint8:
        raise TileError(f"the tile decodes to {pixels.shape} of {pixels.dtype}")
    decoded: NDArray[np.uint8] = pixels
    return decoded


def _level_pages(tiff: tifffile.TiffFile, vendor: str) -> list[tifffile.TiffPage]:
    """Give the TIFF directories that OpenSlide takes for levels, finest first."""
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    if vendor == "aperio":
        return [page for page in pages if page.is_tiled]
    levels = [page for index, page in enumerate(pages) if page.is_tiled and (index == 0 or page.subfiletype & 1)]
    return sorted(levels, key=lambda page: -page.imagewidth)


def _tile_tables(page: tifffile.TiffPage) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    offsets, counts = (
        np.atleast_1d(np.asarray(page.tags[code].value, np.int64)) for code in (TILE_OFFSETS, TILE_BYTE_COUNTS)
    )
    return offsets, counts


def _check_layout(page: tifffile.TiffPage) -> None:
    found = {
        "samples a pixel": (page.samplesperpixel, 3),
        "bits a sample": (page.bitspersample, 8),
        "sample format": (page.sampleformat, 1),
        "planes": (page.planarconfig, 1),
        "predictor": (page.predictor, 1),
        "depth": (page.imagedepth * page.tiledepth, 1),
        "extra samples": (len(page.extrasamples), 0),
        "orientation": (page.tags.valueof("Orientation", default=1), 1),
    }
    for name, (value, usual) in found.items():
        if int(value) != usual:
            raise NotDirectError(f"its TIFF directory states {name} {int(value)}")
    if not (0 < page.tilewidth <= LARGEST_TILE_PX and 0 < page.tilelength <= LARGEST_TILE_PX):
        raise NotDirectError(f"its tiles have {page.tilewidth} x {page.tilelength} px")


def _codec(page: tifffile.TiffPage) -> tuple[Literal["jpeg", "jpeg2000"], bytes]:
    compression, photometric = int(page.compression), int(page.photometric)
    if compression == JPEG and photometric in (PHOTOMETRIC_RGB, PHOTOMETRIC_YCBCR):
        colour = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0" + bytes([photometric == PHOTOMETRIC_YCBCR])
        return "jpeg", SOI + colour + _shared_tables(page.jpegtables)
    if compression == APERIO_JP2K_RGB and photometric == PHOTOMETRIC_RGB:
        return "jpeg2000", b""
    raise NotDirectError(f"its compression is {compression} with photometric {photometric}")


def _shared_tables(stream: bytes | None) -> bytes:
    """Give the segments of a level's JPEG tables, which may be quantisation and Huffman tables only."""
    if stream is None:
        return b""
    position, end = 2, len(stream) - 2
    if stream[:2] != SOI or stream[end:] != EOI:
        raise NotDirectError("its JPEG tables are no JPEG stream")
    while position < end:
        if stream[position] != 0xFF or stream[position + 1] not in (DHT, DQT):
            raise NotDirectError("its JPEG tables hold something else")
        position += 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
    if position != end:
        raise NotDirectError("its JPEG tables are cut short")
    return stream[2:end]


def _own_segments(grid: TileGrid, content: bytes) -> bytes:
    """Give a JPEG tile without its start marker and without what it says of its own colours.

    Checked before anything is decoded: a damaged frame header can ask for gigabytes.
    """
    if content[:2] != SOI:
        raise TileError("the tile is no JPEG stream")
    position, last, start, framed, kept = 2, len(content) - 10, 2, False, b""
    while position <= last:
        lead, marker, length = SEGMENT.unpack_from(content, position)
        if lead != 0xFF or marker in BARE:
            break
        if marker == SOS:
            if not framed:
                raise TileError("the tile's JPEG stream has no frame that can be decoded")
            return kept + content[start:]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        end = position + 2 + length
        if marker in FRAMES:
            _check_frame(grid, content[position + 4 : position + 10])
            framed = True
        elif marker in (APP0, APP14):
            kept += content[start:position]
            start = end
        position = end
    raise TileError("the tile's JPEG header is damaged")


def _check_frame(grid: TileGrid, header: bytes) -> None:
    precision, height, width, components = struct.unpack(">BHHB", header)
    if (precision, components) != (8, 3):
        raise TileError(f"the tile has {components} components of {precision} bits")
    if (width, height) != (grid.tile_width, grid.tile_height):
        raise TileError(f"the tile says it has {width} x {height} px")


def _check_codestream(grid: TileGrid, content: bytes) -> None:
    """Check the size marker of a JPEG 2000 codestream, which is its first segment."""
    if len(content) < 51 or content[:4] != b"\xff\x4f\xff\x51":
        raise TileError("the tile is no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack(">4I", content[8:24])
    if (right - left, bottom - top) != (grid.tile_width, grid.tile_height):
        raise TileError(f"the tile says it has {right - left} x {bottom - top} px")
    # three components of 8 unsigned bits, each of the full resolution
    if content[40:51] != b"\x00\x03" + b"\x07\x01\x01" * 3:
        raise TileError("the tile is not three components of 8 bits")


def tile_names(grid: TileGrid, tiles: Iterable[int]) -> str:
    """Name a few tiles by column and row, for a message."""
    found = sorted(tiles)
    named = ", ".join(f"({tile % grid.columns}, {tile // grid.columns})" for tile in found[:5])
    return named + (" ..." if len(found) > 5 else "")
