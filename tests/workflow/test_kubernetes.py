"""The profile for Kubernetes, on a server of the tests that runs pods as processes: there is no Kubernetes here."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline import kubernetes
from pipeline.submission import Request
from tests.workflow.conftest import ROOT, Ran, Study, results_of
from tests.workflow.kubernetes import Cluster, one_node, run_pod

REQUEST = Request(
    name="asmil-train",
    command=("/bin/sh", "/study/job.sh"),
    threads=2,
    gpus=1,
    memory_mb=3000,
    disk_mb=1500,
    minutes=60,
)


@dataclass(frozen=True)
class StudyInPod(Study):
    """A study whose run takes place in a pod."""

    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.defpath}"  # as in the container, where there is one Python only
        return {**super().environment, **self.variables, "PATH": path}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Give a cluster without a study, for jobs that never start."""
    return Cluster(tmp_path)


@pytest.fixture
def pod(cluster: Cluster, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Give the environment of a pod."""
    with one_node(cluster, tmp_path / "account") as variables:
        yield {**os.environ, **variables, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def study(finished: Study, cluster: Cluster, tmp_path: Path) -> Iterator[StudyInPod]:
    cluster.folder, cluster.variables = finished.folder, StudyInPod(finished.folder).environment
    with one_node(cluster, tmp_path / "account") as variables:
        yield StudyInPod(finished.folder, variables)


def submit(study: Study, *arguments: str) -> Ran:
    if importlib.util.find_spec("snakemake_executor_plugin_cluster_generic") is None:
        pytest.skip("snakemake-executor-plugin-cluster-generic is not installed (pip install -r requirements.lock)")
    profile = str(ROOT / "workflow" / "profiles" / "kubernetes")
    quick = ("--seconds-between-status-checks", "2", "--latency-wait", "10", "--max-threads", "2")
    return study.run("--workflow-profile", profile, *quick, *arguments)


@pytest.mark.slow
def test_a_new_slide_goes_through_and_a_killed_job_gets_more_memory_in_pods(
    study: StudyInPod, cluster: Cluster
) -> None:
    expected = results_of(study)
    for path in (study.folder / "results").rglob("new.ü*"):
        if path.is_file():
            path.unlink()
    (study.folder / "reports" / "heatmaps" / "new.ü.png").unlink()
    cluster.kill_below_mi["asmil-embed"] = 5000
    ran = submit(study)
    assert ran.code == 0, ran.output
    assert results_of(study) == expected
    assert "OOMKilled" in ran.output
    names = [name.rpartition("-")[0] for name in cluster.jobs]
    assert sorted(names) == ["asmil-embed", "asmil-embed", "asmil-pictures", "asmil-report", "asmil-tiles"]
    first, second = (cluster.pod(name)["containers"][0] for name in cluster.jobs if name.startswith("asmil-embed"))
    assert int(second["resources"]["limits"]["memory"][:-2]) == 2 * int(first["resources"]["limits"]["memory"][:-2])


@pytest.mark.slow
def test_a_failing_pod_ends_the_run(study: StudyInPod) -> None:
    (study.folder / "results" / "bags" / "slide 0.zarr.zip").write_bytes(b"no zip file")
    only = ("--forcerun", "split", "--until", "split", "--restart-times", "0", "--rerun-triggers", "params")
    ran = submit(study, *only)
    assert ran.code == 1, ran.output
    assert "failed (Error, exit code 1)" in ran.output
    assert "slide 0.zarr.zip" in ran.output


def ask(pod: dict[str, str], *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.kubernetes", *words],
        env={**pod, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_busy_server_is_asked_again(pod: dict[str, str], cluster: Cluster) -> None:
    cluster.jobs["asmil-tile-1"], cluster.ended["asmil-tile-1"], cluster.busy = {}, 0, 1
    asked = ask(pod, "status", "asmil-tile-1")
    assert (asked.stdout, cluster.busy) == ("success\n", 0)


def test_a_server_that_does_not_answer_leaves_a_job_running(pod: dict[str, str]) -> None:
    asked = ask(pod, "status", "asmil-tile-1", KUBERNETES_SERVICE_PORT="9")
    assert asked.stdout == "running\n"
    assert asked.stderr.startswith("Warning: Kubernetes did not answer")


def job_script(folder: Path) -> str:
    path = folder / "job.sh"
    resources = {"mem_mb": 1000, "runtime": 10}
    path.write_text(f"# properties = {json.dumps({'rule': 'tile', 'threads': 1, 'resources': resources})}\n")
    return str(path)


def test_a_job_whose_answer_was_lost_is_not_made_twice(pod: dict[str, str], cluster: Cluster, tmp_path: Path) -> None:
    cluster.lost = 1
    asked = ask(pod, "submit", job_script(tmp_path))
    assert asked.returncode == 0, asked.stderr
    assert [asked.stdout.strip()] == list(cluster.jobs)


def test_a_job_that_was_deleted_has_failed(pod: dict[str, str]) -> None:
    asked = ask(pod, "status", "asmil-tile-1")
    assert asked.stdout == "failed\n"
    assert "is gone" in asked.stderr


def test_outside_a_pod_and_when_refused_one_sentence_says_what_to_do(pod: dict[str, str], tmp_path: Path) -> None:
    script = job_script(tmp_path)
    outside = ask(pod, "submit", script, ASMIL_SERVICE_ACCOUNT="/nowhere")
    assert outside.returncode == 1
    assert outside.stderr.startswith("Error: this is no pod of Kubernetes")
    (tmp_path / "account" / "token").write_text("other")
    refused = ask(pod, "submit", script)
    assert refused.returncode == 1
    assert "forbidden; look at the role" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_job_is_a_copy_of_the_runs_pod_with_resources_of_its_own_and_ends_with_it() -> None:
    run, job = run_pod(), kubernetes.manifest(run_pod(), REQUEST, name="asmil-train-1")
    assert job["metadata"]["ownerReferences"][0]["uid"] == run["metadata"]["uid"]
    spec, whole = job["spec"]["template"]["spec"], run["spec"]
    assert spec["serviceAccountName"] == whole["serviceAccountName"]
    assert spec["securityContext"] == whole["securityContext"]
    assert spec["volumes"] == whole["volumes"][:1]  # not the token's, which Kubernetes adds
    assert "nodeName" not in spec
    assert spec["activeDeadlineSeconds"] == 3600
    container, of_run = spec["containers"][0], whole["containers"][0]
    assert {key: container[key] for key in ("image", "env", "envFrom", "workingDir", "securityContext")} == {
        key: of_run[key] for key in ("image", "env", "envFrom", "workingDir", "securityContext")
    }
    assert container["volumeMounts"] == of_run["volumeMounts"][:1]
    assert container["resources"] == {
        "requests": {"cpu": "2", "memory": "3000Mi", "ephemeral-storage": "1500Mi", "nvidia.com/gpu": "1"},
        "limits": {"memory": "3000Mi", "nvidia.com/gpu": "1"},
    }
