"""What the run found: one result a slide, and how good the predictions of labelled slides are.

Only out-of-fold predictions of labelled slides enter a figure of merit; intervals come from resampling patients.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import certainty, outcomes, store
from pipeline.errors import ArtefactError
from pipeline.tasks import CLASSIFICATION, task_of

STAGES = (("tile", "tiles"), ("embed", "bags"), ("predict", "attention"))
"""Stages a slide passes, in order, and the folders of their artefacts."""

FAILED = "failed"
LEVEL = 0.95
"""Confidence level of the intervals."""


@dataclass(frozen=True)
class Prediction:
    """What the models say of one slide.

    Parameters
    ----------
    classes, probabilities
        C names, and the mean over the folds used.
    folds, by_fold
        Which models, and their class probabilities, shape (F, C).
    source
        "out_of_fold" or "ensemble".
    fold_spread
        Standard deviation over the folds of the predicted class's probability.
    map_agreement
        Mean rank correlation of the folds' attention, over their pairs; NaN with one fold.
    task, value
        What was learned, and where it is no class, the mean of the folds' values; these are then in `by_fold` (F, 1).
    fold_low, fold_high
        Range over the folds of the predicted class's probability; NaN with one fold.
    calibrated, calibrated_by_fold
        Probabilities by the temperatures, mean and by fold.
    decision, decision_reason
        A class or `abstained`, and why it abstains.
    ood_score
        Distance to the training slides over its limit; NaN if unknown.
    deletion
        As `faithfulness.deletion` gives it.
    """

    predicted: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    folds: tuple[int, ...]
    by_fold: NDArray[np.float64]
    source: str
    fold_spread: float
    map_agreement: float = math.nan
    task: str = CLASSIFICATION
    value: float = math.nan
    fold_low: float = math.nan
    fold_high: float = math.nan
    calibrated: tuple[float, ...] = ()
    calibrated_by_fold: NDArray[np.float64] | None = None
    decision: str = ""
    decision_reason: str = ""
    ood_score: float = math.nan
    deletion: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SlideResult:
    """One slide of the cohort: a prediction, or the stage, reason and remedy of its failure.

    `excluded` counts the tiles left out by quality flag (pen, blur, fold); `patches` are those that were used.
    """

    slide_id: str
    patient_id: str
    label: str
    status: str
    stage: str = ""
    reason: str = ""
    remedy: str = ""
    patches: int = 0
    warnings: tuple[str, ...] = ()
    prediction: Prediction | None = None
    excluded: Mapping[str, int] = field(default_factory=dict)

    @property
    def counts(self) -> bool:
        """Whether the slide enters the figures of merit: labelled, and predicted by models that never saw it."""
        return bool(self.label) and self.prediction is not None and self.prediction.source == "out_of_fold"

    @property
    def agrees(self) -> bool | None:
        """Whether prediction and label agree; None where one is missing or no class was learned."""
        if not self.label or self.prediction is None or self.prediction.task != CLASSIFICATION:
            return None
        return self.prediction.predicted == self.label


def gather(cohort: Path, results: Path) -> list[SlideResult]:
    """Collect a result for every slide of the cohort table, in its order.

    Parameters
    ----------
    cohort
        The table that `check` wrote.
    results
        The folder with `tiles`, `bags` and `attention`.

    Raises
    ------
    ArtefactError
        If an attention artefact is damaged.
    """
    with cohort.open(encoding="utf-8", newline="") as handle:
        return [result_of(row, results) for row in csv.DictReader(handle, delimiter="\t")]


def result_of(row: Mapping[str, str], results: Path) -> SlideResult:
    """Give the result of one row of the cohort table; raises as `gather` does."""
    slide_id, patient_id, label = row["slide_id"], row["patient_id"], row["label"]
    path = results / "attention" / f"{slide_id}.zarr.zip"
    if not path.exists():
        if row["status"] == store.QUARANTINED:
            return SlideResult(slide_id, patient_id, label, store.QUARANTINED, "check", row["reason"], row["remedy"])
        return SlideResult(
            slide_id,
            patient_id,
            label,
            FAILED,
            "predict",
            "its job failed before a prediction was made",
            f"see the logs named {slide_id}.log in {results / 'logs'}, and run the workflow again",
        )
    artefact = store.read(path, names=())
    attributes = artefact.attributes
    if not artefact.ok:
        return SlideResult(
            slide_id,
            patient_id,
            label,
            store.QUARANTINED,
            _failing_stage(row, results),
            attributes["reason"],
            attributes["remedy"],
        )
    values = outcomes.values_array(attributes)
    arrays = store.read(path, names=(values, "score")).arrays
    return SlideResult(
        slide_id,
        attributes.get("patient_id") or patient_id,
        attributes.get("label") or "",
        store.OK,
        patches=int(arrays["score"].size),
        warnings=tuple(attributes.get("warnings", ())),
        prediction=_prediction(attributes, arrays[values].reshape(len(attributes["folds"]), -1)),
        excluded=attributes.get("excluded", {}),
    )


def _prediction(attributes: Mapping[str, Any], probability: NDArray[Any]) -> Prediction:
    return Prediction(
        predicted=attributes["predicted"],
        classes=tuple(attributes["classes"]),
        probabilities=tuple(attributes["probabilities"]),
        folds=tuple(attributes["folds"]),
        by_fold=probability.astype(np.float64),
        source=attributes["source"],
        fold_spread=float(attributes["fold_spread"]),
        map_agreement=_number(attributes.get("map_agreement")),
        task=task_of(attributes),
        value=float(attributes.get("value", math.nan)),
        fold_low=_number(attributes.get("fold_low")),
        fold_high=_number(attributes.get("fold_high")),
        calibrated=tuple(attributes.get("calibrated", ())),
        decision=attributes.get("decision", ""),
        decision_reason=attributes.get("decision_reason", ""),
        ood_score=_number(attributes.get("ood_score")),
        deletion=attributes.get("deletion"),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _failing_stage(row: Mapping[str, str], results: Path) -> str:
    """Name the first stage that could not use the slide: later ones only hand its reason on."""
    if row["status"] == store.QUARANTINED:
        return "check"
    for stage, folder in STAGES:
        path = results / folder / f"{row['slide_id']}.zarr.zip"
        if path.exists() and store.read_attributes(path)["status"] == store.QUARANTINED:
            return stage
    return "predict"


def class_names(slides: Sequence[SlideResult]) -> tuple[str, ...]:
    """Give the classes that all predictions share; empty where nothing was predicted.

    Raises
    ------
    ArtefactError
        If two slides were predicted by models of different classes.
    """
    names: tuple[str, ...] = ()
    for slide in slides:
        if slide.prediction is None:
            continue
        names = names or slide.prediction.classes
        if slide.prediction.classes != names:
            raise ArtefactError(
                f"{slide.slide_id} was predicted with the classes {', '.join(slide.prediction.classes)}, others with "
                f"{', '.join(names)}; delete results/attention and run the workflow again"
            )
    return names


def check_held_out(slides: Sequence[SlideResult], splits: Sequence[Mapping[str, str]]) -> None:
    """Check that every prediction called out-of-fold came from models that held its slide out.

    Parameters
    ----------
    splits
        Rows of `splits.csv`.

    Raises
    ------
    ArtefactError
        If one did not.
    """
    held_out = {(row["slide_id"], int(row["fold"])) for row in splits if row["role"] == "test"}
    for slide in slides:
        for fold in slide.prediction.folds if slide.counts and slide.prediction else ():
            if (slide.slide_id, fold) not in held_out:
                raise ArtefactError(
                    f"{slide.slide_id} was predicted by the model of fold {fold}, which did not hold it out; "
                    "its attention is older than the splits: delete it and run the workflow again"
                )


def evaluate(
    slides: Sequence[SlideResult], splits: Sequence[Mapping[str, str]], *, resamples: int, seed: int
) -> dict[str, Any]:
    """Compute what `metrics.json` holds.

    Parameters
    ----------
    slides
        All results; those that do not count are left out of every figure of merit.
    splits
        Rows of `splits.csv`.
    resamples, seed
        Bootstrap resamples of patients, and their seed.

    Returns
    -------
    `pooled`: value, low and high by metric; `folds`: metrics by fold; counts; the confusion matrix (rows are labels,
    columns predictions); how the intervals were made. None where a figure is not defined.
    """
    task = outcomes.task_of(slides)
    if task != CLASSIFICATION:
        return outcomes.evaluate(slides, splits, task=task, resamples=resamples, level=LEVEL, seed=seed)
    classes, used = class_names(slides), [slide for slide in slides if slide.counts]
    interval = {"level": LEVEL, "resamples": resamples, "seed": seed, "unit": "patient"}
    return {
        "task": task,
        "pooled": _pooled(used, classes, resamples=resamples, seed=seed) if used else {},
        "folds": [_fold(used, splits, classes, fold) for fold in sorted({f for s in used for f in _folds(s)})],
        "classes": list(classes),
        "n_slides": len(used),
        "n_patients": len({slide.patient_id for slide in used}),
        "n_cohort": len(slides),
        "n_predicted": sum(slide.prediction is not None for slide in slides),
        "n_left_out": sum(slide.status != store.OK for slide in slides),
        "interval": interval,
        "confusion": _confusion(used, classes),
        **certainty.figures(used, resamples=resamples, seed=seed),
    }


def pooled_arrays(
    slides: Sequence[SlideResult], classes: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give the labels, int64 [n], and probabilities, float64 [n, C], of slides that count.

    Raises
    ------
    ArtefactError
        If a label is not among the classes.
    """
    for slide in slides:
        if slide.label not in classes:
            raise ArtefactError(
                f"{slide.slide_id} has the label {slide.label!r}, the models know {', '.join(classes)}; "
                "delete results/model and run the workflow again"
            )
    labels = np.array([classes.index(slide.label) for slide in slides], dtype=np.int64)
    rows = [slide.prediction.probabilities for slide in slides if slide.prediction is not None]
    return labels, np.array(rows, dtype=np.float64).reshape(len(slides), len(classes))


def _pooled(
    used: Sequence[SlideResult], classes: Sequence[str], *, resamples: int, seed: int
) -> dict[str, dict[str, float | None]]:
    labels, probabilities = pooled_arrays(used, classes)
    return figures_of(labels, probabilities, [slide.patient_id for slide in used], resamples=resamples, seed=seed)


def figures_of(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    patients: Sequence[str],
    *,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, float | None]]:
    """Give value, low and high by metric, of n slides; None where a figure is not defined.

    Parameters
    ----------
    labels, probabilities
        Class indices [n], and probabilities [n, C].
    patients
        Whose slides they are; patients are resampled.
    resamples, seed
        Bootstrap resamples, and their seed.
    """
    from asmil.metrics import bootstrap_intervals, classification_metrics

    groups = np.unique(list(patients), return_inverse=True)[1]
    values = classification_metrics(labels, probabilities)
    intervals = bootstrap_intervals(labels, probabilities, groups, resamples=resamples, level=LEVEL, seed=seed)
    undefined = (math.nan, math.nan)
    return {
        name: {
            "value": _finite(value),
            "low": _finite(intervals.get(name, undefined)[0]),
            "high": _finite(intervals.get(name, undefined)[1]),
        }
        for name, value in values.items()
    }


def _folds(slide: SlideResult) -> tuple[int, ...]:
    return slide.prediction.folds if slide.prediction else ()


def _fold(
    used: Sequence[SlideResult], splits: Sequence[Mapping[str, str]], classes: Sequence[str], fold: int
) -> dict[str, Any]:
    from asmil.metrics import classification_metrics

    tested = [slide for slide in used if fold in _folds(slide)]
    labels, _ = pooled_arrays(tested, classes)
    rows = [s.prediction.by_fold[s.prediction.folds.index(fold)] for s in tested if s.prediction is not None]
    roles = [row["role"] for row in splits if int(row["fold"]) == fold]
    return {
        "fold": fold,
        "n_train": roles.count("train"),
        "n_validation": roles.count("validation"),
        "n_slides": len(tested),
        "n_patients": len({slide.patient_id for slide in tested}),
        **{name: _finite(value) for name, value in classification_metrics(labels, np.array(rows)).items()},
    }


def _confusion(used: Sequence[SlideResult], classes: Sequence[str]) -> list[list[int]]:
    counts = [[0] * len(classes) for _ in classes]
    for slide in used:
        if slide.prediction is not None:
            counts[classes.index(slide.label)][classes.index(slide.prediction.predicted)] += 1
    return counts


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def roc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give a ROC curve: false and true positive rates, from (0, 0) to (1, 1), a point a distinct score."""
    hits, misses = _cumulative(positive, score)
    return np.append(0.0, misses / misses[-1]), np.append(0.0, hits / hits[-1])


def precision_recall(
    positive: NDArray[np.bool_], score: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give a precision-recall curve: recall and precision, a point a distinct score, recall rising."""
    hits, misses = _cumulative(positive, score)
    return np.append(0.0, hits / hits[-1]), np.append(1.0, hits / (hits + misses))


def _cumulative(
    positive: NDArray[np.bool_], score: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.argsort(-score, kind="stable")
    last_of_score = np.append(np.diff(score[order]) != 0, True)
    hits = np.cumsum(positive[order])[last_of_score]
    misses = np.cumsum(~positive[order])[last_of_score]
    return hits.astype(np.float64), misses.astype(np.float64)
