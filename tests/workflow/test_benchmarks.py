"""The benchmarks of the workflow measure what they say."""

import json
import subprocess
import sys

import pytest

from tests.workflow.conftest import ROOT

pytestmark = pytest.mark.slow


def test_planning_is_measured_from_nothing_and_where_all_is_done() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--slides", "10"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    (row,) = json.loads(ran.stdout.splitlines()[-1])["planned"]
    assert row["jobs"] == 4 * 10 + 5 + 8
    assert row["files"] > 8 * 10
    assert row["cold"]["cpu_s"] > 0 < row["warm"]["cpu_s"]


def test_the_overhead_of_the_whole_workflow_is_told_also_from_a_sample_of_its_jobs() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "end_to_end.py"), "--quick", "--again", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["slides"] > 6
    assert 0 < found["ratio"] < 1
    assert 0 < found["work_s_a_slide"] < found["cpu_s_a_slide"]
    assert {"tile", "embed", "train", "predict", "heatmap"} <= {line.split()[0] for line in ran.stdout.splitlines()}


@pytest.mark.parametrize("name", ["heatmap", "planted_cells", "quality", "reading", "tiling"])
def test_the_quick_form_runs_to_its_json_line(name: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["benchmark"] == name
    assert found["ratio"] is None or found["ratio"] > 0
