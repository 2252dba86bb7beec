"""Read and write artefacts: named arrays and attributes in one Zarr v3 zip file.

Nothing else in the package knows zarr. A file appears under its name only when it is complete: it is written beside its
place as `.part` and renamed. Every chunk is stored, also one of zeros, so that a chunk that went missing can be told
from one that holds zeros; the zip's own checksums catch a byte that changed.
"""

import contextlib
import csv
import errno
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import checksums, json_text, tables
from pipeline.endings import tells_memory
from pipeline.errors import ArtefactError, SlideError
from pipeline.versions import SCHEMA_VERSION, made_by

if TYPE_CHECKING:
    import zarr

CHUNK_ROWS = 4096
"""Rows of a chunk: 6 MiB of 768 float16 features, a read small enough to stream and large enough to be sequential."""

AGAIN = "run python -m pipeline verify --repair and then the workflow, which makes it anew"

OK, QUARANTINED = "ok", "quarantined"

MEASURED = frozenset({"patches_per_s", "bound_by"})
"""Attributes of bags, and of what follows from them, that say how fast they were embedded, not what is in them."""


@dataclass(frozen=True)
class Artefact:
    """What a stage wrote for one slide.

    Parameters
    ----------
    arrays
        Arrays by name; the first axis of each is the tile or instance.
    attributes
        `schema_version`, `asmil_wsi`, `stage`, `stage_version`, `slide_id`, `fingerprint`, `status`, `reason`,
        `remedy`, and the stage's own.
    """

    arrays: dict[str, NDArray[Any]]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the slide is usable; if not, `attributes` has `reason` and `remedy`."""
        return bool(self.attributes["status"] == OK)


@dataclass(frozen=True)
class Rows:
    """An array that is written block by block, so that it never is in memory as a whole.

    Parameters
    ----------
    shape, dtype
        Of the whole array.
    blocks
        Its rows in their order, in blocks of any length that add up to `shape[0]`; taken once.
    """

    shape: tuple[int, ...]
    dtype: type[np.generic]
    blocks: Iterable[NDArray[Any]]

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Give the rows again in blocks of `CHUNK_ROWS`, the last one shorter.

        Raises
        ------
        ValueError
            If the blocks do not add up.
        """
        chunk, filled, total = np.empty((CHUNK_ROWS, *self.shape[1:]), self.dtype), 0, 0
        for block in self.blocks:
            start = 0
            while start < len(block):
                taken = min(CHUNK_ROWS - filled, len(block) - start)
                chunk[filled : filled + taken] = block[start : start + taken]
                filled, start = filled + taken, start + taken
                if filled == CHUNK_ROWS:
                    yield chunk
                    total, filled = total + filled, 0
        if filled:
            yield chunk[:filled]
        if total + filled != self.shape[0]:
            raise ValueError(f"{total + filled} rows came, {self.shape[0]} were announced")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it to `path` when the block ends well.

    When the block raises, the temporary file is removed and `path` stays as it was. The bytes reach the disk before the
    name does: after a power cut there is the old file or the new one, not a name with zeros behind it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        checksums.keep(part, name=path.name)
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        # a write that fails names no file by itself, and the name of a part says little to a user
        if error.errno is not None and error.filename in (None, str(part), part):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):  # on a disk that has just failed, the first error is the one to tell
            part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot; one that fails to is an error
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) under its name only when it is complete."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def read_rows(path: Path, *, delimiter: str) -> list[dict[str, str]]:
    """Read a table that a stage wrote, a dict a row; a damaged one is set aside.

    Raises
    ------
    ArtefactError
        If its bytes are not those that were written, or its rows are not all as long as its header.
    """
    checksums.check(path)
    try:
        header, *rows = tables.lines(path, delimiter=delimiter)
        return [dict(zip(header, row, strict=True)) for row in rows]
    except (csv.Error, ValueError) as error:
        raise checksums.damaged(path, f"no whole table: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that a stage wrote; a damaged one is set aside.

    Raises
    ------
    ArtefactError
        If its bytes are not those that were written, or are no JSON object.
    """
    checksums.check(path)
    try:
        return json_text.parse_object(path.read_bytes())
    except json_text.JsonError as error:
        raise checksums.damaged(path, str(error)) from error


def stage_attributes(
    stage: str, *, slide_id: str, fingerprint: str, error: SlideError | None = None, **more: Any
) -> dict[str, Any]:
    """Give the attributes that every artefact carries, and `more` that are the stage's own.

    Parameters
    ----------
    stage
        Name of the stage, a key of `versions.STAGE_VERSIONS`.
    slide_id, fingerprint
        The slide, and the fingerprint of the file that was read.
    error
        Why the slide is quarantined; None when it is usable.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        **made_by(stage),
        "slide_id": slide_id,
        "fingerprint": fingerprint,
        "status": QUARANTINED if error else OK,
        "reason": error.reason if error else "",
        "remedy": error.remedy if error else "",
        **more,
    }


_OWN = frozenset(
    {"schema_version", "asmil_wsi", "stage", "stage_version", "slide_id", "fingerprint", "status", "reason", "remedy"}
    | {"parameters"}
)

_TEXTS = ("stage", "slide_id", "fingerprint", "status", "reason", "remedy")


def carried_over(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Give what an earlier stage found out about the slide, without what describes that stage itself."""
    return {key: value for key, value in attributes.items() if key not in _OWN}


def inherited_error(attributes: Mapping[str, Any]) -> SlideError | None:
    """Give the error that an earlier stage recorded in `attributes`, or None where the slide was usable."""
    if attributes["status"] == OK:
        return None
    return SlideError(attributes["reason"], remedy=attributes["remedy"])


def write(path: Path, arrays: Mapping[str, NDArray[Any] | Rows], attributes: Mapping[str, Any]) -> None:
    """Write an artefact, complete or not at all.

    Parameters
    ----------
    path
        Ends in `.zarr.zip`; replaced if it exists.
    arrays
        Arrays by name, chunked by `CHUNK_ROWS` along the first axis; large ones may come as `Rows`.
    attributes
        JSON values, as `stage_attributes` gives them.
    """
    import zarr.storage  # here, as it takes a third of a second, and planning opens no artefact

    plain = json.loads(json.dumps({**attributes, "arrays": sorted(arrays)}))
    with replacing(path) as part, zarr.storage.ZipStore(part, mode="w") as zip_store:
        # attributes are given at once: a zip cannot replace a member, and a second write would add a duplicate
        group = zarr.create_group(zip_store, zarr_format=3, attributes=plain)
        for name, values in arrays.items():
            # no longer than the array: [F, N] of five folds would take 4096 rows of N when it is read
            chunk_rows = max(1, min(CHUNK_ROWS, values.shape[0]))
            chunks = (chunk_rows, *(max(1, size) for size in values.shape[1:]))
            array = group.create_array(
                name, shape=values.shape, dtype=values.dtype, chunks=chunks, config={"write_empty_chunks": True}
            )
            if isinstance(values, Rows):
                for index, rows in enumerate(values.chunks()):
                    array[index * CHUNK_ROWS : index * CHUNK_ROWS + len(rows)] = rows
            elif values.size:
                array[...] = values


def read(path: Path, names: Iterable[str] | None = None) -> Artefact:
    """Read an artefact into memory; a damaged one is renamed, so that the same command makes it anew.

    Parameters
    ----------
    path
        A file that `write` made.
    names
        The arrays to read; all of them by default.

    Raises
    ------
    ArtefactError
        If the file is missing, torn, or of another schema version.
    """
    try:
        return load(path, names)
    except DamagedError as error:
        raise checksums.damaged(path, error.why) from error


class DamagedError(ArtefactError):
    """An artefact whose bytes are not those that were written; `why` is what reading it said."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: damaged ({why})")
        self.why = why


def load(path: Path, names: Iterable[str] | None = None) -> Artefact:
    """Read an artefact as `read` does, and leave a damaged one where it is.

    Raises
    ------
    DamagedError
        If it is torn or changed.
    ArtefactError
        If it is missing, cannot be read, or is of another schema version.
    """
    try:
        with _open(path) as group:
            attributes: dict[str, Any] = dict(group.attrs)
            _check_schema(path, attributes)
            # listed when it was written: a name that a changed byte hides in the zip's directory is missed here
            named: list[str] = attributes.pop("arrays")
            wanted = named if names is None else list(names)
            arrays = {name: np.asarray(group[name][...]) for name in wanted}  # type: ignore[index]
    except FileNotFoundError as error:
        raise ArtefactError(f"{path}: no such file; run the workflow to make it") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError) as error:
        if tells_memory(error):  # of the machine's making: a good file must not be set aside
            raise MemoryError(str(error)) from error
        raise DamagedError(path, str(error)) from error
    except MemoryError as error:
        if _fits(path):
            raise
        raise DamagedError(path, "its lengths are wrong") from error
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror or error}); look at the disk it is on") from error
    return Artefact(arrays=arrays, attributes=attributes)


def _fits(path: Path) -> bool:
    """Tell whether no member of a zip file states more bytes than the file has."""
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_size <= path.stat().st_size for entry in archive.infolist())


def read_attributes(path: Path) -> dict[str, Any]:
    """Read an artefact's attributes alone; raises as `read` does."""
    return read(path, names=()).attributes


@contextmanager
def _open(path: Path) -> Iterator["zarr.Group"]:
    import zarr.storage

    zip_store = zarr.storage.ZipStore(path, mode="r")
    group = zarr.open_group(zip_store, mode="r")  # opens the file; a store that never opened cannot be closed
    try:
        yield group
    finally:
        zip_store.close()


def _check_schema(path: Path, attributes: Mapping[str, Any]) -> None:
    found = attributes.get("schema_version")
    if found != SCHEMA_VERSION:
        newer = isinstance(found, int) and found > SCHEMA_VERSION
        raise ArtefactError(
            f"{path}: made by {'a newer' if newer else 'another'} version of asmil-wsi (schema version {found},"
            f" this one reads {SCHEMA_VERSION}); "
            + ("install that version, or give paths.results another folder" if newer else AGAIN)
        )
    lacking = [key for key in _TEXTS if not isinstance(attributes.get(key), str)]
    if lacking:
        raise ArtefactError(f"{path}: does not say its {', '.join(lacking)}; it is no artefact that asmil-wsi wrote")
