"""A bad slide never stops the cohort, and a killed run is no loss."""

import csv
from pathlib import Path

import pytest

from tests.workflow.conftest import Study, results_of

pytestmark = pytest.mark.slow


def quarantine(study: Study) -> dict[str, dict[str, str]]:
    with (study.folder / "reports" / "quarantine.tsv").open(encoding="utf-8", newline="") as handle:
        return {row["slide_id"]: row for row in csv.DictReader(handle, delimiter="\t")}


def cut_short(path: Path) -> bytes:
    """Cut a slide to a third of its bytes and give it back whole."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    return content


def test_a_broken_slide_is_quarantined_and_once_repaired_runs_alone(finished: Study) -> None:
    broken = finished.add_slide("broken", seed=50)
    content = cut_short(broken)
    ran = finished.run()
    assert ran.code == 0, ran.output
    row = quarantine(finished)["broken"]
    assert row["reason"]
    assert row["remedy"]
    assert "1 left out" in ran.output
    assert (finished.folder / "reports" / "heatmaps" / "broken.png").stat().st_size > 5_000

    broken.write_bytes(content)
    ran = finished.run()
    assert ran.code == 0, ran.output
    assert ran.jobs == {"check": 1, "tile": 1, "cohort": 1, "embed": 1, "predict": 1, "heatmap": 1, "report": 1}
    assert quarantine(finished) == {}


def test_a_broken_labelled_slide_leaves_the_folds(fresh: Study) -> None:
    fresh.add_slide("slide 6", seed=51)
    with fresh.labels.open("a") as handle:
        handle.write("slide 6,normal,patient 6\n")
    cut_short(fresh.raw / "slide 6.svs")
    ran = fresh.run()
    assert ran.code == 0, ran.output
    assert list(quarantine(fresh)) == ["slide 6"]
    splits = (fresh.folder / "results" / "model" / "splits.csv").read_text()
    assert "slide 5" in splits
    assert "slide 6" not in splits


def test_strict_ends_with_exit_code_1_and_keeps_the_reports(finished: Study) -> None:
    cut_short(finished.add_slide("broken", seed=50))
    finished.configure(strict=True)
    for _ in range(2):
        ran = finished.run()
        assert ran.code == 1
        assert "strict is true and 1 slide(s) were quarantined: broken" in ran.output
        assert list(quarantine(finished)) == ["broken"]


@pytest.mark.parametrize("stage", ["tiles", "bags", "model", "attention"])
def test_ctrl_c_and_a_run_again_end_in_the_same_result(
    fresh: Study, finished_run: tuple[Study, object], stage: str
) -> None:
    results = fresh.folder / "results" / stage
    stopped = fresh.interrupt(lambda: results.is_dir() and len(list(results.rglob("*.*"))) >= 3)
    assert stopped.code != 0
    assert not (fresh.folder / "reports" / "index.html").exists()
    ran = fresh.run()
    assert ran.code == 0, ran.output
    assert results_of(fresh) == results_of(finished_run[0])
    assert not list(fresh.folder.rglob("*.part"))
