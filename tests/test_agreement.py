"""How alike the folds' maps of labelled slides are: what is compared, and how the report shows it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import entropy, spearmanr

from asmil.anchor import AnchorConfig
from asmil.inference import predict
from asmil.training import FitConfig
from pipeline import agreement, agreement_page, store, train
from pipeline.assignment import COLUMNS
from pipeline.model_folder import load_model
from tests.test_predict import write_bag

WIDTH, SLIDES, FOLDS = 8, 8, 3


class Cohort:
    """Eight bags of two classes, divided into three folds whose models are trained."""

    def __init__(self, folder: Path, *, model: str = "abmil", folds: int = FOLDS) -> None:
        self.folder, self.table = folder, folder / "agreement.csv"
        rng = np.random.default_rng(0)
        for number in range(SLIDES):
            features = rng.standard_normal((30 + number, WIDTH))
            features[:8, 0] += 3 * (number % 2)
            places = np.arange(len(features))
            coords = (np.stack([places % 6, places // 6], axis=1) * 448).astype(np.int32)
            own: dict[str, Any] = {"fingerprint": str(number), "dim": WIDTH, "patch_level0_px": 448.0}
            write_bag(folder / "bags", f"s{number}", features, coords=coords, **own)
        # in this order slides are chosen: not by their names
        digests = {f"s{number}": f"{(5 * number + 3) % SLIDES:02}" for number in range(SLIDES)}
        store.write_text(folder / "bags.json", json.dumps({"bags": digests}))
        with (folder / "splits.csv").open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(COLUMNS)
            for fold in range(folds):
                for number in range(SLIDES):
                    role = ("test", "validation", "train")[min(2, (number // 2 - fold) % 4)]
                    writer.writerow([f"s{number}", f"p{number}", "ab"[number % 2], 0, fold, role])
        for fold in range(folds):
            train.run(
                fold=fold,
                splits=folder / "splits.csv",
                bags=folder / "bags",
                folder=folder / "model" / f"fold-{fold}",
                model=model,
                model_options={},
                anchor=AnchorConfig(mode="none"),
                training=FitConfig(epochs=3, learning_rate=1e-3),
                stability_slides=0,
                seed=0,
                device="cpu",
            )

    def run(self, *, slides: int = 3) -> list[dict[str, str]]:
        agreement.run(
            splits=self.folder / "splits.csv",
            index=self.folder / "bags.json",
            bags=self.folder / "bags",
            models=self.folder / "model",
            table=self.table,
            maps=self.table.with_suffix(".json"),
            slides=slides,
            task="classification",
            colormap="viridis",
            device="cpu",
        )
        return store.read_rows(self.table, delimiter=",")

    def scores(self, slide: str, fold: int) -> np.typing.NDArray[np.float32]:
        model, description = load_model(self.folder / "model" / f"fold-{fold}")
        features = store.read(self.folder / "bags" / f"{slide}.zarr.zip").arrays["features"]
        return predict(model, description.standardised(features)).score


def test_every_pair_of_folds_is_compared_on_slides_of_every_class(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path)
    rows = cohort.run()
    assert tuple(rows[0]) == agreement.COLUMNS
    pairs = [("0", "1"), ("0", "2"), ("1", "2")]
    expected = [(slide, *pair) for slide in ("s1", "s6", "s3") for pair in pairs]
    assert [(row["slide_id"], row["fold"], row["other_fold"]) for row in rows] == expected
    # slides 0 and 1 are tested by fold 0, and so are in another part in every other fold
    assert (rows[0]["role"], rows[0]["other_role"], rows[1]["other_role"]) == ("test", "train", "train")
    for row in rows:
        one, other = (cohort.scores(row["slide_id"], int(row[name])) for name in ("fold", "other_fold"))
        assert float(row["spearman"]) == pytest.approx(spearmanr(one, other).statistic, abs=1e-9)
        assert 0 < float(row["jsd"]) < 1
        assert 0 <= float(row["top1_jaccard"]) <= 1
        assert float(row["entropy"]) == pytest.approx(entropy(one) / np.log(len(one)), rel=1e-5)
        assert int(row["patches"]) == len(one)
    first = {name: (tmp_path / name).read_bytes() for name in ("agreement.csv", "agreement.json")}
    cohort.run()
    assert first == {name: (tmp_path / name).read_bytes() for name in first}


def test_nothing_is_compared_with_one_model_or_no_slide(tmp_path: Path) -> None:
    several = Cohort(tmp_path / "several")
    assert several.run(slides=0) == []
    assert agreement_page.render({"abmil": several.table}) is None
    assert agreement_page.render({}) is None
    one = Cohort(tmp_path / "one", folds=1)
    assert one.run() == []
    assert "images" not in json.loads((one.folder / "agreement.json").read_text())


def test_report_part_shows_slides_models_and_the_maps_of_one_slide(tmp_path: Path) -> None:
    cohort, floor = Cohort(tmp_path / "a"), Cohort(tmp_path / "b", model="mean_pooling")
    rows = cohort.run()
    assert {(row["spearman"], row["top1_jaccard"], row["jsd"]) for row in floor.run()} == {("", "", "0.0")}
    models = {"abmil": cohort.table, "mean_pooling": floor.table}
    part = agreement_page.render(models, show=lambda name: f"hidden-{9 - int(name[1:])}")
    assert part is not None
    assert [name for name, _ in part["rows"]] == ["hidden-3", "hidden-6", "hidden-8"]  # in the order of what is shown
    assert part["rows"][0][1][2] == "\N{EN DASH}"  # no fold held s6 out
    of_first = [float(row["spearman"]) for row in rows if row["slide_id"] == "s1"]
    cells = [float(cell) for cell in part["rows"][2][1]]
    assert cells[0] == pytest.approx(np.mean(of_first), rel=0.01)
    assert cells[1] == pytest.approx(min(of_first), rel=0.01)
    assert cells[2] == pytest.approx(np.mean(of_first[:2]), rel=0.01)  # fold 0 held it out
    assert [name for name, _ in part["models"]] == ["abmil", "mean_pooling"]
    assert part["models"][1][1] == [*["\N{EN DASH}"] * 3, "0", "\N{EN DASH}", "1"]
    assert part["drawn"] == "hidden-8"
    assert [use for _, use, _ in part["maps"]] == ["held it out", "trained on it", "trained on it"]
    assert len({image for *_, image in part["maps"]}) == 3
    alone = agreement_page.render({"abmil": cohort.table})
    assert alone is not None
    assert alone["models"] == []
