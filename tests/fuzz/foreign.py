"""Files of other toolboxes and machines: features in HDF5, bags by whatever program, snapshots of the hub."""

import contextlib
import io
import json
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import strategies as some
from zarr.errors import UnstableSpecificationWarning

from asmil.errors import BagError
from pipeline import imports, store
from tests.fuzz.making import ANYTHING, JSON, Target, changed
from tests.slides import tissue_like, write_svs

SIDE_PX = 600
"""Edge of the slide that features were made of."""
GRID = np.array([[0, 0], [256, 0], [0, 256], [256, 256]], np.int64)
FEATURES = np.zeros((4, 1024), np.float32)
UNI = "uni"
TRIDENT: dict[str, Any] = {"patch_size": 256, "patch_size_level0": 256}
STAMP: dict[str, Any] = {"unit": "um", "tile_size_um": 128.0, "tile_size_px": 256}
CLAM: dict[str, Any] = {"patch_size": 256, "patch_level": 0}


@cache
def slide_bytes() -> bytes:
    """Give the slide."""
    with tempfile.TemporaryDirectory() as folder:
        return write_svs(Path(folder) / "a.svs", tissue_like(SIDE_PX, SIDE_PX), mpp=0.5, factors=(4,)).read_bytes()


def hdf5(arrays: dict[str, Any], *, own: dict[str, Any], of_coords: dict[str, Any]) -> bytes:
    """Give an HDF5 file of datasets, with attributes of the file and of `coords`."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, value in arrays.items():
            if isinstance(value, tuple):  # of a size that is stated, without a byte behind it
                file.create_dataset(name, shape=value, chunks=tuple(min(size, 64) for size in value), dtype="f4")
            else:
                file.create_dataset(name, data=value, compression="gzip" if np.ndim(value) and np.size(value) else None)
        file.attrs.update(own)
        if "coords" in file:
            file["coords"].attrs.update(of_coords)
    return content.getvalue()


@cache
def right_hdf5() -> list[bytes]:
    """Give a file of each layout."""
    trident = hdf5({"features": FEATURES, "coords": GRID}, own={}, of_coords=TRIDENT)
    stamp = hdf5({"feats": FEATURES.astype(np.float16), "coords": GRID * 0.5}, own=STAMP, of_coords={})
    return [trident, stamp, hdf5({"features": FEATURES, "coords": GRID}, own={}, of_coords=CLAM)]


def import_features(content: bytes, folder: Path) -> None:
    """Import a file of features; what is taken lies on the slide, at a scale that is one."""
    slides, results = folder / "slides", folder / "results"
    for place in (slides, folder / "in"):
        place.mkdir()
    (slides / "a.svs").write_bytes(slide_bytes())
    (folder / "in" / "a.h5").write_bytes(content)
    imports.run(folder / "in", slides=slides, results=results, encoder=UNI, coordinates=folder / "in")
    bag = store.read(results / "bags" / "a.zarr.zip")
    edge, mpp = bag.attributes["patch_level0_px"], bag.attributes["target_mpp"]
    assert np.isfinite(bag.arrays["features"]).all()
    assert 1 <= edge < 10 * SIDE_PX
    assert 0 < mpp < 1000
    assert (bag.arrays["coords"] >= -edge).all()
    assert (bag.arrays["coords"] <= SIDE_PX).all()


TEXT = np.array([[b"a", b"b"]] * 4)
ODD_ARRAYS: list[Any] = [FEATURES, GRID, GRID * 0.5, GRID * -1, GRID * 1e18, GRID * 1j, TEXT, GRID[:0], GRID > 0]
ODD_ARRAYS += [np.full((4, 2), np.nan), np.full((4, 2), np.inf), GRID.astype(np.uint64) - 1, np.zeros((4, 2, 2))]
ODD_ARRAYS += [FEATURES * np.nan, FEATURES[:, :0], FEATURES.astype(np.float64) + 1e300, np.float32(1), b"text"]
ODD_ARRAYS += [(2**40, 1024), (2**31, 2), (4, 2**40), np.void(b"abc")]
ARRAYS = some.sampled_from(ODD_ARRAYS)
NUMBERS: list[Any] = [0, 1, 256, -1, 2**62, float("nan"), float("inf"), 1e300, 1e-300, "256", "um", b"um"]
VALUES = some.sampled_from([*NUMBERS, b"\xff", "ü", [1, 2], [], [0.5], True, h5py.Empty("f4"), np.void(b"a")])
NAMES = some.sampled_from(["features", "feats", "coords"])
KEYS = some.sampled_from([*TRIDENT, *STAMP, *CLAM])
LAYOUTS = some.sampled_from([TRIDENT, STAMP, CLAM])
MADE_UP = some.builds(
    lambda arrays, layout, own, of_coords: hdf5(
        {"features": FEATURES, "coords": GRID} | arrays,
        own=(layout if layout is STAMP else {}) | own,
        of_coords=layout | of_coords,
    ),
    some.dictionaries(NAMES, ARRAYS, max_size=2),
    LAYOUTS,
    some.dictionaries(KEYS, VALUES, max_size=1),
    some.dictionaries(KEYS, VALUES, max_size=2),
)
DAMAGED = some.one_of(*(changed(lambda n=number: right_hdf5()[n], head=20_000) for number in range(3)))  # type: ignore[misc]


# --- bags -----------------------------------------------------------------------------------------------------------

DIM = 4
COORDS = np.zeros((5, 2), np.int32)
LIKE_TRAINING: dict[str, Any] = {"encoder": "texture", "weights_sha256": "", "dim": DIM, "patch_px": 8}


def bag_bytes(attributes: dict[str, Any], arrays: dict[str, Any], left_out: set[str] | None = None) -> bytes:
    """Give a bag with other attributes, or without some, and with other arrays."""
    about = store.stage_attributes("embed", slide_id="a", fingerprint="f", **LIKE_TRAINING) | attributes
    content: dict[str, Any] = {"features": np.ones((5, DIM), np.float16), "coords": COORDS} | arrays
    kept = {name: about[name] for name in about.keys() - (left_out or set())}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstableSpecificationWarning)  # zarr's, of arrays of texts
        store.write(Path(folder) / "a.zarr.zip", content, kept)
        return (Path(folder) / "a.zarr.zip").read_bytes()


@cache
def model_files() -> dict[str, bytes]:
    """Give the files of a small model, by name."""
    from asmil.training import FitResult
    from pipeline.model_folder import ModelFolder, build_model

    model = build_model("abmil", d_in=DIM, classes=2, options={}, seed=0)
    validation = {"labels": [0, 1], "logits": [[0.0, 1.0], [1.0, 0.0]]}
    of_run: dict[str, Any] = {
        "fold": 0,
        "best_epoch": 1,
        "training": {},
        "seen": [],
        "thresholds": {"balanced_accuracy": 0.5},
    }
    about = ModelFolder(
        "abmil", dict(model.options), classes=["a", "b"], bags=LIKE_TRAINING, validation=validation, **of_run
    )
    with tempfile.TemporaryDirectory() as folder:
        about.write(Path(folder), FitResult([], 1, model.state_dict(), None))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def predict_bag(content: bytes, folder: Path) -> None:
    """Predict a bag; what is written is whole."""
    from pipeline import predict

    (folder / "model" / "fold-0").mkdir(parents=True)
    for name, file in model_files().items():
        (folder / "model" / "fold-0" / name).write_bytes(file)
    bag, attention = folder / "a.zarr.zip", folder / "out" / "a.zarr.zip"
    bag.write_bytes(content)
    with contextlib.suppress(BagError):  # features that are no numbers, or none
        predict.run(bag, splits=None, models=folder / "model", attention=attention, device="cpu")
        found = store.read(attention)
        assert not found.ok or len(found.arrays["score"]) == len(found.arrays["coords"])


ODD_ROWS: list[Any] = [np.full((5, DIM), np.nan), np.ones((5, DIM + 1)), np.ones((5, DIM, 1)), np.ones(5), COORDS]
ODD_ROWS += [np.ones((4, DIM)), np.ones((5, DIM), np.complex64), np.array(["a"] * 5), np.ones((5, DIM), bool)]
ODD_ROWS += [COORDS[:4], np.full((5, DIM), 60000, np.float16), np.full((5, 2), np.inf), np.ones((0, DIM))]
ROWS = some.sampled_from(ODD_ROWS)
ABOUT = some.sampled_from([*LIKE_TRAINING, "slide_id", "fingerprint", "status", "reason", "stage", "overview_hash"])
BAGS = some.builds(
    bag_bytes,
    some.dictionaries(ABOUT | some.text(max_size=4), JSON, max_size=3),
    some.dictionaries(some.sampled_from(["features", "coords", "more"]), ROWS, max_size=2),
    some.sets(ABOUT, max_size=2),
)

# --- snapshots of the hub -------------------------------------------------------------------------------------------

TIMM: dict[str, Any] = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 224, 224]}}
DINO: dict[str, Any] = {"model_type": "dinov2", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
OF_MODELS = ("mean", "std", "input_size", "image_size", "patch_size", "mlp_ratio", "use_swiglu_ffn", "layer_norm_eps")


def read_snapshot(content: bytes, folder: Path) -> None:
    """Read the configuration of a hub's snapshot."""
    from pipeline.encoders.snapshot import PREPROCESSING, snapshot_spec

    place = folder / "they--model"
    place.mkdir()
    (place / "config.json").write_bytes(content)
    (place / PREPROCESSING).write_bytes(content)
    snapshot_spec("hf-hub:they/model", folder)


SNAPSHOTS = some.builds(
    lambda right, changes: json.dumps(right | changes).encode(),
    some.sampled_from([TIMM, DINO, {}]),
    some.dictionaries(some.sampled_from([*TIMM, *DINO, *OF_MODELS]), JSON | some.integers(-1, 300), max_size=4),
)

TARGETS = {
    "features": Target(import_features, MADE_UP | DAMAGED | ANYTHING, right_hdf5, native=True),
    "bag": Target(predict_bag, BAGS, lambda: [bag_bytes({}, {})]),
    "snapshot": Target(
        read_snapshot, SNAPSHOTS | ANYTHING, lambda: [json.dumps(each).encode() for each in (TIMM, DINO)]
    ),
}
