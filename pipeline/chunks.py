"""Keep the finished parts of a bag beside it until it is complete, so that a killed job goes on where it stopped."""

import hashlib
import json
import logging
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.store import CHUNK_ROWS, replacing, write_text

log = logging.getLogger(__name__)

DAMAGE = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading a file with missing or changed bytes, or of another layout, raises."""


def digest_of(*parts: Any) -> str:
    """Give a digest of arrays and JSON values: what a chunk depends on."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


class Chunks:
    """The finished chunks of one bag, a file each, in a hidden folder beside it.

    Chunks of another digest are removed: the slide, its tiles, the encoder or its settings changed since.

    Parameters
    ----------
    bag
        The bag to be.
    digest
        From `digest_of`.
    rows
        Tiles of the slide, `CHUNK_ROWS` of which make a chunk.
    """

    def __init__(self, bag: Path, *, digest: str, rows: int) -> None:
        self.folder = bag.with_name(f".{bag.name.removesuffix('.zarr.zip')}.chunks")
        self.rows = rows
        self.count = -(-rows // CHUNK_ROWS)
        owner = self.folder / "digest"
        if self.folder.exists() and not (owner.is_file() and owner.read_bytes() == digest.encode()):
            self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(owner, digest)
        self.finished = {index for index in range(self.count) if self._is_whole(index)}
        if self.finished:
            log.info("%s: going on after %d of %d chunks", bag.name, len(self.finished), self.count)

    def bounds(self, index: int) -> tuple[int, int]:
        """Give the first tile of a chunk, and that after its last."""
        return index * CHUNK_ROWS, min((index + 1) * CHUNK_ROWS, self.rows)

    def missing_rows(self) -> NDArray[np.int64]:
        """Give the indices of the tiles that are in no finished chunk, ascending."""
        parts = [np.arange(*self.bounds(index)) for index in range(self.count) if index not in self.finished]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def save(self, index: int, features: NDArray[np.float16], readable: NDArray[np.bool_]) -> None:
        """Keep a chunk: features of its readable tiles, and which of its tiles those are."""
        with replacing(self._path(index)) as part, part.open("wb") as handle:
            np.savez(handle, features=features[readable], readable=readable)
        self.finished.add(index)

    def load(self, index: int) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """Give what `save` kept: features [M, d] and which tiles are readable, M of them."""
        with self._path(index).open("rb") as handle, np.load(handle) as kept:
            return kept["features"], kept["readable"]

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.npz"

    def _is_whole(self, index: int) -> bool:
        if not self._path(index).exists():
            return False
        start, stop = self.bounds(index)
        try:
            features, readable = self.load(index)
        except DAMAGE:
            return False
        return readable.shape == (stop - start,) and features.ndim == 2 and len(features) == readable.sum()
