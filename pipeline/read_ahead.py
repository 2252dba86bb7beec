"""Read patches in a thread of its own, into buffers that are used again and again, while the encoder works.

The thread starts before the encoder is there: what it reads meanwhile hides the encoder's start.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.regions import Batch

BUFFERS = 4
"""One is filled, one waits, two are with the encoder."""


@dataclass(frozen=True)
class Filled:
    """A batch ready to encode: indices [B] of its tiles, and patches [B, p, p, 3], a view of `buffer`."""

    indices: NDArray[np.int64]
    patches: NDArray[np.uint8]
    buffer: NDArray[np.uint8]


class ReadAhead:
    """Fill buffers from a source of patches; a context manager.

    A batch never spans a multiple of `boundary` tiles, so that what follows a boundary does not depend on what came
    before it: a slide that is taken up at a boundary gives the same batches.

    Parameters
    ----------
    source
        Yields indices, ascending, and patches; see `pipeline.slide.Slide.patches`.
    boundary
        Tiles of a chunk.
    """

    def __init__(self, source: Iterator[Batch], *, boundary: int) -> None:
        self._source = source
        self._boundary = boundary
        self._free: queue.SimpleQueue[NDArray[np.uint8] | None] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[Filled | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
        self._stopping = False
        self._buffer: NDArray[np.uint8] | None = None
        self._kept: list[NDArray[np.int64]] = []
        self._count = 0
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        self._free.put(None)
        self._thread.join()

    def lend(self, buffer: NDArray[np.uint8]) -> None:
        """Give a buffer, uint8 [B, p, p, 3], to fill: at the start, and when its batch is done."""
        self._free.put(buffer)

    def __iter__(self) -> Iterator[Filled]:
        """Give the batches; an error of the source is raised where its batch would have come."""
        while (item := self._filled.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _work(self) -> None:
        try:
            self._fill()
        except BaseException as error:  # noqa: BLE001 - handed over whole to the thread that asked
            self._filled.put(error)
        else:
            self._filled.put(None)

    def _fill(self) -> None:
        try:
            for indices, patches in self._source:
                start = 0
                while start < len(indices):
                    if self._kept and self._chunk(indices[start]) != self._chunk(self._kept[-1][-1]):
                        self._hand_over()
                    if not self._has_buffer():
                        return
                    start += self._take(indices[start:], patches[start:])
            self._hand_over()
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()

    def _has_buffer(self) -> bool:
        """Wait for a buffer if none is being filled; False when the caller left."""
        if self._buffer is None:
            self._buffer = self._free.get()
        return self._buffer is not None and not self._stopping

    def _take(self, indices: NDArray[np.int64], patches: NDArray[np.uint8]) -> int:
        """Copy the leading patches that fit into the buffer and lie in one chunk; give how many they are."""
        assert self._buffer is not None
        in_chunk = int(np.searchsorted(indices, (self._chunk(indices[0]) + 1) * self._boundary))
        taken = min(in_chunk, len(self._buffer) - self._count)
        self._buffer[self._count : self._count + taken] = patches[:taken]
        self._kept.append(indices[:taken])
        self._count += taken
        if self._count == len(self._buffer):
            self._hand_over()
        return taken

    def _hand_over(self) -> None:
        if self._buffer is not None and self._count:
            indices = np.concatenate(self._kept)
            self._filled.put(Filled(indices, self._buffer[: self._count], self._buffer))
            self._buffer, self._kept, self._count = None, [], 0

    def _chunk(self, index: np.int64) -> int:
        return int(index) // self._boundary
