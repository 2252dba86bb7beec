"""The splits file: which role every labelled slide has in every fold."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from pipeline import checksums, store, tables
from pipeline.errors import ConfigError

Role = Literal["train", "validation", "test"]
COLUMNS = ("slide_id", "patient_id", "label", "repeat", "fold", "role")
MAKE_ANEW = "delete it and run the workflow again"


@dataclass(frozen=True)
class Assignment:
    """The role of one slide in one fold. `fold` counts through all repeats: repeat 1 of 5 folds is folds 5 to 9."""

    slide_id: str
    patient_id: str
    label: str
    repeat: int
    fold: int
    role: Role


def write_splits(path: Path, rows: Iterable[Assignment]) -> None:
    """Write the assignments as CSV."""
    cells = [tuple(getattr(row, column) for column in COLUMNS) for row in rows]
    store.write_text(path, tables.text([COLUMNS, *cells], delimiter=","))


def read_splits(path: Path) -> list[Assignment]:
    """Read what `write_splits` wrote; one whose bytes changed since is renamed, to be made anew."""
    checksums.check(path)
    try:
        header, *rows = [*tables.lines(path, delimiter=",")] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: is no CSV table ({error}); {MAKE_ANEW}") from error
    if tuple(header) != COLUMNS:
        raise ConfigError(f"{path}: its columns are not {', '.join(COLUMNS)}; {MAKE_ANEW}")
    return [_assignment(path, row) for row in rows]


def _assignment(path: Path, row: list[str]) -> Assignment:
    if len(row) != len(COLUMNS):
        raise ConfigError(f"{path}: the row of slide '{row[0]}' has {len(row)} of {len(COLUMNS)} cells; {MAKE_ANEW}")
    slide, patient, label, repeat, fold, role = row
    if role not in get_args(Role):
        raise ConfigError(f"{path}: role '{role}' of slide '{slide}' is none of {get_args(Role)}; {MAKE_ANEW}")
    try:
        return Assignment(slide, patient, label, int(repeat), int(fold), cast(Role, role))
    except ValueError as error:
        raise ConfigError(
            f"{path}: repeat '{repeat}' or fold '{fold}' of slide '{slide}' is no whole number; {MAKE_ANEW}"
        ) from error
