"""The index of a run's models: one small file that stands for all folds, and changes when one of them does."""

import json
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.checksums import sha256_of
from pipeline.versions import SCHEMA_VERSION, __version__

PARTS = ("model.json", "weights.safetensors")
INDEX = "models.json"
"""Its name, beside the models."""


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


def folds_of(folder: Path) -> list[int]:
    """Give the numbers of the models in a folder.

    Where there is an index, a `fold-{k}` that it does not name is left out: it stayed from an earlier division, as that
    of a run with more folds. Without one, as in a folder that was put together by hand, all count.
    """
    names = {path.parent.name.removeprefix("fold-") for path in folder.glob("fold-*/model.json")}
    if (folder / INDEX).exists():
        known: dict[str, Any] = store.read_json(folder / INDEX)["models"]
        names &= {name.removeprefix("fold-") for name in known}
    return sorted(int(name) for name in names if name.isdigit())
