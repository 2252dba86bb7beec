"""How far a run is, from the files it has written: what is done, what is left, and when it should end at this pace."""

import itertools
import statistics
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pipeline import pseudonyms, tables
from pipeline.errors import ArtefactError

RECENT = 50
"""Last jobs of a stage that tell its pace: the median of the times between them ignores a break between two runs."""


@dataclass(frozen=True)
class Stage:
    """A stage: its name, jobs done and jobs in all, and the pace in seconds a job (None: fewer than two are done)."""

    name: str
    done: int
    total: int
    pace_s: float | None

    @property
    def left(self) -> int:
        """Jobs that are left."""
        return max(0, self.total - self.done)


def look(results: Path, reports: Path) -> list[Stage]:
    """Count the jobs of each stage.

    Raises
    ------
    ArtefactError
        If the run has not listed its slides yet.
    """
    table, splits = results / "check.tsv", results / "model" / "splits.csv"
    if not table.exists():
        raise ArtefactError(f"{table}: no such file; the run has not listed its slides yet, or it is in another folder")
    slides = [row["slide_id"] for row in tables.rows(table, delimiter="\t")]
    places = {
        "tile": [results / "tiles" / f"{slide}.zarr.zip" for slide in slides],
        "embed": [results / "bags" / f"{slide}.zarr.zip" for slide in slides],
    }
    if splits.exists():
        folds = sorted({int(row["fold"]) for row in tables.rows(splits, delimiter=",")})
        places["train"] = [results / "model" / f"fold-{fold}" / "model.json" for fold in folds]
    places["predict"] = [results / "attention" / f"{slide}.zarr.zip" for slide in slides]
    shown = slides
    if (results / "private" / pseudonyms.KEY).exists():
        hashed = pseudonyms.load(results / "private")
        # the key stays when privacy.hash_ids is switched off again; the pictures tell which names are in use
        renamed = [hashed.slide(slide) for slide in slides]
        shown = renamed if any((reports / "heatmaps" / f"{name}.png").exists() for name in renamed) else slides
    places["heatmap"] = [reports / "heatmaps" / f"{slide}.png" for slide in shown]
    places["report"] = [reports / "index.html"]
    return [_stage(name, files) for name, files in places.items()]


def _stage(name: str, files: list[Path]) -> Stage:
    times = sorted(file.stat().st_mtime for file in files if file.exists())
    recent = times[-RECENT:]
    gaps = [later - earlier for earlier, later in itertools.pairwise(recent)]
    return Stage(name, len(times), len(files), statistics.median(gaps) if gaps else None)


def text(stages: list[Stage], *, now: datetime) -> str:
    """Write a line a stage, and when the run should end."""
    lines = [
        f"{stage.name:8} {stage.done:>6} of {stage.total:<6} {'done' if not stage.left else f'{stage.left} left'}"
        for stage in stages
    ]
    open_stages = [stage for stage in stages if stage.left]
    if not open_stages:
        return "\n".join([*lines, "All is done."])
    known = [stage for stage in open_stages if stage.pace_s is not None]
    seconds = sum(stage.left * (stage.pace_s or 0.0) for stage in known)
    unknown = [stage.name for stage in open_stages if stage.pace_s is None]
    if known:
        end = now + timedelta(seconds=seconds)
        names = ", ".join(stage.name for stage in known)
        lines.append(f"At the pace so far about {_span(seconds)} left for {names}: {end:%a %H:%M}.")
    if unknown:
        lines.append(f"Not known yet for {', '.join(unknown)}: too few jobs are done.")
    return "\n".join(lines)


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"
