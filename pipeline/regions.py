"""Pixels through OpenSlide: one region, and batches of patches read ahead by threads.

`PatchSource` is what `Slide.patches` needs of a reader; another way to get the same pixels implements it.
"""

import queue
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.isolation import progress

BATCH = 64
"""Patches of a batch: 9.6 MB at 224 px; with `threads + 2` batches in memory this bounds what a reader holds."""

BATCH_BYTES = 16 << 20
"""Largest batch of large patches."""

Batch = tuple[NDArray[np.int64], NDArray[np.uint8]]
"""Indices [B] into the coordinates, and patches [B, patch_px, patch_px, 3]."""


class PatchSource(Protocol):
    """Reads patches of one slide."""

    @property
    def name(self) -> str:
        """What is recorded as the reader: "openslide" or "direct"."""

    def batches(
        self, coords: NDArray[np.int32], *, level: int, read_px: int, patch_px: int, threads: int
    ) -> Iterator[Batch]:
        """Yield the patches in the order of `coords`; a patch that cannot be read is left out.

        Parameters
        ----------
        coords
            Top-left corners, shape (N, 2), columns x, y, level-0 px.
        level, read_px
            The level to read at, and the edge of the square to read there.
        patch_px
            Edge of a patch; the square is area-averaged to it.
        threads
            How many threads read ahead.

        Raises
        ------
        SlideError
            If the file changed while it was read; at the end.
        """


@dataclass(frozen=True)
class FileState:
    """Size (bytes) and time (ns) of a file."""

    size: int
    modified: int

    @classmethod
    def of(cls, file: Path) -> "FileState":
        """Look at a file."""
        found = file.stat()
        return cls(found.st_size, found.st_mtime_ns)

    def check(self, file: Path) -> None:
        """Raise SlideError if a file is no longer in this state."""
        if not file.exists() or FileState.of(file) != self:
            raise SlideError(
                "the file changed while it was read", remedy="wait until its copy is complete, then run again"
            )


def batch_size(edge_px: int) -> int:
    """Give how many patches of `edge_px` make a batch."""
    return max(1, min(BATCH, BATCH_BYTES // (3 * edge_px**2)))


def read_rgb(handle: openslide.OpenSlide, x: int, y: int, *, level: int, width: int, height: int) -> NDArray[np.uint8]:
    """Read a region and put it on white.

    Parameters
    ----------
    handle
        An open slide; useless after an error.
    x, y
        Top-left corner, level-0 px; may lie outside the slide.
    level, width, height
        The level, and the region's size in its pixels.

    Returns
    -------
    RGB, shape (height, width, 3), white outside the slide and where it is transparent.

    Raises
    ------
    openslide.OpenSlideError
        If a tile of the region cannot be decoded.
    """
    progress()
    rgba = np.asarray(handle.read_region((x, y), level, (width, height)))
    rgb: NDArray[np.uint8] = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB).astype(np.uint8, copy=False)
    alpha = rgba[..., 3]
    if alpha.min() < 255:
        seen = np.flatnonzero(alpha.ravel() < 255)
        share = alpha.ravel()[seen, None].astype(np.float32) / 255
        flat = rgb.reshape(-1, 3)
        flat[seen] = np.rint(flat[seen] * share + 255 * (1 - share)).astype(np.uint8)
    return rgb


@dataclass(frozen=True)
class OpenSlidePatches:
    """Read patches of the slide in `file` one by one, a handle a thread."""

    file: Path

    @property
    def name(self) -> str:
        """What is recorded as the reader."""
        return "openslide"

    def batches(
        self, coords: NDArray[np.int32], *, level: int, read_px: int, patch_px: int, threads: int
    ) -> Iterator[Batch]:
        """Yield the patches in the order of `coords`, as `PatchSource` says.

        A failed read poisons its handle, so a patch that fails is tried once more on a fresh one and then left out.
        """
        state = FileState.of(self.file)
        handles = Handles(self.file)

        def read_batch(start: int) -> Batch:
            indices, patches = [], []
            for index in range(start, min(start + BATCH, len(coords))):
                x, y = int(coords[index, 0]), int(coords[index, 1])
                region = handles.read(x, y, level=level, edge_px=read_px)
                if region is not None:
                    indices.append(index)
                    patches.append(shrink(region, patch_px))
            pixels = np.stack(patches) if patches else np.empty((0, patch_px, patch_px, 3), np.uint8)
            return np.array(indices, np.int64), pixels

        # the threads are here: OpenCV's own, one a core whatever the caller asked for, would only get in their way
        pool = ThreadPoolExecutor(threads, thread_name_prefix="patches", initializer=cv2.setNumThreads, initargs=(1,))
        waiting: deque[Future[Batch]] = deque()
        try:
            for start in range(0, len(coords), BATCH):
                waiting.append(pool.submit(read_batch, start))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # also when the caller stops early: no thread may use a handle that is being closed
            pool.shutdown(wait=True, cancel_futures=True)
            handles.close()
        state.check(self.file)


def shrink(region: NDArray[np.uint8], edge_px: int) -> NDArray[np.uint8]:
    """Area-average a square region, shape (E, E, 3) with E >= edge_px, to (edge_px, edge_px, 3)."""
    if region.shape[0] == edge_px:
        return region
    return cv2.resize(region, (edge_px, edge_px), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


class Handles:
    """Open handles of one file that threads borrow; never more than there are threads."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._idle: queue.SimpleQueue[openslide.OpenSlide] = queue.SimpleQueue()

    def read(self, x: int, y: int, *, level: int, edge_px: int) -> NDArray[np.uint8] | None:
        """Read a square region; None when it fails twice, the second time on a fresh handle."""
        try:
            handle = self._idle.get_nowait()
        except queue.Empty:
            handle = openslide.OpenSlide(self._file)
        for _ in range(2):
            try:
                region = read_rgb(handle, x, y, level=level, width=edge_px, height=edge_px)
            except openslide.OpenSlideError:
                handle.close()
                handle = openslide.OpenSlide(self._file)
            else:
                self._idle.put(handle)
                return region
        self._idle.put(handle)
        return None

    def close(self) -> None:
        """Close every handle; no thread may hold one."""
        while not self._idle.empty():
            self._idle.get_nowait().close()
