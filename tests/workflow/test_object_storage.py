"""The whole workflow on slides in a bucket, with results copied to one."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import buckets
from tests.workflow.conftest import Study, write_study

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class StudyInBucket(Study):
    """A study whose jobs find an object store."""

    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.variables, "TMPDIR": str(self.folder.parent / "scratch")}


@pytest.fixture
def variables() -> Iterator[dict[str, str]]:
    with buckets.server() as found:
        yield found


def test_slides_come_from_a_bucket_and_results_go_to_one(variables: dict[str, str], tmp_path: Path) -> None:
    client = buckets.client(variables)
    client.create_bucket(Bucket="hospital")
    study = StudyInBucket(write_study(tmp_path / "study").folder, variables)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for path in sorted(study.raw.iterdir()):
        client.upload_file(str(path), "hospital", f"raw/{path.name}")
        path.unlink()
    study.configure(paths={"slides": "s3://hospital/raw", "archive": "s3://hospital/study"})
    ran = study.run()
    assert ran.code == 0, ran.output
    assert list(scratch.glob("asmil-wsi-slide-*")) == []
    room = set(re.findall(r"rule (\w+):(?:\n .*)*disk_mb=(\d+)", ran.output))
    assert room == {(rule, "1001") for rule in ("check", "tile", "embed", "heatmap")}  # two slides have less than 1 MB
    assert "s3://hospital/raw/slide 0.svs" in (study.folder / "results" / "check.tsv").read_text()
    listed = client.list_objects_v2(Bucket="hospital", Prefix="study/")["Contents"]
    keys = {entry["Key"].removeprefix("study/") for entry in listed}
    assert {"reports/predictions.csv", "reports/heatmaps/new.ü.png", "results/bags/slide 3.zarr.zip"} <= keys
    body = client.get_object(Bucket="hospital", Key="study/reports/predictions.csv")["Body"].read()
    assert body == (study.folder / "reports" / "predictions.csv").read_bytes()
    assert study.plan() == {}
    # another slide under a name that was there: its own jobs, as after a replaced file
    client.copy_object(Bucket="hospital", Key="raw/new.ü.svs", CopySource="hospital/raw/slide 1.svs")
    planned = study.plan()
    assert (planned["tile"], planned["embed"], "train" in planned) == (1, 1, False)
    # a copy that failed, or was asked for later, is taken up by the next run, which has nothing else to do
    assert study.run().code == 0
    (study.folder / "reports" / "quality.tsv").unlink()
    study.configure(paths={"archive": "s3://nowhere/study"})
    failed = study.run()
    assert failed.code == 1
    assert "s3://nowhere/study/: the object store answered" in failed.output
    client.create_bucket(Bucket="nowhere")
    again = study.run()
    assert (again.code, again.jobs) == (0, {}), again.output
    assert client.list_objects_v2(Bucket="nowhere", Prefix="study/reports/quality.tsv")["KeyCount"] == 1
    assert "Nothing to be done" in study.run().output
