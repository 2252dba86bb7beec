"""Find the slides below a folder, and their ids.

Nothing heavy is imported here, because the workflow reads the cohort each time it plans.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline import bucket
from pipeline.errors import ConfigError
from pipeline.formats import DICOM_SUFFIX, SLIDE_SUFFIXES, companions

MAX_ID_BYTES = 220
"""File systems allow names of 255 bytes; the longest ending is `.chunks` or `.zarr.zip.part` with a dot in front."""

_REPEATING = re.compile(r"(?P<part>.+)(?P=part){19,}$")
_NO_WARNING = frozenset({".gitkeep", ".ds_store", "thumbs.db", "desktop.ini"})
_NO_WARNING_SUFFIXES = frozenset({".csv", ".tsv", ".txt", ".md", ".json", ".xml", ".geojson", ".full"})


def discover(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Find the slides below `folder`.

    A slide's id is its path below `folder` without the extension, `/` written as `__`. A folder that holds `.dcm` files
    is one slide; the folder beside a `.mrxs` file, and the files that a `.vms` or `.vmu` file names, belong to it.

    Returns
    -------
    Paths by id, sorted by id, and a warning for each file that was ignored though it might be meant as a slide.

    Raises
    ------
    ConfigError
        If the folder is missing or holds no slide, if two slides have one id, or if a name is one that the workflow
        cannot pass on (see `_check_id`).
    """
    named: list[tuple[str, Path]] = []
    warnings: list[str] = []
    for path in _slide_paths(folder, warnings):
        if path == folder:
            raise ConfigError(f"{folder} itself holds .dcm files; put each DICOM series into a folder of its own there")
        relative = path.relative_to(folder)
        named.append((relative.as_posix() if path.is_dir() else relative.with_suffix("").as_posix(), path))
    return _by_id(named, folder), warnings


def shown(path: str | Path) -> str:
    r"""Give a path as text that any file and screen takes: what is not UTF-8, and control characters, as `\xe4`."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(f"\\x{ord(letter):02x}" if ord(letter) < 32 or ord(letter) == 127 else letter for letter in text)


def is_utf_8(name: str) -> bool:
    """Tell whether a file's name is UTF-8; Python holds other bytes of it as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def discover_in_bucket(url: str) -> tuple[dict[str, bucket.BucketSlide], list[str]]:
    """Find the slides below an address (`s3://bucket/folder`); as `discover`."""
    named, warnings = bucket.slides(url)
    return _by_id(named, url), warnings


S = TypeVar("S", Path, bucket.BucketSlide)


def _by_id(named: Iterable[tuple[str, S]], place: object) -> dict[str, S]:
    """Give slides by id, sorted; `named` has their paths below `place` without the extension."""
    found: dict[str, S] = {}
    for name, slide in named:
        slide_id = unicodedata.normalize("NFC", name.replace("/", "__"))
        _check_id(slide_id, slide)
        if slide_id in found:
            raise ConfigError(
                f"{found[slide_id]} and {slide} have the same slide id '{slide_id}'; rename or remove one of them"
            )
        found[slide_id] = slide
    if not found:
        raise ConfigError(
            f"no slides in {place}; put whole-slide images (.svs, .ndpi, .mrxs, .tiff and others) there"
            " and their labels in the labels file"
        )
    return dict(sorted(found.items()))


def _check_id(slide_id: str, path: bucket.Location) -> None:
    """Refuse an id that Snakemake or the file system would stumble over, with all other slides.

    Braces and angle brackets mark wildcards and path variables, an end that repeats often is taken for a wildcard that
    runs away, and a name needs room for the endings of its artefacts.
    """
    if not is_utf_8(slide_id):
        raise ConfigError(f"'{shown(str(path))}': the name is not UTF-8; rename it")
    size = len(slide_id.encode())
    if any(letter in "{}<>" or ord(letter) < 32 for letter in slide_id):
        raise ConfigError(
            f"{shown(str(path))}: a slide's name cannot hold braces, < or >, or control characters; rename it"
        )
    if size > MAX_ID_BYTES:
        raise ConfigError(
            f"{path}: its id has {size} bytes, more than {MAX_ID_BYTES}; shorten the name or its folders'"
        )
    if _REPEATING.search(slide_id):
        raise ConfigError(f"{path}: the name ends in a part that is repeated 20 times or more; rename it")


def _slide_paths(folder: Path, warnings: list[str], above: tuple[Path, ...] = ()) -> Iterable[Path]:
    real = folder.resolve()
    if real in above:
        warnings.append(f"{shown(folder)} is ignored: it is a link to a folder above it.")
        return
    try:
        entries = _entries(folder)
    except PermissionError as error:
        if not above:
            raise ConfigError(f"{shown(folder)} may not be read; give the user of this run leave to") from error
        warnings.append(f"{shown(folder)} is ignored: the user of this run may not read it.")
        return
    above = (*above, real)
    belonging = _belonging(entries)
    if any(_is_dicom(entry) for entry in entries):
        yield folder
        entries = [entry for entry in entries if entry.is_dir()]
    for entry in entries:
        hidden = entry.name.startswith(".")
        if entry in belonging:
            continue
        if entry.is_symlink() and not os.path.exists(entry):  # noqa: PTH110 - pathlib's raises where it may not look
            warnings.append(f"{shown(entry)} is ignored: it is a link to a file that is not there.")
            continue
        if entry.is_dir():
            if not hidden:
                yield from _slide_paths(entry, warnings, above)
        elif entry.suffix.lower() in SLIDE_SUFFIXES and not hidden:
            yield entry
        elif not _is_expected(entry):
            why = "hidden" if hidden else f"'{shown(entry.suffix or entry.name)}' is no slide extension"
            warnings.append(f"{shown(entry)} is ignored: {why}.")


def _entries(folder: Path) -> list[Path]:
    """List a folder, sorted; raise a PermissionError where its files could not be opened either."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    if entries:
        entries[0].lstat()  # a folder may be listed by who may not enter it
    return entries


def _belonging(entries: Sequence[Path]) -> set[Path]:
    """Give what is part of a slide that lies beside it."""
    found = {entry.with_suffix("") for entry in entries if entry.suffix.lower() == ".mrxs"}
    for entry in entries:
        if entry.suffix.lower() in bucket.INDEXES and os.access(entry, os.R_OK) and entry.is_file():
            found.update(companions(entry))
    return found


def _is_expected(entry: Path) -> bool:
    """Tell files that nobody means as a slide, with those beside a Trestle slide (`.Full`, `.tif-b`)."""
    suffix = entry.suffix.lower()
    return entry.name.lower() in _NO_WARNING or suffix in _NO_WARNING_SUFFIXES or suffix.startswith(".tif-")


def _is_dicom(entry: Path) -> bool:
    return entry.suffix.lower() == DICOM_SUFFIX and not entry.name.startswith(".") and entry.is_file()
