"""Kills, power cuts, full disks and damaged files: each ends in the bits of an undisturbed run, or in a sentence."""

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workflow.conftest import Ran, Study, jobs_in, keeps_checksums, results_of

pytestmark = pytest.mark.slow

STAGES = ("tile", "embed", "split", "train", "predict-bag", "heatmap", "report")
KILLS_PER_STAGE = 3
LAST_MOMENT_S = {"split": 0.6, "train": 1.5, "report": 0.9}
"""Latest kill after a job was seen; the others live for a second or less. Early, so that a fast machine is hit too."""


@contextmanager
def killer(folder: Path, *, seed: int) -> Iterator[Counter[str]]:
    """Kill each stage's first jobs, or the children they work in, at random moments; counts the kills."""
    chance, kills, stop = random.Random(seed), Counter[str](), threading.Event()
    doomed: dict[int, tuple[float, str]] = {}

    def hunt() -> None:
        while not stop.is_set():
            now = time.monotonic()
            for process, (stage, *_) in jobs_in(folder):
                if stage in STAGES and process not in doomed:
                    doomed[process] = (now + chance.uniform(0.0, LAST_MOMENT_S.get(stage, 0.4)), stage)
            for process, (moment, stage) in list(doomed.items()):
                if now >= moment and kills[stage] < KILLS_PER_STAGE:
                    del doomed[process]
                    try:
                        os.kill(process, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    kills[stage] += 1
            time.sleep(0.02)

    thread = threading.Thread(target=hunt)
    thread.start()
    try:
        yield kills
    finally:
        stop.set()
        thread.join()


def test_twenty_kills_of_all_stages_end_in_the_same_bits(fresh: Study, finished_run: tuple[Study, Ran]) -> None:
    with killer(fresh.folder, seed=7) as kills:
        ran = fresh.run("--retries", "6")
    assert ran.code == 0, ran.output
    assert set(kills) == set(STAGES)
    assert kills.total() >= 20
    assert results_of(fresh) == results_of(finished_run[0])
    assert not list(fresh.folder.rglob("*.part"))
    assert fresh.plan() == {}


def test_a_second_run_in_the_folder_is_refused_and_a_dry_run_is_not(fresh: Study) -> None:
    first = fresh.start()
    lock = fresh.folder / ".snakemake" / "asmil-run.lock"
    while not (lock.exists() and lock.read_text()):
        assert first.poll() is None
        time.sleep(0.05)
    second = fresh.run()
    planned = fresh.run("--dry-run")
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=600)
    assert second.code == 1
    assert second.output.rstrip().splitlines()[-1].startswith(f"Error: another run works in {fresh.folder}")
    assert f"process {first.pid}" in second.output
    assert planned.code == 0, planned.output


def artefacts_of(study: Study) -> list[Path]:
    """Give all that a run wrote but its logs, relative to the study's folder."""
    written = [path for name in ("results", "reports") for path in (study.folder / name).rglob("*") if path.is_file()]
    return sorted(path.relative_to(study.folder) for path in written if "logs" not in path.parts)


def one_of_each_kind(study: Study) -> list[Path]:
    """Give an artefact of every kind that a run writes, of several slides and folds in turn."""
    kinds: dict[str, list[Path]] = {}
    for path in artefacts_of(study):
        kinds.setdefault(re.sub(r"slide \d|new\.ü|fold-\d", "*", str(path)), []).append(path)
    return [paths[number % len(paths)] for number, (_, paths) in enumerate(sorted(kinds.items()))]


def test_a_damaged_artefact_of_any_kind_is_found_and_mended(finished: Study, finished_run: tuple[Study, Ran]) -> None:
    there = artefacts_of(finished)
    kinds = one_of_each_kind(finished)
    assert len(kinds) > 20
    torn = [finished.folder / path for path in kinds]
    for number, path in enumerate(torn):
        content = path.read_bytes()
        if number % 2:
            path.write_bytes(content[: len(content) // 2])
        else:  # a byte that a bad disk changed: same size, a plain look does not tell
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    found = finished.command_line("verify")
    assert found.returncode == 1
    named = [path for path in torn if f"{path.relative_to(finished.folder)}: " in found.stderr]
    if keeps_checksums(finished.folder):
        assert named == torn
        assert f"{len(torn)} of {len(there)} files" in found.stderr
    repaired = finished.command_line("verify", "--repair")
    assert repaired.returncode == 0, repaired.stderr
    ran = finished.run()
    assert ran.code == 0, ran.output
    assert results_of(finished) == results_of(finished_run[0])
    assert finished.command_line("verify").returncode == 0
    assert [path for path in artefacts_of(finished) if path.suffix != ".damaged"] == there


def test_a_stage_that_reads_a_damaged_file_says_so_and_the_same_command_mends_it(finished: Study) -> None:
    before = results_of(finished)
    for name in ("attention/slide 2.zarr.zip", "views/slide 3.json"):
        damaged = finished.folder / "results" / name
        content = damaged.read_bytes()
        damaged.write_bytes(content[: len(content) // 2])  # newer too: what reads it runs
        (finished.folder / "reports" / "metrics.json").unlink(
            missing_ok=True
        )  # and the report, which reads what no rule asks for
        ran = finished.run()
        assert ran.code == 1
        assert f"results/{name}: damaged" in ran.output
        assert "run the same command again, which makes it anew" in ran.output
    ran = finished.run()
    assert ran.code == 0, ran.output
    assert results_of(finished) == before
