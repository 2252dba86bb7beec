"""The state of a training run between two epochs, kept beside its model so that a killed job continues.

The file is hidden and no output of a rule, as Snakemake deletes the outputs of a job that failed. It carries a digest
of everything the run depends on; one of another run is not used.
"""

import hashlib
import io
import json
import logging
import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline import store
from pipeline.versions import STAGE_VERSIONS

log = logging.getLogger(__name__)

NAME = ".checkpoint.pt"
DAMAGE = (
    *(AssertionError, AttributeError, EOFError, LookupError, OSError, OverflowError, RuntimeError, TypeError),
    *(ValueError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
)
"""What torch raises on a file with missing or changed bytes."""


def run_digest(parameters: Mapping[str, Any], bags: Iterable[Path]) -> str:
    """Give a digest of what a training run depends on.

    Parameters
    ----------
    parameters
        Everything but the features, as JSON takes it.
    bags
        The bags, in their order. Their zip directories are read, which hold a checksum of every chunk.
    """
    contents = []
    for path in bags:
        with zipfile.ZipFile(path) as archive:
            contents.append([(entry.filename, entry.CRC, entry.file_size) for entry in archive.infolist()])
    whole = {
        "parameters": dict(parameters),
        "bags": contents,
        "torch": torch.__version__,  # another version may round otherwise
        "stage": STAGE_VERSIONS["train"],
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def save(folder: Path, state: Mapping[str, Any], *, digest: str) -> None:
    """Write the checkpoint of a model folder, tensors and plain values only; it replaces the last one as a whole."""
    content = io.BytesIO()  # torch names no cause when a disk fails under it
    torch.save({"digest": digest, "state": dict(state)}, content)
    with store.replacing(folder / NAME) as part:
        part.write_bytes(content.getbuffer())


def load(folder: Path, *, digest: str) -> dict[str, Any] | None:
    """Read the checkpoint of a model folder; None where there is none, or it is damaged or of another run."""
    path = folder / NAME
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except DAMAGE as error:
        log.warning("%s is damaged (%s); training starts anew", path, error)
        return None
    if not isinstance(found, dict) or found.get("digest") != digest or not isinstance(found.get("state"), dict):
        log.info("%s is of a run with other bags or options, or of another version; training starts anew", path)
        return None
    state: dict[str, Any] = found["state"]
    return state


def remove(folder: Path) -> None:
    """Delete the checkpoint of a finished run."""
    (folder / NAME).unlink(missing_ok=True)
