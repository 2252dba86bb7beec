"""Look at every slide's header before any work is done, and write the cohort table."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline import store
from pipeline.cohort import Cohort, Drawn, Label, Override
from pipeline.cohort_summary import summarise
from pipeline.cohort_table import CohortRow, complete, write_cohort
from pipeline.errors import SlideError
from pipeline.fingerprint import fingerprint
from pipeline.forecast import Forecast, Work, forecast
from pipeline.forecast import describe as describe_forecast
from pipeline.formats import companions
from pipeline.intake import compression_of
from pipeline.slide import open_slide

log = logging.getLogger(__name__)


def describe(
    slide_id: str,
    path: Path,
    *,
    label: Label | None,
    override: Override | None,
    drawn: Drawn | None,
    default_mpp: float | None,
    mpp_from_objective: bool,
) -> CohortRow:
    """Describe one slide by its header; a slide that cannot be used has its reason and remedy."""
    given = label or Label("", slide_id)
    outlines = drawn or Drawn()
    known = {
        "note": override.note if override else "",
        "drawn": " ".join(kind for kind in ("tissue", "roi") if getattr(outlines, kind) is not None),
        "bytes": str(_bytes(path)),
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
                fingerprint=slide.fingerprint,
                compression=compression_of(path),
                area_mm2=f"{slide.bounds[2] * slide.bounds[3] * slide.mpp_x * slide.mpp_y / 1e6:.4g}",
            )
    except SlideError as error:
        return CohortRow(
            **known,
            status=store.QUARANTINED,
            reason=error.reason,
            remedy=error.remedy,
            warnings="",
            fingerprint=fingerprint(path),
        )


def _bytes(path: Path) -> int:
    """Give a slide's size with the files that belong to it."""
    files = path.rglob("*") if path.is_dir() else (path, *companions(path))
    return sum(file.stat().st_size for file in files if file.is_file())


def run(
    cohort: Cohort,
    *,
    output: Path,
    summary: Path,
    default_mpp: float | None,
    mpp_from_objective: bool,
    threads: int,
    work: Work,
    tiles: Path | None = None,
) -> list[CohortRow]:
    """Open every slide once, in parallel, write the cohort table and a summary, and log the summary.

    Parameters
    ----------
    cohort
        The slides and what the user said of them.
    output
        The table to write, a row a slide in the order of `cohort.slides`.
    summary
        The text to write.
    default_mpp, mpp_from_objective
        As `pipeline.slide.open_slide` takes them.
    threads
        Slides opened at a time.
    work
        What will be asked of each slide, for the forecast.
    tiles
        Folder of the tiles artefacts of an earlier run, which complete the table.
    """
    start = time.perf_counter()
    rows = look(cohort, default_mpp=default_mpp, mpp_from_objective=mpp_from_objective, threads=threads)
    seconds = time.perf_counter() - start
    write_cohort(output, rows if tiles is None else complete(rows, tiles))
    areas = {row.slide_id: float(row.area_mm2) for row in rows if row.status == store.OK}
    overrides = {
        # as the row resolved it, whether by override, default or objective
        row.slide_id: Override(mpp=float(row.mpp) if row.mpp_source != "properties" else None)
        for row in rows
        if row.status == store.OK
    }
    found = forecast(areas, cohort.slides, overrides=overrides, work=work) if areas else None
    lines = summarise(cohort, rows, seconds=seconds, work=work)
    lines += ["", "Forecast", *(f"  {line}" for line in _forecast_lines(found, work))]
    store.write_text(summary, "\n".join(lines) + "\n")
    for line in filter(None, lines):
        log.info("%s", line)
    return rows


def look(cohort: Cohort, *, default_mpp: float | None, mpp_from_objective: bool, threads: int) -> list[CohortRow]:
    """Describe every slide of a cohort, `threads` at a time; parameters as for `run`."""

    def one(slide_id: str) -> CohortRow:
        return describe(
            slide_id,
            cohort.slides[slide_id],
            label=cohort.known.get(slide_id),
            override=cohort.overrides.get(slide_id),
            drawn=cohort.drawn.get(slide_id),
            default_mpp=default_mpp,
            mpp_from_objective=mpp_from_objective,
        )

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, cohort.slides))


def _forecast_lines(found: Forecast | None, work: Work) -> list[str]:
    if found is None:
        return ["none: no slide could be looked at cheaply"]
    return describe_forecast(found, encoder=work.encoder)
