"""How far a run is, from the files it has written: what is done, what is left, and when it should end at this pace."""

import itertools
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from pipeline import pseudonyms, tables
from pipeline.errors import ArtefactError

RECENT = 50
"""Last jobs of a stage that tell its pace: the median of the times between them ignores a break between two runs."""
REST = 20
"""A watch rests this many times as long as a look took: on a slow disk it looks less often."""


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
        # the key stays when privacy.hash_ids is switched off again; the newest picture tells which names are in use
        renamed = [hashed.slide(slide) for slide in slides]
        newest = [max((_written(file) for file in _pages(reports, names)), default=0.0) for names in (slides, renamed)]
        shown = renamed if newest[1] > newest[0] else slides
    places["heatmap"] = _pages(reports, shown)
    places["report"] = [reports / "index.html"]
    return [_stage(name, files) for name, files in places.items()]


def _pages(reports: Path, names: list[str]) -> list[Path]:
    return [reports / "heatmaps" / f"{name}.png" for name in names]


def _written(file: Path) -> float:
    """Give the time stamp of a file, s; 0 if there is none."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _stage(name: str, files: list[Path], *, since: float = 0.0) -> Stage:
    times = sorted(found for file in files if (found := _written(file)) > since)
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
    known, unknown = _told(open_stages)
    if known:
        names = ", ".join(stage.name for stage in known)
        lines.append(
            f"At the pace so far about {_left(known, now=now)[0]} left for {names}: {_left(known, now=now)[1]}."
        )
    if unknown:
        lines.append(f"Not known yet for {', '.join(unknown)}: too few jobs are done.")
    return "\n".join(lines)


def line(stages: list[Stage], *, now: datetime) -> str:
    """Write in one line what is done, what is left, and when the run should end."""
    counts = ", ".join(f"{stage.name} {stage.done}/{stage.total}" for stage in stages)
    known, unknown = _told([stage for stage in stages if stage.left])
    words = [f"Progress {now:%H:%M}: {counts}"]
    if known:
        span, end = _left(known, now=now)
        without = f" without {', '.join(unknown)}" if unknown else ""
        words.append(f"about {span} left{without}, until {end}")
    return f"{'; '.join(words)}."


def _told(stages: list[Stage]) -> tuple[list[Stage], list[str]]:
    """Give the stages whose pace is known, and the names of the others."""
    known = [stage for stage in stages if stage.pace_s is not None]
    return known, [stage.name for stage in stages if stage.pace_s is None]


def _left(stages: list[Stage], *, now: datetime) -> tuple[str, str]:
    """Give how long stages of known pace will take one after the other, and when that is."""
    seconds = sum(stage.left * (stage.pace_s or 0.0) for stage in stages)
    return _span(seconds), f"{now + timedelta(seconds=seconds):%a %H:%M}"


class Watch:
    """Says every so often how far a run is, from a thread of its own, until it is ended.

    Parameters
    ----------
    files
        By stage, a file that each of its jobs will write; one that is older than the watch is still to be written anew.
    every_s
        Seconds between two lines.
    say
        What takes a line.
    """

    def __init__(self, files: Mapping[str, list[Path]], *, every_s: float, say: Callable[[str], None]) -> None:
        self._files, self._every_s, self._say = files, every_s, say
        self._since, self._ended = time.time(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def stages(self) -> list[Stage]:
        """Count the jobs of each stage that has some."""
        return [_stage(name, files, since=self._since) for name, files in self._files.items()]

    def _run(self) -> None:
        rest = self._every_s
        while not self._ended.wait(rest):
            began = time.monotonic()
            self._say(line(self.stages(), now=datetime.now().astimezone()))
            rest = max(self._every_s, REST * (time.monotonic() - began))

    def end(self) -> None:
        """Say nothing more."""
        self._ended.set()
        self._thread.join()


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"
