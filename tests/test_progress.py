import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from pipeline import progress, pseudonyms
from pipeline.errors import ArtefactError


def touch(path: Path, second: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    os.utime(path, (second, second))


def listed(folder: Path, slides: int) -> Path:
    results = folder / "results"
    results.mkdir()
    (results / "check.tsv").write_text("slide_id\n" + "".join(f"s{index}\n" for index in range(slides)))
    return results


def test_what_is_left_is_counted_and_timed_by_the_jobs_done(tmp_path: Path) -> None:
    results = listed(tmp_path, 10)
    for index in range(10):
        touch(results / "tiles" / f"s{index}.zarr.zip", 1000 + 60 * index)
    for index in range(4):  # the last after a night's break
        touch(results / "bags" / f"s{index}.zarr.zip", 2000 + 600 * index + (40_000 if index == 3 else 0))
    touch(results / "bags" / "of-an-absent-slide.zarr.zip", 1)
    stages = {stage.name: stage for stage in progress.look(results, tmp_path / "reports")}
    assert [(name, stage.done, stage.total) for name, stage in stages.items()] == [
        ("tile", 10, 10),
        ("embed", 4, 10),
        ("predict", 0, 10),
        ("heatmap", 0, 10),
        ("report", 0, 1),
    ]
    assert stages["embed"].pace_s == 600
    words = progress.text(list(stages.values()), now=datetime(2026, 1, 5, 12, 0))
    assert "about 1 h 0 min left for embed: Mon 13:00." in words
    assert "Not known yet for predict, heatmap, report" in words


def test_a_finished_run_says_so_and_a_missing_one_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="has not listed its slides yet"):
        progress.look(tmp_path / "results", tmp_path)
    done = progress.Stage("tile", 3, 3, 1.0)
    assert progress.text([done], now=datetime(2026, 1, 5)).endswith("All is done.")


def test_a_watch_counts_what_this_run_writes_and_falls_silent_when_it_ends(tmp_path: Path) -> None:
    files = [tmp_path / f"{index}" for index in range(5)]
    for file in files:
        touch(file, 1000)  # of an earlier run, to be made anew
    said: list[str] = []
    watch = progress.Watch({"tile": files, "report": [tmp_path / "page"]}, every_s=0.05, say=said.append)
    now = time.time()
    for index in range(3):
        touch(files[index], now + 60 * (index + 1))
    deadline = time.monotonic() + 20
    while not said and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "tile 3/5, report 0/1; about 2 min left without report, until " in said[-1]
    watch.end()
    count = len(said)
    time.sleep(0.2)
    assert len(said) == count


def test_pictures_under_hashed_names_are_counted(tmp_path: Path) -> None:
    results = listed(tmp_path, 2)
    hashed = pseudonyms.make(results / "private", keep=True)
    touch(tmp_path / "reports" / "heatmaps" / f"{hashed.slide('s0')}.png", 2000)
    assert [stage.done for stage in progress.look(results, tmp_path / "reports") if stage.name == "heatmap"] == [1]
    touch(tmp_path / "reports" / "heatmaps" / "s1.png", 3000)  # switched off again
    touch(tmp_path / "reports" / "heatmaps" / "s0.png", 3001)
    assert [stage.done for stage in progress.look(results, tmp_path / "reports") if stage.name == "heatmap"] == [2]
