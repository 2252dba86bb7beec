"""Training a fold on stored bags: what is written, what is refused by name, and what a killed run leaves."""

import csv
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from asmil.anchor import AnchorConfig
from asmil.bags import FollowUp
from asmil.errors import BagError
from asmil.registry import MODELS, NamedModel, build
from asmil.training import FitConfig
from pipeline import checkpoint, model_folder, store, train, versions
from pipeline.assignment import COLUMNS, Assignment, read_splits
from pipeline.errors import ArtefactError
from pipeline.model_folder import load_model
from pipeline.stored_bags import Cache, StoredBags, standardisation

ROOT = Path(__file__).parents[1]
WIDTH = 12
ROLES = ("train", "train", "train", "train", "train", "train", "validation", "validation", "validation", "test")
Features = np.typing.NDArray[np.float16]


class Fold:
    """Ten bags of two classes on disk, and the splits of one fold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels = [str(number % 2) for number in range(len(ROLES))]
        for number in range(len(ROLES)):
            self.write(number, self.features(number))
        self.write_splits()

    def features(self, number: int, patches: int = 30) -> Features:
        values = np.random.default_rng(number).standard_normal((patches, WIDTH))
        values[: patches // 4, 0] += 3 * (number % 2)
        return values.astype(np.float16)

    def write(self, number: int, features: Features, **changed: Any) -> None:
        shared = {"encoder": "test", "weights_sha256": "", "dim": WIDTH, "patch_px": 224, "target_mpp": 0.5}
        attributes = store.stage_attributes(
            "embed", slide_id=f"s{number}", fingerprint=str(number), **{**shared, "standardise": False, **changed}
        )
        arrays: dict[str, np.typing.NDArray[Any]] = {
            "features": features,
            "coords": np.zeros((len(features), 2), np.int32),
        }
        store.write(self.folder / "bags" / f"s{number}.zarr.zip", arrays, attributes)

    def write_splits(self) -> None:
        with (self.folder / "splits.csv").open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(COLUMNS)
            for number, role in enumerate(ROLES):
                writer.writerow([f"s{number}", f"p{number}", self.labels[number], 0, 0, role])

    def train(self, name: str = "fold-0", **changed: Any) -> Path:
        options: dict[str, Any] = {
            "model": "asmil",
            "model_options": {"d_inner": 8, "tokens": 2, "heads": 2},
            "anchor": AnchorConfig(),
            "training": FitConfig(epochs=7, learning_rate=1e-3),
            "stability_slides": 2,
            "seed": 0,
            "device": "cpu",
            **changed,
        }
        train.run(
            fold=0,
            splits=self.folder / "splits.csv",
            bags=self.folder / "bags",
            folder=self.folder / name,
            **options,
        )
        return self.folder / name


@pytest.fixture
def fold(tmp_path: Path) -> Fold:
    return Fold(tmp_path)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def same_weights(first: Path, second: Path) -> bool:
    names = ("weights.safetensors", "anchor.safetensors")
    pairs = [(load_file(first / name), load_file(second / name)) for name in names]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


def test_fold_leaves_a_model_its_history_and_its_stability_and_no_checkpoint(fold: Fold) -> None:
    folder = fold.train()
    found = sorted(path.name for path in folder.iterdir())
    assert found == ["anchor.safetensors", "history.csv", "model.json", "stability.csv", "weights.safetensors"]
    rows = table(folder / "stability.csv")
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, 8)]
    assert tuple(rows[0]) == (*train.STABILITY_COLUMNS, "cross_entropy", "validation_cross_entropy")
    assert rows[0]["jsd_lag1"] == rows[4]["jsd_lag5"] == ""
    assert 0 < float(rows[5]["jsd_lag5"]) < 1
    assert {row["slides"] for row in rows} == {"2"}
    history = table(folder / "history.csv")
    assert [row["validation_cross_entropy"] for row in rows] == [row["validation_cross_entropy"] for row in history]


def test_following_attention_does_not_change_the_model(fold: Fold) -> None:
    assert same_weights(fold.train("a", stability_slides=3), fold.train("b", stability_slides=0))
    assert table(fold.folder / "b" / "stability.csv") == []


def test_the_end_of_training_holds_one_slide_at_a_time(tmp_path: Path) -> None:
    shared: dict[str, Any] = {"encoder": "test", "weights_sha256": "", "dim": 64, "patch_px": 224, "target_mpp": 0.5}
    rows = [Assignment(f"s{n}", f"p{n}", "ab"[n % 2], 0, 0, "train" if n < 4 else "validation") for n in range(34)]
    for number, row in enumerate(rows):
        features = np.random.default_rng(number).standard_normal((2000, 64)).astype(np.float16)
        attributes = store.stage_attributes("embed", slide_id=row.slide_id, fingerprint=row.slide_id, **shared)
        arrays: dict[str, Any] = {"features": features, "coords": np.zeros((2000, 2), np.int32)}
        store.write(tmp_path / f"{row.slide_id}.zarr.zip", arrays, {**attributes, "standardise": False})
    data = train.load_fold(rows, folder=tmp_path, cache_gb=0.0)
    network = build("mean_pooling", 64, 2)
    train._calibrate(data, network, device="cpu")  # imports and first allocations
    tracemalloc.start()
    train._calibrate(data, network, device="cpu")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2000 * 64 * 4  # 30 validation slides in float32 would be five times that


@pytest.mark.parametrize("cache_gb", [0.0, 1e-6])
def test_features_that_do_not_fit_in_memory_are_read_again_and_give_the_same_model(fold: Fold, cache_gb: float) -> None:
    assert same_weights(fold.train("whole"), fold.train("streamed", cache_gb=cache_gb))


def test_cache_keeps_features_up_to_its_limit_and_no_more(fold: Fold) -> None:
    paths = [fold.folder / "bags" / f"s{number}.zarr.zip" for number in range(3)]
    cache = Cache(2 * 30 * WIDTH * 2)
    assert [cache.features(path) is cache.features(path) for path in paths] == [True, True, False]


def test_standardised_bag_leaves_the_stored_one_as_it_was(fold: Fold) -> None:
    (row,) = [row for row in read_splits(fold.folder / "splits.csv") if row.slide_id == "s3"]
    bags = StoredBags([row], folder=fold.folder / "bags", classes=["0", "1"], cache=Cache(1 << 20))
    bags.mean, bags.sd = standardisation(bags)
    for _ in range(2):
        assert np.asarray(bags[0].features).mean(0) == pytest.approx(np.zeros(WIDTH), abs=1e-3)
    assert np.array_equal(bags.raw(0), fold.features(3))


def interrupted(fold: Fold, name: str, *, epoch: int) -> None:
    """Train until the checkpoint of an epoch is written, and stop there as a crash would."""
    save = checkpoint.save

    class CrashError(Exception):
        pass

    def save_then_crash(folder: Path, state: dict[str, Any], *, digest: str) -> None:
        save(folder, state, digest=digest)
        if state["trainer"]["epoch"] == epoch:
            raise CrashError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_crash)
        with pytest.raises(CrashError):
            fold.train(name)


@pytest.mark.parametrize("epoch", [1, 6, 7])
def test_run_stopped_after_any_epoch_continues_to_bitwise_the_same_files(fold: Fold, epoch: int) -> None:
    whole = fold.train("whole")
    interrupted(fold, "stopped", epoch=epoch)
    stopped = fold.train("stopped")
    assert same_weights(whole, stopped)
    for name in ("history.csv", "stability.csv", "model.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()


def test_killed_process_continues_to_bitwise_the_same_model(fold: Fold) -> None:
    training = '{"epochs": 40, "learning_rate": 0.001}'
    command = [sys.executable, "-m", "pipeline", "train", "--fold", "0", "--splits", "splits.csv", "--bags", "bags"]
    command += ["--folder", "killed", "--model", "asmil", "--options", '{"d_inner": 8, "tokens": 2, "heads": 2}']
    command += ["--anchor", "{}", "--training", training, "--seed", "0", "--stability-slides", "2"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.defpath, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=fold.folder, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (fold.folder / "killed" / checkpoint.NAME).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # some epochs more
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # it was still training
    config = FitConfig(epochs=40, learning_rate=1e-3)
    torch.set_num_threads(1)  # as that process had
    assert same_weights(fold.train("whole", training=config), fold.train("killed", training=config))


def relabelled(fold: Fold) -> dict[str, Any]:
    fold.labels[0] = "1"
    fold.write_splits()
    return {}


def embedded_again(fold: Fold) -> dict[str, Any]:
    fold.write(2, fold.features(2) + np.float16(0.5))
    return {}


CHANGES: dict[str, Callable[[Fold], dict[str, Any]]] = {
    "options": lambda _: {"training": FitConfig(epochs=7, learning_rate=2e-3)},
    "seed": lambda _: {"seed": 1},
    "features": embedded_again,
    "labels": relabelled,
}


@pytest.mark.parametrize("change", CHANGES)
def test_checkpoint_of_other_options_or_bags_is_not_used(fold: Fold, change: str) -> None:
    interrupted(fold, "stopped", epoch=3)
    changed = CHANGES[change](fold)
    assert same_weights(fold.train("whole", **changed), fold.train("stopped", **changed))


def test_a_checkpoint_of_another_version_of_training_is_not_used(fold: Fold, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(versions.STAGE_VERSIONS, "train", versions.STAGE_VERSIONS["train"] - 1)
        interrupted(fold, "stopped", epoch=3)
    with caplog.at_level(logging.INFO):
        stopped = fold.train("stopped")
    assert "of another version; training starts anew" in caplog.text
    assert same_weights(fold.train("whole"), stopped)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


ODD_CHECKPOINTS = [
    b"",
    b"\x80\x02}q\x00.",
    b"PK\x05\x06" + bytes(18),
    saved([1]),
    saved({"state": {}}),
    saved({"digest": "d"}),
]


def test_a_damaged_checkpoint_or_one_of_another_layout_is_not_used(fold: Fold) -> None:
    interrupted(fold, "stopped", epoch=3)
    path = fold.folder / "stopped" / checkpoint.NAME
    content = path.read_bytes()
    for odd in [*ODD_CHECKPOINTS, saved({"digest": "d", "state": [1]}), content[: len(content) // 2]]:
        path.write_bytes(odd)
        assert checkpoint.load(path.parent, digest="d") is None
    path.write_bytes(content[:-200])
    assert same_weights(fold.train("whole"), fold.train("stopped"))


BROKEN: dict[str, Callable[[Fold], Features]] = {
    "1 of 30 patches have features that are not finite": lambda fold: np.where(
        np.arange(30)[:, None] == 4, np.float16(np.inf), fold.features(4)
    ),
    "2 of 30 patches have features that are not finite": lambda fold: np.where(
        np.arange(30)[:, None] < 2, np.float16(np.nan), fold.features(4)
    ),
    "the bag has no patches": lambda fold: fold.features(4)[:0],
}


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("number", [4, 7])
@pytest.mark.parametrize("message", BROKEN)
def test_bag_that_cannot_be_used_is_named_and_no_model_is_written(
    fold: Fold, message: str, number: int, standardise: bool
) -> None:
    for other in range(len(ROLES)):
        features = BROKEN[message](fold) if other == number else fold.features(other)
        fold.write(other, features, standardise=standardise)
    with pytest.raises(BagError, match=f"^s{number}: {message}"):
        fold.train()
    assert not (fold.folder / "fold-0" / "weights.safetensors").exists()


def test_bag_of_another_encoder_is_named(fold: Fold) -> None:
    fold.write(5, fold.features(5), encoder="other")
    with pytest.raises(BagError, match="'s0' and 's5' differ in encoder"):
        fold.train()


def test_bags_of_one_patch_train_a_finite_model(fold: Fold) -> None:
    for number in (0, 1, 6):
        fold.write(number, fold.features(number, patches=1))
    model, _ = load_model(fold.train())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_class_that_is_missing_from_the_training_part_is_said_and_weights_stay_finite(
    fold: Fold, caplog: pytest.LogCaptureFixture
) -> None:
    fold.labels[8] = "rare"
    fold.write_splits()
    config = FitConfig(epochs=3, learning_rate=1e-3, class_weights="inverse_frequency")
    model, description = load_model(fold.train(training=config))
    assert "no training slide of class rare" in caplog.text
    assert description.classes == ["0", "1", "rare"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_class_that_is_missing_from_the_validation_part_leaves_a_finite_model(fold: Fold) -> None:
    fold.labels[6:9] = ["0"] * 3
    fold.write_splits()
    folder = fold.train()
    model, _ = load_model(folder)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert {row["validation_auroc"] for row in table(folder / "history.csv")} == {""}


def test_panel_is_bounded_in_slides_and_patches_but_never_empty(fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in read_splits(fold.folder / "splits.csv") if row.role == "validation"]
    bags = StoredBags(rows, folder=fold.folder / "bags", classes=["0", "1"], cache=Cache(1 << 20))
    assert train.choose_panel(bags, slides=2) == [0, 1]
    assert train.choose_panel(bags, slides=0) == []
    monkeypatch.setattr(train, "PANEL_PATCHES", 70)
    assert train.choose_panel(bags, slides=8) == [0, 1]
    monkeypatch.setattr(train, "PANEL_PATCHES", 5)
    assert train.choose_panel(bags, slides=8) == [0]


def test_standardisation_is_fitted_on_the_training_part_alone(fold: Fold) -> None:
    for number, role in enumerate(ROLES):
        fold.write(number, fold.features(number) + np.float16(0 if role == "train" else 50), standardise=True)
    _, description = load_model(fold.train())
    trained_on = [
        store.read(fold.folder / "bags" / f"s{number}.zarr.zip").arrays["features"].astype(np.float64)
        for number, role in enumerate(ROLES)
        if role == "train"
    ]
    assert description.mean is not None
    np.testing.assert_allclose(description.mean, np.mean([bag.mean(0) for bag in trained_on], axis=0), atol=1e-5)


def test_model_knows_the_files_it_was_trained_or_chosen_on(fold: Fold) -> None:
    _, description = load_model(fold.train())
    assert description.seen == sorted(str(number) for number, role in enumerate(ROLES) if role != "test")


@pytest.mark.parametrize(("key", "value"), [("d_in", 1_000_000), ("classes", 100_000), ("d_in", 1 << 62)])
def test_a_description_of_a_larger_network_is_refused_before_memory_is_taken(
    fold: Fold, monkeypatch: pytest.MonkeyPatch, key: str, value: int
) -> None:
    folder = fold.train()
    described = json.loads((folder / "model.json").read_text())
    described["options"][key] = value
    (folder / "model.json").unlink()
    (folder / "model.json").write_text(json.dumps(described))
    places: set[str] = set()

    def built(*arguments: Any, **options: Any) -> NamedModel:
        model = build(*arguments, **options)
        places.update(parameter.device.type for parameter in model.parameters())
        return model

    monkeypatch.setattr(model_folder, "build", built)
    with pytest.raises(ArtefactError, match=r"its weights do not fit its model\.json; train again"):
        load_model(folder)
    assert places <= {"meta"}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_described_without_memory_as_it_is_with(name: str) -> None:
    with torch.device("meta"):
        described = build(name, 16, 2).state_dict()
    assert {tensor.device.type for tensor in described.values()} == {"meta"}
    shapes = {key: tensor.shape for key, tensor in described.items()}
    assert shapes == {key: tensor.shape for key, tensor in build(name, 16, 2).state_dict().items()}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.json", lambda content: content[:-20]),
        ("model.json", lambda content: content.replace(b'"schema_version": 1', b'"schema_version": 7')),
        ("weights.safetensors", lambda content: content[:-9]),
        ("weights.safetensors", lambda _: b""),
    ],
    ids=["cut description", "another schema", "cut weights", "no weights"],
)
def test_damaged_model_folder_is_one_sentence(fold: Fold, name: str, damage: Callable[[bytes], bytes]) -> None:
    folder = fold.train()
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(ArtefactError, match=r"train again|run the same command again"):
        load_model(folder)


def test_attention_is_followed_on_slides_of_every_kind() -> None:
    assert train._in_turn([0] * 5 + [1] * 5)[:4] == [0, 5, 1, 6]
    times = [FollowUp(float(time), event=time % 2 == 0) for time in range(1, 9)]
    first = [times[index] for index in train._in_turn(times)[:4]]
    assert {(each.time > 4, each.event) for each in first} == {(late, event) for late in (0, 1) for event in (0, 1)}
    assert {value > 2 for value in train._in_turn([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])[:2]} == {False, True}
