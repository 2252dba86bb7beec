"""Temperature and thresholds, outliers, decisions: what validation decides, against cases with a known answer."""

import math

import numpy as np
import pytest

from pipeline import calibration, outliers
from pipeline.decision import ABSTAINED, DISAGREE, OUTLIER, UNKNOWN, DecisionOptions, decide


@pytest.mark.parametrize("true", [0.5, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(true: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=3, size=(4000, 3))
    labels = np.array([rng.choice(3, p=row) for row in calibration.softmax(logits, true)], dtype=np.int64)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(true, rel=0.1)


def test_a_few_slides_that_are_all_right_do_not_make_probabilities_certain() -> None:
    logits = np.array([[2.0, -2.0], [-2.0, 2.0], [2.0, -2.0]])
    assert 0.2 < calibration.fit_temperature(logits, np.array([0, 1, 0])) < 1


def test_thresholds_reach_what_they_are_named_for() -> None:
    rng = np.random.default_rng(1)
    positive = np.arange(200) % 2 == 0
    probability = np.clip(rng.normal(0.4 + 0.1 * positive, 0.1), 0, 1)
    found = calibration.choose_thresholds(positive, probability)
    assert (probability[positive] >= found["sensitivity"]).mean() >= 0.9
    assert (probability[~positive] < found["specificity"]).mean() >= 0.9
    assert found["sensitivity"] < found["balanced_accuracy"] < found["specificity"]


def test_a_higher_sensitivity_has_a_lower_threshold() -> None:
    rng = np.random.default_rng(1)
    positive = np.arange(200) % 2 == 0
    probability = np.clip(rng.normal(0.4 + 0.1 * positive, 0.1), 0, 1)
    usual, strict = (
        calibration.choose_thresholds(positive, probability, at_least=share)["sensitivity"] for share in (0.9, 0.98)
    )
    assert strict < usual
    assert (probability[positive] >= strict).mean() >= 0.98


def test_one_class_alone_gives_no_threshold_but_a_half() -> None:
    assert set(calibration.choose_thresholds(np.ones(4, bool), np.full(4, 0.9)).values()) == {0.5}


def test_slides_like_the_training_slides_are_seldom_called_outliers_and_others_are() -> None:
    """Of Gaussian slides 5 % may be called outliers; slides moved by 3 standard deviations in each feature are."""
    rng = np.random.default_rng(0)
    alarms, caught = [], []
    for _ in range(20):
        training, validation = rng.normal(size=(40, 16)), rng.normal(size=(10, 16))
        found = outliers.fit(training, [str(number) for number in range(40)], validation)
        assert found is not None
        limit = found.limit(0.05)
        alarms += [found.distance(vector) > limit for vector in rng.normal(size=(50, 16))]
        caught += [found.distance(vector) > limit for vector in rng.normal(size=(20, 16)) + 3]
    assert 0.02 < np.mean(alarms) < 0.09
    assert np.mean(caught) > 0.95


def test_a_few_patients_are_too_few_for_a_distribution_however_many_slides_they_have() -> None:
    rng = np.random.default_rng(0)
    patients = [str(number % (outliers.FEWEST_PATIENTS - 1)) for number in range(30)]
    assert outliers.fit(rng.normal(size=(30, 3)), patients, rng.normal(size=(4, 3))) is None


@pytest.mark.parametrize("width", [30, 200])
def test_a_far_slide_is_seen_from_the_fewest_patients_on(width: int) -> None:
    """Of 40 cohorts of 8 patients, a slide moved by 3 standard deviations in each feature exceeds the limit in 36."""
    spread, caught, alarms = np.arange(1, width + 1) ** -0.5, [], []
    for cohort in range(40):
        rng = np.random.default_rng(cohort)
        slides = rng.normal(size=(12, width)) * spread
        found = outliers.fit(slides[:8], [str(number) for number in range(8)], slides[8:10])
        assert found is not None
        limit = found.limit(0.01)
        alarms.append(found.distance(slides[10]) > limit)
        caught.append(found.distance(slides[11] + 3 * spread * rng.choice([-1, 1], size=width)) > limit)
    assert sum(caught) >= 36
    assert sum(alarms) <= 2


@pytest.mark.parametrize(
    ("second", "ood_score", "decision", "reason"),
    [
        ([0.8, 0.9, 0.7, 0.9], 0.5, "b", ""),
        ([0.8, 0.9, 0.1, 0.1], 0.5, ABSTAINED, DISAGREE),
        ([0.8, 0.9, 0.7, 0.9], 1.1, ABSTAINED, OUTLIER),
        ([0.8, 0.9, 0.1, 0.1], 1.1, ABSTAINED, f"{DISAGREE}; {OUTLIER}"),
        ([0.2, 0.1, 0.3, 0.6], math.nan, "a", UNKNOWN),
        ([0.8, 0.9, 0.1, 0.1], math.nan, ABSTAINED, f"{DISAGREE}; {UNKNOWN}"),
    ],
)
def test_a_decision_needs_models_that_agree_and_a_slide_they_know(
    second: list[float], ood_score: float, decision: str, reason: str
) -> None:
    calibrated = np.array([[1 - value, value] for value in second])
    found = decide(calibrated, ["a", "b"], thresholds=[0.5] * 4, ood_score=ood_score, options=DecisionOptions())
    assert (found.decision, found.reason) == (decision, reason)


def test_the_threshold_decides_and_not_the_half() -> None:
    calibrated = np.array([[0.7, 0.3]])
    chosen = decide(calibrated, ["a", "b"], thresholds=[0.2], ood_score=0.1, options=DecisionOptions())
    plain = decide(calibrated, ["a", "b"], thresholds=None, ood_score=0.1, options=DecisionOptions())
    assert (chosen.decision, plain.decision) == ("b", "a")
