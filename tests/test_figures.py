"""Figures with intervals: by fold, by repeat, by patient, and differences of two models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from asmil.metrics import classification_statistic
from asmil.resampling import resampled
from pipeline import compare, figures, store
from pipeline.evaluation import Prediction, SlideResult, evaluate
from pipeline.figures import Interval

CLASSES = ("a", "b")
INTERVAL = Interval(200, 0)
NAMED = {
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "auprc",
    "sensitivity_at_90_specificity",
    "specificity_at_90_sensitivity",
    "brier",
    "ece",
}


def slide(number: int, patient: str, label: str, by_fold: dict[int, float]) -> SlideResult:
    """Give a slide whose models say a probability of class b each."""
    rows = np.array([[1 - value, value] for value in by_fold.values()])
    mean = rows.mean(axis=0)
    found = Prediction(
        CLASSES[int(mean.argmax())], CLASSES, tuple(mean.tolist()), tuple(by_fold), rows, "out_of_fold", 0.0
    )
    return SlideResult(f"s{number}", patient, label, store.OK, prediction=found)


def cohort_of(patients: int = 40, *, slides: int = 3, repeats: int = 2) -> list[SlideResult]:
    """Give patients of several slides, each judged by one of two folds in every repeat."""
    rng = np.random.default_rng(0)
    made: list[SlideResult] = []
    for patient in range(patients):
        for _ in range(slides):
            said = {
                2 * repeat + patient % 2: float(np.clip(rng.normal(0.42 + 0.16 * (patient // 2 % 2), 0.2), 0.01, 0.99))
                for repeat in range(repeats)
            }
            made.append(slide(len(made), f"p{patient}", CLASSES[patient // 2 % 2], said))
    return made


def splits_of(slides: list[SlideResult]) -> list[dict[str, str]]:
    folds = sorted({fold for each in slides if each.prediction for fold in each.prediction.folds})
    return [
        {
            "slide_id": each.slide_id,
            "fold": str(fold),
            "repeat": str(fold // 2),
            "role": "test" if each.prediction and fold in each.prediction.folds else "train",
        }
        for each in slides
        for fold in folds
    ]


def differing(slides: list[SlideResult], folder: Path) -> dict[str, Any]:
    """Compare the model of the slides with the other one."""
    metrics = evaluate(slides, splits_of(slides), interval=INTERVAL)
    return compare.figures(slides, metrics, models=["asmil", "abmil"], folder=folder, interval=INTERVAL)


def arrays(slides: list[SlideResult]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return figures.pooled_arrays(slides, CLASSES)


def test_every_named_figure_has_an_interval_pooled_and_in_each_fold() -> None:
    slides = cohort_of()
    found = evaluate(slides, splits_of(slides), interval=INTERVAL)
    json.dumps(found, allow_nan=False)
    assert found["interval"] == {"resamples": 200, "seed": 0, "method": "bca", "level": 0.95, "unit": "patient"}
    assert found["pooled"].keys() >= NAMED
    assert len(found["folds"]) == 4
    for name in NAMED - {"ece"}:  # the calibration error of a resample is biased upwards, its interval need not hold it
        entry = found["pooled"][name]
        assert entry["low"] <= entry["value"] <= entry["high"]
        for fold in found["folds"]:
            assert fold["intervals"][name]["low"] <= fold[name] <= fold["intervals"][name]["high"]


def test_a_folds_figures_are_scikit_learns_on_the_slides_it_held_out() -> None:
    slides = cohort_of()
    found = evaluate(slides, splits_of(slides), interval=INTERVAL)["folds"][2]
    own = [each for each in slides if int(each.patient_id[1:]) % 2 == 0]
    labels = [each.label == "b" for each in own]
    said = [each.prediction.by_fold[each.prediction.folds.index(2), 1] for each in own if each.prediction]
    assert (found["fold"], found["n_slides"], found["n_train"]) == (2, 60, 60)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(labels, said))
    assert found["auprc"] == pytest.approx(reference.average_precision_score(labels, said))
    assert found["brier"] == pytest.approx(reference.brier_score_loss(labels, said))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, np.array(said) > 0.5, average="macro"))


def test_patients_are_judged_by_the_mean_of_their_slides() -> None:
    slides = cohort_of()
    found = evaluate(slides, splits_of(slides), interval=INTERVAL)["patients"]
    said: dict[str, list[float]] = {}
    for each in slides:
        said.setdefault(each.patient_id, []).append(each.prediction.probabilities[1] if each.prediction else 0)
    labels = [int(name[1:]) // 2 % 2 for name in said]
    mean = [float(np.mean(values)) for values in said.values()]
    assert (found["n_patients"], found["n_mixed"]) == (40, 0)
    assert found["pooled"]["auroc"]["value"] == pytest.approx(reference.roc_auc_score(labels, mean))
    assert found["pooled"]["accuracy"]["value"] == pytest.approx(reference.accuracy_score(labels, np.array(mean) > 0.5))
    assert found["pooled"]["auroc"]["low"] < found["pooled"]["auroc"]["value"] < found["pooled"]["auroc"]["high"]


def test_a_patient_with_two_labels_is_left_out_and_counted() -> None:
    slides = [*cohort_of(), slide(900, "both", "a", {0: 0.3}), slide(901, "both", "b", {0: 0.8})]
    found = evaluate(slides, splits_of(slides), interval=INTERVAL)
    assert (found["patients"]["n_patients"], found["patients"]["n_mixed"]) == (40, 1)
    assert found["n_patients"] == 41


def test_with_a_slide_a_patient_and_one_repeat_there_is_nothing_to_sum_up() -> None:
    slides = cohort_of(slides=1, repeats=1)
    found = evaluate(slides, splits_of(slides), interval=INTERVAL)
    assert (found["patients"], found["repeats"]) == (None, None)


def test_repeats_are_judged_one_by_one_and_summed_up() -> None:
    slides = cohort_of(repeats=3)
    found = evaluate(slides, splits_of(slides), interval=INTERVAL)
    labels = [each.label == "b" for each in slides]
    said = [[each.prediction.by_fold[repeat, 1] for each in slides if each.prediction] for repeat in range(3)]
    expected = [reference.roc_auc_score(labels, one) for one in said]
    assert found["repeats"]["n"] == 3
    assert found["repeats"]["values"]["auroc"] == pytest.approx(expected)
    summary = found["repeats"]["summary"]["auroc"]
    assert (summary["mean"], summary["sd"]) == pytest.approx((np.mean(expected), np.std(expected, ddof=1)))
    assert found["pooled"]["auroc"]["value"] == pytest.approx(reference.roc_auc_score(labels, np.mean(said, axis=0)))


def test_the_method_of_the_intervals_is_a_choice() -> None:
    slides = cohort_of()
    bca, percentile = (
        evaluate(slides, [], interval=replace(INTERVAL, method=method))["pooled"]["auroc"]
        for method in ("bca", "percentile")
    )
    assert bca["value"] == percentile["value"]
    assert (bca["low"], bca["high"]) != (percentile["low"], percentile["high"])


def other_model(folder: Path, said: list[float]) -> Path:
    path = folder / "abmil" / "predictions.csv"
    path.parent.mkdir(parents=True)
    rows = [f"s{number},0,{1 - value!r},{value!r}" for number, value in enumerate(said)]
    path.write_text("\n".join(["slide_id,folds,probability_a,probability_b", *rows]) + "\n")
    return folder


def test_a_difference_is_of_the_same_drawn_patients(tmp_path: Path) -> None:
    """A model that is better on every slide differs surely, though the two models' own intervals overlap."""
    slides = cohort_of(slides=1, repeats=1)
    labels, before = arrays(slides)
    after = np.clip(before[:, 1] + np.where(labels == 1, 0.05, -0.05), 0, 1)
    found = differing(slides, other_model(tmp_path, after.tolist()))
    brier = found["differences"]["abmil"]["brier"]
    assert brier["value"] == pytest.approx(
        reference.brier_score_loss(labels, after) - reference.brier_score_loss(labels, before[:, 1])
    )
    assert brier["low"] < brier["high"] < 0
    assert brier["p"] < 0.02
    first, second = found["models"]["asmil"]["brier"], found["models"]["abmil"]["brier"]
    assert second["high"] > first["low"]


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    slides = cohort_of(slides=1, repeats=1)
    folder = other_model(tmp_path, arrays(slides)[1][:, 1].tolist())
    found = differing(slides, folder)
    assert found["differences"]["abmil"]["auroc"] == {"value": 0, "low": 0, "high": 0, "p": 1}
    assert found["models"]["abmil"] == found["models"]["asmil"]


def test_intervals_of_differences_hold_the_truth_about_as_often_as_they_say() -> None:
    """Two models of equal worth on 100 cohorts of 60 patients: the 95 % interval holds 0 in 88 % or more."""
    held = 0
    for cohort in range(100):
        rng = np.random.default_rng(cohort)
        labels = rng.integers(2, size=60)
        shared = 0.5 + 0.15 * (labels - 0.5) + rng.normal(0, 0.15, 60)
        one, two = (np.clip(shared + rng.normal(0, 0.1, 60), 0.001, 0.999) for _ in range(2))
        first, second = (classification_statistic(labels, np.stack([1 - said, said], 1)) for said in (one, two))
        found = figures.differences_of(first, second, [str(n) for n in range(60)], Interval(300, cohort))["auroc"]
        held += (found["low"] or 0) <= 0 <= (found["high"] or 0)
    assert held >= 88


@pytest.mark.parametrize("task", ["regression", "survival"])
def test_numbers_and_risks_have_patients_repeats_and_differences(task: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    slides = []
    for number in range(40):
        truth = float(np.round(rng.uniform(1, 9), 1))
        sign = -1 if task == "survival" else 1
        values = sign * truth + rng.normal(0, 1, 2)
        label = f"{truth:g}" if task == "regression" or number % 4 else f"{truth:g}+"
        found = Prediction(
            "", (), (), (0, 2), values[:, None], "out_of_fold", 0.0, task=task, value=float(values.mean())
        )
        own = SlideResult(f"s{2 * number}", f"p{number}", label, store.OK, prediction=found)
        slides += [own, replace(own, slide_id=f"s{2 * number + 1}")]
    metrics: dict[str, Any] = evaluate(slides, splits_of(slides), interval=INTERVAL)
    json.dumps(metrics, allow_nan=False)
    name = {"regression": "mae", "survival": "c_index"}[task]
    assert metrics["repeats"]["n"] == 2
    assert metrics["folds"][0]["intervals"][name]["low"] <= metrics["folds"][0][name]
    if task == "regression":
        assert metrics["patients"]["n_patients"] == 40
        assert metrics["patients"]["pooled"]["mae"]["value"] == pytest.approx(metrics["pooled"]["mae"]["value"])
    else:
        assert metrics["patients"] is None
    rows = [f"{s.slide_id},0 2,0.1 {number / 7}" for number, s in enumerate(slides)]
    path = tmp_path / "abmil" / "predictions.csv"
    path.parent.mkdir()
    path.write_text("\n".join(["slide_id,folds,values", *rows]) + "\n")
    compared = differing(slides, tmp_path)
    difference = compared["differences"]["abmil"][name]
    assert difference["value"] == pytest.approx(
        compared["models"]["abmil"][name]["value"] - compared["models"]["asmil"][name]["value"]
    )
    assert difference["p"] < 0.05


def test_resampled_gives_value_and_interval_over_groups() -> None:
    labels, probabilities = arrays(cohort_of())
    groups = [f"p{number // 3}" for number in range(len(labels))]
    found = resampled(classification_statistic(labels, probabilities), groups, **INTERVAL.options())["accuracy"]
    assert found.value == pytest.approx(reference.accuracy_score(labels, probabilities.argmax(1)))
    assert found.low < found.value < found.high
