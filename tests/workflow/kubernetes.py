"""The part of a Kubernetes server that the workflow speaks to; its pods are processes of this machine."""

import json
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.workflow.conftest import ROOT

RUN = ROOT / "workflow" / "profiles" / "kubernetes" / "run.yaml"
NAMESPACE, TOKEN = "study", "secret"
AT_ONCE = 2


def run_pod() -> dict[str, Any]:
    """Give the pod of `run.yaml` as a server would describe it, with what Kubernetes adds."""
    found = next(found for found in yaml.safe_load_all(RUN.read_text()) if found["kind"] == "Job")
    spec = found["spec"]["template"]["spec"]
    spec["nodeName"] = "node-1"
    spec["volumes"].append({"name": "kube-api-access-x7k2p", "projected": {"sources": []}})
    spec["containers"][0]["volumeMounts"].append({"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets"})
    return {"metadata": {"name": "asmil-wsi-run-b4x9z", "uid": "0c2f"}, "spec": spec}


@dataclass
class Cluster:
    """What was asked of the server, and how each job stands.

    Parameters
    ----------
    folder
        The study, where the pods' working directory is.
    variables
        Environment of the pods.
    kill_below_mi
        By beginning of a job's name: with less memory it is killed before it begins, as by the kernel.
    """

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    kill_below_mi: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    busy: int = 0
    """Answer so many requests with 503 first."""
    lost: int = 0
    """Take so many jobs first and answer with 503 all the same."""

    _turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(AT_ONCE))

    def pod(self, name: str) -> dict[str, Any]:
        return dict(self.jobs[name]["spec"]["template"]["spec"])

    def take(self, job: dict[str, Any]) -> str | None:
        """Start a job, or say what is wrong with it: what a server refuses."""
        name, spec = job["metadata"]["name"], job["spec"]["template"]["spec"]
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
            return f"metadata.name: Invalid value: {name}"
        for container in spec["containers"]:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            if requests.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
                return "nvidia.com/gpu: Limit must be set for non overcommitable resources"
            if not {mount["name"] for mount in container["volumeMounts"]} <= {
                entry["name"] for entry in spec["volumes"]
            }:
                return "spec.containers[0].volumeMounts: Not found"
        self.jobs[name] = job
        threading.Thread(target=self._run, args=(name,), daemon=True).start()
        return None

    def _run(self, name: str) -> None:
        container = self.pod(name)["containers"][0]
        memory_mi = int(container["resources"]["limits"]["memory"].removesuffix("Mi"))
        if any(name.startswith(start) and memory_mi < least for start, least in self.kill_below_mi.items()):
            self.ended[name] = 137
            return
        with self._turn:
            done = subprocess.run(
                container["command"], cwd=self.folder, env=self.variables, capture_output=True, timeout=900, check=False
            )
        self.ended[name] = done.returncode

    def status(self, name: str) -> dict[str, int]:
        if name not in self.ended:
            return {"active": 1}
        return {"succeeded": 1} if self.ended[name] == 0 else {"failed": 1}


@contextmanager
def one_node(cluster: Cluster, account: Path) -> Iterator[dict[str, str]]:
    """Start the server; give the variables that Kubernetes sets in a pod, and write its account's files."""
    account.mkdir()
    key, certificate = _certificate()
    (account / "ca.crt").write_bytes(certificate)
    (account / "token").write_text(TOKEN)
    (account / "namespace").write_text(NAMESPACE)
    (account / "server.pem").write_bytes(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(account / "server.pem")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(server.server_address[1]),
        "ASMIL_SERVICE_ACCOUNT": str(account),
        "POD_NAME": "asmil-wsi-run-b4x9z",
    }
    server.shutdown()
    server.server_close()


def _handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    jobs, pods = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", f"/api/v1/namespaces/{NAMESPACE}/pods"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == f"{pods}/asmil-wsi-run-b4x9z":
                return self.answer(200, run_pod())
            name = self.path.rpartition("/")[2]
            if self.path.startswith(f"{pods}?labelSelector=job-name%3D"):
                code = cluster.ended[self.path.rpartition("%3D")[2]]
                ended = {"reason": "OOMKilled" if code == 137 else "Error", "exitCode": code}
                found = {"containerStatuses": [{"state": {"terminated": ended}}]}
                return self.answer(200, {"items": [{"status": found}]})
            if self.path == f"{jobs}/{name}" and name in cluster.jobs:
                return self.answer(200, {"status": cluster.status(name)})
            return self.answer(404, {"message": f"{self.path} not found"})

        def do_POST(self) -> None:
            job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if job["metadata"]["name"] in cluster.jobs:
                return self.answer(409, {"reason": "AlreadyExists", "message": "jobs.batch already exists"})
            wrong = cluster.take(job) if self.path == jobs else "no such path"
            if cluster.lost:
                cluster.lost -= 1
                return self.answer(503, {"message": "the connection was lost"})
            return self.answer(422, {"message": wrong}) if wrong else self.answer(201, job)

        def answer(self, code: int, body: object) -> None:
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                code, body = 403, {"message": "forbidden"}
            if cluster.busy:
                cluster.busy -= 1
                code, body = 503, {"message": "busy"}
            text = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    return Handler


def _certificate() -> tuple[bytes, bytes]:
    """Give a key and a certificate of it for this machine's own address."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private, certificate.public_bytes(serialization.Encoding.PEM)
