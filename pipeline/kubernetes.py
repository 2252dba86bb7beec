"""Jobs of a run in Kubernetes: each in a copy of the pod that Snakemake runs in, with resources of its own.

Snakemake's own plugin for Kubernetes assumes that no folder is shared and that every file lies in a store; this
workflow's results lie in a folder, so the pods mount one volume. The copy has the image, volumes, variables and account
of the run's pod: they are written once, in workflow/profiles/kubernetes/run.yaml.

Speaks to the cluster's server with the standard library: it is called for each look at each job, and has to be quick.
"""

import http.client
import json
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Literal

from pipeline import submission
from pipeline.errors import PipelineError
from pipeline.submission import Request, UnreachableError

ACCOUNT = Path(os.environ.get("ASMIL_SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
"""Where a pod's token and namespace are, and the certificate of the cluster's server; Kubernetes puts them there."""

GPU = "nvidia.com/gpu"
OF_THE_POD = (
    "imagePullSecrets",
    "securityContext",
    "serviceAccountName",
    "tolerations",
    "runtimeClassName",
    "dnsConfig",
)
OF_THE_CONTAINER = ("image", "imagePullPolicy", "env", "envFrom", "workingDir", "securityContext")
"""What a job's pod has from the run's; not the choice of a node, which the job's resources make."""

INJECTED = "kube-api-access-"
"""Begins the name of the volume that Kubernetes adds to each pod by itself."""

KEPT_S = 24 * 3600
"""For so long a job that ended can be looked at, unless its run's pod goes before it."""

ATTEMPTS, PAUSE_S = 4, 2.0
PASSING = frozenset({409, 429})
"""Refusals that pass: a quota that another job changed at the same moment, and too many requests."""

CORE, BATCH = "/api/v1", "/apis/batch/v1"


def call(method: Literal["GET", "POST"], kind: str, path: str, body: object = None) -> Any:
    """Ask the cluster's server about this pod's namespace.

    Parameters
    ----------
    method
        GET to look, POST to make.
    kind
        Beginning of the address: `CORE` or `BATCH`.
    path
        Address within the namespace.
    body
        What to make.

    Returns
    -------
    Its answer; None where it says that there is no such thing, or that what is to be made is there: names are drawn
    anew for each job, so an earlier attempt has made it, whose answer was lost.

    Raises
    ------
    UnreachableError
        If it did not answer after a few attempts.
    PipelineError
        If it refuses, or this is no pod.
    """
    try:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        token, namespace = ((ACCOUNT / name).read_text().strip() for name in ("token", "namespace"))
        trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    except (KeyError, OSError) as error:
        raise PipelineError(
            "this is no pod of Kubernetes with a service account; start the run with"
            " workflow/profiles/kubernetes/run.yaml, as docs/clusters.md says"
        ) from error
    if ":" in host:
        host = f"[{host}]"
    request = urllib.request.Request(
        f"https://{host}:{port}{kind}/namespaces/{namespace}/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with urllib.request.urlopen(request, context=trusted, timeout=30) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404 and method == "GET":
                return None
            reason, said = _said(error)
            if method == "POST" and reason == "AlreadyExists":
                return None
            if error.code < 500 and error.code not in PASSING:
                raise PipelineError(
                    f"Kubernetes refused {method} {path}: {said}; look at the role in"
                    " workflow/profiles/kubernetes/run.yaml and at the namespace's quota"
                ) from error
            problem = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:  # no connection, none in time, or half an answer
            problem = str(error)
        if attempt < ATTEMPTS:
            time.sleep(PAUSE_S * attempt)
    raise UnreachableError(f"Kubernetes did not answer {method} {path} ({problem}); the same command again goes on")


def _said(error: urllib.error.HTTPError) -> tuple[str, str]:
    """Give the reason of a refusal, in a word that the server has for it, and what the server says of it."""
    text = error.read().decode(errors="replace")
    try:
        found = json.loads(text)
        return str(found.get("reason", "")), str(found["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", text[:300] or str(error.reason)


def manifest(pod: dict[str, Any], request: Request, *, name: str) -> dict[str, Any]:
    """Give the Job for a request.

    Parameters
    ----------
    pod
        The run's pod, as the cluster's server describes it. The Job goes with it: who deletes the run ends its jobs.
    request
        What the job asks for. Memory is a limit too, so that a job that takes more is killed and tried again with more.
    name
        Name of the Job.
    """
    spec = pod["spec"]
    whole = spec["containers"][0]
    memory = f"{request.memory_mb}Mi"
    asked = {"cpu": str(request.threads), "memory": memory}
    if request.disk_mb:
        asked["ephemeral-storage"] = f"{request.disk_mb}Mi"
    gpus = {GPU: str(request.gpus)} if request.gpus else {}
    container = {key: whole[key] for key in OF_THE_CONTAINER if key in whole} | {
        "name": "job",
        "command": list(request.command),
        "resources": {"requests": asked | gpus, "limits": {"memory": memory} | gpus},
        "volumeMounts": [mount for mount in whole.get("volumeMounts", ()) if not mount["name"].startswith(INJECTED)],
    }
    labels = {"app": "asmil-wsi", "asmil-wsi/run": pod["metadata"]["name"][:63].rstrip("-_.")}
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
        "spec": {
            "backoffLimit": 0,  # Snakemake tries again, with more memory and time
            "ttlSecondsAfterFinished": KEPT_S,
            "template": {
                "metadata": {"labels": labels},
                "spec": {key: spec[key] for key in OF_THE_POD if key in spec}
                | {
                    "restartPolicy": "Never",
                    # of the pod and not of the Job, whose time runs while it waits for a node
                    "activeDeadlineSeconds": request.minutes * 60,
                    "containers": [container],
                    "volumes": [
                        volume for volume in spec.get("volumes", ()) if not volume["name"].startswith(INJECTED)
                    ],
                },
            },
        },
    }


def submit(request: Request) -> str:
    """Hand a job to Kubernetes; give its name."""
    here = os.environ.get("POD_NAME", socket.gethostname())
    pod = call("GET", CORE, f"pods/{here}")
    if pod is None:
        raise PipelineError(
            f"Kubernetes knows no pod '{here}' here; set POD_NAME, as workflow/profiles/kubernetes/run.yaml does"
        )
    name = f"{request.name}-{uuid.uuid4().hex[:8]}"
    call("POST", BATCH, "jobs", manifest(pod, request, name=name))
    return name


def status(name: str) -> str:
    """Give running, success or failed; of a failed job also say why, on stderr."""
    job = call("GET", BATCH, f"jobs/{name}")
    if job is None:
        sys.stderr.write(f"{name} is gone: someone deleted it.\n")
        return "failed"
    found = job.get("status", {})
    if found.get("succeeded"):
        return "success"
    if not found.get("failed"):
        return "running"
    sys.stderr.write(f"{name} failed ({_why(name)}).\n")
    return "failed"


def _why(name: str) -> str:
    """Give the reason that Kubernetes has for the end of a job's pod, as OOMKilled or DeadlineExceeded."""
    pods = call("GET", CORE, f"pods?labelSelector=job-name%3D{name}")
    reasons = []
    for pod in pods["items"] if pods else ():
        found = pod.get("status", {})
        reasons += [found["reason"]] if "reason" in found else []
        for container in found.get("containerStatuses", ()):
            ended = container.get("state", {}).get("terminated")
            reasons += [f"{ended.get('reason', 'Error')}, exit code {ended['exitCode']}"] if ended else []
    return "; ".join(reasons) or "no reason given"


if __name__ == "__main__":
    submission.main(submit, status)
