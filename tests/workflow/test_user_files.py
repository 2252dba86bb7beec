"""What the user says of single slides: overrides, tissue and regions drawn in QuPath."""

import csv
import json
from pathlib import Path

import pytest

from pipeline import store
from tests.test_embed import PLUGIN
from tests.workflow.conftest import SIDE_PX, Study

pytestmark = pytest.mark.slow

ONE_SLIDE = {"check": 1, "tile": 1, "cohort": 1, "embed": 1, "predict": 1, "heatmap": 1, "report": 1}
RUN_AGAIN = {name: count for name, count in ONE_SLIDE.items() if name != "check"}


def cohort_table(study: Study) -> dict[str, dict[str, str]]:
    with (study.folder / "results" / "cohort.tsv").open(encoding="utf-8", newline="") as handle:
        return {row["slide_id"]: row for row in csv.DictReader(handle, delimiter="\t")}


def tiles(study: Study, slide_id: str) -> store.Artefact:
    return store.read(study.folder / "results" / "tiles" / f"{slide_id}.zarr.zip")


def draw(path: Path, width: int) -> None:
    """Draw the left `width` px of a slide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ring = [[0, 0], [width, 0], [width, SIDE_PX], [0, SIDE_PX], [0, 0]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}), encoding="utf-8")


def test_an_encoder_on_the_users_python_path_reaches_the_jobs(fresh: Study) -> None:
    modules = fresh.folder.parent / "modules"
    modules.mkdir()
    (modules / "colours_of_mine.py").write_text(PLUGIN)
    fresh.configure(encoder={"name": "colours_of_mine:Colours"})
    bag = fresh.folder / "results" / "bags" / "new.ü.zarr.zip"
    ran = fresh.run(str(bag.relative_to(fresh.folder)), PYTHONPATH=str(modules))
    assert ran.code == 0, ran.output
    assert store.read(bag).arrays["features"].shape[1] == 6


def test_overrides_do_what_they_say(finished: Study) -> None:
    overrides = finished.folder / "data" / "overrides.csv"
    before = len(tiles(finished, "new.ü").arrays["coords"])
    overrides.write_text("slide_id,mpp,skip,note\nnew.ü,0.25,,scanned at 40x\n", encoding="utf-8")
    ran = finished.run()
    assert ran.code == 0, ran.output
    assert ran.jobs == ONE_SLIDE
    row = cohort_table(finished)["new.ü"]
    assert (row["mpp"], row["mpp_source"], row["note"]) == ("0.2500", "override", "scanned at 40x")
    after = tiles(finished, "new.ü")
    assert after.attributes["patch_level0_px"] == 448
    assert len(after.arrays["coords"]) < before

    overrides.write_text("slide_id,mpp,skip,note\nnew.ü,,true,smeared\n", encoding="utf-8")
    ran = finished.run()
    assert ran.code == 0, ran.output
    assert ran.jobs == {"check": 1, "cohort": 1, "report": 1}
    assert "new.ü" not in cohort_table(finished)
    assert "new.ü: smeared" in (finished.folder / "results" / "check.txt").read_text(encoding="utf-8")


def test_a_drawing_that_is_added_changed_or_removed_runs_its_slide_alone(finished: Study) -> None:
    region = finished.folder / "data" / "roi" / "new.ü.geojson"
    counts = [len(tiles(finished, "new.ü").arrays["coords"])]
    for width in (SIDE_PX // 4, SIDE_PX // 2):
        draw(region, width)
        ran = finished.run()
        assert ran.code == 0, ran.output
        assert ran.jobs == (ONE_SLIDE if width == SIDE_PX // 4 else RUN_AGAIN)
        counts.append(len(tiles(finished, "new.ü").arrays["coords"]))
    assert cohort_table(finished)["new.ü"]["drawn"] == "roi"
    region.touch()
    assert finished.plan() == {}
    region.unlink()
    ran = finished.run()
    assert ran.jobs == ONE_SLIDE, ran.output
    counts.append(len(tiles(finished, "new.ü").arrays["coords"]))
    assert counts[1] < counts[2] < counts[0] == counts[3]


def test_tissue_drawn_on_a_labelled_slide_trains_again_and_a_bad_drawing_is_quarantined(finished: Study) -> None:
    drawn = finished.folder / "data" / "tissue" / "slide 1.geojson"
    draw(drawn, SIDE_PX)
    planned = finished.plan()
    assert (planned["tile"], planned["embed"], planned["train"]) == (1, 1, 2)
    drawn.rename(drawn.with_name("new.ü.geojson"))
    drawn.with_name("new.ü.geojson").write_text("{")
    ran = finished.run()
    assert ran.code == 0, ran.output
    assert ran.jobs == ONE_SLIDE
    quarantine = (finished.folder / "reports" / "quarantine.tsv").read_text(encoding="utf-8")
    assert "data/tissue/new.ü.geojson is not JSON" in quarantine
