"""Several models in one configuration: what is trained, and where their figures are reported."""

import csv
import json

import pytest

from tests.workflow.conftest import Study

pytestmark = pytest.mark.slow


def test_a_list_of_models_trains_only_the_further_ones_and_reports_all_side_by_side(finished: Study) -> None:
    models = ["asmil", "gated_abmil", "gated_abmil+ema", "mean_pooling"]
    finished.configure(model=models)
    expected = {"train_compared": 6, "compare": 3, "agreement": 3, "report": 1}
    ran = finished.run()
    assert ran.code == 0, ran.output
    assert ran.jobs == expected
    metrics = json.loads((finished.folder / "reports" / "metrics.json").read_text())
    assert list(metrics["models"]) == models
    assert metrics["models"]["asmil"] == metrics["pooled"]
    assert all(0 <= found["auroc"]["value"] <= 1 for found in metrics["models"].values())
    page = (finished.folder / "reports" / "index.html").read_text()
    assert "gated_abmil" in page
    with (finished.folder / "results" / "compare" / "gated_abmil" / "predictions.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["slide_id"] for row in rows] == [f"slide {index}" for index in range(6)]
    assert all(float(row["probability_normal"]) + float(row["probability_tumour"]) == pytest.approx(1) for row in rows)
    folder = finished.folder / "results" / "compare"
    for name, mode in (("gated_abmil", "none"), ("gated_abmil+ema", "ema")):
        made = json.loads((folder / name / "fold-0" / "model.json").read_text())
        assert (made["model"], made["training"]["anchor"]["mode"]) == ("gated_abmil", mode)
        assert f">{name}</th><td>{mode}</td>" in page
    assert finished.plan() == {}
    finished.configure(anchor={"beta": 0.2})  # which trains those with an anchor again
    assert finished.plan()["train_compared"] == 2
    finished.configure(anchor={"beta": 0.1})
    finished.configure(model="asmil")
    assert finished.plan() == {"report": 1}


def test_another_first_model_trains_and_predicts_again_but_embeds_nothing(finished: Study) -> None:
    finished.configure(model="clam_mb")
    assert finished.plan() == {"train": 2, "models": 1, "agreement": 1, "predict": 7, "heatmap": 7, "report": 1}


@pytest.mark.parametrize(
    "model",
    ["resnet", ["asmil", "resnet"], ["asmil", "asmil"], [], "abmil+em", "mean_pooling+ema", ["abmil+"], "abmil+ema\n"],
)
def test_unknown_or_repeated_models_end_with_one_sentence(fresh: Study, model: object) -> None:
    fresh.configure(model=model)
    ran = fresh.run("--dry-run")
    assert ran.code != 0
    assert "config: model is" in ran.output
    assert "one of asmil, mean_pooling" in ran.output


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"model": ["asmil", "abmil", "abmil+none"]},
            "config: model has abmil and abmil+none, which are trained alike",
        ),
        ({"anchor": {"start_epoch": 51}}, "config: anchor.start_epoch is 51, after the last of"),
        (
            {"model": ["abmil", "clam_sb+ema"], "anchor": {"start_epoch": 201}, "training": {"recipe": "source"}},
            "config: anchor.start_epoch is 201, after the last of 200 epochs of clam_sb+ema",
        ),
        (
            {"model": "abmil", "anchor": {"mode": "frozen"}},
            "no model of the run is trained with an anchor; write abmil+fro",
        ),
    ],
)
def test_anchors_that_change_nothing_are_refused(fresh: Study, settings: dict[str, object], said: str) -> None:
    fresh.configure(**settings)
    ran = fresh.run("--dry-run")
    assert ran.code != 0
    assert said in ran.output
