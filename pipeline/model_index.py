"""The index of a run's models: one small file that stands for all folds, and changes when one of them does."""

import json
from pathlib import Path

from pipeline import store
from pipeline.checksums import is_changed, sha256_of
from pipeline.errors import ArtefactError
from pipeline.json_text import JsonError, parse_object
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

    Raises
    ------
    ArtefactError
        If the index is damaged; it is left as it is, as the folder may be a copy that no run makes anew.
    """
    index = folder / INDEX
    names = {path.parent.name.removeprefix("fold-") for path in folder.glob("fold-*/model.json")}
    if index.exists():
        try:
            known = None if is_changed(index) else parse_object(index.read_bytes()).get("models")
        except JsonError:
            known = None
        if not isinstance(known, dict):
            raise ArtefactError(
                f"{index}: damaged, so that it does not say which models belong together; copy the folder of models"
                " again, or run the workflow that wrote it"
            )
        names &= {str(name).removeprefix("fold-") for name in known}
    return sorted(int(name) for name in names if name.isdigit())
