"""Figures of merit of further models: on the same slides as the first, or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import compare
from pipeline.errors import ArtefactError
from pipeline.evaluation import Prediction, SlideResult
from pipeline.figures import Interval


def slide(number: int, *, source: str = "out_of_fold") -> SlideResult:
    probability = np.array([[0.3, 0.7]])
    found = Prediction("b", ("a", "b"), (0.3, 0.7), (0,), probability, source, 0.0)
    return SlideResult(f"s{number}", f"p{number}", "ab"[number % 2], "ok", prediction=found)


def written(folder: Path, lines: list[str]) -> Path:
    path = folder / "abmil" / "predictions.csv"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines) + "\n")
    return folder


METRICS: dict[str, Any] = {"task": "classification", "classes": ["a", "b"], "pooled": {"auroc": {"value": 0.5}}}
OPTIONS: dict[str, Any] = {"models": ["asmil", "abmil"], "interval": Interval(100, 0)}


def test_further_models_are_judged_on_the_slides_of_the_first(tmp_path: Path) -> None:
    rows = [f"s{number},0,{0.9 - 0.8 * (number % 2)},{0.1 + 0.8 * (number % 2)}" for number in (9, 3, 2, 1, 0)]
    folder = written(tmp_path, ["slide_id,folds,probability_a,probability_b", *rows])
    slides = [*(slide(number) for number in range(4)), slide(9, source="ensemble")]
    found = compare.figures(slides, METRICS, folder=folder, **OPTIONS)["models"]
    assert found["asmil"] is METRICS["pooled"]
    assert found["abmil"]["auroc"]["value"] == 1
    assert found["abmil"]["accuracy"]["value"] == 1


def test_columns_are_found_by_the_names_of_the_classes(tmp_path: Path) -> None:
    folder = written(tmp_path, ["slide_id,folds,probability_b,probability_a", "s0,0,0.25,0.75"])
    found = compare.read_predictions(folder / "abmil" / "predictions.csv", slides=["s0"], classes=["a", "b"])
    assert found.tolist() == [[0.75, 0.25]]


@pytest.mark.parametrize(
    "lines",
    [
        ["slide_id,folds,probability_a,probability_b", "s0,0,0.5,0.5"],
        ["slide_id,folds,probability_a,probability_c", "s0,0,0.5,0.5", "s1,0,0.5,0.5"],
    ],
)
def test_missing_slide_or_class_is_named(tmp_path: Path, lines: list[str]) -> None:
    folder = written(tmp_path, lines)
    with pytest.raises(ArtefactError, match=r"has no prediction of s[01] for the classes a, b; delete it"):
        compare.figures([slide(0), slide(1)], METRICS, folder=folder, **OPTIONS)


def test_nothing_is_compared_without_a_slide_that_counts(tmp_path: Path) -> None:
    found = compare.figures([slide(0, source="ensemble")], METRICS, folder=tmp_path, **OPTIONS)
    assert found == {"models": {}, "differences": {}}
