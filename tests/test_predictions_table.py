"""Columns of predictions.csv that say how far a prediction can be trusted."""

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluation import Prediction, SlideResult
from pipeline.report import predictions_table

CLASSES = ("normal", "tumour")
BY_FOLD = np.array([[0.4, 0.6], [0.1, 0.9], [0.25, 0.75]])
FOUND = Prediction(
    "tumour",
    CLASSES,
    (0.25, 0.75),
    (0, 1, 2),
    BY_FOLD,
    "ensemble",
    0.12,
    calibrated=(0.35, 0.65),
    decision="abstained",
    decision_reason="folds disagree; out of distribution",
    ood_score=1.25,
)
SLIDE = SlideResult(
    "s", "p", "", "ok", patches=75, warnings=("a", "b"), prediction=FOUND, excluded={"pen": 5, "blur": 20, "fold": 0}
)


def rows_of(*slides: SlideResult) -> list[dict[str, str]]:
    classes = CLASSES if slides[0].prediction and slides[0].prediction.task == "classification" else ()
    return list(csv.DictReader(io.StringIO(predictions_table(slides, classes))))


def test_old_columns_come_first_and_new_ones_follow() -> None:
    expected = (
        "slide_id patient_id label predicted probability_normal probability_tumour source fold_spread status"
        " calibrated_normal calibrated_tumour models fold_low fold_high decision decision_reason ood_score qc"
    )
    assert list(rows_of(SLIDE)[0]) == expected.split()


def test_range_calibration_decision_and_quality_are_those_of_the_slide() -> None:
    row = rows_of(SLIDE)[0]
    assert (float(row["fold_low"]), float(row["fold_high"]), row["models"]) == (0.6, 0.9, "3")
    assert (float(row["calibrated_normal"]), float(row["calibrated_tumour"])) == (0.35, 0.65)
    assert (row["decision"], row["decision_reason"]) == ("abstained", "folds disagree; out of distribution")
    assert float(row["ood_score"]) == pytest.approx(1.25)
    assert row["qc"] == "pen 5%; blur 20%; warnings 2"


def test_one_model_has_no_range_and_an_unknown_distance_is_empty() -> None:
    alone = replace(FOUND, folds=(0,), by_fold=BY_FOLD[:1], ood_score=math.nan, calibrated=())
    row = rows_of(replace(SLIDE, prediction=alone, warnings=(), excluded={}))[0]
    assert [row[name] for name in ("fold_low", "fold_high", "ood_score", "calibrated_tumour", "qc")] == [""] * 5
    assert row["models"] == "1"


def test_a_slide_without_a_prediction_has_empty_cells_and_as_many() -> None:
    rows = rows_of(SLIDE, SlideResult("bad", "p", "tumour", "quarantined", "tile", "no tissue", "look"))
    assert None not in rows[1]
    assert rows[1]["status"] == "quarantined"
    assert not any(rows[1][name] for name in list(rows[1])[9:])


def test_a_class_that_looks_like_a_formula_is_defused_as_a_decision_and_in_the_header() -> None:
    hostile = replace(FOUND, classes=("=a()", "b"), predicted="=a()", decision="=a()")
    row = next(csv.DictReader(io.StringIO(predictions_table([replace(SLIDE, prediction=hostile)], ("=a()", "b")))))
    assert row["decision"] == row["predicted"] == "'=a()"


def test_a_risk_has_the_range_of_its_values_and_no_decision() -> None:
    risk = Prediction("", (), (), (0, 1), np.array([[0.5], [-1.5]]), "ensemble", 1.0, task="regression", value=-0.5)
    row = rows_of(replace(SLIDE, prediction=risk, label=""))[0]
    assert (float(row["fold_low"]), float(row["fold_high"])) == (-1.5, 0.5)
    assert "decision" not in row
