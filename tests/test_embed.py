"""The embed stage on real slides: what it writes, and what is left when it is killed."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import embed, encoders, store
from pipeline.chunks import Chunks, digest_of
from pipeline.embed import EncoderOptions
from pipeline.encoding import encode
from pipeline.errors import ConfigError
from pipeline.fingerprint import fingerprint
from pipeline.read_ahead import ReadAhead
from pipeline.slide import open_slide
from tests.slides import tissue_like, write_svs

ROOT = Path(__file__).parents[1]
PATCH_PX, SIDE_PX = 32, 2560
TILES = (SIDE_PX // PATCH_PX) ** 2
"""Two chunks, the last one not full."""
PLUGIN = """
import numpy as np
from pipeline.encoders import EncoderSpec

class Colours:
    spec = EncoderSpec(name="colours", mpp=0.5, patch_px=32, dim=6, mean=(0, 0, 0), std=(1, 1, 1),
                       licence="MIT", source="here", needs_weights=False)
    mpp, patch_px, dim = 0.5, 32, 6

    def __init__(self, **settings):
        pass

    def __call__(self, patches):
        flat = patches.reshape(len(patches), -1, 3).astype(np.float32)
        return np.concatenate([flat.mean(1), flat.std(1)], 1)


class Narrow(Colours):
    def __call__(self, patches):
        import torch
        if len(patches) > 10:
            raise torch.OutOfMemoryError(f"{len(patches)} patches")
        return super().__call__(patches)


class Nothing(Narrow):
    def __call__(self, patches):
        return super().__call__(np.concatenate([patches] * 11))
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a slide, its tiles, and a small fast encoder."""
    folder = tmp_path_factory.mktemp("study")
    slide = write_svs(folder / "a.svs", tissue_like(SIDE_PX, SIDE_PX))
    (folder / "colours_of_a_patch.py").write_text(PLUGIN)
    grid = np.arange(0, SIDE_PX, PATCH_PX, dtype=np.int32)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    write_tiles(folder / "tiles" / "a.zarr.zip", slide, np.stack([x.ravel(), y.ravel()], 1), patch_px=PATCH_PX)
    return folder


def write_tiles(path: Path, slide: Path, coords: np.ndarray, *, patch_px: int) -> None:
    arrays = {"coords": coords.astype(np.int32), "tissue": np.ones(len(coords), np.float32)}
    attributes = store.stage_attributes(
        "tile", slide_id="a", fingerprint=fingerprint(slide), patch_px=patch_px, target_mpp=0.5
    )
    store.write(path, arrays, attributes)


def run_embed(
    study: Path, bag: Path, *, encoder: str = "colours_of_a_patch:Colours", threads: int = 2, tiles: str = "tiles"
) -> None:
    embed.run(
        study / "a.svs",
        slide_id="a",
        tiles=study / tiles / "a.zarr.zip",
        bag=bag,
        options=EncoderOptions(encoder, weights="random"),
        max_unreadable=0.01,
        threads=threads,
        mpp=None,
        default_mpp=None,
        mpp_from_objective=False,
        parameters={"encoder": encoder},
    )


@pytest.fixture
def in_study(study: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(study)
    monkeypatch.syspath_prepend(str(study))
    return study


@pytest.fixture(scope="module")
def whole(study: Path, tmp_path_factory: pytest.TempPathFactory) -> store.Artefact:
    """Give the bag of a run that nothing interrupted."""
    bag = tmp_path_factory.mktemp("whole") / "a.zarr.zip"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(study)
        run_embed(study, bag)
    return store.read(bag)


def command(study: Path, bag: Path) -> list[str]:
    arguments = f"embed a.svs --slide-id a --tiles tiles/a.zarr.zip --bag {bag} --max-unreadable 0.01"
    return [
        *(sys.executable, "-m", "pipeline"),
        *arguments.split(),
        *("--encoder", "colours_of_a_patch:Colours"),
    ]


def test_features_are_those_of_the_patches_in_the_order_of_the_tiles(study: Path, whole: store.Artefact) -> None:
    coords = whole.arrays["coords"]
    assert len(coords) == TILES
    with open_slide(study / "a.svs") as slide:
        for index in (0, 4095, 4096, TILES - 1):
            x, y = (int(value) for value in coords[index])
            patch = slide.read(x, y, level=0, width=PATCH_PX, height=PATCH_PX)
            np.testing.assert_allclose(whole.arrays["features"][index, :3], patch.mean((0, 1)), rtol=1e-3)


@pytest.mark.parametrize(("max_unreadable", "used"), [(0.3, True), (0.2, False)])
def test_unreadable_tiles_are_dropped_and_counted_and_above_the_limit_the_slide_is_left_out(
    shared_data: Path, tmp_path: Path, max_unreadable: float, used: bool
) -> None:
    """Two JPEG tiles of the file are zeros: level-0 px 0 to 512 in x, 1536 to 1792 in y."""
    path, tiles, bag = shared_data / "awkward" / "two_bad_tiles.tif", tmp_path / "t.zarr.zip", tmp_path / "b.zarr.zip"
    y, x = np.mgrid[1408:1920:128, 0:1024:128]
    coords = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)
    write_tiles(tiles, path, coords, patch_px=128)
    embed.run(
        path,
        slide_id="a",
        tiles=tiles,
        bag=bag,
        options=EncoderOptions("texture"),
        max_unreadable=max_unreadable,
        threads=2,
        mpp=None,
        default_mpp=None,
        mpp_from_objective=False,
        parameters={},
    )
    found = store.read(bag)
    on_bad = (coords[:, 0] < 512) & (coords[:, 1] >= 1536) & (coords[:, 1] < 1792)
    assert on_bad.sum() == 8
    assert found.ok is used
    if used:
        assert found.attributes["unreadable"] == 8
        np.testing.assert_array_equal(found.arrays["coords"], coords[~on_bad])
        assert len(found.arrays["features"]) == len(coords) - 8
    else:
        assert found.attributes["reason"] == f"8 of {len(coords)} tiles cannot be read"
        assert "max_unreadable" in found.attributes["remedy"]


def test_a_bag_says_how_fast_it_was_made_and_by_what_it_was_bound(whole: store.Artefact) -> None:
    assert whole.attributes["patches_per_s"] > 0
    assert whole.attributes["bound_by"] in {"read", "device", "write"}
    assert (whole.attributes["unreadable"], whole.attributes["dim"]) == (0, 6)


def test_a_killed_job_goes_on_after_its_finished_chunks_to_the_same_bag(
    study: Path, whole: store.Artefact, tmp_path: Path
) -> None:
    bag = tmp_path / "a.zarr.zip"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command(study, bag), cwd=study, env=environment, stderr=subprocess.DEVNULL)
    chunk = tmp_path / ".a.chunks" / "000000.npz"
    deadline = time.monotonic() + 60
    while not chunk.exists():
        assert first.poll() is None, "the job ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not bag.exists()
    kept = chunk.stat().st_mtime_ns
    again = subprocess.Popen(command(study, bag), cwd=study, env=environment, stderr=subprocess.PIPE, text=True)
    times = set()
    while again.poll() is None:
        if chunk.exists():
            times.add(chunk.stat().st_mtime_ns)
        time.sleep(0.005)
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert "of 2 chunks" in said
    assert times == {kept}
    made = store.read(bag)
    for name in ("features", "coords"):
        assert made.arrays[name].tobytes() == whole.arrays[name].tobytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr.zip"]


HOLDER = """
import sys, time
from pathlib import Path
from pipeline.device import claim

claim(["0"], folder=Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(60)
"""


def test_an_encoder_of_ones_own_that_runs_out_of_memory_gets_fewer_patches_at_once(
    in_study: Path, whole: store.Artefact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run_embed(in_study, tmp_path / "a.zarr.zip", encoder="colours_of_a_patch:Narrow")
    assert "out of memory at 16 patches; going on with 8" in caplog.text
    assert caplog.text.count("out of memory") == 3
    made = store.read(tmp_path / "a.zarr.zip")
    assert made.arrays["features"].tobytes() == whole.arrays["features"].tobytes()
    with pytest.raises(torch.OutOfMemoryError):
        run_embed(in_study, tmp_path / "b.zarr.zip", encoder="colours_of_a_patch:Nothing")


WAITING = """
import logging, sys
from pathlib import Path
from pipeline import device, embed

logging.basicConfig(level=logging.INFO)
sys.path.insert(0, ".")


def take_slot():
    device.claim(["0"], folder=Path(sys.argv[2]))
    return "cpu"


options = embed.EncoderOptions("colours_of_a_patch:Colours", claim=take_slot)
embed.run(Path("a.svs"), slide_id="a", tiles=Path("tiles/a.zarr.zip"), bag=Path(sys.argv[1]), options=options,
          max_unreadable=0.01, threads=1, mpp=None, default_mpp=None, mpp_from_objective=False, parameters={})
"""


def test_the_next_job_is_ready_before_it_waits_for_the_device_of_a_killed_one(
    study: Path, whole: store.Artefact, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "slots")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    bag = tmp_path / "a.zarr.zip"
    arguments = ["-c", WAITING, str(bag), str(tmp_path / "slots")]
    job = subprocess.Popen([sys.executable, *arguments], cwd=study, env=environment, stderr=subprocess.PIPE, text=True)
    assert job.stderr is not None
    said = iter(job.stderr.readline, "")
    assert any("all GPUs are taken (0); waiting for one" in line for line in said)
    assert not bag.exists()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    rest = job.stderr.read()
    job.stderr.close()
    assert job.wait() == 0, rest
    assert store.read(bag).arrays["features"].tobytes() == whole.arrays["features"].tobytes()


def test_a_network_gives_the_same_features_from_any_chunk_on(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("store", "chunks"):
        monkeypatch.setattr(f"pipeline.{module}.CHUNK_ROWS", 50)
    coords = np.array([(x, y) for y in range(0, 1300, 100) for x in range(0, 1000, 100)], np.int32)
    whole, resumed = (Chunks(tmp_path / name / "a.zarr.zip", digest="d", rows=130) for name in "ab")
    model = encoders.load("timm:test_vit", weights="random", batch_size=16)
    with open_slide(study / "a.svs") as slide:
        for chunks in (whole, resumed):
            encode(slide, coords, chunks=chunks, load=lambda: model, patch_px=160, mpp=0.5, threads=1)
            if chunks is whole:
                resumed.save(1, whole.load(1)[0], whole.load(1)[1])
    for index in range(3):
        assert whole.load(index)[0].tobytes() == resumed.load(index)[0].tobytes()


def test_chunks_of_another_encoder_are_not_taken(tmp_path: Path) -> None:
    bag = tmp_path / "a.zarr.zip"
    mine = Chunks(bag, digest=digest_of("mine"), rows=5)
    mine.save(0, np.ones((5, 2), np.float16), np.ones(5, np.bool_))
    assert Chunks(bag, digest=digest_of("mine"), rows=5).finished == {0}
    assert not Chunks(bag, digest=digest_of("other"), rows=5).finished


def test_a_torn_chunk_is_made_again(tmp_path: Path) -> None:
    bag = tmp_path / "a.zarr.zip"
    chunks = Chunks(bag, digest="d", rows=store.CHUNK_ROWS + 5)
    for index, rows in ((0, store.CHUNK_ROWS), (1, 5)):
        chunks.save(index, np.ones((rows, 2), np.float16), np.ones(rows, np.bool_))
    path = chunks.folder / "000000.npz"
    path.write_bytes(path.read_bytes()[:-100])
    again = Chunks(bag, digest="d", rows=store.CHUNK_ROWS + 5)
    assert again.finished == {1}
    np.testing.assert_array_equal(again.missing_rows(), np.arange(store.CHUNK_ROWS))


def of_another_layout(folder: Path) -> None:
    np.savez(folder / "000000.npz", features=np.float16(1), readable=np.bool_(1))


def without_its_arrays(folder: Path) -> None:
    np.savez(folder / "000000.npz", values=np.ones((5, 2)))


def of_objects(folder: Path) -> None:
    np.savez(folder / "000000.npz", features=np.array([None]), readable=np.ones(5, np.bool_))


def with_a_digest_of_other_bytes(folder: Path) -> None:
    (folder / "digest").write_bytes(b"\xff")


def without_a_digest(folder: Path) -> None:
    (folder / "digest").unlink()


@pytest.mark.parametrize(
    "change",
    [of_another_layout, without_its_arrays, of_objects, with_a_digest_of_other_bytes, without_a_digest],
)
def test_chunks_that_another_version_left_are_made_again(tmp_path: Path, change: Callable[[Path], None]) -> None:
    chunks = Chunks(tmp_path / "a.zarr.zip", digest="d", rows=5)
    chunks.save(0, np.ones((5, 2), np.float16), np.ones(5, np.bool_))
    change(chunks.folder)
    again = Chunks(tmp_path / "a.zarr.zip", digest="d", rows=5)
    assert not again.finished
    again.save(0, np.ones((5, 2), np.float16), np.ones(5, np.bool_))
    assert Chunks(tmp_path / "a.zarr.zip", digest="d", rows=5).finished == {0}


def test_a_digest_tells_arrays_and_settings_apart() -> None:
    coords = np.arange(6, dtype=np.int32).reshape(3, 2)
    digests = {
        digest_of({"a": 1}, coords),
        digest_of({"a": 2}, coords),
        digest_of({"a": 1}, coords.reshape(2, 3)),
        digest_of({"a": 1}, coords.astype(np.int64)),
        digest_of({"a": 1}, coords + 1),
    }
    assert len(digests) == 5


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("lost", [(), (9, 10, 11), (0,), tuple(range(10, 20))])
def test_batches_never_span_a_chunk_and_lose_nothing(size: int, lost: tuple[int, ...]) -> None:
    kept = np.array([index for index in range(33) if index not in lost])
    pieces = ((part, part[:, None, None, None].astype(np.uint8)) for part in np.array_split(kept, 5))
    seen = []
    with ReadAhead(pieces, boundary=10) as reader:
        for _ in range(2):
            reader.lend(np.empty((size, 1, 1, 1), np.uint8))
        for batch in reader:
            assert len({int(index) // 10 for index in batch.indices}) == 1
            assert len(batch.indices) <= size
            np.testing.assert_array_equal(batch.patches.ravel(), batch.indices)
            seen += batch.indices.tolist()
            reader.lend(batch.buffer)
    assert seen == kept.tolist()


def test_an_error_of_the_reader_reaches_the_caller() -> None:
    def failing() -> object:
        yield np.array([0]), np.zeros((1, 1, 1, 1), np.uint8)
        raise ArithmeticError("no such patch")

    with ReadAhead(failing(), boundary=10) as reader:  # type: ignore[arg-type]
        reader.lend(np.empty((1, 1, 1, 1), np.uint8))
        with pytest.raises(ArithmeticError, match="no such patch"):
            list(reader)


def test_a_caller_that_leaves_early_ends_the_thread() -> None:
    pieces = ((np.array([index]), np.zeros((1, 1, 1, 1), np.uint8)) for index in range(10))
    with ReadAhead(pieces, boundary=10) as reader:
        reader.lend(np.empty((1, 1, 1, 1), np.uint8))
    assert not reader._thread.is_alive()


def test_a_network_shares_the_threads_with_the_reader(
    in_study: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coords = np.stack(np.meshgrid(np.arange(0, 2401, 150), np.arange(0, 2401, 150)), -1).reshape(-1, 2)
    write_tiles(in_study / "large" / "a.zarr.zip", in_study / "a.svs", coords, patch_px=160)
    with caplog.at_level(logging.INFO):
        run_embed(in_study, tmp_path / "a.zarr.zip", encoder="timm:test_vit", threads=3, tiles="large")
    assert "threads read and" in caplog.text
    assert store.read(tmp_path / "a.zarr.zip").arrays["features"].shape == (289, 64)


def test_patches_of_another_size_are_resized_for_a_network(in_study: Path, tmp_path: Path) -> None:
    run_embed(in_study, tmp_path / "a.zarr.zip", encoder="timm:test_efficientnet", tiles=other_size(in_study))
    assert store.read(tmp_path / "a.zarr.zip").arrays["features"].shape == (4, 256)


def test_patches_of_another_size_are_refused_for_an_encoder_of_ones_own(in_study: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes patches of 32 px, the tiles have 200"):
        run_embed(in_study, tmp_path / "a.zarr.zip", tiles=other_size(in_study))
    assert not list(tmp_path.iterdir())


def other_size(study: Path) -> str:
    coords = np.array([[0, 0], [200, 0], [0, 200], [200, 200]])
    write_tiles(study / "other" / "a.zarr.zip", study / "a.svs", coords, patch_px=200)
    return "other"
