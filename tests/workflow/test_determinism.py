"""The same slides and settings give the same bits, whoever runs them, on however many cores, in whatever order."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import same_runs, store
from tests.workflow.conftest import ROOT, Ran, Study, copy_of

pytestmark = pytest.mark.slow

FIRST_OF_ALL = ("results/attention/slide 5.zarr.zip", "results/tiles/new.ü.zarr.zip")


@pytest.fixture(scope="module")
def repeated(finished_run: tuple[Study, Ran], tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Ran]:
    """Give a study in another folder, run by the record of the first: on one core, two threads, in another order."""
    first, _ = finished_run
    study = Study(tmp_path_factory.mktemp("repeated") / "elsewhere")
    shutil.copytree(first.folder / "data", study.folder / "data")
    record = json.loads((first.folder / "results" / "run.json").read_text(encoding="utf-8"))
    assert record["left_out_of_config"] == []
    (study.folder / "config.yaml").write_text(yaml.safe_dump(record["config"]), encoding="utf-8")
    command = [*study.command(), "--cores", "1", "--prioritize", *FIRST_OF_ALL]
    done = subprocess.run(
        command,
        cwd=study.folder,
        env={**study.environment, "OMP_NUM_THREADS": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )
    return study, Ran(done.returncode, done.stdout)


def order_of(ran: Ran) -> list[str]:
    """Give the stages and slides of a run in the order in which their jobs started."""
    found = re.findall(r"rule (\w+):\n(?:    .*\n)*?    wildcards: (\S.*)\n", ran.output)
    return [f"{rule} {slide}" for rule, slide in found]


def test_a_run_repeated_from_its_record_on_other_cores_in_another_order_is_the_same(
    finished_run: tuple[Study, Ran], repeated: tuple[Study, Ran]
) -> None:
    (first, ran), (second, again) = finished_run, repeated
    assert again.code == 0, again.output
    assert sorted(order_of(ran)) == sorted(order_of(again))
    assert order_of(ran) != order_of(again)
    assert same_runs.differences(first.folder, second.folder) == []


def test_a_difference_is_named(finished_run: tuple[Study, Ran], tmp_path: Path) -> None:
    first, changed = finished_run[0], copy_of(finished_run[0], tmp_path)
    results, reports = changed.folder / "results", changed.folder / "reports"
    bag = store.read(results / "bags" / "slide 1.zarr.zip")
    bag.arrays["features"][3, 7] += 1
    speed = {"patches_per_s": 1e6, "bound_by": "another"}
    store.write(results / "bags" / "slide 1.zarr.zip", bag.arrays, {**bag.attributes, **speed, "dim": 1})
    picture = reports / "heatmaps" / "slide 2.png"
    picture.write_bytes(picture.read_bytes()[:-1])
    (reports / "predictions.csv").unlink()
    (results / "logs" / "report.log").write_text("other words")
    (results / "bags" / "slide 1.zarr.zip.damaged").touch()
    found = subprocess.run(
        [sys.executable, "-m", "pipeline", "same", str(first.folder), str(changed.folder)],
        env={**first.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 1
    assert found.stdout.splitlines() == [
        "reports/heatmaps/slide 2.png: its content differs",
        "reports/predictions.csv: only the first run has it",
        "results/bags/slide 1.zarr.zip: dim, features differ",
    ]
    assert "differ in 3 file(s)" in found.stderr
