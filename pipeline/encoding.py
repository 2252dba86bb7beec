"""Encode a slide's patches: reading, encoding and writing at the same time.

Memory does not grow with the slide: patches live in a few buffers, features in chunks that go to disk when they are
full.
"""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import store
from pipeline.chunks import Chunks
from pipeline.encoders import Encoder, Overlapping
from pipeline.isolation import progress
from pipeline.read_ahead import BUFFERS, Filled, ReadAhead
from pipeline.slide import Slide

log = logging.getLogger(__name__)

FEATURE_LIMIT = float(np.finfo(np.float16).max)
PILOT = 64
"""Patches that are read and encoded to divide a job's threads between the two."""
PLAIN_BATCH = 64
"""Patches given at once to an encoder that does not say how many it wants."""


@dataclass
class Timing:
    """Seconds that the encoding waited for patches, for features and for the disk, and what was done in them."""

    read: float = 0.0
    device: float = 0.0
    write: float = 0.0
    patches: int = 0

    @property
    def seconds(self) -> float:
        """All of it, s."""
        return self.read + self.device + self.write

    @property
    def per_second(self) -> float:
        """Patches per second; 0 where there were none."""
        return self.patches / self.seconds if self.seconds else 0.0

    @property
    def bound_by(self) -> str:
        """What most of the time went to."""
        return max(("read", "device", "write"), key=lambda name: float(getattr(self, name)))


def encode(
    slide: Slide,
    coords: NDArray[np.int32],
    *,
    chunks: Chunks,
    load: Callable[[], Encoder],
    patch_px: int,
    mpp: float,
    threads: int,
    on_cpu: bool = True,
) -> Timing:
    """Read and encode the patches of one slide that are in no finished chunk, and finish those chunks.

    Parameters
    ----------
    slide
        An open slide.
    coords
        Top-left corners, shape (N, 2), columns x, y, level-0 pixels.
    chunks
        Where features go: afterwards, all of them.
    load
        Gives the encoder; called once, while the first patches are being read, and not at all if nothing is missing.
    patch_px, mpp
        Edge of a patch in pixels, and the resolution (um per pixel) it is read at.
    threads
        Threads for reading, and on the CPU for encoding too.
    on_cpu
        Whether the encoder shares the threads.
    """
    missing = chunks.missing_rows()
    timing = Timing(patches=len(missing))
    if not len(missing):
        return timing
    model: Encoder | None = None
    if on_cpu and threads > 1 and len(missing) > 4 * PILOT:
        model = load()
        threads = divide_threads(model, slide, coords[missing[:PILOT]], patch_px=patch_px, mpp=mpp, threads=threads)
    pieces = slide.patches(coords[missing], patch_px=patch_px, mpp=mpp, threads=threads)
    with ReadAhead(((missing[indices], patches) for indices, patches in pieces), boundary=store.CHUNK_ROWS) as reader:
        model = model or load()
        for _ in range(BUFFERS):
            reader.lend(_buffer(model, patch_px))
        _collect(reader, model, chunks, timing)
    return timing


def _collect(reader: ReadAhead, model: Encoder, chunks: Chunks, timing: Timing) -> None:
    """Encode every batch, one while the one before it is fetched, and save each chunk when it is past."""
    writer, submit = _ChunkWriter(chunks, model), _Submitter(model)
    running: deque[tuple[Filled, Callable[[], NDArray[np.float32]]]] = deque()

    def finish() -> None:
        batch, features = running.popleft()
        with _Clock(timing, "device"):
            encoded = features()
        progress()
        reader.lend(batch.buffer)
        with _Clock(timing, "write"):
            writer.put(batch.indices, encoded)

    batches = iter(reader)
    while True:
        with _Clock(timing, "read"):
            batch = next(batches, None)
        if batch is None:
            break
        with _Clock(timing, "device"):
            running.append((batch, submit(batch.patches)))
        if len(running) > 1:
            finish()
    while running:
        finish()
    with _Clock(timing, "write"):
        writer.close()


class _Clock:
    """Add the time of a block to one field of a `Timing`."""

    def __init__(self, timing: Timing, name: str) -> None:
        self._timing, self._name = timing, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._start
        setattr(self._timing, self._name, getattr(self._timing, self._name) + spent)


class _ChunkWriter:
    """Gather features of one chunk after the other and save each when a later one begins."""

    def __init__(self, chunks: Chunks, model: Encoder) -> None:
        self._chunks, self._model = chunks, model
        self._todo = deque(index for index in range(chunks.count) if index not in chunks.finished)
        self._features = np.empty((store.CHUNK_ROWS, model.dim), np.float16)
        self._readable = np.zeros(store.CHUNK_ROWS, np.bool_)

    def put(self, indices: NDArray[np.int64], encoded: NDArray[np.float32]) -> None:
        """Take the features of a batch, all of one chunk."""
        if encoded.shape != (len(indices), self._model.dim):
            raise ValueError(f"the encoder gave {encoded.shape} for {len(indices)} patches of {self._model.dim}")
        if not np.isfinite(encoded).all():
            raise ValueError(f"the encoder {self._model.spec.name} gave NaN or infinite features")
        while self._todo[0] != indices[0] // store.CHUNK_ROWS:
            self._save_first()
        rows = indices - self._chunks.bounds(self._todo[0])[0]
        self._features[rows] = np.clip(encoded, -FEATURE_LIMIT, FEATURE_LIMIT)
        self._readable[rows] = True

    def close(self) -> None:
        """Save what is left."""
        while self._todo:
            self._save_first()

    def _save_first(self) -> None:
        index = self._todo.popleft()
        start, stop = self._chunks.bounds(index)
        self._chunks.save(index, self._features[: stop - start], self._readable[: stop - start])
        self._readable[:] = False


def divide_threads(
    model: Encoder, slide: Slide, coords: NDArray[np.int32], *, patch_px: int, mpp: float, threads: int
) -> int:
    """Measure reading and encoding on a few patches, divide the threads by it, and give those that read.

    Parameters
    ----------
    model
        An encoder on the CPU; it keeps the threads that are left.
    coords
        Corners of the patches to try, shape (N, 2).
    threads
        Threads of the job, 2 or more.
    """
    if not isinstance(model, Overlapping):
        return 1
    start = time.perf_counter()
    pieces = list(slide.patches(coords, patch_px=patch_px, mpp=mpp, threads=1))
    reading = time.perf_counter() - start
    patches = np.concatenate([piece for _, piece in pieces])[: model.batch_size]
    if not len(patches):
        return 1
    model.use_threads(1)
    model(patches[:1])  # the first call of a network also plans its kernels
    start = time.perf_counter()
    model(patches)
    encoding = (time.perf_counter() - start) * len(coords) / len(patches)
    share = round(threads * reading / (reading + encoding))
    readers = min(max(1, share), threads - 1)
    model.use_threads(threads - readers)
    log.info("%d threads read and %d encode", readers, threads - readers)
    return readers


def _buffer(model: Encoder, patch_px: int) -> NDArray[np.uint8]:
    if isinstance(model, Overlapping):
        return model.buffer(patch_px)
    return np.empty((PLAIN_BATCH, patch_px, patch_px, 3), np.uint8)


class _Submitter:
    """Start to encode patches; an encoder that says nothing of batches gets fewer at once when its memory runs out."""

    def __init__(self, model: Encoder) -> None:
        self._model = model
        self._fits = PLAIN_BATCH

    def __call__(self, patches: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        """Give a function that waits for the features of patches [B, p, p, 3]."""
        if isinstance(self._model, Overlapping):
            return self._model.submit(patches)
        parts: list[NDArray[np.float32]] = []
        start = 0
        while start < len(patches):
            part = patches[start : start + self._fits]
            try:
                parts.append(self._model(part))
            except _out_of_memory():
                if len(part) == 1:
                    raise
                self._fits = (len(part) + 1) // 2
                log.info("out of memory at %d patches; going on with %d", len(part), self._fits)
                continue
            start += len(part)
        return lambda: np.concatenate(parts)


def _out_of_memory() -> tuple[type[BaseException], ...]:
    """Give what a device without memory raises; an encoder that never imported torch raises none of it."""
    torch = sys.modules.get("torch")
    return (torch.OutOfMemoryError,) if torch is not None else ()
