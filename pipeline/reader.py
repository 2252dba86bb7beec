"""Pixels straight from a TIFF slide's tiles: the same as OpenSlide's, at several times its speed.

OpenSlide spends its time compositing. Here each JPEG or JPEG 2000 tile is decoded once, by a pool of threads, and
copied straight into the patches it lies on. `SourceChooser` takes this way only where the pixels are certain to be
OpenSlide's, and compares some with OpenSlide's own first; see docs/adr/0002-direct-reader.md.
"""

import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.isolation import progress
from pipeline.regions import Batch, FileState, Handles, OpenSlidePatches, PatchSource
from pipeline.tiff_tiles import NotDirectError, TileError, TileGrid, decode_tile, read_grid, tile_names
from pipeline.tile_scatter import TileScatter

LOG = logging.getLogger(__name__)

CHECKED_REGIONS = 16
"""Regions compared with OpenSlide before a slide is read directly: 0.1 s."""

CHECKED_PX = 256
"""Largest edge of a compared region: it meets four tiles of the usual size."""


class TileFile:
    """One level's tiles in an open file, decoded for several threads; a context manager.

    Parameters
    ----------
    file
        The slide.
    grid
        Its tiles.
    """

    def __init__(self, file: Path, grid: TileGrid) -> None:
        self.grid = grid
        self.failed: set[int] = set()
        self._file = file
        self._descriptor = os.open(file, os.O_RDONLY)
        self._thread = threading.local()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def decode(self, tile: int) -> NDArray[np.uint8]:
        """Decode a tile; once more on a fresh handle if that fails.

        Returns
        -------
        RGB, shape (tile_height, tile_width, 3), white beyond the level's edge, valid until this thread's next call.

        Raises
        ------
        TileError
            If it fails twice; the tile is then in `failed`.
        """
        progress()
        grid = self.grid
        if not hasattr(self._thread, "scratch"):
            self._thread.scratch = np.empty(grid.tile_height * grid.tile_width * 3, np.uint8)
        message = ""
        for read in (self._read, self._read_afresh):
            try:
                pixels = decode_tile(grid, read(tile), self._thread.scratch)
            except (OSError, TileError) as error:
                message = str(error)
                continue
            pixels[max(0, grid.height - tile // grid.columns * grid.tile_height) :] = 255
            pixels[:, max(0, grid.width - tile % grid.columns * grid.tile_width) :] = 255
            return pixels
        self.failed.add(tile)
        raise TileError(f"tile {tile_names(grid, [tile])}: {message}")

    def _read(self, tile: int) -> bytes:
        return self._read_from(self._descriptor, tile)

    def _read_afresh(self, tile: int) -> bytes:
        with self._file.open("rb") as handle:
            return self._read_from(handle.fileno(), tile)

    def _read_from(self, descriptor: int, tile: int) -> bytes:
        offset, count = int(self.grid.offsets[tile]), int(self.grid.counts[tile])
        content = os.pread(descriptor, count, offset)
        if len(content) != count:
            raise TileError(f"{len(content)} of its {count} bytes can be read")
        return content


@dataclass(frozen=True)
class DirectPatches:
    """Read patches of one level of the slide in `file` from its tiles.

    Parameters
    ----------
    file
        A tiled TIFF slide.
    grid
        The level's tiles.
    downsample
        Level-0 px per pixel of the level.
    """

    file: Path
    grid: TileGrid
    downsample: float

    @property
    def name(self) -> str:
        """What is recorded as the reader."""
        return "direct"

    def batches(
        self,
        coords: NDArray[np.int32],
        *,
        level: int,
        read_px: int,
        patch_px: int,
        threads: int,
    ) -> Iterator[Batch]:
        """Yield the patches in the order of `coords`, as `PatchSource` says.

        A tile that fails is read once more on a fresh handle; the patches on it are then left out.
        """
        if not len(coords):
            return
        state = FileState.of(self.file)
        corners = level_corners(coords, self.downsample)
        with TileFile(self.file, self.grid) as tiles:
            yield from TileScatter(tiles, corners, read_px=read_px, patch_px=patch_px).batches(threads)
        if tiles.failed:
            names = tile_names(self.grid, tiles.failed)
            LOG.warning("%s: %d tiles of level %d are unreadable: %s", self.file.name, len(tiles.failed), level, names)
        state.check(self.file)


class SourceChooser:
    """Chooses how to read patches of one slide: directly if the pixels are certain to be OpenSlide's, else through it.

    What was found out about a level is kept, and so is what was said of it in the log.

    Parameters
    ----------
    file
        A slide that OpenSlide opened.
    vendor, level_dimensions, level_downsamples
        Its format, and the (width, height) and level-0 px per pixel of its levels, as OpenSlide found them.
    """

    def __init__(
        self,
        file: Path,
        *,
        vendor: str,
        level_dimensions: tuple[tuple[int, int], ...],
        level_downsamples: tuple[float, ...],
    ) -> None:
        self._file, self._vendor = file, vendor
        self._dimensions, self._downsamples = level_dimensions, level_downsamples
        self._direct: dict[int, DirectPatches | None] = {}

    def choose(self, coords: NDArray[np.int32], *, level: int, read_px: int) -> PatchSource:
        """Choose for some patches.

        Parameters
        ----------
        coords
            The patches' corners, shape (N, 2), level-0 px.
        level, read_px
            The level to read, and the patches' edge in its pixels.
        """
        try:
            level_corners(coords, self._downsamples[level])
        except NotDirectError as reason:
            LOG.info("%s: patches of level %d are read through OpenSlide: %s", self._file.name, level, reason)
            return OpenSlidePatches(self._file)
        if level not in self._direct:
            self._direct[level] = self._try(coords, level=level, read_px=read_px)
        return self._direct[level] or OpenSlidePatches(self._file)

    def _try(self, coords: NDArray[np.int32], *, level: int, read_px: int) -> DirectPatches | None:
        """Give the level's direct source, or None and a line in the log."""
        name = self._file.name
        try:
            grid = read_grid(self._file, vendor=self._vendor, level=level, level_dimensions=self._dimensions)
        except NotDirectError as reason:
            LOG.info("%s: level %d is read through OpenSlide: %s", name, level, reason)
            return None
        source = DirectPatches(self._file, grid, self._downsamples[level])
        different = compare(source, level=level, coords=coords, edge_px=min(read_px, CHECKED_PX))
        if different:
            LOG.warning(
                "%s: level %d is read through OpenSlide: %d compared regions differ, the first at x %d, y %d",
                name,
                level,
                len(different),
                *different[0],
            )
            return None
        return source


def level_corners(coords: NDArray[np.int32], downsample: float) -> NDArray[np.int64]:
    """Give corners in a level's pixels, shape (N, 2).

    Raises
    ------
    NotDirectError
        If some do not lie on the level's pixels: there OpenSlide interpolates.
    """
    corners = coords / downsample
    if (corners != np.floor(corners)).any():
        raise NotDirectError(f"its downsample of {downsample:.7g} puts patches between its pixels")
    return corners.astype(np.int64)


def compare(source: DirectPatches, *, level: int, coords: NDArray[np.int32], edge_px: int) -> list[tuple[int, int]]:
    """Compare some regions with OpenSlide's, bit by bit: some where patches lie, and the level's four corners.

    Parameters
    ----------
    level, edge_px
        The source's level, and the regions' edge in its pixels.
    coords
        The patches' corners, shape (N, 2), level-0 px, on the level's pixels.

    Returns
    -------
    Corners of those that differ, x, y, level-0 px. A region that both cannot read does not differ.
    """
    places = _compared_places(source, coords, edge_px=edge_px)
    direct: dict[int, NDArray[np.uint8]] = {}
    with TileFile(source.file, source.grid) as tiles:
        corners = level_corners(places, source.downsample)
        for indices, patches in TileScatter(tiles, corners, read_px=edge_px, patch_px=edge_px).batches(1):
            direct |= dict(zip(indices.tolist(), patches, strict=True))
    different = []
    handles = Handles(source.file)
    for index, (x, y) in enumerate(places.tolist()):
        reference = handles.read(x, y, level=level, edge_px=edge_px)
        found = direct.get(index)
        if not _same(found, reference):
            different.append((x, y))
    handles.close()
    return different


def _same(first: NDArray[np.uint8] | None, second: NDArray[np.uint8] | None) -> bool:
    """Tell whether two regions are equal; None is one that cannot be read."""
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def _compared_places(source: DirectPatches, coords: NDArray[np.int32], *, edge_px: int) -> NDArray[np.int32]:
    """Choose corners of regions, the same in every run, shape (M, 2), level-0 px."""
    generator = np.random.default_rng(0)
    count = min(CHECKED_REGIONS - 4, len(coords))
    chosen = coords[np.sort(generator.choice(len(coords), count, replace=False))]
    if not float(source.downsample).is_integer():
        return chosen
    left, top = -(edge_px // 3), -(edge_px // 4)  # also some that lies outside
    right, bottom = source.grid.width + left, source.grid.height + top
    edges = np.array([(left, top), (right, top), (left, bottom), (right, bottom)]) * int(source.downsample)
    return np.concatenate([edges, chosen]).astype(np.int32)
