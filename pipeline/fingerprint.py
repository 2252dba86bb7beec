"""Recognise a slide file that was replaced, without reading all of it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.formats import companions

PIECE = 64 * 1024
"""Bytes read at the head, the middle and the tail of a file: headers, pixel data and (in TIFF) late directories."""

WHOLE = 8 * 1024 * 1024
"""Files up to this size are read whole (10 ms): among small files, a repaired copy often differs by one tile only."""

UNREADABLE = "unreadable"


def fingerprint(path: Path) -> str:
    """Give a hex digest that changes when a slide is replaced by another one.

    A file counts with its size and 64 KiB of its head, middle and tail (a small one with all of it). Its name and times
    do not count, so that a slide that was moved or copied keeps its fingerprint. Files beside it that hold its pixels
    (MRXS: those in `a/` beside `a.mrxs`; VMS, VMU: those that the index names) count with their names and sizes. A
    slide that is a folder (DICOM) counts with the names and contents of the files in it.

    Parameters
    ----------
    path
        The slide: a file, or a folder of DICOM files.

    Returns
    -------
    Hex digits; `UNREADABLE` where permissions or a failing disk forbid to read it, or where it is a pipe or a device
    (which could wait for ever), so that one such slide does not stop the others.

    Raises
    ------
    OSError
        If a file is missing.
    """
    try:
        return _fingerprint(path)
    except FileNotFoundError:
        raise
    except OSError:
        return UNREADABLE


def gone(path: Path) -> PipelineError:
    """Give the error for a slide that is not there any more."""
    return PipelineError(
        f"{path} disappeared after the run was planned; put it back, or run the same command again, which goes on"
        " without it"
    )


def require(path: Path, expected: str) -> None:
    """Look that a slide is still the file that is meant: what failed on another one says nothing about it.

    Raises
    ------
    PipelineError
        If it is gone, or its fingerprint is no longer `expected`.
    """
    try:
        found = fingerprint(path)
    except FileNotFoundError as error:
        raise gone(path) from error
    if found != expected:
        raise PipelineError(
            f"{path} changed after the run was planned; run the same command again, which reads it anew"
        )


def _fingerprint(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    if path.is_dir():
        for file in _files(path):
            digest.update(_name(file, path))
            _add_file(digest, file)
        return digest.hexdigest()
    if path.exists() and not path.is_file():
        return UNREADABLE
    _add_file(digest, path)
    folder = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path.parent
    for file in companions(path):
        digest.update(_name(file, folder) + file.stat().st_size.to_bytes(8, "little"))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    # sorted by their parts: the order of the folder's listing differs between file systems
    return iter(sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.parts))


def _name(file: Path, folder: Path) -> bytes:
    # the closing zero keeps "a" + "bc" and "ab" + "c" apart
    return file.relative_to(folder).as_posix().encode("utf-8", "surrogateescape") + b"\0"


def _add_file(digest: "hashlib.blake2b", path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as handle:
        if size <= WHOLE:
            digest.update(handle.read())
            return
        for start in (0, size // 2, size - PIECE):
            handle.seek(start)
            digest.update(handle.read(PIECE))
