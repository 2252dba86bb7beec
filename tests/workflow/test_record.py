"""The record of a run: written where a run ends the study, and made again where it is not of what lies there."""

import json

import pytest

from tests.workflow.conftest import Study

pytestmark = pytest.mark.slow


def test_a_record_that_is_gone_or_damaged_is_written_again(finished: Study) -> None:
    record = finished.folder / "results" / "run.json"
    whole = record.read_bytes()
    record.unlink()
    ran = finished.run()
    assert (ran.code, ran.jobs) == (0, {}), ran.output
    assert record.read_bytes() == whole
    with record.open("r+b") as file:
        file.write(b"?")
    assert finished.run().code == 0
    assert record.read_bytes() == whole
    assert not (finished.folder / "results" / "unrecorded").exists()
    assert "Nothing to be done" in finished.run().output


def test_a_run_for_one_file_leaves_the_record_to_the_one_that_ends_the_study(finished: Study) -> None:
    record = finished.folder / "results" / "run.json"
    before = record.read_bytes()
    finished.configure(training={"epochs": 4})
    tiles = finished.folder / "results" / "tiles" / "new.ü.zarr.zip"
    tiles.unlink()
    ran = finished.run(str(tiles.relative_to(finished.folder)))
    assert (ran.code, ran.jobs) == (0, {"tile": 1}), ran.output
    assert record.read_bytes() == before
    assert finished.run().code == 0
    assert json.loads(record.read_text())["config"]["training"]["epochs"] == 4


def test_clean_removes_what_runs_made_and_leaves_what_somebody_added(finished: Study) -> None:
    results, reports = finished.folder / "results", finished.folder / "reports"
    outline = results / "tissue" / "new.ü.geojson"
    other = {
        results / "logs" / "notes.log": "mine",
        results / "tissue" / "other.geojson": "{}",
        results / "model" / ".old" / "notes.txt": "mine",
        reports / "slides" / "mine.js": "0",
        outline: outline.read_text(),  # as an editor saves: another file under the name
    }
    for path, text in other.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    done = finished.command_line("clean")
    assert done.returncode == 0, done.stderr
    left = {path for folder in (results, reports) for path in folder.rglob("*") if path.is_file()}
    assert left == set(other)
    assert f"{len(other)} file(s) were left" in done.stderr
    assert not (finished.folder / ".snakemake").exists()
