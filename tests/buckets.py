"""A local server that speaks S3, for as long as a test needs it."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def server() -> Iterator[dict[str, str]]:
    """Start a server; give the environment variables by which programs find it."""
    missing = [name for name in ("boto3", "moto", "flask") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(
            f"no object store can be tried: {', '.join(missing)} not installed (pip install -r requirements.lock)"
        )
    from moto.server import ThreadedMotoServer

    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    started.stop()


def client(variables: dict[str, str]) -> Any:
    """Give a client of the server."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
