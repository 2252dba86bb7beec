"""Jobs of a run in AWS Batch: each is the run's own job once more, with a command and resources of its own.

Snakemake's own plugin for Batch assumes that no folder is shared and mounts none. This workflow's results lie in a
folder, so the run's job definition mounts a file system, and its jobs with it
(workflow/profiles/aws-batch/job-definition.json).
"""

import os
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from pipeline import submission
from pipeline.errors import PipelineError
from pipeline.submission import Request, UnreachableError

OWN = "AWS_BATCH_"
"""Begins the name of variables that Batch gives to each job by itself."""

GPU_QUEUE = "ASMIL_GPU_QUEUE"
"""Variable that names the queue for jobs with a GPU; without it they go where the run is."""


def client() -> Any:
    """Give the client of the service.

    Raises
    ------
    PipelineError
        If boto3 is not installed, or no region is set.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import NoRegionError
    except ImportError as error:
        raise PipelineError("boto3 is not installed, which AWS Batch needs; pip install '.[cloud]'") from error
    try:
        return boto3.client("batch", config=Config(retries={"mode": "standard", "max_attempts": 8}))
    except NoRegionError as error:
        raise PipelineError("AWS Batch needs a region; set AWS_DEFAULT_REGION in the job definition") from error


def overrides(request: Request, *, variables: dict[str, str]) -> dict[str, Any]:
    """Give what a job has of its own: command, variables and resources; Batch kills what takes more memory."""
    asked = {"VCPU": request.threads, "MEMORY": request.memory_mb} | ({"GPU": request.gpus} if request.gpus else {})
    return {
        "command": list(request.command),
        "environment": [{"name": name, "value": value} for name, value in variables.items()],
        "resourceRequirements": [{"type": kind, "value": str(value)} for kind, value in asked.items()],
    }


def _described(job: str) -> dict[str, Any]:
    """Give what Batch knows of a job; empty where it does not know it.

    Raises
    ------
    UnreachableError
        If it did not answer, or was busy, after a few attempts.
    PipelineError
        If it refuses.
    """
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as NoConnectionError

    try:
        jobs = client().describe_jobs(jobs=[job])["jobs"]
    except (HTTPClientError, NoConnectionError) as error:
        raise UnreachableError(f"AWS Batch did not answer ({error}); the same command again goes on") from error
    except (BotoCoreError, ClientError) as error:
        busy = isinstance(error, ClientError) and _is_busy(error.response)
        raise (UnreachableError if busy else PipelineError)(
            f"AWS Batch answered '{error}'; the run's role needs batch:DescribeJobs and batch:SubmitJob"
        ) from error
    return dict(jobs[0]) if jobs else {}


def _is_busy(answer: Mapping[str, Any]) -> bool:
    """Tell an answer that a later attempt may not meet."""
    code = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return code >= 500 or code == 429 or "Throttl" in answer.get("Error", {}).get("Code", "")


def submit(request: Request) -> str:
    """Hand a job to Batch; give its id."""
    from botocore.exceptions import BotoCoreError, ClientError

    own = os.environ.get("AWS_BATCH_JOB_ID")
    run = _described(own) if own else {}
    if not run:
        raise PipelineError("this is no job of AWS Batch; submit the run as one, as docs/clusters.md says")
    given = {entry["name"]: entry["value"] for entry in run["container"].get("environment", ())}
    queue = os.environ.get(GPU_QUEUE, run["jobQueue"]) if request.gpus else run["jobQueue"]
    try:
        answer = client().submit_job(
            jobName=f"{request.name}-{uuid.uuid4().hex[:8]}",
            jobQueue=queue,
            jobDefinition=run["jobDefinition"],
            containerOverrides=overrides(
                request, variables={name: value for name, value in given.items() if not name.startswith(OWN)}
            ),
            retryStrategy={"attempts": 1},  # Snakemake tries again, with more memory and time
            timeout={"attemptDurationSeconds": 60 * request.minutes},
        )
    except (BotoCoreError, ClientError) as error:
        raise PipelineError(f"AWS Batch did not take {request.name}: {error}") from error
    return str(answer["jobId"])


def status(job: str) -> str:
    """Give running, success or failed; of a failed job also say why, on stderr."""
    found = _described(job)
    if found.get("status") == "SUCCEEDED":
        return "success"
    if found and found["status"] != "FAILED":
        return "running"
    reasons = (found.get("statusReason"), found.get("container", {}).get("reason"))
    sys.stderr.write(f"{job} failed ({'; '.join(filter(None, reasons)) or 'no reason given'}).\n")
    return "failed"


if __name__ == "__main__":
    submission.main(submit, status)
