"""Folds of survival and regression, and sources' recipes, from splits to a prediction."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asmil.training import FitConfig
from pipeline import predict, store
from pipeline.model_folder import load_model
from tests.test_train import ROLES, Fold, table

LABELS = {
    "regression": [f"{10 + 5 * (number % 2)}" for number in range(len(ROLES))],
    "survival": [f"{20 - 10 * (number % 2) + number / 10:g}" + "+" * (number % 4 == 0) for number in range(len(ROLES))],
}
LOSS = {"regression": "squared_error", "survival": "partial_likelihood"}


@pytest.fixture(params=["regression", "survival"])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def with_outcomes(folder: Path, task: str) -> Fold:
    fold = Fold(folder)
    fold.labels = LABELS[task]
    fold.write_splits()
    return fold


def test_fold_of_an_outcome_predicts_in_the_labels_terms(tmp_path: Path, task: str) -> None:
    fold = with_outcomes(tmp_path, task)
    folder = fold.train(task=task, risk_set=3, training=FitConfig(epochs=12, learning_rate=3e-3))
    description = json.loads((folder / "model.json").read_text())
    assert (description["task"], description["classes"]) == (task, [])
    assert list(table(folder / "stability.csv")[0])[-2:] == [LOSS[task], f"validation_{LOSS[task]}"]
    out = tmp_path / "s9.zarr.zip"
    predict.run(
        tmp_path / "bags" / "s9.zarr.zip", splits=tmp_path / "splits.csv", models=tmp_path, attention=out, device="cpu"
    )
    found = store.read(out)
    assert found.attributes["source"] == "out_of_fold"
    assert found.attributes["label"] == LABELS[task][9]
    assert found.arrays["value"].shape == (1,)
    assert found.arrays["score"].sum() == pytest.approx(1, abs=1e-5)
    if task == "regression":
        assert 11 < found.attributes["value"] < 17
        assert description["scale"] == [12.5, 2.5]
    else:
        assert (found.attributes["predicted"] == "high risk") == (found.attributes["value"] > 0)


def test_fold_of_an_outcome_stopped_after_an_epoch_continues_bitwise(
    tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import checkpoint

    fold = with_outcomes(tmp_path, task)
    options: dict[str, Any] = {"task": task, "risk_set": 3, "training": FitConfig(epochs=4, learning_rate=1e-3)}
    whole = fold.train("whole", **options)
    save = checkpoint.save

    def stopping(folder: Path, state: Any, *, digest: str) -> None:
        save(folder, state, digest=digest)
        if state["trainer"]["epoch"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        fold.train("stopped", **options)
    monkeypatch.undo()
    stopped = fold.train("stopped", **options)
    for name in ("history.csv", "stability.csv", "model.json", "weights.safetensors"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()


def test_recipe_of_the_source_takes_the_place_of_the_shared_one(tmp_path: Path) -> None:
    fold = Fold(tmp_path)
    folder = fold.train(recipe="source", training=FitConfig(epochs=2, gradient_clip=1.0))
    training = json.loads((folder / "model.json").read_text())["training"]
    assert training["recipe"] == "source"
    assert (training["epochs"], training["learning_rate"], training["gradient_clip"]) == (50, 1e-4, 1.0)
    assert len(table(folder / "history.csv")) == 50


def test_recipe_that_draws_classes_alike_takes_no_class_weights(tmp_path: Path) -> None:
    weighed = FitConfig(class_weights="inverse_frequency")
    folder = Fold(tmp_path).train(model="clam_sb", model_options={}, recipe="source", training=weighed)
    training = json.loads((folder / "model.json").read_text())["training"]
    assert (training["balanced"], training["class_weights"]) == (True, "none")


def test_value_of_an_outcome_is_the_scaled_output_of_the_model(tmp_path: Path) -> None:
    import torch

    fold = with_outcomes(tmp_path, "regression")
    folder = fold.train(task="regression", training=FitConfig(epochs=2))
    model, description = load_model(folder)
    features = store.read(tmp_path / "bags" / "s9.zarr.zip").arrays["features"]
    with torch.no_grad():
        output = float(model(torch.from_numpy(description.standardised(features)))[0])
    out = tmp_path / "s9.zarr.zip"
    predict.run(
        tmp_path / "bags" / "s9.zarr.zip", splits=tmp_path / "splits.csv", models=tmp_path, attention=out, device="cpu"
    )
    centre, spread = description.scale
    assert math.isclose(store.read_attributes(out)["value"], centre + spread * output, rel_tol=1e-5)
    assert np.isfinite(output)
