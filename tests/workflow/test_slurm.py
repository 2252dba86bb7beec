"""The profile for SLURM, on a SLURM of one node."""

import subprocess
from collections.abc import Iterator

import pytest

from pipeline import cluster
from tests.workflow.conftest import ROOT, Ran, Study, results_of
from tests.workflow.slurm import one_node

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    with one_node():
        yield


def jobs_of_slurm() -> list[str]:
    """Give memory, GPUs and end of each job in the order of submission; SLURM forgets them after five minutes."""
    columns = "MinMemory:.20,tres-per-job:.20,State:.20"
    query = ["squeue", "--states=all", "--noheader", "--sort=i", f"--Format={columns}"]
    found = subprocess.run(query, capture_output=True, text=True, check=True)
    return [" ".join(line.split()) for line in found.stdout.splitlines()]


def submit(study: Study, *arguments: str) -> Ran:
    profile = ROOT / "workflow" / "profiles" / "slurm"
    small = ("--max-threads", "2", "--set-resources", "train:mem_mb=1500")
    quick = ("--slurm-init-seconds-before-status-checks", "5", "--seconds-between-status-checks", "5")
    site = ("--slurm-no-account", "--slurm-status-command", "squeue", "--latency-wait", "10")
    return study.run("--workflow-profile", str(profile), *small, *quick, *site, *arguments)


def test_a_failing_job_ends_the_run_on_a_cluster(slurm: None, finished: Study) -> None:
    bag = finished.folder / "results" / "bags" / "slide 0.zarr.zip"
    bag.write_bytes(b"no zip file")
    ran = submit(
        finished, "--forcerun", "split", "--until", "split", "--restart-times", "0", "--rerun-triggers", "params"
    )
    assert ran.code == 1, ran.output
    assert "has been submitted with SLURM jobid" in ran.output
    assert "slide 0.zarr.zip" in ran.output


def test_a_new_slide_goes_through_to_the_report_on_a_cluster(slurm: None, finished: Study) -> None:
    expected = results_of(finished)
    for path in (finished.folder / "results").rglob("new.ü*"):
        if path.is_file():
            path.unlink()
    (finished.folder / "reports" / "heatmaps" / "new.ü.png").unlink()
    ran = submit(finished)
    assert ran.code == 0, ran.output
    assert {name: ran.jobs[name] for name in ("tile", "embed", "predict", "heatmap", "report")} == dict.fromkeys(
        ("tile", "embed", "predict", "heatmap", "report"), 1
    )
    assert results_of(finished) == expected


def test_a_job_killed_for_memory_is_tried_again_with_more_and_gets_a_gpu(slurm: None, finished: Study) -> None:
    weights = finished.folder / "results" / "model" / "fold-1" / "weights.safetensors"
    expected = weights.read_bytes()
    weights.unlink()
    # the interpreter with torch alone takes more than the first attempt gives
    growing = ("--set-resources", "train:mem_mb=500*attempt**2")
    ran = submit(finished, "results/model/fold-1/weights.safetensors", *growing)
    assert ran.code == 0, ran.output
    asked = [line for line in jobs_of_slurm() if line.startswith(("500M", "2000M"))]
    assert [line.split()[0] for line in asked] == ["500M", "2000M"]
    assert all("gpu:1" in line for line in asked)
    assert asked[-1].endswith("COMPLETED")
    assert weights.read_bytes() == expected


@pytest.mark.parametrize("stage", cluster.NEEDS)
def test_a_further_attempt_and_a_larger_slide_ask_for_more(stage: str) -> None:
    small, again, large = (
        (
            cluster.memory_mb(stage, input_mb=size, attempt=attempt),
            cluster.minutes(stage, input_mb=size, attempt=attempt),
        )
        for size, attempt in ((100, 1), (100, 2), (5000, 1))
    )
    assert again[0] >= 2 * small[0] - 1
    assert again[1] >= 2 * small[1] - 1
    assert large >= small
