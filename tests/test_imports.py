"""Features of other toolboxes: files laid out as their public code writes them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline import imports, store
from pipeline.errors import ConfigError
from tests.slides import tissue_like, write_svs

ROOT = Path(__file__).parents[1]
MPP = 0.25
GRID = np.array([(x, y) for y in (0, 512) for x in (0, 512, 1024)], np.int64)
SCALE: dict[str, Any] = {"patch_size": 256, "patch_size_level0": 512}
FEATURES = np.random.default_rng(0).normal(size=(6, 1024)).astype(np.float32)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    write_svs(folder / "a.svs", tissue_like(1200, 1600), mpp=MPP, factors=(4,))
    return folder


def write(path: Path, arrays: dict[str, Any], *, own: dict[str, Any] | None = None, **of_coords: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
        file.attrs.update(own or {})
        if "coords" in file:
            file["coords"].attrs.update(of_coords)
    return path


def trident(folder: Path, **changes: Any) -> Path:
    scale = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    write(folder / "a.h5", {"features": FEATURES, "coords": GRID}, **(scale | changes))
    return folder


def stamp(folder: Path, **changes: Any) -> Path:
    own = {"stamp_version": "2.3.0", "unit": "um", "tile_size_um": 128.0, "tile_size_px": 256, "extractor": "uni"}
    write(folder / "a.h5", {"feats": FEATURES.astype(np.float16), "coords": GRID * MPP}, own=own | changes)
    return folder


def clam(folder: Path) -> Path:
    write(folder / "a.h5", {"features": FEATURES, "coords": GRID.astype(np.int32)})
    return folder


def import_one(features: Path, slides: Path, results: Path, **more: Any) -> store.Artefact:
    assert imports.run(features, slides=slides, results=results, encoder="uni", **more) == ["a"]
    return store.read(results / "bags" / "a.zarr.zip")


def test_all_three_give_the_same_bag(slides: Path, tmp_path: Path) -> None:
    patches = write(
        tmp_path / "patches" / "a.h5", {"coords": GRID.astype(np.int32)}, patch_size=512, patch_level=0, downsample=1.0
    ).parent
    bags = [
        import_one(trident(tmp_path / "trident"), slides, tmp_path / "1"),
        import_one(stamp(tmp_path / "stamp"), slides, tmp_path / "2"),
        import_one(clam(tmp_path / "clam"), slides, tmp_path / "3", coordinates=patches),
    ]
    for bag in bags:
        np.testing.assert_array_equal(bag.arrays["coords"], GRID)
        np.testing.assert_array_equal(bag.arrays["features"], FEATURES.astype(np.float16))
        assert bag.attributes["patch_level0_px"] == 512
        assert (bag.attributes["stride_level0_px"], bag.attributes["encoder"]) == (512, "uni")
    assert [bag.attributes["target_mpp"] for bag in bags] == [0.5, 0.5, 0.25]


def test_clams_level_counts_in_the_size_of_a_patch(slides: Path, tmp_path: Path) -> None:
    attributes: dict[str, Any] = {"patch_size": 128, "patch_level": 1}
    patches = write(tmp_path / "patches" / "a.h5", {"coords": GRID}, **attributes).parent
    bag = import_one(clam(tmp_path / "clam"), slides, tmp_path / "out", coordinates=patches)
    assert (bag.attributes["patch_level0_px"], bag.attributes["target_mpp"]) == (512, 1.0)


def test_tiles_and_bag_agree_with_the_slide(slides: Path, tmp_path: Path) -> None:
    bag = import_one(trident(tmp_path / "trident"), slides, tmp_path / "out")
    tiles = store.read(tmp_path / "out" / "tiles" / "a.zarr.zip")
    assert tiles.attributes["fingerprint"] == bag.attributes["fingerprint"]
    np.testing.assert_array_equal(tiles.arrays["coords"], GRID)
    assert (bag.attributes["width"], bag.attributes["mpp_x"]) == (1600, MPP)


@pytest.mark.parametrize(
    ("arrays", "own", "of_coords", "message"),
    [
        ({"features": FEATURES}, {}, {}, "without coordinates there is no heatmap"),
        ({"features": FEATURES, "coords": GRID}, {}, {}, "does not say the scale of its patches"),
        ({"feats": FEATURES, "coords": GRID}, {"unit": "px", "tile_size_px": 8}, {}, "only features of STAMP 2"),
        ({"feats": FEATURES, "coords": GRID}, {"unit": "um", "tile_size_px": 8}, {}, "lacks tile_size_um"),
        ({"features": FEATURES[:5], "coords": GRID}, {}, {}, r"features are \(5, 1024\) and coords \(6, 2\)"),
        ({"features": FEATURES * np.nan, "coords": GRID}, {}, {}, "not all finite"),
        (
            {"features": FEATURES, "coords": GRID * 9},
            {},
            {"patch_size": 256, "patch_size_level0": 512},
            "give the slide they were made of",
        ),
        (
            {"features": FEATURES[:, :512], "coords": GRID},
            {},
            {"patch_size": 256, "patch_size_level0": 512},
            "512 features, uni gives 1024",
        ),
        ({"features": FEATURES, "coords": GRID}, {}, {"patch_size": 256, "patch_level": 7}, "was made at level 7"),
        ({"features": FEATURES, "coords": GRID * np.nan}, {}, SCALE, "give the slide they were made of"),
        ({"features": FEATURES, "coords": GRID.astype("S4")}, {}, SCALE, "its coords are no numbers"),
        ({"features": FEATURES[:, :0], "coords": GRID}, {}, SCALE, r"features are \(6, 0\)"),
        ({"features": FEATURES, "coords": GRID}, {}, SCALE | {"patch_size": 0}, "its patch_size is '0'"),
        ({"features": FEATURES, "coords": GRID}, {}, SCALE | {"patch_size": "256"}, "its patch_size is '256'"),
        ({"features": FEATURES, "coords": GRID}, {}, SCALE | {"patch_size": [1, 2]}, r"its patch_size is '\[1 2\]'"),
        ({"features": FEATURES, "coords": GRID}, {}, SCALE | {"patch_size": 0.5}, "its patch_size is '0.5'"),
        (
            {"features": FEATURES, "coords": GRID},
            {},
            SCALE | {"patch_size_level0": np.inf},
            "patch_size_level0 is 'inf'",
        ),
        ({"features": FEATURES, "coords": GRID}, {}, SCALE | {"patch_size_level0": 10**6}, "patches of 1000000 px"),
        ({"features": FEATURES, "coords": GRID}, {}, SCALE | {"patch_size": 10**6}, "have 0.000128 um per pixel"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    slides: Path,
    tmp_path: Path,
    arrays: dict[str, Any],
    own: dict[str, Any],
    of_coords: dict[str, Any],
    message: str,
) -> None:
    write(tmp_path / "in" / "a.h5", arrays, own=own, **of_coords)
    with pytest.raises(ConfigError, match=message):
        imports.run(tmp_path / "in", slides=slides, results=tmp_path / "out", encoder="uni")
    assert not (tmp_path / "out").exists()


def stated(path: Path) -> None:
    """State a size without a byte behind it."""
    with h5py.File(path, "a") as file:
        del file["features"]
        file.create_dataset("features", shape=(2**40, 1024), chunks=(64, 64), dtype="f4")


def in_a_raw_file(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["features"]
        file.create_dataset("features", shape=(1, 4), dtype="f4", external=[("/etc/passwd", 0, 16)])


def linked(path: Path) -> None:
    with h5py.File(path, "a") as file:
        path.with_suffix(".other").write_bytes(path.read_bytes())
        del file["features"]
        file["features"] = h5py.ExternalLink(path.with_suffix(".other"), "features")


def linked_in_two_steps(path: Path) -> None:
    linked(path)
    with h5py.File(path, "a") as file:
        file.move("features", "elsewhere")
        file["features"] = h5py.SoftLink("/elsewhere")


def virtual(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.move("features", "moved")
        layout = h5py.VirtualLayout(shape=(6, 1024), dtype="f4")
        layout[...] = h5py.VirtualSource(file["moved"])
        file.create_virtual_dataset("features", layout)


def test_a_few_patches_in_a_large_packed_chunk_are_read(slides: Path, tmp_path: Path) -> None:
    folder = trident(tmp_path / "in")
    with h5py.File(folder / "a.h5", "a") as file:
        del file["features"]
        file.create_dataset("features", data=FEATURES, chunks=(8192, 1024), maxshape=(None, 1024), compression="gzip")
    import_one(folder, slides, tmp_path / "out")
    stored = store.read(tmp_path / "out" / "bags" / "a.zarr.zip")
    np.testing.assert_allclose(stored.arrays["features"], FEATURES, rtol=1e-3)


def with_a_changed_byte(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["features"]
        packed = file.create_dataset("features", data=FEATURES, chunks=(6, 1024), compression="gzip", fletcher32=True)
        place = packed.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (stated, "its features state 4.19e.06 GiB, far more than the file can hold"),
        (in_a_raw_file, "its features are in another file"),
        (linked, "its features are in another file"),
        (linked_in_two_steps, "its features are in another file"),
        (virtual, "its features are in another file"),
        (with_a_changed_byte, "cannot be read as HDF5"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(
    slides: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    change(trident(tmp_path / "in") / "a.h5")
    with pytest.raises(ConfigError, match=message):
        import_one(tmp_path / "in", slides, tmp_path / "out")
    assert not (tmp_path / "out").exists()


CRASHING = """
import ctypes, sys
from pipeline import cli, imports
read = imports.read_hdf5
imports.read_hdf5 = lambda path, names=(): ctypes.string_at(0) if path.stem == "b" else read(path, names)
sys.argv = ["pipeline", "import", *sys.argv[1:]]
cli.main()
"""


def test_a_crash_of_the_reader_ends_in_a_sentence_and_costs_no_other_slide(slides: Path, tmp_path: Path) -> None:
    folder = trident(tmp_path / "in")
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in "abc":
        (raw / f"{name}.svs").write_bytes((slides / "a.svs").read_bytes())
        (folder / f"{name}.h5").write_bytes((folder / "a.h5").read_bytes())
    options = ["--slides", str(raw), "--results", str(tmp_path / "out"), "--encoder", "uni"]
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, str(folder), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"Error: {folder / 'b.h5'} or {raw / 'b.svs'}: the reader crashed")
    assert {path.name[0] for path in (tmp_path / "out" / "bags").iterdir()} == {"a", "c"}


def test_coordinates_of_another_run_are_refused(slides: Path, tmp_path: Path) -> None:
    patches = write(tmp_path / "patches" / "a.h5", {"coords": GRID + 1}, patch_size=256, patch_level=0).parent
    with pytest.raises(ConfigError, match="its coords are not those of"):
        import_one(clam(tmp_path / "clam"), slides, tmp_path / "out", coordinates=patches)


def test_a_file_that_is_no_hdf5_is_a_config_error(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.h5").write_bytes(b"not HDF5")
    with pytest.raises(ConfigError, match="cannot be read as HDF5"):
        import_one(tmp_path / "in", slides, tmp_path / "out")


def test_features_without_a_slide_are_left_out(slides: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = trident(tmp_path / "in")
    (folder / "other.h5").write_bytes((folder / "a.h5").read_bytes())
    import_one(folder, slides, tmp_path / "out")
    assert "other.h5: no slide of this name" in caplog.text
    (folder / "a.h5").unlink()
    with pytest.raises(ConfigError, match="names must be the same"):
        imports.run(folder, slides=slides, results=tmp_path / "out", encoder="uni")
