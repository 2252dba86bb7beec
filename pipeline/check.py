"""Look at every slide's header before any work is done, and write the cohort table."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import bucket, isolation, store
from pipeline.cohort import Cohort, Drawn, Label, Override
from pipeline.cohort_summary import summarise
from pipeline.cohort_table import CohortRow, complete, write_cohort
from pipeline.errors import SlideError
from pipeline.fingerprint import UNREADABLE, fingerprint, gone
from pipeline.forecast import Forecast, Work, forecast
from pipeline.forecast import describe as describe_forecast
from pipeline.formats import companions
from pipeline.intake import compression_of
from pipeline.options import STALLED_AFTER_S
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
    known = {**_said(slide_id, path, label=label, override=override, drawn=drawn), "bytes": str(_bytes(path))}
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
        return _left_out(known, error, print_=fingerprint(path))


def _said(
    slide_id: str, path: bucket.Location, *, label: Label | None, override: Override | None, drawn: Drawn | None
) -> dict[str, str]:
    """Give the cells of a row that are known without the slide's file."""
    given = label or Label("", slide_id)
    outlines = drawn or Drawn()
    return {
        "note": override.note if override else "",
        "drawn": " ".join(kind for kind in ("tissue", "roi") if getattr(outlines, kind) is not None),
        "slide_id": slide_id,
        "path": str(path),
        "label": given.label,
        "patient_id": given.patient_id,
        "site": given.site,
    }


def _left_out(known: Mapping[str, str], error: SlideError, *, print_: str) -> CohortRow:
    status = store.QUARANTINED
    reasons = {"reason": error.reason, "remedy": error.remedy, "warnings": "", "fingerprint": print_}
    return CohortRow(**known, status=status, **reasons)


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
    stalled_after_s: float = STALLED_AFTER_S,
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
    stalled_after_s
        Seconds without an opened slide after which those that are being opened are taken to hang.

    Raises
    ------
    PipelineError
        If a slide is not there any more.
    """
    start = time.perf_counter()
    rows = look(
        cohort,
        default_mpp=default_mpp,
        mpp_from_objective=mpp_from_objective,
        threads=threads,
        stalled_after_s=stalled_after_s,
    )
    seconds = time.perf_counter() - start
    write_cohort(output, rows if tiles is None else complete(rows, tiles))
    areas = {row.slide_id: float(row.area_mm2) for row in rows if row.status == store.OK}
    overrides = {
        # as the row resolved it, whether by override, default or objective
        row.slide_id: Override(mpp=float(row.mpp) if row.mpp_source != "properties" else None)
        for row in rows
        if row.status == store.OK
    }
    found = _forecast(areas, cohort, overrides=overrides, work=work, stalled_after_s=stalled_after_s)
    lines = summarise(cohort, rows, seconds=seconds, work=work)
    lines += ["", "Forecast", *(f"  {line}" for line in _forecast_lines(found, work))]
    store.write_text(summary, "\n".join(lines) + "\n")
    for line in filter(None, lines):
        log.info("%s", line)
    return rows


def look(
    cohort: Cohort,
    *,
    default_mpp: float | None,
    mpp_from_objective: bool,
    threads: int,
    stalled_after_s: float = STALLED_AFTER_S,
) -> list[CohortRow]:
    """Describe every slide of a cohort, `threads` at a time; a slide that crashes or stalls its reader has a row too.

    Parameters and what is raised as for `run`.
    """
    options: dict[str, Any] = {"default_mpp": default_mpp, "mpp_from_objective": mpp_from_objective}

    def said(slide_id: str) -> dict[str, Any]:
        return {
            "label": cohort.known.get(slide_id),
            "override": cohort.overrides.get(slide_id),
            "drawn": cohort.drawn.get(slide_id),
        }

    def one(slide_id: str) -> CohortRow:
        place = cohort.slides[slide_id]
        with bucket.local(place) as path:
            try:
                row = describe(slide_id, path, **said(slide_id), **options)
            except FileNotFoundError as error:
                raise gone(path) from error
        return replace(row, path=str(place))

    def failed(slide_id: str, error: SlideError) -> CohortRow:
        log.warning("%s: %s", slide_id, error)
        known = _said(slide_id, cohort.slides[slide_id], **said(slide_id))
        return _left_out(known, error, print_=UNREADABLE)

    return isolation.each(list(cohort.slides), one, failed=failed, threads=threads, stalled_after_s=stalled_after_s)


def _forecast(
    areas_mm2: Mapping[str, float],
    cohort: Cohort,
    *,
    overrides: Mapping[str, Override],
    work: Work,
    stalled_after_s: float,
) -> Forecast | None:
    """Forecast the work in a process of its own, as it reads pixels; None where that is not possible."""
    # tissue is measured on slides that need no further copy
    here = {name: place for name in areas_mm2 if isinstance(place := cohort.slides[name], Path)}
    if not here:
        return None

    def all_of(_: None) -> Forecast | None:
        return forecast(areas_mm2, here, overrides=overrides, work=work)

    def failed(_: None, error: SlideError) -> None:
        log.warning("no forecast: %s", error.reason)

    return isolation.each([None], all_of, failed=failed, threads=1, stalled_after_s=stalled_after_s)[0]


def _forecast_lines(found: Forecast | None, work: Work) -> list[str]:
    if found is None:
        return ["none: no slide could be looked at cheaply"]
    return describe_forecast(found, encoder=work.encoder)
