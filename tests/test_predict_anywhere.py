"""A trained model folder handed over: it predicts slides from anywhere, and refuses what was made otherwise."""

import csv
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from pipeline import outliers, predict, predict_slides, settings, stage_flags, store
from pipeline.checksums import ATTRIBUTE
from pipeline.cli import app
from pipeline.decision import ABSTAINED, OUTLIER, UNKNOWN, DecisionOptions
from pipeline.errors import ArtefactError, PipelineError
from pipeline.split import Assignment, Role, write_splits
from pipeline.synthetic import draw_slide
from pipeline.synthetic_stain import Stain
from tests.slides import write_svs

ROOT = Path(__file__).parents[1]
PATIENTS = 14
CLASSES = ("normal", "tumour")
CHANGED: dict[str, dict[str, Any]] = {
    "encoder": {"name": "texture"},
    "asmil": {"d_inner": 16, "tokens": 2, "heads": 2},
    "training": {"epochs": 4, "learning_rate": 0.002},
}


def pixels_of(number: int) -> NDArray[np.uint8]:
    """Draw a slide, with a tumour if the number is odd; stains vary as between laboratories."""
    stain = Stain().varied(np.random.default_rng(number), 0.05)
    return draw_slide(number, width_px=1280, height_px=1280, tumour=bool(number % 2), stain=stain).pixels


def role_of(number: int, fold: int) -> Role:
    """Hold out three patients in each of two folds, validate on three, and train on eight."""
    place = (number - 3 * fold) % PATIENTS
    return "test" if place < 3 else "validation" if place < 6 else "train"


def checked() -> dict[str, Any]:
    """Give the configuration as the workflow has it."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    for section, values in CHANGED.items():
        config[section] |= values
    return settings.check(config, ROOT / "workflow" / "schemas" / "config.schema.yaml")


def stage(name: str, *arguments: object) -> None:
    """Run a stage as the workflow does, with the settings as flags."""
    app([name, *map(str, arguments), *shlex.split(stage_flags.flags(checked(), name))], standalone_mode=False)


def embed(folder: Path, slide: Path) -> Path:
    """Tile and embed a slide; give its bag."""
    name = slide.stem
    tiles, bag = folder / "tiles" / f"{name}.zarr.zip", folder / "bags" / f"{name}.zarr.zip"
    drawn = ("--tissue", folder / "tissue" / f"{name}.geojson", "--preview", folder / "tissue" / f"{name}.jpg")
    stage("tile", slide, "--slide-id", name, "--tiles", tiles, *drawn)
    stage("embed", slide, "--slide-id", name, "--tiles", tiles, "--bag", bag)
    return bag


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with slides, bags, splits and two trained models, made by the stages as the workflow runs them."""
    folder = tmp_path_factory.mktemp("trained")
    for number in range(PATIENTS):
        embed(folder, write_svs(folder / "raw" / f"s{number}.svs", pixels_of(number)))
    rows = [
        Assignment(f"s{number}", f"p{number}", CLASSES[number % 2], 0, fold, role_of(number, fold))
        for fold in range(2)
        for number in range(PATIENTS)
    ]
    write_splits(folder / "model" / "splits.csv", rows)
    for fold in range(2):
        places = ("--splits", folder / "model" / "splits.csv", "--bags", folder / "bags")
        stage("train", "--fold", fold, *places, "--folder", folder / "model" / f"fold-{fold}")
    return folder


@pytest.fixture(scope="module")
def handed_over(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of the model folder alone, as a colleague gets it."""
    return Path(shutil.copytree(trained / "model", tmp_path_factory.mktemp("colleague") / "their model"))


def predicted(slides: list[Path], models: Path, out: Path) -> dict[str, dict[str, str]]:
    """Predict as the command does; give the table by slide."""
    predict_slides.run(
        slides,
        models=models,
        out=out,
        weights=None,
        weights_folder=out / "weights",
        device="cpu",
        threads=1,
        scale=predict_slides.Scale(),
        options=DecisionOptions(min_agreement=0),  # eight slides teach little: these tests ask for other reasons
    )
    return table(out)


def table(folder: Path) -> dict[str, dict[str, str]]:
    """Read a table of predictions, by slide."""
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as handle:
        return {row["slide_id"]: row for row in csv.DictReader(handle)}


def test_ordinary_slides_are_decided_and_far_ones_abstained_from(handed_over: Path, tmp_path: Path) -> None:
    ordinary = {name: pixels_of(100 + number) for number, name in enumerate(("a normal one", "a tumour"))}
    far = {
        "other colours": np.ascontiguousarray(ordinary["a tumour"][..., ::-1]),
        "other dye": np.ascontiguousarray(ordinary["a tumour"][..., [1, 0, 2]]),
        "inverted": 255 - ordinary["a tumour"],
    }
    slides = [write_svs(tmp_path / "new" / f"{name}.svs", pixels) for name, pixels in {**ordinary, **far}.items()]
    found = predicted(slides, handed_over, tmp_path / "out")
    for name in ordinary:
        assert float(found[name]["ood_score"]) < 1
        assert found[name]["decision"] in CLASSES
        assert found[name]["decision_reason"] == ""
    for name in ("other colours", "other dye"):
        assert float(found[name]["ood_score"]) > 1
        assert found[name]["decision"] == ABSTAINED
        assert found[name]["decision_reason"] == OUTLIER
    assert (found["inverted"]["status"], found["inverted"]["decision"]) == (
        store.QUARANTINED,
        "",
    )  # tissue is not found


def test_with_too_few_training_patients_the_distance_is_unknown_and_says_so(trained: Path, tmp_path: Path) -> None:
    kept = [number for number in range(PATIENTS) if role_of(number, 0) == "train"][: outliers.FEWEST_PATIENTS - 1]
    rows = [Assignment(f"s{n}", f"p{n}", CLASSES[n % 2], 0, 0, "train") for n in kept]
    rows += [Assignment(f"s{n}", f"p{n}", CLASSES[n % 2], 0, 0, role_of(n, 0)) for n in range(6)]
    write_splits(tmp_path / "model" / "splits.csv", rows)
    places = ("--splits", tmp_path / "model" / "splits.csv", "--bags", trained / "bags")
    stage("train", "--fold", 0, *places, "--folder", tmp_path / "model" / "fold-0")
    far = write_svs(tmp_path / "far.svs", np.ascontiguousarray(pixels_of(101)[..., ::-1]))
    found = predicted([far], tmp_path / "model", tmp_path / "out")["far"]
    assert found["ood_score"] == ""
    assert found["decision"] in CLASSES
    assert found["decision_reason"] == UNKNOWN


def test_a_copied_folder_predicts_what_the_run_predicted(trained: Path, handed_over: Path, tmp_path: Path) -> None:
    slide = write_svs(tmp_path / "from elsewhere" / "new slide.svs", pixels_of(200))
    row = predicted([slide], handed_over, tmp_path / "out")["new slide"]
    bag = embed(tmp_path / "run", slide)
    options = DecisionOptions(min_agreement=0)
    target = tmp_path / "a.zarr.zip"
    predict.run(bag, splits=None, models=trained / "model", attention=target, device="cpu", options=options)
    own = store.read(target).attributes
    assert [float(row[f"probability_{name}"]) for name in CLASSES] == pytest.approx(own["probabilities"], abs=1e-6)
    assert (row["decision"], row["models"]) == (own["decision"], "2")
    assert (tmp_path / "out" / "heatmaps" / "new slide.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("key", "value"), [("encoder", "uni"), ("target_mpp", 1.0), ("patch_px", 256), ("weights_sha256", "f" * 64)]
)
def test_a_store_made_otherwise_is_refused_in_one_sentence(
    trained: Path, handed_over: Path, tmp_path: Path, key: str, value: object
) -> None:
    bag = store.read(trained / "bags" / "s0.zarr.zip")
    store.write(tmp_path / "odd.zarr.zip", bag.arrays, {**bag.attributes, key: value})
    with pytest.raises(ArtefactError) as refused:
        predict.run(
            tmp_path / "odd.zarr.zip", splits=None, models=handed_over, attention=tmp_path / "a.zarr.zip", device="cpu"
        )
    sentence = str(refused.value)
    assert f"was trained with {key} {bag.attributes[key]}" in sentence
    assert f"has {value}; embed the slide as the model's were" in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "a.zarr.zip").exists()


def changed_folder(models: Path, folder: Path, fold: int, **changes: Any) -> Path:
    """Copy a model folder, and change the preparation that one of its models states."""
    copy = Path(shutil.copytree(models, folder / "models"))
    path = copy / f"fold-{fold}" / "model.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    for stage_name, values in changes.items():
        found["preparation"].setdefault(stage_name, {}).update(values)
    store.write_text(path, json.dumps(found))
    return copy


def test_a_folder_that_would_cut_other_patches_than_it_was_trained_on_is_refused(
    handed_over: Path, tmp_path: Path
) -> None:
    models = changed_folder(handed_over, tmp_path, 0, tile={"patch_px": 256})
    slide = write_svs(tmp_path / "a.svs", pixels_of(201))
    with pytest.raises(ArtefactError, match=r"fold-0 was trained with patch_px 224, the bag of 'a' has 256"):
        predicted([slide], models, tmp_path / "out")


def test_a_folder_of_another_encoder_is_refused(handed_over: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(handed_over, tmp_path / "models"))
    path = models / "fold-1" / "model.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    store.write_text(path, json.dumps({**found, "bags": {**found["bags"], "encoder": "uni"}}))
    slide = write_svs(tmp_path / "a.svs", pixels_of(201))
    with pytest.raises(ArtefactError, match=r"fold-1 was trained with encoder uni, the bag of 'a' has texture"):
        predicted([slide], models, tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="this system keeps no attributes of files")
def test_a_damaged_copy_is_refused_and_left_as_it_is(handed_over: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(handed_over, tmp_path / "models"))
    weights = models / "fold-1" / "weights.safetensors"
    if ATTRIBUTE not in os.listxattr(weights):
        pytest.skip("this file system keeps no attributes")
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(ArtefactError, match=r"weights.safetensors: damaged .*copy the folder of models again"):
        predicted([write_svs(tmp_path / "a.svs", pixels_of(201))], models, tmp_path / "out")
    assert weights.exists()
    shutil.copytree(models / "fold-1", models / "fold-9")
    shutil.copytree(handed_over / "fold-1", models / "fold-1", dirs_exist_ok=True)
    store.write_text(models / "models.json", json.dumps({"models": {"fold-0": {}, "fold-1": {}}}))
    predict_slides.check_whole(models)  # the damaged one is of an earlier division


def test_a_bad_slide_among_good_ones_is_named_and_the_others_are_predicted(
    handed_over: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_svs(tmp_path / "good.svs", pixels_of(202))
    cut = tmp_path / "cut.svs"
    cut.write_bytes(good.read_bytes()[:2000])
    glass = write_svs(tmp_path / "glass.svs", np.full((1280, 1280, 3), 243, np.uint8))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(PipelineError, match="2 of 3 slides could not be predicted: cut, glass"):
        app(["predict", str(cut), str(good), str(glass), "--models", str(handed_over)], standalone_mode=False)
    rows = table(tmp_path / "elsewhere" / "predicted").values()
    assert [(row["slide_id"], row["status"]) for row in rows] == [
        ("cut", store.QUARANTINED),
        ("good", store.OK),
        ("glass", store.QUARANTINED),
    ]
    said = capsys.readouterr().out
    assert "cut: not predicted: " in said
    assert "good: " in said
    assert {page.name for page in (tmp_path / "elsewhere" / "predicted" / "heatmaps").iterdir()} == {
        "cut.png",
        "good.png",
        "glass.png",
    }
