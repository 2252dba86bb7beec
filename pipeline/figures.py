"""Figures of merit with intervals: pooled, by fold, by repeat and by patient, and differences of two models.

All tasks share the one idea of `asmil.resampling`: a statistic of weights, one a row that is judged. Patients are
resampled, with all their rows.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import outcomes
from pipeline.errors import ArtefactError
from pipeline.tasks import CLASSIFICATION

if TYPE_CHECKING:
    from asmil.resampling import Estimate, Method, Statistic
    from pipeline.evaluation import SlideResult

LEVEL = 0.95
"""Confidence level of the intervals."""

Figures = dict[str, dict[str, float | None]]
"""`value`, `low`, `high` by metric, of differences also `p`; None where one is not defined."""


@dataclass(frozen=True)
class Interval:
    """How intervals are made: resamples of patients, their seed, and `bca` or `percentile` (`asmil.resampling`)."""

    resamples: int
    seed: int
    method: "Method" = "bca"
    level: float = LEVEL

    def options(self) -> dict[str, Any]:
        """Give the arguments of `asmil.resampling.bootstrap`."""
        return {"resamples": self.resamples, "seed": self.seed, "method": self.method, "level": self.level}


def pooled_arrays(
    slides: "Sequence[SlideResult]", classes: Sequence[str]
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


def judged(used: "Sequence[SlideResult]", *, task: str, classes: Sequence[str]) -> "tuple[Statistic, list[str]]":
    """Give the statistic of slides that count, and the patient of each row that it takes a weight for."""
    if task != CLASSIFICATION:
        return outcomes.judged(used, task=task)
    from asmil.metrics import classification_statistic

    return classification_statistic(*pooled_arrays(used, classes)), [slide.patient_id for slide in used]


def figures_of(statistic: "Statistic", patients: Sequence[str], interval: Interval) -> Figures:
    """Give value, low and high by metric.

    Parameters
    ----------
    statistic, patients
        As `judged` gives them.
    """
    from asmil.resampling import resampled

    return {name: _entry(each) for name, each in resampled(statistic, patients, **interval.options()).items()}


def differences_of(
    first: "Statistic", second: "Statistic", patients: Sequence[str], interval: Interval
) -> dict[str, dict[str, float | None]]:
    """Give `second` minus `first` by metric, with interval and p value: both are judged on the same drawn patients.

    The p value is two-sided, from the share of resamples beyond 0.
    """
    from asmil.resampling import difference, resampled

    found = resampled(difference(first, second), patients, **interval.options())
    return {name: {**_entry(each), "p": finite(each.p)} for name, each in found.items()}


def _entry(estimate: "Estimate") -> dict[str, float | None]:
    return {key: finite(getattr(estimate, key)) for key in ("value", "low", "high")}


def finite(value: float) -> float | None:
    """Give a number as JSON holds it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def judged_in(slides: "Sequence[SlideResult]", folds: set[int]) -> "list[SlideResult]":
    """Give the slides that some folds judged, as these alone do."""
    kept = []
    for slide in slides:
        found = slide.prediction
        if found is None or not folds & set(found.folds):
            continue
        places = [place for place, fold in enumerate(found.folds) if fold in folds]
        by_fold = found.by_fold[places]
        mean = by_fold.mean(axis=0)
        said = {"probabilities": tuple(mean.tolist())} if found.task == CLASSIFICATION else {"value": float(mean[0])}
        own = replace(found, folds=tuple(found.folds[place] for place in places), by_fold=by_fold, **said)
        kept.append(replace(slide, prediction=own))
    return kept


def fold(
    used: "Sequence[SlideResult]",
    splits: Sequence[Mapping[str, str]],
    number: int,
    *,
    task: str,
    classes: Sequence[str],
    interval: Interval,
) -> dict[str, Any]:
    """Give one fold's counts and metrics, on the slides it held out; `intervals` holds low and high by metric."""
    tested = judged_in(used, {number})
    found = figures_of(*judged(tested, task=task, classes=classes), interval)
    found.pop("c_index_pooled", None)  # of one fold it is the concordance index itself
    roles = [row["role"] for row in splits if int(row["fold"]) == number]
    return {
        "fold": number,
        "n_train": roles.count("train"),
        "n_validation": roles.count("validation"),
        "n_slides": len(tested),
        "n_patients": len({slide.patient_id for slide in tested}),
        **{name: entry["value"] for name, entry in found.items()},
        "intervals": {name: {"low": entry["low"], "high": entry["high"]} for name, entry in found.items()},
    }


def repeats(
    used: "Sequence[SlideResult]", splits: Sequence[Mapping[str, str]], *, task: str, classes: Sequence[str]
) -> dict[str, Any] | None:
    """Give how the figures scatter over the repeats of the division; None with one repeat.

    Returns
    -------
    `n`; `values`: a number a repeat by metric, each of that repeat's models alone; `summary`: their mean, sd, min and
    max. The pooled figures are of the mean over the repeats, an ensemble, and so may be better than each.
    """
    folds: dict[str, set[int]] = {}
    for row in splits:
        folds.setdefault(row.get("repeat", "0"), set()).add(int(row["fold"]))
    parts = [part for _, own in sorted(folds.items(), key=lambda item: int(item[0])) if (part := judged_in(used, own))]
    if len(parts) < 2:
        return None
    found = []
    for part in parts:
        statistic, rows = judged(part, task=task, classes=classes)
        found.append({name: float(value[0]) for name, value in statistic(np.ones((1, len(rows)))).items()})
    values = {name: [finite(each[name]) for each in found] for name in found[0]}
    return {
        "n": len(parts),
        "values": values,
        "summary": {name: _summary([value for value in row if value is not None]) for name, row in values.items()},
    }


def _summary(values: list[float]) -> dict[str, float | None]:
    if not values:
        return dict.fromkeys(("mean", "sd", "min", "max"))
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "min": min(values), "max": max(values)}


def patients(
    used: "Sequence[SlideResult]", *, task: str, classes: Sequence[str], interval: Interval
) -> dict[str, Any] | None:
    """Give the figures of patients, each judged by the mean of their slides; None where each has one slide.

    A patient whose slides have different labels has none of their own, and is left out (`n_mixed`). Survival is judged
    by patient anyway, and has no second set of figures.
    """
    slides: dict[str, list[SlideResult]] = {}
    for slide in used:
        slides.setdefault(slide.patient_id, []).append(slide)
    if task == "survival" or len(slides) == len(used):
        return None
    alike = [own for own in slides.values() if len({slide.label for slide in own}) == 1]
    merged = [_merged(own) for own in alike]
    return {
        "n_patients": len(merged),
        "n_mixed": len(slides) - len(alike),
        "pooled": figures_of(*judged(merged, task=task, classes=classes), interval) if merged else {},
    }


def _merged(slides: "Sequence[SlideResult]") -> "SlideResult":
    """Give a patient as one slide: the mean of what the models say of each."""
    said = [slide.prediction for slide in slides if slide.prediction is not None]
    own = replace(
        said[0],
        probabilities=tuple(np.mean([each.probabilities for each in said], axis=0).tolist()),
        value=float(np.mean([each.value for each in said])),
    )
    return replace(slides[0], slide_id=slides[0].patient_id, prediction=own)
