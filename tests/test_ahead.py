"""One import of torch predicts several slides, and nobody can tell from a prediction which job made it."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import ahead, model_index, predict, store
from pipeline.decision import DecisionOptions
from tests.test_predict import FOLDS, trained  # noqa: F401

OPTIONS = ("balanced_accuracy", 0.75, 0.01, 0.9)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Give a folder with bags, splits and indexed models, and no predictions."""
    for part in ("bags", "model"):
        shutil.copytree(trained / part, tmp_path / part)
    shutil.copy(trained / "splits.csv", tmp_path / "splits.csv")
    index = tmp_path / "model" / "models.json"
    model_index.write(tmp_path / "model", folds=FOLDS, splits=tmp_path / "splits.csv", index=index)
    return tmp_path


def task(folder: Path, slide: str, options: tuple[str | float, ...] = OPTIONS) -> ahead.Task:
    bag, attention = (folder / place / f"{slide}.zarr.zip" for place in ("bags", "attention"))
    return ahead.Task(bag, folder / "splits.csv", folder / "model", options, attention)


def compute(given: ahead.Task) -> None:
    options = DecisionOptions(*given.options)  # type: ignore[arg-type]
    predict.run(
        given.bag,
        splits=given.splits,
        models=given.models,
        attention=given.attention,
        device="cpu",
        options=options,
    )


def slowly(given: ahead.Task) -> None:
    """Spend enough processor time for the job to go on with every other bag, as importing torch does."""
    compute(given)
    if given.attention.name == "s0.zarr.zip":
        until = os.times().user + 3.0
        while os.times().user < until:
            pass


def refuse(given: ahead.Task) -> None:
    pytest.fail(f"{given.bag.name} is computed once more")


def test_a_prediction_made_by_another_slides_job_is_the_same(folder: Path) -> None:
    ahead.run(task(folder, "s0"), slowly)
    made = sorted((folder / "attention" / ahead.FOLDER).iterdir())
    assert [path.name.partition(".")[0] for path in made] == [f"s{slide}" for slide in range(1, 9)]
    for slide in range(1, 9):
        ahead.run(task(folder, f"s{slide}"), refuse)
        taken = folder / "attention" / f"s{slide}.zarr.zip"
        alone = replace(task(folder, f"s{slide}"), attention=folder / "alone" / taken.name)
        compute(alone)
        found, expected = (store.read(path) for path in (taken, alone.attention))
        assert found.attributes == expected.attributes
        assert {name: found.arrays[name].tobytes() for name in found.arrays} == {
            name: expected.arrays[name].tobytes() for name in expected.arrays
        }
    assert not (folder / "attention" / ahead.FOLDER).exists()


@pytest.mark.parametrize("changed", ["bag", "model", "splits", "options"])
def test_what_was_made_of_other_inputs_is_not_taken(folder: Path, changed: str) -> None:
    ahead.run(task(folder, "s0"), slowly)
    options = OPTIONS
    if changed == "bag":
        shutil.copy(folder / "bags" / "s2.zarr.zip", folder / "bags" / "s1.zarr.zip")
    elif changed == "options":
        options = ("most_probable", *OPTIONS[1:])
    else:
        path = folder / "splits.csv" if changed == "splits" else folder / "model" / "models.json"
        path.write_text(path.read_text() + "\n")
    computed = []
    ahead.run(task(folder, "s1", options), lambda given: computed.append(given.bag.name))
    assert computed[0] == "s1.zarr.zip"
    assert not list((folder / "attention" / ahead.FOLDER).glob("s1.*"))


def test_a_damaged_bag_of_another_slide_is_left_to_its_own_job(folder: Path) -> None:
    (folder / "bags" / "s1.zarr.zip").write_bytes(b"PK damaged")
    ahead.run(task(folder, "s0"), slowly)
    assert (folder / "attention" / "s0.zarr.zip").exists()
    names = {path.name.partition(".")[0] for path in (folder / "attention" / ahead.FOLDER).iterdir()}
    assert names == {f"s{slide}" for slide in range(2, 9)}


def test_predictions_that_are_up_to_date_are_not_made_again(folder: Path) -> None:
    for slide in range(9):
        compute(task(folder, f"s{slide}"))
    ahead.run(task(folder, "s0"), slowly)
    assert not (folder / "attention" / ahead.FOLDER).exists()
