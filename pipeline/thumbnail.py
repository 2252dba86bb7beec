"""Fill an overview of a slide block by block, past OpenSlide where its pixels are certain to be the same."""

from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.reader import DirectPatches
from pipeline.regions import PatchSource

BLOCK_PX = 2048
"""Edge of the blocks an overview is read in: 16 MB, so that a slide without a pyramid needs no more memory."""

DIRECT_PX = 4_000_000
"""Pixels of a level from which it is read past OpenSlide: below, making sure of the pixels costs as much."""

SMALLEST_PX = 256
"""The edge of a usual tile: nothing is gained by dividing a block that cannot be read further than this."""

Block = tuple[int, int, int, int]
"""Part of an overview: top, left, rows, columns, in its pixels."""


class Read(Protocol):
    """Reads regions of a level."""

    def __call__(self, x: int, y: int, *, level: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read one; see `pipeline.slide.Slide.read`."""


class Choose(Protocol):
    """Chooses how squares of a level are read."""

    def __call__(self, coords: NDArray[np.int32], *, level: int, read_px: int) -> PatchSource:
        """Choose for some; see `pipeline.reader.SourceChooser.choose`."""


def fill_overview(
    overview: NDArray[np.uint8], *, level: int, downsample: float, factor: int, read: Read, choose: Choose
) -> int:
    """Fill an overview by whole-number area averaging of a level.

    Parameters
    ----------
    overview
        RGB, shape (H, W, 3), white; blocks that cannot be read stay as they are.
    level, downsample
        The level to read, and its level-0 px per pixel.
    factor
        Its pixels per pixel of the overview, in each direction.
    read, choose
        How a region of the slide, and how many squares of it, are read.

    Returns
    -------
    How many pixels of the overview could not be read.
    """
    step = max(1, BLOCK_PX // factor)
    blocks = [
        (top, left, min(step, overview.shape[0] - top), min(step, overview.shape[1] - left))
        for top in range(0, overview.shape[0], step)
        for left in range(0, overview.shape[1], step)
    ]
    scale = factor * downsample
    if overview.shape[0] * overview.shape[1] * factor**2 >= DIRECT_PX:
        coords = np.array([(round(left * scale), round(top * scale)) for top, left, _, _ in blocks], np.int32)
        source = choose(coords, level=level, read_px=step * factor)
        if isinstance(source, DirectPatches):
            blocks = _fill_squares(overview, blocks, source, coords, level=level, factor=factor, step=step)
    unreadable = 0
    while blocks:
        top, left, rows, columns = blocks.pop()
        x, y = (round(edge * scale) for edge in (left, top))
        try:
            pixels = read(x, y, level=level, width=columns * factor, height=rows * factor)
        except SlideError:
            if min(rows, columns) * factor < SMALLEST_PX:
                unreadable += rows * columns
            else:
                blocks += _quarters(top, left, rows, columns)
            continue
        target = overview[top : top + rows, left : left + columns]
        target[...] = pixels if factor == 1 else cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    return unreadable


def _fill_squares(
    overview: NDArray[np.uint8],
    blocks: list[Block],
    source: PatchSource,
    coords: NDArray[np.int32],
    *,
    level: int,
    factor: int,
    step: int,
) -> list[Block]:
    """Fill blocks with squares of `step` pixels that start where they do; return those that could not be read."""
    left_over = dict(enumerate(blocks))
    for indices, squares in source.batches(coords, level=level, read_px=step * factor, patch_px=step, threads=1):
        for index, pixels in zip(indices.tolist(), squares, strict=True):
            top, left, rows, columns = left_over.pop(index)
            overview[top : top + rows, left : left + columns] = pixels[:rows, :columns]
    return list(left_over.values())


def _quarters(top: int, left: int, rows: int, columns: int) -> list[Block]:
    half_rows, half_columns = rows // 2, columns // 2
    return [
        (top + y, left + x, height, width)
        for y, height in ((0, half_rows), (half_rows, rows - half_rows))
        for x, width in ((0, half_columns), (half_columns, columns - half_columns))
        if height and width
    ]
