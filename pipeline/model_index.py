"""The index of a run's models: one small file that stands for all folds, and changes when one of them does."""

import json
from pathlib import Path

from pipeline import store
from pipeline.checksums import sha256_of
from pipeline.versions import SCHEMA_VERSION, __version__

PARTS = ("model.json", "weights.safetensors")


def write(folder: Path, *, folds: int, splits: Path, index: Path) -> None:
    """Write which models there are, with the SHA-256 of each file and of the splits that they were trained on.

    Parameters
    ----------
    folder, folds
        Holds a `fold-{k}` for each fold k below `folds`; further ones are of another division.
    splits
        The splits file.
    index
        The file to write.
    """
    models = {
        f"fold-{fold}": {part: sha256_of(folder / f"fold-{fold}" / part) for part in PARTS} for fold in range(folds)
    }
    content = {
        "schema_version": SCHEMA_VERSION,
        "asmil_wsi": __version__,
        "splits": sha256_of(splits),
        "models": models,
    }
    store.write_text(index, json.dumps(content, indent=1) + "\n")
