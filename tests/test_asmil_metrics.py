"""Metrics against scikit-learn and by hand, and their bootstrap intervals: METHOD section 12, item 31."""

import math
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from asmil.metrics import bootstrap_intervals, classification_metrics

Sample = tuple[NDArray[np.int64], NDArray[np.float64]]


def sample(count: int, classes: int, *, seed: int = 0, decimals: int = 2) -> Sample:
    """Draw labels and informative probabilities; few decimals make many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, size=count, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    logits = rng.normal(size=(count, classes)) + 1.0 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities.round(decimals)


def at_90(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[float, float]:
    """Give the best sensitivity at 0.9 specificity, and the other way round, of scikit-learn's ROC points."""
    false, true, _ = reference.roc_curve(positive, score, drop_intermediate=False)
    return float(true[1 - false >= 0.9 - 1e-12].max()), float((1 - false)[true >= 0.9 - 1e-12].max())


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("decimals", [1, 8])
def test_metrics_agree_with_scikit_learn(classes: int, decimals: int) -> None:
    labels, probabilities = sample(300, classes, decimals=decimals)
    found, guess = classification_metrics(labels, probabilities), probabilities.argmax(axis=1)
    columns = [1] if classes == 2 else range(classes)
    expected = {
        "accuracy": reference.accuracy_score(labels, guess),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, guess),
        "macro_f1": reference.f1_score(labels, guess, average="macro"),
        "auroc": np.mean([reference.roc_auc_score(labels == c, probabilities[:, c]) for c in columns]),
        "auprc": np.mean([reference.average_precision_score(labels == c, probabilities[:, c]) for c in columns]),
        "log_loss": reference.log_loss(labels, np.clip(probabilities, 1e-12, 1))
        if decimals == 8
        else found["log_loss"],
        "sensitivity_at_90_specificity": np.mean([at_90(labels == c, probabilities[:, c])[0] for c in columns]),
        "specificity_at_90_sensitivity": np.mean([at_90(labels == c, probabilities[:, c])[1] for c in columns]),
        "brier": np.mean([(probabilities[:, c] - (labels == c)) ** 2 for c in columns]) * len(columns),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_macro_f1_is_not_micro_f1_on_imbalanced_labels() -> None:
    labels = np.array([0] * 9 + [1])
    probabilities = np.tile([0.8, 0.2], (10, 1))  # always the majority
    found = classification_metrics(labels, probabilities)
    assert found["accuracy"] == reference.f1_score(labels, np.zeros(10), average="micro") == pytest.approx(0.9)
    assert found["macro_f1"] == pytest.approx((2 * 9 / 19 + 0) / 2)
    assert found["balanced_accuracy"] == 0.5


def test_calibration_error_is_the_gap_of_confidence_and_hits_by_bin() -> None:
    labels = np.array([1, 1, 1, 0, 0])
    probabilities = np.array([[0.1, 0.9]] * 4 + [[0.6, 0.4]])
    assert classification_metrics(labels, probabilities)["ece"] == pytest.approx(
        (4 * abs(3 / 4 - 0.9) + 1 * (1 - 0.6)) / 5
    )


def test_perfect_and_reversed_rankings_have_area_one_and_zero() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    assert classification_metrics(labels, np.stack([1 - scores, scores], 1))["auroc"] == 1
    assert classification_metrics(labels, np.stack([scores, 1 - scores], 1))["auroc"] == 0
    assert classification_metrics(labels, np.full((4, 2), 0.5))["auroc"] == 0.5


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [0, 1, 1]])
def test_rank_metrics_are_nan_where_a_class_is_missing_and_the_others_are_numbers(labels: list[int]) -> None:
    found = classification_metrics(labels, np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]))
    of_ranks = {"auroc", "auprc", "sensitivity_at_90_specificity", "specificity_at_90_sensitivity"}
    assert {name for name, value in found.items() if math.isnan(value)} == of_ranks


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        ([], np.zeros((0, 2))),
        ([0, 1], np.full((3, 2), 0.5)),
        ([0, 2], np.full((2, 2), 0.5)),
        ([0, -1], np.full((2, 2), 0.5)),
        ([0, 1], np.array([[0.5, 0.5], [np.nan, 0.5]])),
        ([0, 0], np.ones((2, 1))),
    ],
)
def test_input_that_cannot_be_judged_is_refused(labels: list[int], probabilities: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"labels|probabilities"):
        classification_metrics(labels, probabilities)


def test_resampling_is_that_of_scikit_learn_on_repeated_patients() -> None:
    """Each resample's metrics equal scikit-learn's on the drawn samples themselves."""
    labels, probabilities = sample(40, 2)
    groups = np.arange(40) // 2
    low, high = bootstrap_intervals(labels, probabilities, groups, resamples=1, seed=5)["auroc"]
    drawn = np.random.default_rng(5).integers(20, size=(1, 20))[0]
    rows = np.concatenate([np.flatnonzero(groups == group) for group in drawn])
    assert low == high == pytest.approx(reference.roc_auc_score(labels[rows], probabilities[rows, 1]), abs=1e-12)


def test_interval_holds_the_estimate_and_narrows_with_more_patients() -> None:
    widths = []
    for count in (50, 800):
        labels, probabilities = sample(count, 3)
        found = classification_metrics(labels, probabilities)
        intervals = bootstrap_intervals(labels, probabilities, np.arange(count), seed=0)
        assert intervals.keys() == found.keys()
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc", "brier"):
            assert intervals[name][0] < found[name] < intervals[name][1]
        widths.append(intervals["auroc"][1] - intervals["auroc"][0])
    assert widths[1] < widths[0] / 2


def test_slides_of_one_patient_are_resampled_together_which_widens_the_interval() -> None:
    labels, probabilities = sample(60, 2)
    repeated, rows = np.repeat(labels, 10), np.repeat(probabilities, 10, axis=0)
    by_slide = bootstrap_intervals(repeated, rows, np.arange(600), seed=0)["accuracy"]
    by_patient = bootstrap_intervals(repeated, rows, [f"p{i // 10}" for i in range(600)], seed=0)["accuracy"]
    assert by_patient[1] - by_patient[0] > 2 * (by_slide[1] - by_slide[0])
    assert by_patient == bootstrap_intervals(labels, probabilities, np.arange(60), seed=0)["accuracy"]


def test_interval_is_nan_where_no_resample_has_both_classes_and_skips_those_that_lack_one() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    intervals = bootstrap_intervals([0, 0, 0], probabilities, [1, 2, 3], resamples=50, seed=0)
    assert all(math.isnan(end) for end in intervals["auroc"])
    assert list(intervals["accuracy"]) == [0, 1]
    some = bootstrap_intervals([0, 1, 1], probabilities, [1, 2, 3], resamples=200, seed=0)
    assert list(some["auroc"]) == [1, 1]


def test_intervals_of_a_thousand_slides_take_less_than_two_seconds() -> None:
    labels, probabilities = sample(1000, 3, decimals=8)
    start = time.process_time()
    bootstrap_intervals(labels, probabilities, np.arange(1000), seed=0)
    assert time.process_time() - start < 2


def test_same_seed_gives_the_same_intervals_in_any_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities = sample(90, 3)
    expected = bootstrap_intervals(labels, probabilities, np.arange(90), resamples=200, seed=1)
    monkeypatch.setattr("asmil.resampling.BLOCK", 90 * 7)
    found = bootstrap_intervals(labels, probabilities, np.arange(90), resamples=200, seed=1)
    for name, interval in expected.items():
        assert found[name] == pytest.approx(interval, abs=1e-12)
    other = bootstrap_intervals(labels, probabilities, np.arange(90), resamples=200, seed=2)
    assert other != found


def test_metrics_and_errors_are_imported_without_torch() -> None:
    code = "import asmil.errors, asmil.metrics, sys; assert 'torch' not in sys.modules; assert 'fit' in dir(asmil)"
    subprocess.run([sys.executable, "-c", code], check=True)
