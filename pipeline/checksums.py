"""Know a file again: a checksum kept with it, in an attribute of the file system, so that it costs no second file.

Artefacts in Zarr carry their own checksums. Tables, pages, pictures, outlines and models get theirs here when they are
written. Where the file system keeps no such attributes (or a copy dropped them) a file cannot be told from a damaged
one and passes; so does one that an editor wrote anew, as it is then another file on purpose.
"""

import hashlib
import logging
import os
from pathlib import Path

from pipeline.errors import ArtefactError

log = logging.getLogger(__name__)

ATTRIBUTE = "user.asmil_wsi.sha256"
KINDS = frozenset({".csv", ".tsv", ".txt", ".md", ".json", ".geojson", ".html", ".js", ".jpg", ".png", ".safetensors"})


def keep(path: Path, *, name: str) -> None:
    """Compute a file's checksum and keep it with the file, if its final `name` is of a kind without one of its own."""
    if Path(name).suffix in KINDS and hasattr(os, "setxattr"):
        try:
            os.setxattr(path, ATTRIBUTE, sha256_of(path).encode())
        except OSError as error:
            log.debug("%s: no checksum is kept (%s)", name, error.strerror)


def is_changed(path: Path) -> bool:
    """Tell whether a file's bytes are no longer those that were written; False where that cannot be known."""
    if not hasattr(os, "getxattr"):
        return False
    try:
        kept = os.getxattr(path, ATTRIBUTE)
    except OSError:
        return False
    return kept != sha256_of(path).encode()


def is_of_another(path: Path) -> bool:
    """Tell whether a file is of a kind that gets a checksum, and has none: another program wrote it."""
    return path.suffix in KINDS and not _has_one(path)


def are_kept(folder: Path) -> bool:
    """Tell whether any file of a kind that gets a checksum has one, right below a folder."""
    return any(path.suffix in KINDS and _has_one(path) for path in folder.glob("*"))


def _has_one(path: Path) -> bool:
    if not hasattr(os, "listxattr"):
        return False
    try:
        return ATTRIBUTE in os.listxattr(path)
    except OSError:
        return False


def check(path: Path) -> None:
    """Set a file aside and raise an ArtefactError if its bytes are not those that were written."""
    if is_changed(path):
        raise damaged(path, "its bytes changed after it was written")


def damaged(path: Path, why: str) -> ArtefactError:
    """Set a damaged file aside, so that the next run makes it anew, and give the error that says so."""
    aside = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(aside)
    except OSError:
        return ArtefactError(f"{path}: damaged ({why}); delete it and run the same command again")
    return ArtefactError(
        f"{path}: damaged ({why}); it was renamed to {aside.name}: run the same command again, which makes it anew"
    )


def sha256_of(path: Path) -> str:
    """Give the SHA-256 of a file's bytes as hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
