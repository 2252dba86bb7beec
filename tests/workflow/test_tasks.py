"""Survival, regression and the sources' recipes, set in the configuration alone."""

import csv
import json

import pytest

from tests.workflow.conftest import Study

pytestmark = pytest.mark.slow


def label(study: Study, columns: list[str], rows: list[list[object]]) -> None:
    with study.labels.open("w", newline="") as handle:
        csv.writer(handle).writerows([["slide_id", *columns], *([f"slide {n}", *row] for n, row in enumerate(rows))])


@pytest.mark.parametrize("task", ["survival", "regression"])
def test_outcomes_are_learned_predicted_drawn_and_reported(finished: Study, task: str) -> None:
    if task == "survival":
        label(finished, ["label_months", "died"], [[10 + n, int(n != 2)] for n in range(6)])
        finished.configure(task=task, target="label_months", survival={"event": "died", "risk_set": 2})
    else:
        label(finished, ["label_share"], [[n * 1.5] for n in range(6)])
        finished.configure(task=task, target="label_share")
    finished.configure(model=["asmil", "gated_abmil"])
    ran = finished.run()
    assert ran.code == 0, ran.output
    assert not {"tile", "embed"} & set(ran.jobs)  # the slides are as they were
    metrics = json.loads((finished.folder / "reports" / "metrics.json").read_text())
    assert metrics["task"] == task
    names = ["c_index", "c_index_pooled"] if task == "survival" else ["mae", "rmse", "r2", "spearman"]
    assert [list(metrics["models"][model]) for model in ("asmil", "gated_abmil")] == [names, names]
    assert metrics["models"]["asmil"] == metrics["pooled"]
    with (finished.folder / "reports" / "predictions.csv").open(newline="") as handle:
        rows = {row["slide_id"]: row for row in csv.DictReader(handle)}
    column = "risk" if task == "survival" else "value"
    assert all(float(row[column]) for row in rows.values() if row["status"] == "ok")
    if task == "survival":
        assert (rows["slide 2"]["label"], rows["slide 2"]["event"], rows["slide 1"]["time"]) == ("12+", "0", "11")
    page = (finished.folder / "reports" / "index.html").read_text()
    assert ("Patients without the event" if task == "survival" else "Predicted and observed") in page
    assert "ROC curve" not in page
    assert finished.plan() == {}


def test_mistakes_of_a_task_end_before_any_work(finished: Study) -> None:
    label(finished, ["label_months", "died"], [[10 + n, int(n == 2)] for n in range(6)])
    finished.configure(task="survival", target="label_months", survival={"event": "died"})
    assert "1 of 6 labelled patients had the event, fewer than the 2 folds" in finished.run("--dry-run").output
    finished.configure(survival={"event": "death"})
    assert "there is no column 'death'" in finished.run("--dry-run").output
    finished.configure(survival={"event": "died"}, model="clam_sb")
    assert "clam_sb has a loss of its own on classes and cannot learn survival" in finished.run("--dry-run").output


def test_recipe_of_the_source_is_trained_by(finished: Study) -> None:
    finished.configure(model="abmil", training={"recipe": "source"})
    ran = finished.run("--until", "train")
    assert ran.code == 0, ran.output
    assert ran.jobs == {"train": 2}
    folder = finished.folder / "results" / "model" / "fold-0"
    training = json.loads((folder / "model.json").read_text())["training"]
    assert (training["recipe"], training["epochs"], training["learning_rate"]) == ("source", 100, 1e-4)
    assert len((folder / "history.csv").read_text().splitlines()) == 101
