"""Calibration, abstention, evidence and confounding as metrics.json has them."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline import certainty
from pipeline.evaluation import Prediction, SlideResult, evaluate
from pipeline.figures import Interval

CLASSES = ("a", "b")
DELETION = {"fractions": [0.1, 0.5], "whole": 0.9, "attended": [0.6, 0.3], "random": [0.9, 0.8]}


def cohort_of(count: int = 200) -> list[SlideResult]:
    """Give slides whose calibrated probability of b is the true one, and whose plain one is too sure of itself."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        true = rng.uniform(0.05, 0.95)
        label, odds = CLASSES[int(rng.uniform() < true)], (true / (1 - true)) ** 3
        sure = odds / (1 + odds)
        out = number % 10 == 0
        found = Prediction(
            CLASSES[int(sure > 0.5)],
            CLASSES,
            (1 - sure, sure),
            (0,),
            np.array([[1 - sure, sure]]),
            "out_of_fold",
            0.0,
            calibrated=(1 - true, true),
            decision="abstained" if out else CLASSES[int(true > 0.5)],
            decision_reason="out of distribution" if out else "",
            ood_score=1.5 if out else 0.5,
            deletion=DELETION,
        )
        made.append(SlideResult(f"s{number}", f"p{number // 2}", label, "ok", prediction=found))
    return made


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 7), (20, 20)])
def test_shares_have_wilsons_interval_as_scipy_gives_it(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert certainty.wilson(hits / n, n) == pytest.approx((expected.low, expected.high))


def test_slides_of_a_patient_count_as_one_in_the_interval_of_a_share() -> None:
    right = np.repeat(np.arange(20) < 14, 10)
    expected = binomtest(14, 20).proportion_ci(method="wilson")
    found = certainty.share_of(right, np.repeat([f"p{number}" for number in range(20)], 10))
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.7, expected.low, expected.high))
    uneven = certainty.share_of(np.ones(11, dtype=bool), np.array(["p0"] * 10 + ["p1"]))
    assert uneven["low"] == pytest.approx(certainty.wilson(1.0, 121 / 101)[0])
    assert certainty.share_of(right[:0], np.array([], dtype=str)) == {"value": None, "low": None, "high": None}


def test_calibrated_probabilities_are_more_reliable_than_those_too_sure() -> None:
    metrics = evaluate(cohort_of(), [], interval=Interval(200, 0))
    json.dumps(metrics, allow_nan=False)
    assert metrics["calibrated"]["brier"]["value"] < metrics["pooled"]["brier"]["value"]
    gaps = {
        name: np.mean([abs(group["confidence"] - group["accuracy"]) for group in groups])
        for name, groups in metrics["reliability"].items()
    }
    assert gaps["calibrated"] < 0.1 < gaps["uncalibrated"]
    assert sum(group["n"] for group in metrics["reliability"]["calibrated"]) == 200


def test_fewer_and_surer_slides_are_more_often_right() -> None:
    curve = evaluate(cohort_of(2000), [], interval=Interval(20, 0))["abstention"]["confidence"]
    assert [point["n"] for point in curve] == list(range(2000, 0, -200))
    assert curve[0]["coverage"] == 1
    assert curve[-1]["accuracy"] > curve[0]["accuracy"] + 0.1


def test_decisions_count_those_abstained_with_their_reasons() -> None:
    slides = cohort_of()
    found = certainty.decisions(slides)
    assert (found["n_slides"], found["n_decided"], found["n_abstained"]) == (200, 180, 20)
    assert found["reasons"] == {"out of distribution": 20}
    right = [s.prediction.decision == s.label for s in slides if s.prediction and s.prediction.ood_score < 1]
    assert found["pooled"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    assert sum(map(sum, found["confusion"])) == 180
    assert found["pooled"]["sensitivity"]["value"] == found["confusion"][1][1] / sum(found["confusion"][1])


def test_deletion_gives_mean_curves_and_their_gap() -> None:
    found = certainty.deletion(cohort_of(6), interval=Interval(50, 0))
    assert found is not None
    assert found["fractions"] == [0, 0.1, 0.5]
    assert [entry["value"] for entry in found["attended"]] == pytest.approx([0.9, 0.6, 0.3])
    assert found["gap"]["value"] == pytest.approx((0.3 + 0.5) / 2)
    assert found["n_slides"] == 6


def test_slides_without_calibration_or_deletion_have_null() -> None:
    plain = Prediction("b", CLASSES, (0.4, 0.6), (0,), np.array([[0.4, 0.6]]), "out_of_fold", 0.0)
    found = certainty.figures([SlideResult("s", "p", "b", "ok", prediction=plain)], interval=Interval(10, 0))
    assert set(found.values()) == {None}


def test_sites_and_labels_come_from_the_cohort_table(tmp_path: Path) -> None:
    rows = [f"s{number}\tp{number}\t{'ab'[number % 2]}\tsite {number % 2}" for number in range(20)]
    (tmp_path / "cohort.tsv").write_text("\n".join(["slide_id\tpatient_id\tlabel\tsite", *rows]) + "\n")
    found = certainty.confounded(tmp_path / "cohort.tsv")
    assert found is not None
    assert (found["table"], found["n_patients"]) == (((10, 0), (0, 10)), 20)
    assert "may learn the site" in found["warning"]
