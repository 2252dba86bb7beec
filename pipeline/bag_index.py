"""The index of the labelled slides' bags: one small file that stands for all of them, and changes when one does.

A training job depends on every labelled bag. Were all of them its input, planning would grow with folds times slides.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.versions import SCHEMA_VERSION, __version__

GROUP = "zarr.json"
"""Member of a bag that holds its attributes."""


def write(index: Path, attributes: Mapping[str, Mapping[str, Any]], *, bags: Path) -> None:
    """Write a digest of each bag, and the bytes of all.

    How fast a bag was embedded does not count: equal bags have equal digests.

    Parameters
    ----------
    index
        The file to write.
    attributes
        Of the bags, by slide id; a quarantined slide's bag counts too.
    bags
        Folder of the bags.
    """
    digests, size = {}, 0
    for slide in sorted(attributes):
        with zipfile.ZipFile(bags / f"{slide}.zarr.zip") as archive:
            parts = [(each.filename, each.CRC, each.file_size) for each in archive.infolist() if each.filename != GROUP]
        kept = {name: value for name, value in attributes[slide].items() if name not in store.MEASURED}
        digests[slide] = hashlib.sha256(json.dumps([kept, parts], sort_keys=True).encode()).hexdigest()[:32]
        size += sum(length for _, _, length in parts)
    content = {"schema_version": SCHEMA_VERSION, "asmil_wsi": __version__, "bytes": size, "bags": digests}
    store.write_text(index, json.dumps(content, indent=0, ensure_ascii=False) + "\n")


def digests(index: Path) -> dict[str, str]:
    """Give the digest of each bag by slide id."""
    found: dict[str, str] = store.read_json(index)["bags"]
    return found


def size_bytes(index: Path) -> int:
    """Give the bytes of the bags, by which a scheduler is asked for time; 0 if the index does not say.

    Raises
    ------
    FileNotFoundError
        If it is not there yet.
    """
    try:
        return int(json.loads(index.read_text(encoding="utf-8"))["bytes"])
    except (ValueError, LookupError, TypeError):
        return 0
