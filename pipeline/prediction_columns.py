"""Columns of `predictions.csv` that say how far a prediction can be trusted; they follow those of the prediction."""

from collections.abc import Sequence

from pipeline.evaluation import Prediction, SlideResult
from pipeline.tasks import CLASSIFICATION

RANGE = ("models", "fold_low", "fold_high")
DECISION = ("decision", "decision_reason", "ood_score")


def columns(classes: Sequence[str], *, task: str) -> list[str]:
    """Give their names; those of calibration and decision only where classes are predicted."""
    if task != CLASSIFICATION:
        return [*RANGE, "qc"]
    return [*(f"calibrated_{name}" for name in classes), *RANGE, *DECISION, "qc"]


def cells(slide: SlideResult, classes: Sequence[str], *, task: str) -> list[str]:
    """Give one slide's cells; empty where there is no prediction, or where a number is unknown."""
    found = slide.prediction
    if found is None:
        return ["" for _ in columns(classes, task=task)]
    spread = [str(len(found.folds)), *_range(found)]
    if task != CLASSIFICATION:
        return [*spread, quality(slide)]
    calibrated = [f"{value:.6f}" for value in found.calibrated] or ["" for _ in classes]
    score = "" if found.ood_score != found.ood_score else f"{found.ood_score:.4f}"
    return [*calibrated, *spread, found.decision, found.decision_reason, score, quality(slide)]


def _range(found: Prediction) -> list[str]:
    """Give the lowest and the highest that a model says: of the predicted class, or of the value."""
    if len(found.folds) < 2:
        return ["", ""]
    column = found.classes.index(found.predicted) if found.task == CLASSIFICATION else 0
    said = found.by_fold[:, column]
    return [f"{said.min():.6f}", f"{said.max():.6f}"]


def quality(slide: SlideResult) -> str:
    """Give the share of the tiles left out by flag, and the number of warnings, as "pen 3%; warnings 2"."""
    tiles = slide.patches + sum(slide.excluded.values())
    flags = [f"{flag} {count / tiles:.0%}" for flag, count in slide.excluded.items() if count]
    return "; ".join([*flags, *([f"warnings {len(slide.warnings)}"] if slide.warnings else [])])
