"""A study whose features came from another toolbox: nothing is tiled or encoded, and models are trained."""

import h5py
import numpy as np

from pipeline import imports
from tests.workflow.conftest import Study


def test_imported_features_are_trained_on_and_not_computed_again(fresh: Study) -> None:
    grid = np.array([(x, y) for y in (0, 224, 448) for x in (0, 224, 448)])
    folder = fresh.folder / "features"
    folder.mkdir()
    for number, slide in enumerate(sorted(fresh.raw.glob("*.svs"))):
        with h5py.File(folder / f"{slide.stem}.h5", "w") as file:
            file["features"] = np.random.default_rng(number).normal(size=(9, 768)).astype(np.float32)
            file["coords"] = grid
            file["coords"].attrs.update({"patch_size": 224, "patch_size_level0": 224})
    imports.run(folder, slides=fresh.raw, results=fresh.folder / "results", encoder="phikon")
    fresh.configure(encoder={"name": "phikon", "weights": "imported"})
    planned = fresh.plan()
    assert not {"tile", "embed"} & set(planned)
    assert planned["train"] == 2
