"""The cohort table: a row a slide, as `check` writes it and the report reads it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pipeline import store


@dataclass(frozen=True)
class CohortRow:
    """One slide of `cohort.tsv`; lengths in level-0 pixels, `mpp` in um per pixel. Empty where it could not be read.

    `area_mm2` is what was scanned; `note` is the overrides file's; `drawn` names what the user drew: tissue, roi.
    """

    slide_id: str
    path: str
    label: str
    patient_id: str
    site: str
    status: str
    reason: str
    remedy: str
    warnings: str
    width: str = ""
    height: str = ""
    mpp: str = ""
    mpp_source: str = ""
    objective: str = ""
    vendor: str = ""
    levels: str = ""
    downsamples: str = ""
    bytes: str = ""
    fingerprint: str = ""
    compression: str = ""
    area_mm2: str = ""
    note: str = ""
    drawn: str = ""


COLUMNS = tuple(field.name for field in fields(CohortRow))


def duplicates(rows: Sequence[CohortRow]) -> list[tuple[str, str]]:
    """Give pairs of slides that are the same file, by fingerprint."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(row.fingerprint, row.slide_id), row.slide_id) for row in rows]
    return [(one, other) for one, other in pairs if one != other]


def write_cohort(path: Path, rows: Sequence[CohortRow]) -> None:
    """Write the cohort table as tab-separated text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([tuple(getattr(row, column) for column in COLUMNS) for row in rows])
    store.write_text(path, buffer.getvalue())


def read_cohort(path: Path) -> list[CohortRow]:
    """Read what `write_cohort` wrote."""
    with path.open(encoding="utf-8", newline="") as handle:
        return [CohortRow(**row) for row in csv.DictReader(handle, delimiter="\t")]
