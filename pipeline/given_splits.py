"""A splits file of the user's own: who is tested, validated on and trained on in which fold.

Only the standard library is imported here, because the workflow reads the file each time it plans.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.cohort import Label
from pipeline.errors import ConfigError
from pipeline.user_tables import read_csv

log = logging.getLogger(__name__)

Role = Literal["train", "validation", "test"]
COLUMNS = ("slide_id", "fold", "role", "repeat", "patient_id", "label")
"""Columns that the file may have. `patient_id` and `label`, which the workflow's own splits file has, are not read:
those of the labels file count."""
MOST_DIGITS = 6
"""Of a fold's or a repeat's number; Python refuses to read thousands of digits."""


@dataclass(frozen=True)
class Row:
    """One line: the role of a slide in a fold, or without a role the fold that tests it."""

    slide_id: str
    repeat: int
    fold: int
    role: Role | None


def read(path: Path) -> list[Row]:
    """Read a splits file.

    Parameters
    ----------
    path
        CSV with the columns `slide_id`, `fold` and optionally `role` (train, validation, test) and `repeat`. Without
        `role`, `fold` is the one that tests the slide, and all others train on it. Without a validation role in a fold,
        some of its training slides are drawn for it.

    Raises
    ------
    ConfigError
        If the file is missing or malformed, or gives a slide two roles in one fold; the sentence names the line.
    """
    rows: list[Row] = []
    seen: dict[tuple[object, ...], int] = {}
    for line, cells in read_csv(path, required=("slide_id", "fold"), known=COLUMNS):
        role = cells.get("role")
        if role is not None and role not in get_args(Role):
            raise ConfigError(f"{path}, line {line}: role is '{role}'; write train, validation or test")
        numbers = {name: cells.get(name, "0") for name in ("repeat", "fold")}
        for name, text in numbers.items():
            if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
                raise ConfigError(f"{path}, line {line}: {name} is '{text[:40]}'; write a whole number from 0")
        row = Row(cells["slide_id"], int(numbers["repeat"]), int(numbers["fold"]), role)  # type: ignore[arg-type]
        key = (row.slide_id, row.repeat) if role is None else (row.slide_id, row.repeat, row.fold)
        if key in seen:
            what = "two folds" if role is None else "two roles in one fold"
            raise ConfigError(
                f"{path}, line {line}: slide '{row.slide_id}' has {what} (see line {seen[key]}); keep one"
            )
        seen[key] = line
        rows.append(row)
    if not rows:
        raise ConfigError(f"{path} has no rows; give a row a slide and fold, or another evaluation.scheme")
    return rows


def check_slides(rows: Sequence[Row], labels: Mapping[str, Label], *, path: Path) -> None:
    """Refuse a splits file that names slides without a label, or a fold that tests or trains on nothing.

    A file that leaves out labelled slides is warned of.

    Parameters
    ----------
    labels
        Labels of the slides that are present.

    Raises
    ------
    ConfigError
        Naming the slide or the fold.
    """
    unknown = [row.slide_id for row in rows if row.slide_id not in labels]
    if unknown:
        raise ConfigError(
            f"{path} names '{unknown[0]}'{f' and {len(set(unknown)) - 1} more' if len(set(unknown)) > 1 else ''}, which"
            " is no slide that is there and has a label; remove the line, or label the slide"
        )
    if left := sorted(set(labels) - {row.slide_id for row in rows}):
        log.warning(
            "%s names %d of %d labelled slides; the others, the first of them '%s', count in no figure and are"
            " predicted as slides without a label",
            path,
            len(labels) - len(left),
            len(labels),
            left[0],
        )
    for repeat, fold in sorted({(row.repeat, row.fold) for row in rows}):
        roles = set(roles_of(rows, (repeat, fold)).values())
        for role in ("test", "train"):
            if role not in roles:
                raise ConfigError(f"{path}: fold {fold} of repeat {repeat} has no slide with the role {role}; add one")


def roles_of(rows: Sequence[Row], key: tuple[int, int]) -> dict[str, Role]:
    """Give the role of every slide in one (repeat, fold)."""
    repeat, fold = key
    within = [row for row in rows if row.repeat == repeat]
    if any(row.role is not None for row in within):
        return {row.slide_id: row.role for row in within if row.fold == fold and row.role is not None}
    return {row.slide_id: "test" if row.fold == fold else "train" for row in within}
