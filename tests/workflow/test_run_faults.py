"""Snakemake itself killed, and inputs that change under a run: the next run ends in the bits of an undisturbed one."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workflow.conftest import Ran, Study, jobs_in, keeps_checksums, results_of

pytestmark = pytest.mark.slow

WAIT_S = 900


def wait_for(run: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert run.poll() is None, "the run ended before its moment came"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def tear_newest(study: Study) -> list[Path]:
    """Cut the files that were written last, as a power cut does on a disk that does not keep its word."""
    kinds = ("results/tissue/*.*", "results/bags/*.zip", "results/model/fold-*/*.json", "reports/heatmaps/*.png")
    torn = []
    for kind in kinds:
        for path in sorted(study.folder.glob(kind), key=lambda path: path.stat().st_mtime)[-2:]:
            os.truncate(path, path.stat().st_size // 2)
            torn.append(path)
    return torn


def test_snakemake_killed_while_its_jobs_go_on_or_with_them_and_the_power_cut_ends_in_the_same_bits(
    fresh: Study, finished_run: tuple[Study, Ran]
) -> None:
    torn: list[Path] = []
    for stage, with_jobs in (("tile", False), ("train", True), ("heatmap", True)):
        with fresh.start() as run:
            wait_for(run, lambda stage=stage: any(words[0] == stage for _, words in jobs_in(fresh.folder)))  # type: ignore[misc]
            (os.killpg if with_jobs else os.kill)(run.pid, signal.SIGKILL)
            run.wait(timeout=60)
        if with_jobs:
            torn = tear_newest(fresh)
        assert not (fresh.folder / "reports" / "index.html").exists()
    ran = fresh.run()  # the same command, at once: it waits for the jobs that go on, and needs no --unlock
    assert ran.code == 0, ran.output
    assert "The last run in this folder was killed; what it finished is kept" in ran.output
    assert len(torn) > 4
    for path in torn:
        assert not keeps_checksums(fresh.folder) or f"{path.relative_to(fresh.folder)}: damaged" in ran.output
    assert results_of(fresh) == results_of(finished_run[0])
    assert fresh.command_line("verify").returncode == 0
    assert not list(fresh.folder.rglob("*.part"))
    assert not list((fresh.folder / "results").rglob(".*"))
    assert fresh.plan() == {}


def test_slides_and_labels_that_change_during_a_run_cost_their_jobs_and_the_next_run_ends_right(
    fresh: Study, finished_run: tuple[Study, Ran]
) -> None:
    extra = {name: fresh.add_slide(name, seed=60 + number) for number, name in enumerate(("a", "b", "c"))}
    labels = fresh.labels.read_text(encoding="utf-8")
    run = fresh.start("--cores", "1")
    results = fresh.folder / "results"
    wait_for(run, (results / "check.tsv").exists)
    os.kill(run.pid, signal.SIGSTOP)
    begun = {word for _, words in jobs_in(fresh.folder) for word in words}
    gone, changed, *_ = [path for path in extra.values() if str(path.relative_to(fresh.folder)) not in begun]
    gone.rename(gone.with_suffix(".away"))
    fresh.add_slide(changed.stem, seed=70)
    fresh.labels.write_text(labels.replace("slide 0,normal", "slide 0,tumour"), encoding="utf-8")
    os.kill(run.pid, signal.SIGCONT)
    output, _ = run.communicate(timeout=WAIT_S)

    assert run.returncode == 1
    assert f"Error: {changed.relative_to(fresh.folder)} changed after the run was planned; run the same" in output
    assert f"data/raw/{gone.name}" in output
    assert "Error: data/labels.csv or the slides changed after the run was planned; run the" in output
    bags = {path.name.removesuffix(".zarr.zip") for path in (results / "bags").glob("*.zarr.zip")}
    assert bags == {path.stem for path in fresh.raw.glob("*.svs")} - {changed.stem}
    assert not (results / "tiles" / f"{gone.stem}.zarr.zip").exists()
    assert not (results / "model").exists() or not list((results / "model").iterdir())

    fresh.labels.write_text(labels, encoding="utf-8")
    for path in fresh.raw.glob("[abc].*"):
        path.unlink()
    ran = fresh.run()
    assert ran.code == 0, ran.output
    undisturbed, found = results_of(finished_run[0]), results_of(fresh)
    assert {name: found[name] for name in undisturbed} == undisturbed
    assert {name.split("/")[1][0] for name in found.keys() - undisturbed.keys()} <= set(extra)
