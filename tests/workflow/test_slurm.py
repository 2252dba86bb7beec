"""The profile for SLURM, on a SLURM of one node."""

from collections.abc import Iterator

import pytest

from pipeline import cluster
from tests.workflow.conftest import ROOT, Ran, Study
from tests.workflow.slurm import one_node

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    with one_node():
        yield


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
