"""Slides and results in a bucket, against a server on this machine."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import archive, bucket
from pipeline.discovery import discover_in_bucket
from pipeline.errors import ConfigError, PipelineError
from tests import buckets

URL = "s3://slides/raw"


@pytest.fixture(scope="module")
def variables() -> Iterator[dict[str, str]]:
    with buckets.server() as found:
        yield found


@pytest.fixture
def store(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    for name, value in {**variables, "TMPDIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", None)
    bucket._client.cache_clear()
    client = buckets.client(variables)
    client.create_bucket(Bucket="slides")
    yield client
    for entry in client.list_objects_v2(Bucket="slides").get("Contents", ()):
        client.delete_object(Bucket="slides", Key=entry["Key"])
    client.delete_bucket(Bucket="slides")
    bucket._client.cache_clear()


def put(client: Any, *keys: str, body: bytes = b"x") -> None:
    for key in keys:
        client.put_object(Bucket="slides", Key=key, Body=body)


def test_slides_of_one_and_of_many_files_are_found_below_the_address(store: Any) -> None:
    put(store, "raw/a b.svs", "raw/site/ü.tiff", "raw/m.mrxs", "raw/m/Slidedat.ini", "raw/d/1.dcm", "raw/d/2.dcm")
    put(store, "raw/.hidden.svs", "raw/notes.txt", "raw/h.vms", "rawer/other.svs")
    found, warnings = discover_in_bucket(URL)
    assert {name: (str(slide), len(slide.objects)) for name, slide in found.items()} == {
        "a b": ("s3://slides/raw/a b.svs", 1),
        "d": ("s3://slides/raw/d/", 2),
        "m": ("s3://slides/raw/m.mrxs", 2),
        "site__ü": ("s3://slides/raw/site/ü.tiff", 1),
    }
    assert [warning.split(" is")[0] for warning in warnings] == ["s3://slides/raw/h.vms"]


def test_two_slides_of_one_id_are_an_error_that_names_both(store: Any) -> None:
    put(store, "raw/a.svs", "raw/a.tiff")
    with pytest.raises(ConfigError, match=r"s3://slides/raw/a.svs and s3://slides/raw/a.tiff have the same slide id"):
        discover_in_bucket(URL)


def test_a_replaced_object_changes_the_fingerprint_and_a_moved_one_does_not(store: Any) -> None:
    prints = []
    for key, body in (("raw/a.svs", b"1"), ("raw/a.svs", b"2"), ("raw/site/a.svs", b"2")):
        store.delete_object(Bucket="slides", Key="raw/a.svs")
        put(store, key, body=body)
        (slide,) = discover_in_bucket(URL)[0].values()
        prints.append(slide.fingerprint)
    assert prints[0] != prints[1] == prints[2]


@pytest.mark.parametrize("url", [f"{URL}/m.mrxs", f"{URL}/d/"])
def test_a_copy_has_all_files_of_the_slide_and_is_gone_at_the_end(store: Any, url: str, tmp_path: Path) -> None:
    put(store, "raw/m.mrxs", "raw/m/Slidedat.ini", "raw/m/Data0.dat", "raw/d/1.dcm", "raw/d/2.dcm", "raw/d/in/3.dcm")
    with bucket.local(url) as path:
        assert path.exists()
        inside = path if path.is_dir() else path.with_suffix("")
        assert sorted(file.name for file in inside.iterdir()) in (["Data0.dat", "Slidedat.ini"], ["1.dcm", "2.dcm"])
    assert list(tmp_path.iterdir()) == []


def test_the_copy_of_a_job_that_was_killed_is_removed_by_the_next_one(store: Any, tmp_path: Path) -> None:
    put(store, "raw/a.svs")
    code = (
        f"from pipeline import bucket; copy = bucket.local('{URL}/a.svs'); copy.__enter__(); print('here', flush=True)"
    )
    killed = subprocess.Popen(
        [sys.executable, "-c", f"{code}; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"here\n"
    with bucket.local(f"{URL}/a.svs"):  # a living one is left alone
        assert len(list(tmp_path.iterdir())) == 2
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(list(tmp_path.iterdir())) == 1
    with bucket.local(f"{URL}/a.svs"):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_slide_that_changed_after_planning_is_refused(store: Any) -> None:
    put(store, "raw/a.svs", body=b"1")
    planned = discover_in_bucket(URL)[0]["a"].fingerprint
    with bucket.local(f"{URL}/a.svs", planned=planned) as path:
        assert path.read_bytes() == b"1"
    put(store, "raw/a.svs", body=b"2")
    with (
        pytest.raises(PipelineError, match="changed after the run was planned"),
        bucket.local(f"{URL}/a.svs", planned=planned),
    ):
        pass


def test_what_the_store_refuses_is_said_with_what_to_look_at(store: Any) -> None:
    with pytest.raises(PipelineError, match=r"s3://nowhere/raw/: the object store answered .*AWS_ENDPOINT_URL"):
        discover_in_bucket("s3://nowhere/raw")
    with pytest.raises(PipelineError, match=r"s3://slides/raw/a.svs is not there"), bucket.local(f"{URL}/a.svs"):
        pass


def test_only_what_changed_or_is_missing_is_copied_to_the_archive(store: Any, tmp_path: Path) -> None:
    results, reports = tmp_path / "results", tmp_path / "reports"
    files = ("bags/a.zarr.zip", "bags/.a.chunks/1", "private/key", "bags/b.zarr.zip.part", "model/splits.csv")
    for path in (*(results / name for name in files), reports / "index.html"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)

    def copy() -> int:
        return archive.run(results=results, reports=reports, url="s3://slides/study")

    assert copy() == 3
    assert [entry.key for entry in bucket.objects("s3://slides/study/")] == [
        "study/reports/index.html",
        "study/results/bags/a.zarr.zip",
        "study/results/model/splits.csv",
    ]
    assert copy() == 0
    (reports / "index.html").write_text("a new page")
    assert copy() == 1
    store.delete_object(Bucket="slides", Key="study/results/bags/a.zarr.zip")
    assert copy() == 1
    put(store, "study/results/model/splits.csv", body=b"of somebody else")
    assert copy() == 1
    assert store.get_object(Bucket="slides", Key="study/reports/index.html")["Body"].read() == b"a new page"


def _copies(times: int) -> None:
    for _ in range(times):
        with bucket._scratch() as folder:
            (folder / "slide.svs").write_bytes(b"x")


def test_jobs_that_begin_together_do_not_take_each_others_folder_for_a_killed_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with ThreadPoolExecutor(8) as pool:
        for copied in [pool.submit(_copies, 200) for _ in range(8)]:
            copied.result()
    assert not list(tmp_path.iterdir())
