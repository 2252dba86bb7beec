"""The model card: every number as metrics.json has it, its limits in words, and no slide or patient in it."""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import model_card, report, store
from pipeline.cohort_table import COLUMNS
from pipeline.evaluation import Prediction, SlideResult, evaluate
from pipeline.figures import Interval

CLASSES = ("nor|mal", "tumour")
SITES = ("North_West", "South")


def slides_of(count: int = 24) -> list[SlideResult]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        second = float(np.clip(rng.normal(0.35 + 0.3 * (number // 2 % 2), 0.25), 0.01, 0.99))
        found = Prediction(
            CLASSES[int(second > 0.5)],
            CLASSES,
            (1 - second, second),
            (number // 2 % 2,),
            np.array([[1 - second, second]]),
            "out_of_fold",
            0.0,
            calibrated=(1 - second, second),
            decision=CLASSES[int(second > 0.5)],
            ood_score=0.5,
        )
        made.append(SlideResult(f"secret-{number}", f"person-{number // 2}", CLASSES[number // 2 % 2], store.OK))
        made[-1] = SlideResult(**{**vars(made[-1]), "prediction": found})
    return made


def splits_of(slides: list[SlideResult]) -> list[dict[str, str]]:
    return [
        {
            "slide_id": s.slide_id,
            "fold": str(fold),
            "repeat": "0",
            "role": "test" if fold in s.prediction.folds else role,
        }
        for fold, role in ((0, "train"), (1, "validation"))
        for s in slides
        if s.prediction is not None
    ]


def folder_of(path: Path, slides: list[SlideResult], *, outliers: dict[str, Any] | None) -> Path:
    """Write a folder of two models' descriptions, and the cohort table beside it."""
    description = {
        "model": "asmil",
        "options": {"d_in": 8, "classes": 2},
        "classes": list(CLASSES),
        "bags": {
            "encoder": "texture",
            "weights_sha256": "",
            "dim": 8,
            "patch_px": 224,
            "target_mpp": 0.5,
            "standardise": True,
        },
        "best_epoch": 3,
        "training": {"seed": 0, "anchor": {"mode": "ema"}, "epochs": 4},
        "temperature": 1.25,
        "thresholds": {"balanced_accuracy": 0.4},
        "outliers": outliers,
        "preparation": {"tile": {"patch_px": 224, "tissue_method": "otsu"}, "embed": {"stain": "none"}},
        "versions": {"torch": "2.0"},
    }
    for fold in (0, 1, 9):
        store.write_text(path / "model" / f"fold-{fold}" / "model.json", json.dumps({**description, "fold": fold}))
    # the last stayed from an earlier division
    store.write_text(path / "model" / "models.json", json.dumps({"models": {"fold-0": {}, "fold-1": {}}}))
    with (path / "cohort.tsv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, delimiter="\t", restval="")
        writer.writeheader()
        for number, slide in enumerate(slides):
            site = {"site": SITES[number % 2], "vendor": "aperio", "mpp": f"{0.25 + number % 2 / 4}"}
            writer.writerow({"slide_id": slide.slide_id, "status": "ok", **site})
    return path


@pytest.fixture
def card(tmp_path: Path) -> tuple[str, dict[str, Any]]:
    slides = slides_of()
    folder = folder_of(tmp_path, slides, outliers={"count": 9})
    metrics = evaluate(slides, splits_of(slides), interval=Interval(200, 0))
    text = model_card.render(
        slides, metrics, cohort=folder / "cohort.tsv", splits=splits_of(slides), models=folder / "model"
    )
    return text, metrics


def test_every_number_stands_with_its_interval_as_metrics_json_has_it(card: tuple[str, dict[str, Any]]) -> None:
    text, metrics = card
    for name, label in (("auroc", "AUROC"), ("accuracy", "Accuracy"), ("ece", "Calibration error")):
        slides, patients = (
            model_card.figure(found[name]) for found in (metrics["pooled"], metrics["patients"]["pooled"])
        )
        assert f"| {label} | {slides} | {patients} |" in text
    assert "2 models (`fold-*`)" in text
    assert "| 0 | 12 | 0 | 12 | 3 | 1.25 | 0.400 |" in text
    for row, name in zip(metrics["confusion"], ("nor\\|mal", "tumour"), strict=True):
        assert f"| {name} | {row[0]} | {row[1]} |" in text


def test_the_card_says_what_the_data_were_and_names_no_slide_and_no_patient(card: tuple[str, dict[str, Any]]) -> None:
    text, _ = card
    assert "| tumour | 12 | 6 |" in text
    assert "Sites: North\\_West (12), South (12)." in text
    assert "um per pixel of the slides: 0.25 to 0.5." in text
    assert "| patch | 224 px at 0.5 um per pixel: 112 um |" in text
    assert "secret" not in text
    assert "person" not in text


def test_tables_are_whole(card: tuple[str, dict[str, Any]]) -> None:
    """In every table each row has as many cells as the header; no line ends a table early."""
    blocks = re.findall(r"(?:^\|.*\n)+", card[0], re.MULTILINE)
    assert len(blocks) == 5
    for block in blocks:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block
        assert block.splitlines()[1].startswith("|---")


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", "a`<img src=x>`", "[a](javascript:x)"])
def test_a_label_is_no_markup_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    monkeypatch.setattr(sys.modules[__name__], "CLASSES", ("normal", label))
    slides = slides_of()
    folder = folder_of(tmp_path, slides, outliers=None)
    metrics = evaluate(slides, splits_of(slides), interval=Interval(20, 0))
    text = model_card.render(
        slides, metrics, cohort=folder / "cohort.tsv", splits=splits_of(slides), models=folder / "model"
    )
    assert "Positive class" in text
    assert text.count(model_card.cell(label)) == 5  # title, positive class, labels, and twice in the confusions
    assert not [raw for raw in ("<script", "<img", "[a](") if raw in text]
    assert "a`" not in text


def test_limits_say_what_is_not_known(tmp_path: Path) -> None:
    slides = slides_of()
    folder = folder_of(tmp_path, slides, outliers=None)
    metrics = evaluate(slides, splits_of(slides), interval=Interval(200, 0))
    metrics["pooled"]["auroc"] |= {"low": 0.45}
    metrics["differences"] = {
        "abmil": {"auroc": {"value": 0.2, "low": 0.1, "high": 0.3, "p": 0.01}},
        "transmil": {"auroc": {"value": 0.2, "low": -0.1, "high": 0.3, "p": 0.2}},
    }
    text = model_card.render(
        slides,
        metrics,
        cohort=folder / "cohort.tsv",
        splits=splits_of(slides),
        models=folder / "model",
        name_sites=False,
    )
    assert "12 labelled patients are few" in text
    assert "The AUROC's interval holds 0.5" in text
    assert "abmil, was better on the same slides (AUROC +0.200, +0.100 to +0.300)" in text
    assert "transmil" not in text
    assert "2 of 2 models cannot tell a slide unlike their training slides" in text
    assert "Sites: 2." in text
    assert "North" not in text


def test_the_report_puts_card_and_figures_beside_the_models(tmp_path: Path) -> None:
    slides = slides_of(4)
    folder = folder_of(tmp_path / "results", slides, outliers=None)
    with (folder / "cohort.tsv").open(encoding="utf-8") as handle:
        rows = [{**row, "status": "quarantined"} for row in csv.DictReader(handle, delimiter="\t")]
    with (folder / "cohort.tsv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    (folder / "model" / "splits.csv").write_text("slide_id,patient_id,label,repeat,fold,role\n")
    report.run(
        cohort=folder / "cohort.tsv",
        splits=folder / "model" / "splits.csv",
        results=folder,
        reports=tmp_path / "reports",
        interval=Interval(100, 0),
        title="A cohort",
    )
    assert (folder / "model" / "metrics.json").read_text() == (tmp_path / "reports" / "metrics.json").read_text()
    assert "nothing is known of how good the models are" in (folder / "model" / "model_card.md").read_text()


def test_a_sensitivity_of_zero_is_named_and_one_of_no_slide_is_not() -> None:
    none: dict[str, float | None] = dict.fromkeys(("value", "low", "high"))
    pooled: dict[str, dict[str, float | None]] = {"sensitivity": {"value": 0.0, "low": 0.0, "high": 0.4}}
    pooled["specificity"] = none
    assert model_card.decided(pooled) == "sensitivity 0.000 (0.000 to 0.400)"
