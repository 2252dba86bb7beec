"""Files from strangers: whatever bytes they hold, the loaders raise our errors and nothing else.

`ASMIL_FUZZ_EXAMPLES=5000 pytest tests/test_hostile_input.py` looks longer than CI does.
"""

import contextlib
import csv
import io
import json
import os
import pickle
import struct
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from pipeline import cohort, tables, weights_bundle
from pipeline import settings as configuration
from pipeline.assignment import COLUMNS, read_splits
from pipeline.encoders.checkpoint import read_state
from pipeline.errors import PipelineError, SlideError
from pipeline.geojson import read_geojson
from pipeline.isolation import attempt
from pipeline.model_folder import load_model
from pipeline.slide import open_slide
from pipeline.weights import MANIFEST
from tests.slides import slide_with_tissue, write_svs

ROOT = Path(__file__).parents[1]
EXAMPLES = int(os.environ.get("ASMIL_FUZZ_EXAMPLES", "25"))

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 25,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
JSON = some.recursive(
    some.none() | some.booleans() | some.floats() | some.integers() | some.text(max_size=6),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
MUTATIONS = some.lists(some.tuples(some.floats(0, 1), some.integers(0, 255)), min_size=1, max_size=12)


def mutated(content: bytes, mutations: list[tuple[float, int]], *, head: int) -> bytes:
    """Change bytes, half of them among the first `head`, where a format's tables are."""
    changed = bytearray(content)
    for number, (place, value) in enumerate(mutations):
        changed[int(place * (min(head, len(changed)) if number % 2 else len(changed) - 1))] = value
    return bytes(changed)


def ours(work: Callable[[], object]) -> None:
    """Do `work`; only our errors may come out of it."""
    with warnings.catch_warnings(), contextlib.suppress(PipelineError):
        warnings.simplefilter("ignore")  # a library's remark on a damaged file is no failure
        work()


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    pixels = slide_with_tissue(600, 600, box=(50, 50, 400, 400))
    return write_svs(tmp_path_factory.mktemp("svs") / "a.svs", pixels, factors=(4,)).read_bytes()


def read_all(path: Path) -> None:
    with open_slide(path, default_mpp=0.5) as slide:
        slide.thumbnail(8.0)
        for _ in slide.patches(np.array([[0, 0], [128, 64]], np.int32), patch_px=224, mpp=slide.mpp, threads=1):
            pass


@fuzz
@given(mutations=MUTATIONS, cut=some.none() | some.floats(0, 1))
def test_a_damaged_slide(svs: bytes, tmp_path: Path, mutations: list[tuple[float, int]], cut: float | None) -> None:
    directory = struct.unpack("<I", svs[4:8])[0]
    # the first directory and what follows it are the tables: turned to the front of what is changed
    content = mutated(svs[directory:] + svs[:directory], mutations, head=2000)
    turned = content[len(svs) - directory :] + content[: len(svs) - directory]
    path = tmp_path / "a.svs"
    path.write_bytes(turned if cut is None else turned[: int(cut * len(turned))])
    ours(lambda: read_all(path))


@fuzz
@given(
    content=some.binary(max_size=400), magic=some.sampled_from([b"", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"PK\3\4"])
)
def test_bytes_that_are_no_slide(tmp_path: Path, content: bytes, magic: bytes) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(magic + content)
    ours(lambda: read_all(path))


@fuzz
@given(found=JSON)
def test_geojson(tmp_path: Path, found: Any) -> None:
    path = tmp_path / "a.geojson"
    polygon = {"type": "Polygon", "coordinates": found}
    for collection in (found, {"type": "FeatureCollection", "features": [{"geometry": polygon, "properties": found}]}):
        path.write_text(json.dumps(collection))
        ours(lambda: read_geojson(path, shape=(40, 40), downsample=4.0, bounds=(0, 0, 0, 0)))


@fuzz
@given(
    coordinates=some.lists(some.lists(some.floats(width=32), min_size=2, max_size=3), min_size=3, max_size=8),
)
def test_polygons_far_away_or_without_number(tmp_path: Path, coordinates: list[list[float]]) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [coordinates]}))
    ours(lambda: read_geojson(path, shape=(40, 40), downsample=4.0, bounds=(0, 0, 0, 0)))


def test_json_nested_too_deep_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text("[" * 100_000)
    with pytest.raises(SlideError, match="nested"):
        read_geojson(path, shape=(40, 40), downsample=4.0, bounds=(0, 0, 0, 0))


@fuzz
@given(content=some.binary(max_size=200) | some.text(max_size=200).map(str.encode))
def test_tables(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    for header in (b"", b"slide_id,label\n", b"slide_id,mpp,skip,note\n", ",".join(COLUMNS).encode() + b"\n"):
        path.write_bytes(header + content)
        ours(lambda: cohort.read_labels(path, target="label"))
        ours(lambda: cohort.read_overrides(path))
        ours(lambda: read_splits(path))


@fuzz
@given(section=some.text(max_size=6) | some.sampled_from(["tiling", "encoder", "model", "training"]), value=JSON)
def test_configuration(section: str, value: Any) -> None:
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config[section] = {**config[section], **value} if isinstance(value, dict) and section in config else value
    if not isinstance(config.get(section), type(None)):
        ours(lambda: configuration.check(config, ROOT / "workflow" / "schemas" / "config.schema.yaml"))


@fuzz
@given(description=JSON, weights=some.binary(max_size=100))
def test_model_folder(tmp_path: Path, description: Any, weights: bytes) -> None:
    for found in (description, {"schema_version": 1, "model": "asmil", "options": description}):
        (tmp_path / "model.json").write_text(json.dumps(found))
        (tmp_path / "weights.safetensors").write_bytes(weights)
        ours(lambda: load_model(tmp_path))


class Evil:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch remarks on a pickle of an unusual protocol
def test_a_pickle_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    for name, content in (("a.pth", pickle.dumps(Evil(tmp_path / "owned"))), ("b.bin", b"\x80\x04garbage")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PipelineError, match="fetch the"):
            read_state(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["../out.pth", "/tmp/out.pth", "a/../../out.pth", "a/b/c.pth", "..\\out.pth"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_bundle_that_reaches_outside_its_folder_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    archive = tmp_path / "bundle.tar"
    with tarfile.open(archive, "w") as tar:
        manifest = json.dumps({name: {"sha256": "0" * 64}}).encode()
        for member, content in ((MANIFEST, manifest), (name, b"x")):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            if kind == "link" and member == name:
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(entry, io.BytesIO(content))
    inside = tmp_path / "weights"
    inside.mkdir()
    with pytest.raises(PipelineError, match="do not trust this archive"):
        weights_bundle.unpack(archive, inside)
    assert not list(inside.iterdir())
    assert not (tmp_path / "out.pth").exists()


@fuzz
@given(manifest=JSON)
def test_a_bundle_with_any_manifest(tmp_path: Path, manifest: Any) -> None:
    archive = tmp_path / "bundle.tar"
    with tarfile.open(archive, "w") as tar:
        for name, content in ((MANIFEST, json.dumps(manifest).encode()), ("a.pth", b"x")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    ours(lambda: weights_bundle.unpack(archive, tmp_path / "weights"))


@fuzz
@given(cell=some.text(max_size=12).map(lambda text: "=" + text) | some.text(max_size=12))
def test_no_cell_of_a_table_is_a_formula(cell: str) -> None:
    written = tables.guard(cell)
    assert not written.lstrip().startswith(("=", "@"))
    assert not written.startswith(("\t", "\r", "\n"))
    assert tables.plain(written) == cell
    [read] = csv.reader([tables.text([[tables.flat(cell)]], delimiter="\t")], delimiter="\t")
    assert [tables.plain(found) for found in read] == [tables.flat(cell)]


def tiff(entries: list[tuple[int, int, int, int]], *, following: int = 0) -> bytes:
    """Give a TIFF of one directory: tag, type, count, value of each entry, and where the next directory is."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following) + bytes(64)


TILED = [(258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6), (277, 3, 1, 3), (322, 4, 1, 256), (323, 4, 1, 256)]
CRAFTED = {
    "huge": [(256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1), *TILED, (324, 4, 1, 8), (325, 4, 1, 8)],
    "huge tiles": [(256, 4, 1, 2**17), (257, 4, 1, 2**17), *TILED[:4], (322, 4, 1, 2**17), (323, 4, 1, 2**17)],
    "overlapping": [(256, 4, 1, 512), (257, 4, 1, 256), *TILED, (324, 4, 2, 8), (325, 4, 2, 8)],
    "endless count": [(256, 4, 1, 512), (257, 4, 1, 512), *TILED, (324, 4, 2**32 - 1, 8), (325, 4, 2**32 - 1, 8)],
}


@pytest.mark.parametrize("following", [0, 8, 9, 2**32 - 1])
@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_tiff_is_refused_quickly_in_little_memory(tmp_path: Path, case: str, following: int) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(CRAFTED[case], following=following))

    def look() -> None:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
        ours(lambda: read_all(path))

    outcome = attempt(look, stalled_after_s=20)
    assert (outcome.code, outcome.killed_by, outcome.stalled) == (0, 0, False)
