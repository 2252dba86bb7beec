import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from asmil import AnchorConfig, FitConfig
from pipeline import model_index, predict, store, train
from pipeline.calibration import softmax
from pipeline.decision import DecisionOptions
from pipeline.errors import ArtefactError
from pipeline.model_folder import load_model
from pipeline.split import Assignment, Role, write_splits

SLIDES = 9
FOLDS = 3


def role_of(slide: int, fold: int) -> Role:
    """Hold out a third of the slides in each fold, and validate on the next third."""
    return ("test", "validation", "train")[(slide // 3 - fold) % 3]


def write_bag(
    folder: Path,
    name: str,
    features: NDArray[np.float64],
    *,
    fingerprint: str,
    dim: int = 6,
    coords: NDArray[np.int32] | None = None,
    **more: Any,
) -> Path:
    attributes = store.stage_attributes(
        "embed",
        slide_id=name,
        fingerprint=fingerprint,
        encoder="texture",
        weights_sha256="",
        dim=dim,
        patch_px=224,
        target_mpp=0.5,
        standardise=True,
        **more,
    )
    arrays: dict[str, NDArray[Any]] = {
        "features": features.astype(np.float16),
        "coords": np.zeros((len(features), 2), np.int32) if coords is None else coords,
    }
    store.write(folder / f"{name}.zarr.zip", arrays, attributes)
    return folder / f"{name}.zarr.zip"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with bags, splits and three trained models."""
    folder = tmp_path_factory.mktemp("trained")
    generator = np.random.default_rng(0)
    rows = [
        Assignment(f"s{slide}", f"p{slide}", "ab"[slide % 2], 0, fold, role_of(slide, fold))
        for fold in range(FOLDS)
        for slide in range(SLIDES)
    ]
    write_splits(folder / "splits.csv", rows)
    for slide in range(SLIDES):
        features = generator.normal(size=(20, 6)) + 2.0 * (slide % 2)
        write_bag(folder / "bags", f"s{slide}", features, fingerprint=f"file {slide}")
    for fold in range(FOLDS):
        train.run(
            fold=fold,
            splits=folder / "splits.csv",
            bags=folder / "bags",
            folder=folder / "model" / f"fold-{fold}",
            model="asmil",
            model_options={"d_inner": 8, "tokens": 2, "heads": 2},
            anchor=AnchorConfig(),
            training=FitConfig(epochs=2),
            seed=0,
            device="cpu",
        )
    return folder


def predicted(trained: Path, bag: Path) -> store.Artefact:
    output = trained / "attention" / bag.name
    predict.run(bag, splits=trained / "splits.csv", models=trained / "model", attention=output, device="cpu")
    return store.read(output)


@pytest.mark.parametrize("slide", range(SLIDES))
def test_a_labelled_slide_is_judged_by_the_model_that_held_it_out(trained: Path, slide: int) -> None:
    found = predicted(trained, trained / "bags" / f"s{slide}.zarr.zip")
    assert found.attributes["source"] == "out_of_fold"
    assert found.attributes["folds"] == [fold for fold in range(FOLDS) if role_of(slide, fold) == "test"]
    assert found.attributes["label"] == "ab"[slide % 2]
    assert found.arrays["score"].sum() == pytest.approx(1, abs=1e-5)


def test_a_new_slide_is_judged_by_all_models(trained: Path) -> None:
    bag = write_bag(trained / "new", "new", np.zeros((5, 6)), fingerprint="another file")
    found = predicted(trained, bag)
    assert (found.attributes["source"], found.attributes["folds"]) == ("ensemble", [0, 1, 2])
    assert found.attributes["label"] is None
    np.testing.assert_allclose(found.arrays["probability"].mean(0), found.attributes["probabilities"], atol=1e-6)


def alone(trained: Path, folds: tuple[int, ...], bag: Path, *, indexed: int = 0) -> dict[str, Any]:
    """Predict without splits by some of the models, of which the index names the first ones."""
    models = trained / f"alone-{len(folds)}-{indexed}"
    for fold in folds:
        shutil.copytree(trained / "model" / f"fold-{fold}", models / f"fold-{fold}", dirs_exist_ok=True)
    if indexed:
        model_index.write(models, folds=indexed, splits=trained / "splits.csv", index=models / "models.json")
    predict.run(bag, splits=None, models=models, attention=models / bag.name, device="cpu")
    return store.read(models / bag.name).attributes


def test_models_of_an_earlier_division_have_no_vote(trained: Path) -> None:
    bag = write_bag(trained / "new", "later", np.ones((5, 6)), fingerprint="a later file")
    assert alone(trained, (0, 1, 2), bag)["folds"] == [0, 1, 2]
    assert alone(trained, (0, 1, 2), bag, indexed=2)["folds"] == [0, 1]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"models": null}', '{"models": [1]}'])
def test_an_index_that_does_not_say_which_models_there_are_is_refused_and_stays(
    trained: Path, tmp_path: Path, content: str
) -> None:
    models = Path(shutil.copytree(trained / "model", tmp_path / "models"))
    (models / "models.json").write_text(content)
    for _ in range(2):
        with pytest.raises(ArtefactError, match=r"models\.json: damaged, so that it does not say"):
            predict.folds_in(models)


def test_a_copy_of_a_slide_that_every_model_was_trained_on_is_not_called_new(trained: Path) -> None:
    slide = next(slide for slide in range(SLIDES) if role_of(slide, 1) == "train")
    bag = write_bag(trained / "new", "again", np.zeros((5, 6)), fingerprint=f"file {slide}")
    assert alone(trained, (1,), bag)["source"] == "seen"
    assert alone(trained, (0, 1), bag)["source"] == "ensemble"


def test_a_copy_of_a_training_slide_is_judged_by_the_model_that_never_saw_it(trained: Path) -> None:
    bag = write_bag(trained / "new", "copy", np.zeros((5, 6)), fingerprint="file 4")
    assert predicted(trained, bag).attributes["folds"] == [fold for fold in range(FOLDS) if role_of(4, fold) == "test"]


def test_a_bag_of_another_encoder_is_refused(trained: Path) -> None:
    bag = write_bag(trained / "new", "odd", np.zeros((5, 7)), fingerprint="odd", dim=7)
    with pytest.raises(ArtefactError, match="was trained with dim 6, the bag of 'odd' has 7"):
        predicted(trained, bag)


def test_models_of_other_classes_are_not_mixed(trained: Path, tmp_path: Path) -> None:
    for fold in range(FOLDS):
        for source in (trained / "model" / f"fold-{fold}").iterdir():
            target = tmp_path / "model" / f"fold-{fold}" / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    path = tmp_path / "model" / "fold-1" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": ["b", "a"]}))
    bag = write_bag(tmp_path, "new", np.zeros((5, 6)), fingerprint="another file")
    with pytest.raises(ArtefactError, match="has the classes"):
        predict.run(
            bag,
            splits=trained / "splits.csv",
            models=tmp_path / "model",
            attention=tmp_path / "a.zarr.zip",
            device="cpu",
        )


def test_of_three_classes_each_patch_has_evidence_for_each(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = [Assignment(f"s{slide}", f"p{slide}", "abc"[slide % 3], 0, 0, role_of(slide, 0)) for slide in range(SLIDES)]
    write_splits(tmp_path / "splits.csv", rows)
    for slide in range(SLIDES):
        write_bag(tmp_path / "bags", f"s{slide}", generator.normal(size=(20, 6)), fingerprint=f"file {slide}")
    train.run(
        fold=0,
        splits=tmp_path / "splits.csv",
        bags=tmp_path / "bags",
        folder=tmp_path / "model" / "fold-0",
        model="asmil",
        model_options={"d_inner": 8, "tokens": 2, "heads": 2},
        anchor=AnchorConfig(),
        training=FitConfig(epochs=1),
        seed=0,
        device="cpu",
    )
    found = predicted(tmp_path, tmp_path / "bags" / "s0.zarr.zip")
    assert found.arrays["evidence"].shape == (20, 3)
    np.testing.assert_allclose(found.arrays["evidence"].sum(1), 0, atol=1e-5)


def test_a_labelled_slide_has_calibrated_probabilities_and_a_deletion_test(trained: Path) -> None:
    found = predicted(trained, trained / "bags" / "s1.zarr.zip").attributes
    assert sum(found["calibrated"]) == pytest.approx(1)
    assert found["decision"] in ("a", "b", "abstained")
    assert (found["fold_low"], found["fold_high"]) == (None, None)
    assert found["deletion"]["whole"] == pytest.approx(max(found["probabilities"]), abs=1e-6)
    assert len(found["deletion"]["attended"]) == len(found["deletion"]["random"]) == len(found["deletion"]["fractions"])


def test_a_new_slide_has_the_range_of_its_models_and_no_deletion_test(trained: Path) -> None:
    bag = write_bag(trained / "new", "ranged", np.full((25, 6), 3.0), fingerprint="never seen")
    found = predicted(trained, bag).attributes
    assert found["fold_low"] <= max(found["probabilities"]) <= found["fold_high"]
    assert found["fold_low"] < found["fold_high"]
    assert found["deletion"] is None


def test_the_sensitivity_that_is_asked_for_moves_the_threshold_and_trains_nothing(trained: Path) -> None:
    bag, output = trained / "bags" / "s1.zarr.zip", trained / "strict.zarr.zip"
    found = []
    for at_least in (0.5, 1.0):
        options = DecisionOptions("sensitivity", at_least=at_least)
        predict.run(
            bag,
            splits=trained / "splits.csv",
            models=trained / "model",
            attention=output,
            device="cpu",
            options=options,
        )
        found.append(store.read_attributes(output)["threshold"])
        fold = store.read_attributes(output)["folds"][0]
        model = load_model(trained / "model" / f"fold-{fold}")[1]
        assert found[-1] == model.thresholds_for(at_least)["sensitivity"]
        probability = softmax(np.array(model.validation["logits"]), model.temperature)[:, 1]
        assert (probability[np.array(model.validation["labels"]) == 1] >= found[-1]).mean() >= at_least
    assert found[1] <= found[0]
