"""Fill batches of patches from decoded tiles, on a bounded pool of threads and in bounded memory."""

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.regions import Batch, batch_size, shrink
from pipeline.tiff_tiles import TileError, TileGrid
from pipeline.tile_schedule import Mesh, make_schedule

WINDOW_BYTES = 256 << 20
"""Most bytes of patches that are being filled: 6 rows of 224 px patches on a slide of 60,000 px, where 3 are needed."""

STEPS_AHEAD = 4
"""Batches whose tiles are decoded while the caller works on the last one."""

TILES_A_JOB = 4
"""Fewest tiles a thread takes at a time: 1 ms of decoding, against 0.05 ms for handing them over."""


class TileDecoder(Protocol):
    """Decodes tiles for several threads."""

    grid: TileGrid

    def decode(self, tile: int) -> NDArray[np.uint8]:
        """Give a tile's pixels, shape (tile_height, tile_width, 3), valid until this thread's next call."""


class TileScatter:
    """Patches of one slide while their tiles are decoded.

    Where patches are reduced by a whole number that divides the tiles and the corners, each tile is reduced before it
    is copied: the same pixels, and less to copy. Otherwise a patch is reduced when its last tile is in.

    Parameters
    ----------
    decoder
        Gives the tiles.
    corners
        Of the patches, shape (N, 2), columns x, y, in the level's pixels.
    read_px, patch_px
        Edge of a patch in the level's pixels, and after reducing.
    """

    def __init__(self, decoder: TileDecoder, corners: NDArray[np.int64], *, read_px: int, patch_px: int) -> None:
        self._decoder = decoder
        self._factor = common_factor(decoder.grid, corners, read_px=read_px, patch_px=patch_px)
        self._mesh = _mesh(decoder.grid, edge_px=read_px, factor=self._factor)
        self._left, self._top = corners.T // self._factor
        self._patch_px = patch_px
        self._batch = batch_size(self._mesh.edge)
        self._schedule = make_schedule(
            self._left,
            self._top,
            mesh=self._mesh,
            batch=self._batch,
            window=max(1, WINDOW_BYTES // (self._batch * self._mesh.edge**2 * 3)),
        )
        self._reduces_late = self._mesh.edge != patch_px
        self._pieces_left = np.bincount(self._schedule.patches, minlength=len(corners))
        self._unreadable = np.zeros(len(corners), np.bool_)
        self._filling: dict[int, NDArray[np.uint8]] = {}
        self._reduced: dict[int, NDArray[np.uint8]] = {}
        self._lock = threading.Lock()
        self._whole, self._small = _Buffers(self._mesh.edge), _Buffers(patch_px)

    def batches(self, threads: int) -> Iterator[Batch]:
        """Yield the patches in order, without those on unreadable tiles."""
        jobs: dict[int, list[Future[None]]] = {}
        submitted, last = 0, len(self._schedule.steps) - 1
        # the threads are here: OpenCV's own, one a core whatever the caller asked for, would only get in their way
        pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles", initializer=cv2.setNumThreads, initargs=(1,))
        try:
            for step in range(last):
                while submitted < min(step + STEPS_AHEAD, last):
                    jobs[submitted] = self._submit(pool, submitted, threads)
                    submitted += 1
                for job in jobs.pop(step):
                    job.result()
                yield self._take(step)
        finally:
            # also when the caller stops early: no thread may use a file that is being closed
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, step: int, threads: int) -> list[Future[None]]:
        """Make room for the patches that a step's tiles lie on, and hand out its tiles."""
        first, end = self._schedule.steps[step : step + 2].tolist()
        start, stop = self._schedule.visits[[first, end]].tolist()
        for batch in {step, *(np.unique(self._schedule.patches[start:stop]) // self._batch).tolist()}:
            if batch not in self._filling:
                self._make_room(batch)
        jobs = 1 if threads == 1 else 4 * threads  # several a thread, so that none waits for the slowest
        size = max(TILES_A_JOB, -(-(end - first) // jobs))
        return [pool.submit(self._decode, visit, min(visit + size, end)) for visit in range(first, end, size)]

    def _make_room(self, batch: int) -> None:
        start = batch * self._batch
        stop = min(start + self._batch, len(self._left))
        pixels = self._filling[batch] = self._whole.take(stop - start)
        left, top = self._left[start:stop], self._top[start:stop]
        right, bottom = left + self._mesh.edge, top + self._mesh.edge
        inside = (left >= 0) & (right <= self._mesh.columns * self._mesh.tile_width)
        inside &= (top >= 0) & (bottom <= self._mesh.rows * self._mesh.tile_height)
        pixels[~inside] = 255
        if self._reduces_late:
            self._reduced[batch] = self._small.take(stop - start)
            self._reduced[batch][~inside] = 255

    def _decode(self, first: int, end: int) -> None:
        """Decode the tiles of the visits from `first` to before `end`, and copy their pieces."""
        mesh, visits = self._mesh, self._schedule.visits[first : end + 1]
        tiles, patches = (of[visits[0] : visits[-1]] for of in (self._schedule.tiles, self._schedule.patches))
        # of each piece, its patch and the tile's corner seen from the patch's; all at once, as NumPy is slow on few
        x = tiles % mesh.columns * mesh.tile_width - self._left[patches]
        y = tiles // mesh.columns * mesh.tile_height - self._top[patches]
        pieces = list(zip(patches.tolist(), x.tolist(), y.tolist(), strict=True))
        for start, stop in pairwise((visits - visits[0]).tolist()):
            try:
                pixels = self._decoder.decode(int(tiles[start]))
            except TileError:
                self._unreadable[patches[start:stop]] = True
                continue
            if self._factor > 1:
                size = (mesh.tile_width, mesh.tile_height)
                pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
            self._copy(pixels, pieces[start:stop])
        if self._reduces_late:
            self._reduce(patches)

    def _copy(self, pixels: NDArray[np.uint8], pieces: list[tuple[int, int, int]]) -> None:
        """Copy a tile's pieces, each a patch and the tile's corner seen from the patch's, to the patches."""
        edge, tile_height, tile_width = self._mesh.edge, *pixels.shape[:2]
        for patch, x, y in pieces:
            target = self._filling[patch // self._batch][patch % self._batch]
            top, left = max(0, y), max(0, x)
            bottom, right = min(edge, y + tile_height), min(edge, x + tile_width)
            target[top:bottom, left:right] = pixels[top - y : bottom - y, left - x : right - x]

    def _reduce(self, pieces: NDArray[np.int32]) -> None:
        """Count copied pieces, given by their patch, and reduce the patches that have all of theirs."""
        patches, count = np.unique(pieces, return_counts=True)
        with self._lock:
            self._pieces_left[patches] -= count
            complete = patches[self._pieces_left[patches] == 0]
        for patch in complete.tolist():
            batch, row = divmod(patch, self._batch)
            self._reduced[batch][row] = shrink(self._filling[batch][row], self._patch_px)

    def _take(self, batch: int) -> Batch:
        pixels = self._filling.pop(batch)
        if self._reduces_late:
            pixels = self._reduced.pop(batch)
        start = batch * self._batch
        unreadable = self._unreadable[start : start + len(pixels)]
        kept = np.flatnonzero(~unreadable)
        return start + kept, pixels[kept] if len(kept) < len(pixels) else pixels


class _Buffers:
    """Memory for patches that is used again once nobody holds the array that lay in it.

    New memory for each batch costs a sixth of the reader's speed: the system hands it out page by page, zeroed.
    """

    def __init__(self, edge_px: int) -> None:
        self._shape = (edge_px, edge_px, 3)
        self._idle: list[NDArray[np.uint8]] = []

    def take(self, count: int) -> NDArray[np.uint8]:
        """Give an array of undefined content, shape (count, edge_px, edge_px, 3)."""
        size = batch_size(self._shape[0]) * self._shape[0] ** 2 * 3
        memory = self._idle.pop() if self._idle else np.empty(size, np.uint8)
        # `flat` lies on no array, so every view of it, also a view of a view, keeps `flat` itself alive
        flat = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(flat, self._idle.append, memory).atexit = False
        return flat[: count * self._shape[0] ** 2 * 3].reshape(count, *self._shape)


def common_factor(grid: TileGrid, corners: NDArray[np.int64], *, read_px: int, patch_px: int) -> int:
    """Give the whole number that patches, tiles and corners can all be divided by to reduce a patch; else 1."""
    factor, rest = divmod(read_px, patch_px)
    divides = not (rest or grid.tile_width % factor or grid.tile_height % factor or (corners % factor).any())
    return factor if divides else 1


def _mesh(grid: TileGrid, *, edge_px: int, factor: int) -> Mesh:
    return Mesh(grid.columns, grid.rows, grid.tile_width // factor, grid.tile_height // factor, edge_px // factor)
