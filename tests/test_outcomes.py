"""Figures of merit and pictures of survival and regression."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asmil.survival import concordance
from pipeline import outcome_figures, outcomes, store, wording
from pipeline.evaluation import Prediction, SlideResult, evaluate
from pipeline.figures import Interval
from pipeline.report import predictions_table, quarantine_table, summary
from pipeline.report_page import label_counts
from tests.test_asmil_outcomes import EVENT, RISK, TIME, pairs_counted

OPTIONS: dict[str, Any] = {"interval": Interval(200, 0)}


def result(number: int, label: str, values: list[float], folds: list[int], task: str, patient: str = "") -> SlideResult:
    value = float(np.mean(values))
    prediction = Prediction(
        predicted=outcomes.value_text(value, task=task),
        classes=(),
        probabilities=(),
        folds=tuple(folds),
        by_fold=np.array(values)[:, None],
        source="out_of_fold" if label else "ensemble",
        fold_spread=float(np.std(values)),
        task=task,
        value=value,
    )
    return SlideResult(f"s{number}", patient or f"p{number}", label, store.OK, prediction=prediction)


def splits_of(slides: list[SlideResult]) -> list[dict[str, str]]:
    return [{"slide_id": s.slide_id, "fold": str(f), "role": "test"} for s in slides for f in outcomes.folds_of(s)]


def survival_slides() -> list[SlideResult]:
    labels = [f"{time:g}" + "+" * (not event) for time, event in zip(TIME, EVENT, strict=True)]
    return [result(n, label, [float(RISK[n])], [n % 3], "survival") for n, label in enumerate(labels)]


def test_survival_is_judged_within_models_and_over_all_pairs() -> None:
    slides = [*survival_slides(), result(99, "", [0.5, -0.2, 0.3], [0, 1, 2], "survival")]
    metrics = evaluate(slides, splits_of(slides[:-1]), **OPTIONS)
    assert metrics["task"] == "survival"
    assert (metrics["n_slides"], metrics["n_events"], metrics["n_predicted"]) == (30, int(EVENT.sum()), 31)
    part = np.arange(30) % 3
    assert metrics["pooled"]["c_index"]["value"] == pytest.approx(pairs_counted(RISK, TIME, EVENT, part))
    assert metrics["pooled"]["c_index_pooled"]["value"] == pytest.approx(concordance(RISK, TIME, EVENT))
    assert metrics["pooled"]["c_index"]["low"] < metrics["pooled"]["c_index"]["value"]
    own = part == 1
    assert metrics["folds"][1]["c_index"] == pytest.approx(concordance(RISK[own], TIME[own], EVENT[own]))


def test_a_patient_counts_once_in_survival_however_many_slides() -> None:
    slides = survival_slides()
    doubled = [*slides, *(result(100 + n, slides[0].label, [float(RISK[0])], [0], "survival", "p0") for n in range(5))]
    one, many = (evaluate(found, splits_of(found), **OPTIONS)["pooled"] for found in (slides, doubled))
    assert one == many


def test_regression_is_judged_in_its_own_unit() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(50, 10, 40).round(1)
    guess = truth + rng.normal(0, 5, 40)
    slides = [result(n, f"{truth[n]:g}", [float(guess[n])], [n % 4], "regression") for n in range(40)]
    metrics = evaluate(slides, splits_of(slides), **OPTIONS)
    assert metrics["pooled"]["mae"]["value"] == pytest.approx(np.abs(guess - truth).mean())
    assert metrics["pooled"]["mae"]["low"] < metrics["pooled"]["mae"]["value"] < metrics["pooled"]["mae"]["high"]
    own = np.arange(40) % 4 == 2
    assert metrics["folds"][2]["mae"] == pytest.approx(np.abs(guess - truth)[own].mean())
    assert metrics["confusion"] == []


def test_predictions_table_has_the_columns_of_the_task() -> None:
    rows = predictions_table([*survival_slides()[:2], result(9, "", [0.25], [0], "survival")], []).splitlines()
    header = rows[0].split(",")
    assert header[:7] == ["slide_id", "patient_id", "label", "predicted", "time", "event", "risk"]
    assert rows[1].split(",")[:7] == ["s0", "p0", "0.3", "high risk", "0.3", "1", "2"]
    assert rows[2].split(",")[:7] == ["s1", "p1", "1+", "low risk", "1", "0", "-2.6"]
    assert rows[3].split(",")[:7] == ["s9", "p9", "", "high risk", "", "", "0.25"]
    assert all(len(row.split(",")) == len(header) for row in rows)
    numbers = predictions_table([result(1, "12.5", [13.0], [0], "regression")], []).splitlines()
    assert numbers[0].split(",")[4] == "value"
    assert numbers[1].split(",")[:5] == ["s1", "p1", "12.5", "13", "13"]


def test_page_says_what_a_risk_and_a_number_mean() -> None:
    risk = {"task": "survival", "predicted": "high risk", "value": math.log(2), "label": "34.2+", "fold_spread": 0.1}
    assert wording.headline(risk)[0] == "high risk"
    assert wording.headline(risk)[1].startswith("2.0")
    assert "Hazard 2.0 times that of the median slide" in wording.meaning_text(risk)
    assert wording.label_text(risk) == "Label: no event until 34.2, when last seen."
    assert wording.label_text({**risk, "label": "34.2"}) == "Label: event at 34.2."
    assert "2 of 3 models say high risk" in wording.spread_text(risk, np.array([[1.2], [-0.1], [0.9]]))
    number = {"task": "regression", "predicted": "13", "value": 13.0, "label": "12.5", "fold_spread": 0.1}
    assert wording.headline(number) == ("13", "")
    assert wording.label_text(number) == "Label: 12.5 (prediction +0.5)."


def test_kaplan_meier_and_log_rank_are_those_of_lifelines() -> None:
    times, shares = outcome_figures.kaplan_meier(TIME, EVENT)
    found = dict(zip(times.round(1).tolist(), shares.tolist(), strict=True))
    known = {0.0: 1.0, 0.3: 0.863095, 0.6: 0.786257, 1.7: 0.530723, 2.0: 0.454906, 3.7: 0.30327}
    before = {time: shares[times <= time][-1] for time in known}
    assert found[0.0] == 1
    assert before == pytest.approx(known, abs=1e-6)
    high = np.median(RISK) < RISK
    assert outcome_figures.log_rank(TIME, EVENT, high) == pytest.approx(0.004741407049553006, rel=1e-9)


def test_charts_show_the_halves_by_risk_and_the_scatter() -> None:
    (halves,) = outcome_figures.charts(survival_slides(), "survival")
    assert "Log-rank test of the halves: p = " in halves["note"]
    slides = [result(n, str(n), [n + 0.5], [0], "regression") for n in range(5)]
    (scatter,) = outcome_figures.charts(slides, "regression")
    assert scatter["figure"].y_range.end >= 4.5


def test_labels_are_counted_by_event_and_by_number() -> None:
    counted = label_counts(survival_slides(), task="survival")
    assert [row[:2] for row in counted] == [("censored", 30 - int(EVENT.sum())), ("event seen", int(EVENT.sum()))]
    assert label_counts([result(1, "3.5", [3.0], [0], "regression")], task="regression") == [("a number", 1, 1)]


@pytest.mark.parametrize(("task", "said"), [("survival", "concordance index"), ("regression", "mean absolute error")])
def test_closing_words_name_the_figure_of_the_task(task: str, said: str, tmp_path: Path) -> None:
    slides = survival_slides() if task == "survival" else [result(n, str(n), [n + 0.5], [0], task) for n in range(5)]
    metrics = evaluate(slides, splits_of(slides), **OPTIONS)
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "quarantine.tsv").write_text(quarantine_table(slides))
    assert f"Out-of-fold {said} 0." in summary(tmp_path)
