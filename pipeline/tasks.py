"""What is learned of a slide's label, by `task:` of the configuration: a class, a time to an event, or a number.

A label is text everywhere between the labels file and a bag: the class; the number; or the follow-up as R's Surv prints
it, `34.2` for an event at 34.2 and `34.2+` for a patient still without it then. Only the standard library is imported
here, because the workflow reads the labels each time it plans.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.cohort import Label

Task = Literal["classification", "survival", "regression"]
CLASSIFICATION: Task = "classification"

CLASS_ONLY_MODELS = ("clam_sb", "clam_mb", "dsmil", "acmil", "dtfd", "pamil")
"""Models with a loss of their own on classes, which learn no risk and no number."""

HEADLINE = {
    "classification": ("auroc", "AUROC"),
    "survival": ("c_index", "concordance index"),
    "regression": ("mae", "mean absolute error"),
}
"""The metric that is named first, and its name."""

MAX_STRATA = 5
"""Parts of a number's range that folds are balanced in."""

_TRUE, _FALSE = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
"""What says in the event's column that it was seen; 1.0 is what pandas makes of 1 in a column with blanks."""


def task_of(attributes: Mapping[str, Any]) -> str:
    """Give the task of a prediction's attributes or a model's description; those that name none are of classes."""
    return str(attributes.get("task", CLASSIFICATION))


def label_text(row: Mapping[str, str], *, task: str, target: str, event: str, place: str) -> str:
    """Give a row's label as text, empty where it has none.

    Parameters
    ----------
    row
        One row of the labels file.
    task, target, event
        What is learned, from which column; for survival, the column that says whether the event was seen.
    place
        What errors call the row.

    Raises
    ------
    ConfigError
        If a cell is not what the task needs.
    """
    text = row[target]
    if task == CLASSIFICATION or not text:
        return text
    number = _number(text, column=target, place=place)
    if task == "regression":
        return _shortest(number)
    if number <= 0:
        raise ConfigError(f"{place}: {target} is {text}; a time to an event or to the last contact is above 0")
    seen = row[event].strip().lower()
    if seen not in _TRUE + _FALSE:
        raise ConfigError(
            f"{place}: {event} is '{row[event]}'; write 1 where the event was seen and 0 where it was not"
        )
    return _shortest(number) + ("" if seen in _TRUE else "+")


def _number(text: str, *, column: str, place: str) -> float:
    try:
        # Python also reads 1_000 and digits of other scripts, which no spreadsheet writes for a number
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"{place}: {column} is '{text}'; write a number, as in 12.5, or leave the cell empty")
    return number


def _shortest(number: float) -> str:
    """Write a number with as few digits as tell it from every other, a whole one without a point."""
    return repr(number).removesuffix(".0")


def follow_up(label: str) -> tuple[float, bool]:
    """Read a label of survival: the time, and whether the event was seen."""
    return float(label.removesuffix("+")), not label.endswith("+")


def check_outcomes(labels: "Mapping[str, Label]", *, task: str, path: Path, folds: int) -> None:
    """Refuse numbers or follow-ups that cannot be cross-validated.

    Parameters
    ----------
    labels
        Labels by slide id, at least one.
    task
        `survival` or `regression`.
    path
        The labels file, for the messages.
    folds
        Number of outer folds.

    Raises
    ------
    ConfigError
        If all numbers are the same, a patient's slides have different follow-ups, or fewer patients than folds had the
        event.
    """
    if task == "regression":
        if len({label.label for label in labels.values()}) < 2:
            raise ConfigError(f"{path}: every labelled slide has the number {next(iter(labels.values())).label}")
        return
    first: dict[str, str] = {}
    for slide, label in labels.items():
        other = first.setdefault(label.patient_id, slide)
        if labels[other].label != label.label:
            raise ConfigError(
                f"{path}: slides '{other}' and '{slide}' are of patient '{label.patient_id}' but have the follow-ups"
                f" {labels[other].label} and {label.label} (+: no event); correct one"
            )
    events = sum(follow_up(labels[slide].label)[1] for slide in first.values())
    if events < folds:
        raise ConfigError(
            f"{path}: {events} of {len(first)} labelled patients had the event, fewer than the {folds} folds, so some"
            " model could not be judged; label more, or lower evaluation.folds"
        )


def strata(labels: "Mapping[str, Label]", *, task: str, folds: int) -> dict[str, str]:
    """Give what folds are balanced in, by slide: the class, whether the event was seen, or the part of the range."""
    if task == CLASSIFICATION:
        return {slide: label.label for slide, label in labels.items()}
    if task == "survival":
        censored = {label.patient_id for label in labels.values() if not follow_up(label.label)[1]}
        few = len(censored) < folds  # no training part needs one, so they are dealt out with the others
        return {slide: "event" if few or follow_up(label.label)[1] else "censored" for slide, label in labels.items()}
    numbers = sorted(float(label.label) for label in labels.values())
    parts = max(
        1, min(MAX_STRATA, len(numbers) // (2 * folds))
    )  # two of each to test, so that some remain to validate on
    edges = [numbers[len(numbers) * part // parts] for part in range(1, parts)]
    return {slide: f"part {bisect_right(edges, float(label.label)) + 1}" for slide, label in labels.items()}


def check_models(models: list[str], *, task: str) -> None:
    """Raise a ConfigError if a model cannot learn a task."""
    unfit = [name for name in models if name in CLASS_ONLY_MODELS]
    if task != CLASSIFICATION and unfit:
        raise ConfigError(
            f"config: {unfit[0]} has a loss of its own on classes and cannot learn {task}; choose asmil, abmil,"
            " gated_abmil, transmil, aem, mhim, mean_pooling or max_pooling"
        )
