"""What is fuzzed: a loader of files from outside, what a strategy makes for it, and files that are right to begin with.

Each target takes bytes, and may raise nothing but a `PipelineError`.
"""

import contextlib
import io
import json
import pickle
import struct
import tarfile
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as some
from numpy.typing import NDArray

from pipeline import cohort, given_splits, json_text, settings, store, tiff_tiles, weights_bundle
from pipeline.assignment import COLUMNS, read_splits
from pipeline.errors import PipelineError
from pipeline.geojson import read_geojson
from pipeline.slide import open_slide
from pipeline.weights import MANIFEST
from tests.fuzz import foreign
from tests.fuzz.making import ANYTHING, JSON, Target, changed
from tests.slides import slide_with_tissue, write_svs

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
HEADERS: tuple[bytes, ...] = (b"slide_id,label\n", b"slide_id,label,patient_id,site\n", b"slide_id,mpp,skip,note\n")
HEADERS += (",".join(COLUMNS).encode() + b"\n", b"slide_id,fold\n", ",".join(given_splits.COLUMNS).encode() + b"\n")


# --- slides ---------------------------------------------------------------------------------------------------------


@cache
def slide_bytes() -> bytes:
    """Give a small Aperio slide."""
    with tempfile.TemporaryDirectory() as folder:
        pixels = slide_with_tissue(600, 600, box=(50, 50, 400, 400))
        return write_svs(Path(folder) / "a.svs", pixels, factors=(4,)).read_bytes()


def turned(content: bytes) -> bytes:
    """Move a slide's tables, which its head points to, from behind its pixels to the front."""
    directory = struct.unpack("<I", slide_bytes()[4:8])[0]
    return content[directory:] + content[:directory]


def turned_back(content: bytes) -> bytes:
    """Undo `turned`."""
    directory = len(slide_bytes()) - struct.unpack("<I", slide_bytes()[4:8])[0]
    return content[directory:] + content[:directory]


def read_slide(content: bytes, folder: Path) -> None:
    """Do with a slide what the stages do: open it, look at its overview, read patches."""
    path = folder / "a.svs"
    path.write_bytes(content)
    with open_slide(path, default_mpp=0.5) as slide:
        slide.thumbnail(8.0)
        for _ in slide.patches(np.array([[0, 0], [128, 64]], np.int32), patch_px=224, mpp=slide.mpp, threads=1):
            pass


def read_tables_of_tiff(content: bytes, folder: Path) -> None:
    """Read a slide's tables and decode its first tiles without OpenSlide, which a hostile file may satisfy."""
    path = folder / "a.svs"
    path.write_bytes(content)
    levels = [(600, 600), (150, 150)]
    for level in (0, 1):
        with contextlib.suppress(tiff_tiles.NotDirectError, tiff_tiles.TileError):
            grid = tiff_tiles.read_grid(path, vendor="aperio", level=level, level_dimensions=levels)
            scratch = np.empty(grid.tile_height * grid.tile_width * 3, np.uint8)
            for offset, count in zip(grid.offsets[:2], grid.counts[:2], strict=True):
                tiff_tiles.decode_tile(grid, content[offset : offset + count], scratch)


@cache
def _grid() -> tuple[tiff_tiles.TileGrid, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.svs"
        path.write_bytes(slide_bytes())
        grid = tiff_tiles.read_grid(path, vendor="aperio", level=0, level_dimensions=[(600, 600), (150, 150)])
    return grid, slide_bytes()[grid.offsets[0] : grid.offsets[0] + grid.counts[0]]


def read_jpeg(content: bytes, _: Path) -> None:
    """Decode bytes as a JPEG tile of a good slide."""
    grid, _good = _grid()
    with contextlib.suppress(tiff_tiles.TileError):
        tiff_tiles.decode_tile(grid, content, np.empty(grid.tile_height * grid.tile_width * 3, np.uint8))


# --- what users write -----------------------------------------------------------------------------------------------


def read_outline(content: bytes, folder: Path) -> None:
    """Read an outline that somebody drew."""
    path = folder / "a.geojson"
    path.write_bytes(content)
    read_geojson(path, shape=(40, 40), downsample=4.0, bounds=(0, 0, 0, 0))


def _outlines(found: Any) -> bytes:
    polygon = {"type": "Polygon", "coordinates": found}
    return json.dumps({"type": "FeatureCollection", "features": [{"geometry": polygon, "properties": found}]}).encode()


POINTS = some.lists(some.lists(some.floats(width=32), min_size=2, max_size=3), min_size=3, max_size=8)
OUTLINES = JSON.map(_outlines) | JSON.map(json.dumps).map(str.encode) | POINTS.map(lambda ring: _outlines([ring]))


def reads_table(load: Callable[[Path], object]) -> Callable[[bytes, Path], None]:
    """Give a function that lets `load` read a table."""

    def read(content: bytes, folder: Path) -> None:
        path = folder / "a.csv"
        path.write_bytes(content)
        load(path)

    return read


CELLS = some.text(max_size=12) | some.sampled_from(["1", "0", "-1", "1e999", "nan", "9" * 5000, "train", "s", "=1+1"])
ROWS = some.lists(some.lists(CELLS, max_size=6).map(",".join), max_size=5).map("\n".join).map(str.encode)
TABLES = some.builds(bytes.__add__, some.sampled_from([b"", *HEADERS]), ROWS | some.binary(max_size=200))


def read_configuration(content: bytes, folder: Path) -> None:
    """Read a configuration as the command line does."""
    path = folder / "config.yaml"
    path.write_bytes(content)
    settings.check(settings.read([ROOT / "config.yaml", path]), SCHEMA)


def _configuration(section: str, value: Any) -> bytes:
    return yaml.safe_dump({section: value}, allow_unicode=True).encode("utf-8", "surrogatepass")


SECTIONS = some.sampled_from(["tiling", "encoder", "model", "training", "paths", "baselines", "evaluation", "task"])
KEYS = some.sampled_from(["mpp", "patch_px", "name", "weights", "epochs", "slides", "abmil", "folds"])
CONFIGURATIONS = some.builds(
    _configuration, some.text(max_size=6) | SECTIONS, JSON | some.dictionaries(KEYS | some.text(max_size=4), JSON)
)

# --- what comes from other machines ---------------------------------------------------------------------------------


def read_model(content: bytes, folder: Path) -> None:
    """Load a model folder: bytes as its description, and as its weights beside a description that is right so far."""
    from pipeline.model_folder import load_model

    right = {"schema_version": 1, "model": "abmil", "options": {"d_in": 4, "classes": 2}}
    for description, weights in ((content, b""), (json.dumps(right).encode(), content)):
        (folder / "model.json").write_bytes(description)
        (folder / "weights.safetensors").write_bytes(weights)
        with contextlib.suppress(PipelineError):
            load_model(folder)


def _description(found: Any) -> bytes:
    return json.dumps({"schema_version": 1, "model": "asmil", "options": found}).encode()


def reads_checkpoint(name: str) -> Callable[[bytes, Path], None]:
    """Give a function that reads a checkpoint of that name."""

    def read(content: bytes, folder: Path) -> None:
        from pipeline.encoders.checkpoint import read_state

        path = folder / name
        path.write_bytes(content)
        read_state(path)

    return read


def read_training_state(content: bytes, folder: Path) -> None:
    """Look for the state of a training run that was stopped, as a job does that begins."""
    from pipeline import checkpoint

    (folder / checkpoint.NAME).write_bytes(content)
    checkpoint.load(folder, digest="d")


@cache
def training_state_bytes() -> bytes:
    """Give the state of a training run."""
    import torch

    from pipeline import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder), {"trainer": {"epoch": 1, "model": {"a": torch.zeros(3, 2)}}}, digest="d")
        return (Path(folder) / checkpoint.NAME).read_bytes()


@cache
def checkpoint_bytes() -> bytes:
    """Give what `torch.save` writes."""
    import torch

    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(3, 2)}}, buffer)
    return buffer.getvalue()


@cache
def safetensors_bytes() -> bytes:
    """Give what safetensors writes."""
    import torch
    from safetensors.torch import save

    return save({"a": torch.zeros(3, 2)})


@cache
def artefact_bytes() -> bytes:
    """Give a bag."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zarr.zip"
        arrays: dict[str, NDArray[Any] | store.Rows] = {
            "features": np.ones((5, 4), np.float16),
            "coords": np.zeros((5, 2), np.int32),
        }
        store.write(path, arrays, store.stage_attributes("embed", slide_id="a", fingerprint="f"))
        return path.read_bytes()


def read_artefact(content: bytes, folder: Path) -> None:
    """Read an artefact."""
    path = folder / "a.zarr.zip"
    path.write_bytes(content)
    store.read(path)


def bundle_bytes(manifest: bytes = b'{"a.pth": {"sha256": "00"}}') -> bytes:
    """Give a bundle of weights."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in ((MANIFEST, manifest), ("a.pth", b"x")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def read_bundle(content: bytes, folder: Path) -> None:
    """Unpack a bundle of weights."""
    path = folder / "bundle.tar"
    path.write_bytes(content)
    weights_bundle.unpack(path, folder / "weights")


def read_json(content: bytes, _: Path) -> None:
    """Parse JSON."""
    with contextlib.suppress(json_text.JsonError):
        json_text.parse_object(content)


MAGIC = some.sampled_from([b"", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"PK\3\4"])

TARGETS: dict[str, Target] = {
    "slide": Target(
        lambda content, folder: read_slide(turned_back(content), folder),
        changed(lambda: turned(slide_bytes())) | some.builds(bytes.__add__, MAGIC, ANYTHING),
        lambda: [turned(slide_bytes())],
        native=True,
    ),
    "tiff": Target(
        lambda content, folder: read_tables_of_tiff(turned_back(content), folder),
        changed(lambda: turned(slide_bytes())),
        lambda: [turned(slide_bytes())],
    ),
    "jpeg": Target(read_jpeg, changed(lambda: _grid()[1], head=700), lambda: [_grid()[1]]),
    "geojson": Target(read_outline, OUTLINES | ANYTHING, lambda: [_outlines([[[0, 0], [9, 0], [9, 9]]])]),
    "labels": Target(reads_table(lambda path: cohort.read_labels(path, target="label")), TABLES, lambda: [*HEADERS]),
    "overrides": Target(reads_table(cohort.read_overrides), TABLES, lambda: [*HEADERS]),
    "splits": Target(reads_table(read_splits), TABLES, lambda: [*HEADERS]),
    "given splits": Target(reads_table(given_splits.read), TABLES, lambda: [*HEADERS]),
    "config": Target(read_configuration, CONFIGURATIONS | ANYTHING, lambda: [(ROOT / "config.yaml").read_bytes()]),
    "model": Target(
        read_model,
        JSON.map(json.dumps).map(str.encode) | JSON.map(_description) | ANYTHING | changed(safetensors_bytes),
        lambda: [_description({"d_in": 4, "classes": 2}), safetensors_bytes()],
    ),
    "checkpoint": Target(
        reads_checkpoint("a.pth"),
        changed(checkpoint_bytes) | JSON.map(pickle.dumps) | ANYTHING,
        lambda: [checkpoint_bytes()],
    ),
    "safetensors": Target(
        reads_checkpoint("a.safetensors"), changed(safetensors_bytes, head=100), lambda: [safetensors_bytes()]
    ),
    "training state": Target(
        read_training_state, changed(training_state_bytes) | JSON.map(pickle.dumps), lambda: [training_state_bytes()]
    ),
    "artefact": Target(read_artefact, changed(artefact_bytes), lambda: [artefact_bytes()]),
    "bundle": Target(
        read_bundle,
        changed(bundle_bytes) | JSON.map(json.dumps).map(str.encode).map(bundle_bytes),
        lambda: [bundle_bytes()],
    ),
    "json": Target(read_json, JSON.map(json.dumps).map(str.encode) | ANYTHING, lambda: [b'{"a": [1, null, "b"]}']),
    **foreign.TARGETS,
}
