"""What the run found: one result a slide, and how good the predictions of labelled slides are.

Only out-of-fold predictions of labelled slides enter a figure of merit; intervals come from resampling patients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import certainty, figures, outcomes, store
from pipeline.errors import ArtefactError
from pipeline.figures import Interval
from pipeline.tasks import CLASSIFICATION, task_of

STAGES = (("tile", "tiles"), ("embed", "bags"), ("predict", "attention"))
"""Stages a slide passes, in order, and the folders of their artefacts."""

FAILED = "failed"


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
        "out_of_fold", "ensemble" or "seen", as `pipeline.predict.folds_for` gives them.
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
        """Whether prediction and label agree; None where no class was learned, or the slide was not held out."""
        if not self.counts or self.prediction is None or self.prediction.task != CLASSIFICATION:
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
    return [result_of(row, results) for row in store.read_rows(cohort, delimiter="\t")]


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
    slides: Sequence[SlideResult], splits: Sequence[Mapping[str, str]], *, interval: Interval
) -> dict[str, Any]:
    """Compute what `metrics.json` holds.

    Parameters
    ----------
    slides
        All results; those that do not count are left out of every figure of merit.
    splits
        Rows of `splits.csv`.
    interval
        How intervals are made.

    Returns
    -------
    `pooled`: value, low and high by metric; `folds`: metrics by fold, with `intervals`; `patients` and `repeats` as
    `figures` gives them; counts; the confusion matrix (rows are labels, columns predictions); how the intervals were
    made. None where a figure is not defined.
    """
    task, classes, used = outcomes.task_of(slides), class_names(slides), [slide for slide in slides if slide.counts]
    kind: dict[str, Any] = {"task": task, "classes": classes}
    return {
        "task": task,
        "pooled": figures.figures_of(*figures.judged(used, **kind), interval) if used else {},
        "folds": [
            figures.fold(used, splits, number, **kind, interval=interval)
            for number in sorted({fold for slide in used for fold in outcomes.folds_of(slide)})
        ],
        "patients": figures.patients(used, **kind, interval=interval),
        "repeats": figures.repeats(used, splits, **kind),
        "classes": list(classes),
        "n_slides": len(used),
        "n_patients": len({slide.patient_id for slide in used}),
        "n_events": outcomes.count_events(used) if task == "survival" else None,
        "n_cohort": len(slides),
        "n_predicted": sum(slide.prediction is not None for slide in slides),
        "n_left_out": sum(slide.status != store.OK for slide in slides),
        "interval": {**interval.options(), "unit": "patient"},
        "confusion": _confusion(used, classes) if task == CLASSIFICATION else [],
        **(certainty.figures(used, interval=interval) if task == CLASSIFICATION else {}),
    }


def _confusion(used: Sequence[SlideResult], classes: Sequence[str]) -> list[list[int]]:
    counts = [[0] * len(classes) for _ in classes]
    for slide in used:
        if slide.prediction is not None:
            counts[classes.index(slide.label)][classes.index(slide.prediction.predicted)] += 1
    return counts
