"""Slides with a number or a follow-up instead of a class: their predictions, and how good these are.

A risk is the log of a hazard relative to the median training slide of the model that gave it: above 0 is sooner than
typical. Risks of two models have no common zero, so concordance is counted over pairs that one model judged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import store, tasks
from pipeline.tasks import CLASSIFICATION, follow_up

if TYPE_CHECKING:
    from asmil.resampling import Statistic
    from pipeline.evaluation import SlideResult

Arrays = dict[str, NDArray[Any]]


def predict(stored: store.Artefact, folders: Sequence[Path], *, device: str) -> tuple[Arrays, dict[str, Any]]:
    """Apply each model of a number or a risk to one bag.

    Returns
    -------
    arrays
        `value` float32 (F,), each model's; `score` (N,), `fold_scores` (F, N) and `coords` (N, 2), as for classes.
    attributes
        `task`; `value`, the mean; `predicted`, it in words; `fold_spread`, its sd over the models; `map_agreement`.

    Raises
    ------
    ArtefactError
        If a model was trained on bags made otherwise.
    """
    from asmil.inference import predict as predict_bag
    from asmil.stability import agreement
    from pipeline.model_folder import load_model

    values, scores = [], []
    for folder in folders:
        model, description = load_model(folder)
        description.check_bag(stored.attributes, folder=folder)
        name = str(stored.attributes["slide_id"])
        found = predict_bag(model, description.standardised(stored.arrays["features"]), device=device, name=name)
        centre, spread = description.scale
        values.append(centre + spread * float(found.logits[0]))
        scores.append(found.score)
    fold_scores = np.stack(scores).astype(np.float32)
    alike = agreement(fold_scores)
    value = float(np.mean(values))
    arrays: Arrays = {
        "value": np.array(values, dtype=np.float32),
        "score": fold_scores.mean(0),
        "fold_scores": fold_scores,
        "coords": stored.arrays["coords"],
    }
    attributes = {
        "task": description.task,
        "value": value,
        "predicted": value_text(value, task=description.task),
        "fold_spread": float(np.std(values)),
        "map_agreement": None if math.isnan(alike) else alike,
        "classes": [],
        "probabilities": [],
    }
    return arrays, attributes


def values_array(attributes: Mapping[str, Any]) -> str:
    """Name the array of an attention artefact that holds what each model says."""
    return "probability" if tasks.task_of(attributes) == CLASSIFICATION else "value"


def value_text(value: float, *, task: str) -> str:
    """Give a predicted value in words: the number, or whether the risk is above the median training slide's."""
    if task == "regression":
        return f"{value:.4g}"
    return "high risk" if value > 0 else "low risk"


def judged(used: "Sequence[SlideResult]", *, task: str) -> "tuple[Statistic, list[str]]":
    """Give the statistic of slides that count, and the patient of each row that it takes a weight for.

    A follow-up belongs to a patient, so survival is judged a patient: the mean risk of the slides that a model judged.
    A number may differ between a patient's slides, so regression is judged a slide.
    """
    from asmil import outcome_metrics

    if task == "survival":
        risk, time, event, patients, folds = patient_risks(used)
        return outcome_metrics.survival_statistic(risk, time, event, strata=folds), patients
    return outcome_metrics.regression_statistic(*numbers(used)), [slide.patient_id for slide in used]


def count_events(used: "Sequence[SlideResult]") -> int:
    """Give how many patients had the event."""
    labels = {slide.patient_id: slide.label for slide in used}
    return sum(follow_up(label)[1] for label in labels.values())


def numbers(used: "Sequence[SlideResult]") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give observed and predicted numbers, each [n]."""
    predicted = [slide.prediction.value for slide in used if slide.prediction is not None]
    return np.array([float(slide.label) for slide in used]), np.array(predicted)


def patient_risks(
    used: "Sequence[SlideResult]",
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], list[str], NDArray[np.int64]]:
    """Give risk, time, event, patient and fold, n of each: a row a patient and model that judged their slides."""
    found: dict[tuple[str, int], list[float]] = {}
    labels: dict[str, str] = {}
    for slide in used:
        labels[slide.patient_id] = slide.label
        for fold, value in zip(
            folds_of(slide), slide.prediction.by_fold[:, 0] if slide.prediction else (), strict=True
        ):
            found.setdefault((slide.patient_id, fold), []).append(float(value))
    follow_ups = [follow_up(labels[patient]) for patient, _ in found]
    return (
        np.array([np.mean(values) for values in found.values()]),
        np.array([time for time, _ in follow_ups]),
        np.array([event for _, event in follow_ups], dtype=bool),
        [patient for patient, _ in found],
        np.array([fold for _, fold in found], dtype=np.int64),
    )


def patient_groups(used: "Sequence[SlideResult]") -> list[tuple[float, float, bool]]:
    """Give each patient's mean risk over slides and models, time and event."""
    risks: dict[str, list[float]] = {}
    labels = {slide.patient_id: slide.label for slide in used}
    for slide in used:
        risks.setdefault(slide.patient_id, []).append(slide.prediction.value if slide.prediction else math.nan)
    return [(float(np.mean(values)), *follow_up(labels[patient])) for patient, values in risks.items()]


def judged_by(slide: "SlideResult", row: Mapping[str, str]) -> "SlideResult":
    """Give a slide with another model's predictions, from a row of what `compare` wrote."""
    assert slide.prediction is not None
    values = np.array([float(value) for value in row["values"].split()])
    other = replace(
        slide.prediction,
        folds=tuple(int(fold) for fold in row["folds"].split()),
        by_fold=values[:, None],
        value=float(values.mean()),
    )
    return replace(slide, prediction=other)


def folds_of(slide: "SlideResult") -> tuple[int, ...]:
    """Give the models that judged a slide."""
    return slide.prediction.folds if slide.prediction else ()


def label_group(slide: "SlideResult", *, task: str) -> str:
    """Give what a table counts a slide under: its class, whether the event was seen, or that it has a number."""
    if task == CLASSIFICATION or not slide.label:
        return slide.label
    if task == "regression":
        return "a number"
    return "event seen" if follow_up(slide.label)[1] else "censored"


def task_of(slides: "Sequence[SlideResult]") -> str:
    """Give the task that all predictions share; classification where nothing was predicted."""
    return next((slide.prediction.task for slide in slides if slide.prediction is not None), CLASSIFICATION)


def prediction_columns(task: str) -> list[str]:
    """Give the columns of `predictions.csv` that stand where classes have their probabilities."""
    return {"survival": ["time", "event", "risk"], "regression": ["value"]}.get(task, [])


def prediction_cells(slide: "SlideResult", *, task: str) -> list[str]:
    """Give one slide's cells of these columns."""
    value = "" if slide.prediction is None else f"{slide.prediction.value:.6g}"
    if task == "regression":
        return [value]
    time, event = follow_up(slide.label) if slide.label else ("", "")
    return [f"{time:g}" if slide.label else "", str(int(event)) if slide.label else "", value]
