"""Jobs for AWS Batch, against moto's server: it takes and describes jobs, and runs none."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import aws_batch
from pipeline.submission import Request
from tests import buckets

ROOT = Path(__file__).parents[1]
DEFINITION = ROOT / "workflow" / "profiles" / "aws-batch" / "job-definition.json"


class Service:
    """A client of the service, the queues there, and the environment of the run's job."""

    def __init__(self, variables: dict[str, str]) -> None:
        import boto3

        # moto keeps what an earlier server of this process was told
        for address, body in (("reset", {}), ("config", {"batch": {"use_docker": False}})):
            told = f"{variables['AWS_ENDPOINT_URL']}/moto-api/{address}"
            urllib.request.urlopen(told, data=json.dumps(body).encode(), timeout=30).close()
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.client: Any = boto3.client("batch", endpoint_url=variables["AWS_ENDPOINT_URL"], **keys)
        role = boto3.client("iam", endpoint_url=variables["AWS_ENDPOINT_URL"], **keys).create_role(
            RoleName="batch", AssumeRolePolicyDocument="{}"
        )["Role"]["Arn"]
        nodes = self.client.create_compute_environment(
            computeEnvironmentName="nodes", type="UNMANAGED", state="ENABLED", serviceRole=role
        )["computeEnvironmentArn"]
        self.queues = {
            name: self.client.create_job_queue(
                jobQueueName=name,
                state="ENABLED",
                priority=1,
                computeEnvironmentOrder=[{"order": 1, "computeEnvironment": nodes}],
            )["jobQueueArn"]
            for name in ("processors", "gpus")
        }
        self.client.register_job_definition(**json.loads(DEFINITION.read_text()))
        run = self.client.submit_job(
            jobName="run",
            jobQueue="processors",
            jobDefinition="asmil-wsi",
            containerOverrides={"environment": [{"name": "AWS_PROFILE", "value": "slides"}]},
        )
        self.variables = {**variables, "AWS_BATCH_JOB_ID": run["jobId"], "PYTHONPATH": str(ROOT)}

    def ask(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline.aws_batch", *words],
            env={**self.variables, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def described(self, job: str) -> dict[str, Any]:
        return dict(self.client.describe_jobs(jobs=[job])["jobs"][0])


@pytest.fixture
def service() -> Iterator[Service]:
    with buckets.server() as variables:
        yield Service(variables)


def job_script(folder: Path, **resources: int) -> str:
    path = folder / "job.sh"
    path.write_text(
        f"# properties = {json.dumps({'rule': 'train', 'threads': 2, 'resources': resources})}\n", encoding="utf-8"
    )
    return str(path)


def test_a_job_is_the_runs_job_with_command_resources_and_time_of_its_own(service: Service, tmp_path: Path) -> None:
    script = job_script(tmp_path, mem_mb=3000, runtime=61, gpu=0)
    asked = service.ask("submit", script)
    assert asked.returncode == 0, asked.stderr
    found = service.described(asked.stdout.strip())
    assert found["jobName"].startswith("asmil-train-")
    assert found["jobDefinition"] == service.described(service.variables["AWS_BATCH_JOB_ID"])["jobDefinition"]
    assert found["jobQueue"] == service.queues["processors"]
    assert found["timeout"] == {"attemptDurationSeconds": 3660}
    container = found["container"]
    assert container["command"] == ["/bin/sh", script]
    assert {"name": "AWS_PROFILE", "value": "slides"} in container["environment"]
    assert service.ask("status", asked.stdout.strip()).stdout == "success\n"


def test_a_job_with_a_gpu_goes_to_the_queue_with_gpus(service: Service, tmp_path: Path) -> None:
    asked = service.ask("submit", job_script(tmp_path, mem_mb=3000, runtime=61, gpu=1), ASMIL_GPU_QUEUE="gpus")
    assert asked.returncode == 0, asked.stderr
    found = service.described(asked.stdout.strip())
    assert found["jobQueue"] == service.queues["gpus"]


def test_processors_memory_and_gpus_are_those_of_the_job() -> None:  # moto does not say them of a job
    request = Request(name="asmil-train", command=("true",), threads=2, gpus=1, memory_mb=3000, disk_mb=0, minutes=60)
    for gpus, asked in ((0, {"VCPU": "2", "MEMORY": "3000"}), (1, {"VCPU": "2", "MEMORY": "3000", "GPU": "1"})):
        found = aws_batch.overrides(replace(request, gpus=gpus), variables={})["resourceRequirements"]
        assert {entry["type"]: entry["value"] for entry in found} == asked


def test_a_job_that_batch_does_not_know_has_failed(service: Service) -> None:
    asked = service.ask("status", "00000000-0000-0000-0000-000000000000")
    assert asked.stdout == "failed\n"


def test_a_service_that_does_not_answer_leaves_a_job_running(service: Service) -> None:
    asked = service.ask("status", "some-job", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert asked.stdout == "running\n"
    assert asked.stderr.startswith("Warning: AWS Batch did not answer")


@pytest.mark.parametrize(
    ("code", "name", "busy"),
    [
        (500, "ServerException", True),
        (429, "TooManyRequestsException", True),
        (400, "ThrottlingException", True),
        (403, "AccessDeniedException", False),
        (400, "ClientException", False),
    ],
)
def test_a_refusal_is_told_from_a_busy_service(code: int, name: str, busy: bool) -> None:
    answer = {"ResponseMetadata": {"HTTPStatusCode": code}, "Error": {"Code": name}}
    assert aws_batch._is_busy(answer) is busy


def test_what_cannot_be_submitted_is_said_in_one_sentence(service: Service, tmp_path: Path) -> None:
    script = job_script(tmp_path, mem_mb=3000, runtime=61)
    for variables, said in (
        ({"AWS_BATCH_JOB_ID": ""}, "this is no job of AWS Batch"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "AWS Batch did not answer"),
    ):
        asked = service.ask("submit", script, **variables)
        assert (asked.returncode, asked.stdout) == (1, "")
        assert asked.stderr.startswith(f"Error: {said}")
        assert len(asked.stderr.splitlines()) == 1
    no_time = service.ask("submit", job_script(tmp_path, mem_mb=3000))
    assert "does not say runtime; give it with --default-resources" in no_time.stderr
