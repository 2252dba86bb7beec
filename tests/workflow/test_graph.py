"""What a change makes Snakemake do again, and what it leaves alone."""

import csv
import json
import re
import socket
import sys

import pytest
import yaml

from pipeline import run_record, store
from pipeline.cohort import Cohort
from tests.workflow.conftest import ROOT, Ran, Study

pytestmark = pytest.mark.slow

SLIDES = 7
PER_SLIDE = ("tile", "embed", "predict", "heatmap")


def predictions(study: Study) -> dict[str, dict[str, str]]:
    with (study.folder / "reports" / "predictions.csv").open(encoding="utf-8", newline="") as handle:
        return {row["slide_id"]: row for row in csv.DictReader(handle)}


def test_one_command_makes_every_picture_and_report(finished_run: tuple[Study, Ran]) -> None:
    study, ran = finished_run
    assert ran.code == 0, ran.output
    assert ran.jobs == {
        "check": 1,
        "cohort": 1,
        "split": 1,
        "train": 2,
        "models": 1,
        "agreement": 1,
        "report": 1,
        **dict.fromkeys(PER_SLIDE, SLIDES),
    }
    found = predictions(study)
    assert len(found) == SLIDES
    assert all((study.folder / "reports" / "heatmaps" / f"{slide}.png").stat().st_size > 10_000 for slide in found)
    assert found["new.ü"]["source"] == "ensemble"
    assert {row["source"] for slide, row in found.items() if slide != "new.ü"} == {"out_of_fold"}
    metrics = json.loads((study.folder / "reports" / "metrics.json").read_text())
    assert set(metrics["pooled"]["auroc"]) == {"value", "low", "high"}


def test_the_cohort_table_sums_up_the_tiles_of_every_slide(finished_run: tuple[Study, Ran]) -> None:
    results = finished_run[0].folder / "results"
    with (results / "cohort.tsv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert len(rows) == SLIDES
    for row in rows:
        coords = store.read(results / "tiles" / f"{row['slide_id']}.zarr.zip", names=("coords",)).arrays["coords"]
        assert int(row["tiles"]) == len(coords) > 0
        assert 0 <= float(row["blur"]) <= 1
        assert int(row["left_out_pen"]) == 0


def test_the_closing_words_say_what_was_done_and_where_to_look(finished_run: tuple[Study, Ran]) -> None:
    _, ran = finished_run
    assert "7 of 7 slides predicted, 0 left out" in ran.output
    assert "Out-of-fold AUROC" in ran.output
    assert "reports/index.html" in ran.output


def test_a_run_says_every_so_often_what_is_done_and_what_is_left(finished_run: tuple[Study, Ran]) -> None:
    lines = re.findall(r"^Progress \d\d:\d\d: (.*)$", finished_run[1].output, re.MULTILINE)
    counts = [dict(re.findall(r"(\w+) (\d+)/\d+", found)) for found in lines]
    assert len(lines) > 3
    assert lines[0].startswith("check ")
    assert f"tile {counts[-1]['tile']}/{SLIDES}, embed" in lines[-1]
    done = [sum(map(int, found.values())) for found in counts]
    assert done == sorted(done)
    assert done[0] < done[-1]
    assert any(re.search(r"about \d+ min left.*, until \w{3} \d\d:\d\d\.$", found) for found in lines)


def test_nothing_of_a_run_is_left_half_made(finished_run: tuple[Study, Ran]) -> None:
    study, _ = finished_run
    assert not list(study.folder.rglob("*.part"))


def test_a_second_run_does_nothing(finished: Study) -> None:
    ran = finished.run()
    assert ran.code == 0
    assert ran.jobs == {}
    assert "Nothing to be done" in ran.output


def test_a_newer_time_stamp_alone_does_nothing(finished: Study) -> None:
    for path in [*finished.raw.iterdir(), finished.labels]:
        path.touch()
    assert finished.plan() == {}


def test_a_new_unlabelled_slide_trains_nothing_and_gets_its_picture(finished: Study) -> None:
    finished.add_slide("later", seed=40)
    ran = finished.run()
    assert ran.code == 0, ran.output
    assert ran.jobs == {"check": 1, "cohort": 1, "report": 1, **dict.fromkeys(PER_SLIDE, 1)}
    assert (finished.folder / "reports" / "heatmaps" / "later.png").exists()
    assert predictions(finished)["later"]["source"] == "ensemble"


def test_a_new_labelled_slide_trains_again(finished: Study) -> None:
    finished.add_slide("later", seed=40)
    with finished.labels.open("a") as handle:
        handle.write("later,normal,patient 7\n")
    planned = finished.plan()
    assert (planned["tile"], planned["embed"], planned["train"]) == (1, 1, 2)
    assert planned["predict"] == SLIDES + 1


def test_a_label_for_an_absent_slide_does_nothing(finished: Study) -> None:
    with finished.labels.open("a") as handle:
        handle.write("absent,normal,patient 9\n")
    assert finished.plan() == {}


def test_a_changed_label_trains_again_and_embeds_nothing(finished: Study) -> None:
    finished.labels.write_text(finished.labels.read_text().replace("slide 0,normal", "slide 0,tumour"))
    planned = finished.plan()
    assert planned["train"] == 2
    assert "tile" not in planned
    assert "embed" not in planned


def test_a_colour_map_change_redraws_only(finished: Study) -> None:
    finished.configure(heatmap={"width_px": 800, "top_patches": 2, "colormap": "cividis"})
    assert finished.plan() == {"agreement": 1, "heatmap": SLIDES, "report": 1}


def test_a_changed_tissue_setting_rebuilds_what_depends_on_it(finished: Study) -> None:
    finished.configure(tissue={"min_area_mm2": 0.002})
    assert finished.plan() == {
        "cohort": 1,
        "split": 1,
        "train": 2,
        "models": 1,
        "agreement": 1,
        "report": 1,
        **dict.fromkeys(PER_SLIDE, SLIDES),
    }


def test_a_changed_training_setting_embeds_nothing(finished: Study) -> None:
    finished.configure(training={"epochs": 4})
    assert finished.plan() == {
        "train": 2,
        "models": 1,
        "agreement": 1,
        "predict": SLIDES,
        "heatmap": SLIDES,
        "report": 1,
    }


def test_a_changed_bag_trains_again_also_where_the_run_was_cut_after_the_splits(finished: Study) -> None:
    path = finished.folder / "results" / "bags" / "slide 0.zarr.zip"
    bag = store.read(path)
    splits = (finished.folder / "results" / "model" / "splits.csv").read_bytes()
    store.write(path, {**bag.arrays, "features": bag.arrays["features"] * 2}, bag.attributes)
    assert finished.plan()["train"] == 2
    ran = finished.run("--until", "split")
    assert ran.code == 0, ran.output
    assert (finished.folder / "results" / "model" / "splits.csv").read_bytes() == splits
    planned = finished.plan()
    assert planned["train"] == 2
    assert "split" not in planned


def test_another_memory_limit_for_features_runs_nothing(finished: Study) -> None:
    finished.configure(training={"cache_gb": 0.5})
    assert finished.plan() == {}


def test_another_mpp_for_one_slide_tiles_that_slide_alone(finished: Study) -> None:
    (finished.folder / "data" / "overrides.csv").write_text("slide_id,mpp\nnew.ü,0.25\n", encoding="utf-8")
    planned = finished.plan()
    assert (planned["tile"], planned["embed"], planned["predict"], planned["heatmap"]) == (1, 1, 1, 1)
    assert "train" not in planned


def test_a_removed_slide_leaves_the_report(finished: Study) -> None:
    (finished.raw / "new.ü.svs").unlink()
    ran = finished.run()
    assert ran.jobs == {"check": 1, "cohort": 1, "report": 1}
    assert "new.ü" not in predictions(finished)


@pytest.mark.parametrize(
    ("arguments", "limit"), [((), 1), (("--resources", "gpu=3"), 3), (("--resources", "gpu=0"), 0)]
)
def test_one_gpu_job_runs_at_a_time_unless_told_otherwise(fresh: Study, arguments: tuple[str, ...], limit: int) -> None:
    """Setting the limit in the Snakefile is not documented by Snakemake, so an upgrade might drop it."""
    ran = fresh.run("--until", "check", *arguments)
    assert re.search(rf"Provided resources: .*gpu\D+{limit}\b", ran.output), ran.output
    assert re.search(rf"Provided resources: .*gpu_queue\D+{2 * limit}\b", ran.output), ran.output


def test_the_config_of_the_repository_is_complete() -> None:
    """A key that the schema asks for and config.yaml lacks would end every run with an error."""
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text())
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    assert set(config) == set(schema["properties"])


def test_no_command_line_grows_with_the_cohort(fresh: Study) -> None:
    """`bash -c` takes 128 KiB, which 3,000 slides would exceed."""
    planned = fresh.run("--dry-run", "--printshellcmds").output
    commands = [line for line in planned.splitlines() if "python -m pipeline" in line]
    assert len(commands) == 4 * SLIDES + 8
    assert all(sum(f"slide {index}" in command for index in range(6)) <= 1 for command in commands)


@pytest.mark.parametrize("name", ["predictions.csv", "metrics.json", "quarantine.tsv"])
def test_a_deleted_report_is_written_again(finished: Study, name: str) -> None:
    (finished.folder / "reports" / name).unlink()
    assert finished.plan() == {"report": 1}


def test_a_run_records_what_it_was_made_of_and_nothing_of_the_machine(finished_run: tuple[Study, Ran]) -> None:
    study, _ = finished_run
    text = (study.folder / "results" / "run.json").read_text(encoding="utf-8")
    record = json.loads(text)
    assert record["config"]["training"]["epochs"] == 3
    assert set(record["config"]) == set(yaml.safe_load((ROOT / "config.yaml").read_text()))
    assert record["environment"]["packages"]["torch"]
    bag = store.read_attributes(study.folder / "results" / "bags" / "new.ü.zarr.zip")
    assert record["inputs"]["slides"]["new.ü"] == bag["fingerprint"]
    assert record["inputs"]["splits"] == ""  # the workflow draws the folds itself here
    for told in (str(study.folder), str(ROOT), socket.gethostname(), sys.prefix):
        assert told not in text


def test_places_on_this_machine_are_left_out_of_the_record() -> None:
    config = {"seed": 1, "paths": {"slides": "/mnt/slides", "labels": "data/labels.csv"}, "model": ["asmil"]}
    record = run_record.describe(config, Cohort({}, {}), {}, weights="", splits="abc", outputs={})
    assert record["inputs"]["splits"] == "abc"
    assert record["config"] == {"seed": 1, "paths": {"labels": "data/labels.csv"}, "model": ["asmil"]}
    assert record["left_out_of_config"] == ["paths.slides"]


def test_waiting_jobs_are_looked_at_once_for_each_that_ends(fresh: Study) -> None:
    """Snakemake's limit of jobs a second would look again every second, once more for each job that ended."""
    ran = fresh.run("--until", "tile", "--cores", "1", "--verbose", "--forcerun", "tile")
    assert ran.code == 0, ran.output
    tiles = ran.jobs["tile"]
    assert tiles >= 6
    assert tiles <= ran.output.count("Ready jobs: ") <= tiles + 2
