"""Look at every slide's header before any work is done, and write the cohort table."""

import csv
import io
import logging
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

from pipeline import store
from pipeline.cohort import Cohort, Label, Override
from pipeline.errors import SlideError
from pipeline.fingerprint import fingerprint
from pipeline.slide import open_slide

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CohortRow:
    """One slide of `cohort.tsv`; lengths in level-0 pixels, `mpp` in um per pixel. Empty where it could not be read."""

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


COLUMNS = tuple(field.name for field in fields(CohortRow))


def describe(
    slide_id: str,
    path: Path,
    *,
    label: Label | None,
    override: Override | None,
    default_mpp: float | None,
    mpp_from_objective: bool,
) -> CohortRow:
    """Describe one slide by its header; a slide that cannot be used has its reason and remedy."""
    given = label or Label("", slide_id)
    known = {
        "slide_id": slide_id,
        "path": str(path),
        "label": given.label,
        "patient_id": given.patient_id,
        "site": given.site,
    }
    try:
        with open_slide(
            path,
            mpp=override.mpp if override else None,
            default_mpp=default_mpp,
            mpp_from_objective=mpp_from_objective,
        ) as slide:
            return CohortRow(
                **known,
                status=store.OK,
                reason="",
                remedy="",
                warnings=" ".join(slide.warnings),
                width=str(slide.width),
                height=str(slide.height),
                mpp=f"{slide.mpp:.4f}",
                mpp_source=slide.mpp_source,
                objective="" if slide.objective is None else f"{slide.objective:g}",
                vendor=slide.vendor,
                levels=str(len(slide.level_downsamples)),
                downsamples=" ".join(f"{downsample:.4g}" for downsample in slide.level_downsamples),
                bytes=str(path.stat().st_size),
                fingerprint=slide.fingerprint,
            )
    except SlideError as error:
        return CohortRow(
            **known,
            status=store.QUARANTINED,
            reason=error.reason,
            remedy=error.remedy,
            warnings="",
            bytes=str(path.stat().st_size),
            fingerprint=fingerprint(path),
        )


def run(
    cohort: Cohort, *, output: Path, default_mpp: float | None, mpp_from_objective: bool, threads: int
) -> list[CohortRow]:
    """Open every slide once, in parallel, write `cohort.tsv` and log what was found.

    Parameters
    ----------
    cohort
        The slides and what the user said of them.
    output
        The table to write, a row a slide in the order of `cohort.slides`.
    default_mpp, mpp_from_objective
        As `pipeline.slide.open_slide` takes them.
    threads
        Slides opened at a time.
    """
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        rows = list(
            pool.map(
                lambda item: describe(
                    item[0],
                    item[1],
                    label=cohort.labels.get(item[0]),
                    override=cohort.overrides.get(item[0]),
                    default_mpp=default_mpp,
                    mpp_from_objective=mpp_from_objective,
                ),
                cohort.slides.items(),
            )
        )
    write_cohort(output, rows)
    _log_findings(cohort, rows, seconds=time.perf_counter() - start)
    return rows


def _log_findings(cohort: Cohort, rows: Sequence[CohortRow], *, seconds: float) -> None:
    for warning in cohort.warnings:
        log.warning("%s", warning)
    for row in rows:
        if row.status != store.OK:
            log.warning("%s: %s; %s.", row.slide_id, row.reason, row.remedy)
        elif row.warnings:
            log.warning("%s: %s", row.slide_id, row.warnings)
    for first, second in duplicates(rows):
        log.warning("%s and %s are the same file.", first, second)
    counts = Counter(row.label for row in rows if row.label)
    log.info(
        "%d slides in %.1f s: %d usable, %d labelled (%s), %d patients",
        len(rows),
        seconds,
        sum(row.status == store.OK for row in rows),
        sum(counts.values()),
        ", ".join(f"{name} {count}" for name, count in sorted(counts.items())),
        len({row.patient_id for row in rows if row.label}),
    )


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
