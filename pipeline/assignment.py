"""The splits file: which role every labelled slide has in every fold."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from pipeline import checksums, store
from pipeline.errors import ConfigError

Role = Literal["train", "validation", "test"]
COLUMNS = ("slide_id", "patient_id", "label", "repeat", "fold", "role")


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
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([tuple(getattr(row, column) for column in COLUMNS) for row in rows])
    store.write_text(path, buffer.getvalue())


def read_splits(path: Path) -> list[Assignment]:
    """Read what `write_splits` wrote; one whose bytes changed since is renamed, to be made anew."""
    checksums.check(path)
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ConfigError(f"{path}: its columns are not {', '.join(COLUMNS)}; delete it and run the workflow again")
    for row in rows:
        if row["role"] not in get_args(Role):
            raise ConfigError(f"{path}: role '{row['role']}' of slide '{row['slide_id']}' is none of {get_args(Role)}")
    return [
        Assignment(
            slide_id=row["slide_id"],
            patient_id=row["patient_id"],
            label=row["label"],
            repeat=int(row["repeat"]),
            fold=int(row["fold"]),
            role=cast(Role, row["role"]),
        )
        for row in rows
    ]
