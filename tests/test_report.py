import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline import charts, curves, evaluation, gallery, report, report_page, store, tables
from pipeline.errors import ArtefactError, SlideError
from pipeline.figures import Interval
from tests.pictures import write_view

CLASSES = ("normal", "tumour")
HOSTILE = "=cmd()<script>alert(1)<!script> & co"
"""A formula and a tag in one slide id; the id is a file name, so without a slash."""


def probability_of(index: int) -> NDArray[np.float64]:
    """Give the class probabilities of slide `index`: mostly right, sometimes wrong, never tied."""
    positive = np.random.default_rng(index).uniform(0.02, 0.75) + 0.22 * (index % 2)
    return np.array([1 - positive, positive])


class Run:
    """A finished run on disk, one slide at a time."""

    def __init__(self, folder: Path) -> None:
        self.results, self.reports = folder / "results", folder / "reports"
        self.cohort: list[dict[str, str]] = []
        self.splits: list[dict[str, Any]] = []

    def add(
        self,
        slide_id: str,
        probability: NDArray[np.float64],
        *,
        label: str | None,
        patient: str = "",
        fold: int = 0,
        error: SlideError | None = None,
        stage: str = "tile",
        **changed: Any,
    ) -> None:
        """Add a slide; without a label it is predicted by two models, with an error it is quarantined at `stage`."""
        bad_header = error is not None and stage == "check"
        self.cohort.append(
            {
                "slide_id": slide_id,
                "path": f"data/raw/{slide_id}.svs",
                "label": label or "",
                "patient_id": patient or slide_id,
                "status": store.QUARANTINED if bad_header else store.OK,
                "reason": error.reason if error and bad_header else "",
                "remedy": error.remedy if error and bad_header else "",
            }
        )
        folds = [fold] if label else [0, 1]
        by_fold = np.stack([probability + 0.02 * (number - 0.5) * np.array([1, -1]) for number in range(len(folds))])
        by_fold = np.stack([probability]) if label else by_fold
        mean = by_fold.mean(axis=0)
        known: dict[str, Any] = {
            "classes": list(CLASSES),
            "folds": folds,
            "source": "out_of_fold" if label else "ensemble",
            "label": label,
            "patient_id": patient or slide_id,
            "predicted": CLASSES[int(mean.argmax())],
            "probabilities": mean.tolist(),
            "fold_spread": float(by_fold[:, mean.argmax()].std()),
            "warnings": [],
        }
        arrays = {"score": np.full(4, 0.25, np.float32), "probability": by_fold.astype(np.float32)}
        attributes = store.stage_attributes(
            "predict", slide_id=slide_id, fingerprint="f", error=error, **known | changed
        )
        store.write(self.results / "attention" / f"{slide_id}.zarr.zip", {} if error else arrays, attributes)
        for name, directory in evaluation.STAGES[:2]:
            failed = error if error and (stage in ("check", "tile") or name == stage) else None
            stored = store.stage_attributes(name, slide_id=slide_id, fingerprint="f", error=failed)
            store.write(self.results / directory / f"{slide_id}.zarr.zip", {}, stored)
        if label and error is None:
            self.splits += [
                {
                    "slide_id": slide_id,
                    "patient_id": patient or slide_id,
                    "label": label,
                    "repeat": 0,
                    "fold": number,
                    "role": "test" if number == fold else "train",
                }
                for number in (0, 1)
            ]

    def view(self, slide_id: str) -> None:
        """Write what the viewer shows of a slide."""
        write_view(self.results / "views" / f"{slide_id}.json")

    def write(self, **changed: Any) -> Path:
        """Write the tables and the report; give the reports folder."""
        self._table(self.results / "cohort.tsv", self.cohort, "\t")
        columns = ("slide_id", "patient_id", "label", "repeat", "fold", "role")
        self._table(self.results / "model" / "splits.csv", self.splits, ",", columns)
        settings: dict[str, Any] = {"interval": Interval(200, 0), "title": "A cohort"}
        report.run(
            cohort=self.results / "cohort.tsv",
            splits=self.results / "model" / "splits.csv",
            results=self.results,
            reports=self.reports,
            **settings | changed,
        )
        return self.reports

    @staticmethod
    def _table(path: Path, rows: list[dict[str, Any]], delimiter: str, columns: tuple[str, ...] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, columns or list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Give a run of 24 labelled slides of 12 patients, not yet written."""
    made = Run(tmp_path)
    for index in range(24):
        label = CLASSES[index % 2]
        made.add(
            f"slide-{index}", probability_of(index), label=label, patient=f"p{index % 12}", fold=index % 12 // 2 % 2
        )
    return made


def rows_of(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter=delimiter))


def metrics_of(reports: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((reports / "metrics.json").read_text(encoding="utf-8"))
    return found


def test_predictions_have_the_promised_columns_and_a_row_a_slide(run: Run) -> None:
    run.add("new", np.array([0.3, 0.7]), label=None)
    run.add("bad", np.array([0.5, 0.5]), label="tumour", error=SlideError("no tissue", remedy="look at it"))
    rows = rows_of(run.write() / "predictions.csv")
    expected = "slide_id patient_id label predicted probability_normal probability_tumour source fold_spread status"
    assert list(rows[0])[:9] == expected.split()
    assert [row["slide_id"] for row in rows] == [*(f"slide-{index}" for index in range(24)), "new", "bad"]
    new, bad = rows[-2:]
    assert (new["label"], new["predicted"], new["source"], new["status"]) == ("", "tumour", "ensemble", "ok")
    assert float(new["probability_tumour"]) == pytest.approx(0.7, abs=1e-6)
    assert float(new["fold_spread"]) == pytest.approx(0.01, abs=1e-6)
    assert (bad["predicted"], bad["probability_tumour"], bad["status"]) == ("", "", "quarantined")


def test_pooled_metrics_equal_scikit_learns_on_the_written_predictions(run: Run) -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

    reports = run.write()
    rows, pooled = rows_of(reports / "predictions.csv"), metrics_of(reports)["pooled"]
    labels, predicted = [row["label"] for row in rows], [row["predicted"] for row in rows]
    positive = [float(row["probability_tumour"]) for row in rows]
    assert pooled["auroc"]["value"] == pytest.approx(roc_auc_score([name == "tumour" for name in labels], positive))
    assert pooled["accuracy"]["value"] == pytest.approx(accuracy_score(labels, predicted))
    assert pooled["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert pooled["macro_f1"]["value"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert 0.5 < pooled["auroc"]["value"] < 1
    for entry in pooled.values():
        assert entry["low"] <= entry["high"]


def test_metrics_count_slides_patients_folds_and_confusions(run: Run) -> None:
    found = metrics_of(run.write())
    assert (found["n_slides"], found["n_patients"], found["n_left_out"]) == (24, 12, 0)
    assert [(fold["fold"], fold["n_slides"], fold["n_train"]) for fold in found["folds"]] == [(0, 12, 12), (1, 12, 12)]
    assert [sum(row) for row in found["confusion"]] == [12, 12]
    right = found["confusion"][0][0] + found["confusion"][1][1]
    assert found["pooled"]["accuracy"]["value"] == pytest.approx(right / 24)


def test_unlabelled_slides_do_not_enter_the_metrics(run: Run, tmp_path: Path) -> None:
    before = metrics_of(run.write())
    run.add("new", np.array([0.99, 0.01]), label=None)
    after = metrics_of(run.write())
    assert after["pooled"] == before["pooled"]
    assert after["folds"] == before["folds"]
    assert (after["n_predicted"], before["n_predicted"]) == (25, 24)


def test_an_undefined_figure_is_null(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for index in range(4):
        run.add(f"s{index}", probability_of(index), label="normal", fold=index % 2)
    reports = run.write()
    assert metrics_of(reports)["pooled"]["auroc"] == {"value": None, "low": None, "high": None}
    assert "NaN" not in (reports / "metrics.json").read_text(encoding="utf-8")
    assert "No AUROC" in report.summary(reports)


def test_a_cohort_without_any_usable_slide_still_has_a_report(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.add("bad", np.array([0.5, 0.5]), label=None, error=SlideError("it is empty", remedy="copy it again"))
    reports = run.write()
    assert metrics_of(reports)["pooled"] == {}
    assert "there is nothing to measure" in (reports / "index.html").read_text(encoding="utf-8")


def test_tiles_left_out_for_their_quality_are_counted(run: Run) -> None:
    run.add("pale", np.array([0.3, 0.7]), label=None, excluded={"pen": 0, "bubble": 2, "blur": 3, "fold": 1})
    reports = run.write()
    rows = {row["slide_id"]: row for row in rows_of(reports / "quality.tsv", "\t")}
    assert rows["pale"] == {"slide_id": "pale", "used": "4", "pen": "0", "bubble": "2", "blur": "3", "fold": "1"}
    page = (reports / "index.html").read_text(encoding="utf-8")
    table = page[page.index("Patches left out for their quality") :]
    assert re.search(r"pale</th>.*?60\.0 %", table, re.DOTALL)


@pytest.mark.parametrize("stage", ["check", "tile", "embed", "predict"])
def test_quarantine_names_the_stage_that_failed_first(run: Run, stage: str) -> None:
    error = SlideError("no mpp in its properties", remedy="add it to the overrides table")
    run.add("bad", np.array([0.5, 0.5]), label="tumour", error=error, stage=stage)
    reports = run.write()
    assert rows_of(reports / "quarantine.tsv", "\t") == [
        {"slide_id": "bad", "stage": stage, "reason": error.reason, "remedy": error.remedy}
    ]
    page = (reports / "index.html").read_text(encoding="utf-8")
    assert page.count(error.remedy) == 2  # in the table and on the slide's card


def test_a_slide_whose_job_failed_is_listed_with_a_remedy(run: Run) -> None:
    run.add("lost", np.array([0.5, 0.5]), label=None)
    (run.results / "attention" / "lost.zarr.zip").unlink()
    reports = run.write()
    assert rows_of(reports / "predictions.csv")[-1]["status"] == "failed"
    assert "log" in rows_of(reports / "quarantine.tsv", "\t")[0]["remedy"]


def test_a_prediction_by_a_model_that_saw_the_slide_is_refused(run: Run) -> None:
    run.add("leak", np.array([0.2, 0.8]), label="tumour", fold=0, folds=[1])
    with pytest.raises(ArtefactError, match="leak was predicted by the model of fold 1, which did not hold it out"):
        run.write()


def test_a_label_the_models_do_not_know_is_an_error_that_names_the_slide(run: Run) -> None:
    run.add("odd", np.array([0.2, 0.8]), label="benign")
    with pytest.raises(ArtefactError, match="odd has the label 'benign', the models know normal, tumour"):
        run.write()


def test_a_formula_in_a_table_is_only_text(run: Run) -> None:
    run.add("=cmd()", np.array([0.2, 0.8]), label=None, patient="+cmd|1")
    row = rows_of(run.write() / "predictions.csv")[-1]
    assert (row["slide_id"], row["patient_id"]) == ("'=cmd()", "'+cmd|1")


def test_names_that_begin_with_a_sign_are_guarded_in_every_table_and_numbers_stay_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for index in range(4):
        run.add(
            f"-slide {index}", probability_of(index), label=CLASSES[index % 2], patient=f"@p{index}", fold=index % 2
        )
    run.add("+left out", np.array([0.5, 0.5]), label=None, error=SlideError("-1 is no mpp", remedy="=mend it"))
    reports = run.write()
    assert rows_of(reports / "predictions.csv")[0]["slide_id"] == "'-slide 0"
    assert tables.rows(reports / "predictions.csv", delimiter=",")[0]["patient_id"] == "@p0"
    assert report.quarantined(reports / "quarantine.tsv") == [
        {"slide_id": "+left out", "stage": "tile", "reason": "-1 is no mpp", "remedy": "=mend it"}
    ]
    for path in reports.glob("*.[ct]sv"):
        text = path.read_text(encoding="utf-8").splitlines()
        for line in csv.reader(text, delimiter="," if path.suffix == ".csv" else "\t"):
            assert not [cell for cell in line if cell.startswith(("=", "@", "-slide", "+left", "\t", "\r"))]
            assert not [cell for cell in line if re.fullmatch(r"'[-+0-9.e]+", cell)]


class Page(HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_hostile_slide_id_is_harmless_in_the_page(run: Run) -> None:
    run.add(HOSTILE, np.array([0.2, 0.8]), label=None, warnings=["<img src=x onerror=alert(1)>"])
    picture = run.reports / "heatmaps" / f"{HOSTILE}.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"")
    run.view(HOSTILE)
    text = (run.write() / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    kinds = [script.get("type") for script in page.named("script")]
    assert kinds == ["application/json"] * 3 + [None] * 2  # charts, viewer, the slide; Bokeh's script and the page's
    assert "alert(1)>" not in text
    quoted = "%3Dcmd%28%29%3Cscript%3Ealert%281%29%3C%21script%3E%20%26%20co"
    links = [link["href"] for link in page.named("a")]
    assert f"heatmaps/{quoted}.png" in links
    assert f"#slide/{quoted}" in links
    assert [image["alt"] for image in page.named("img")] == [f"Attention on the tissue of {HOSTILE}"]


def test_the_page_refers_to_nothing_outside_its_folder(run: Run) -> None:
    text = (run.write() / "index.html").read_text(encoding="utf-8")
    # Bokeh's script names addresses that it would ask for maps and formulas; the page's policy forbids any request
    own = text.replace(charts.script(), "")
    assert len(text) - len(own) > 1_000_000
    assert not re.search(r"https?://|//cdn|url\(|@import", own)
    page = Page(own)
    links = [attributes.get("href") or attributes.get("src") for _, attributes in page.elements]
    files = {link for link in links if link and not link.startswith(("#", "data:"))}
    assert files == {"predictions.csv", "metrics.json"}
    policy = next(meta["content"] for meta in page.named("meta") if meta.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_every_picture_has_a_text_and_every_control_a_label(run: Run) -> None:
    for index in range(24):
        run.view(f"slide-{index}")
    text = (run.write() / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.named("img")) == 24
    assert all("slide-" in (image["alt"] or "") for image in page.named("img"))
    assert all(chart.get("aria-label") for chart in page.named("div") if chart.get("role") == "img")
    assert page.named("html")[0]["lang"] == "en"
    assert len(page.named("h1")) == 1
    assert len(page.named("label")) == len(page.named("input")) + len(page.named("select"))
    assert "Research use only" in text


def test_pictures_lie_in_the_page_until_they_are_many(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(24):
        run.view(f"slide-{index}")
    alone = (run.write() / "index.html").read_text(encoding="utf-8")
    assert not (run.reports / "slides").exists()
    monkeypatch.setattr(gallery, "INLINE_BYTES", 10_000)
    beside = (run.write() / "index.html").read_text(encoding="utf-8")
    assert len(alone) - len(beside) > 24 * 500
    assert len(list((run.reports / "slides").iterdir())) == 48
    with Image.open(run.reports / "slides" / "slide-7.jpg") as image:
        assert image.size == (64, 48)
    monkeypatch.undo()
    assert (run.write() / "index.html").read_text(encoding="utf-8") == alone
    assert not (run.reports / "slides").exists()


def test_the_page_says_for_each_slide_whether_the_prediction_is_right(run: Run) -> None:
    run.add("new", np.array([0.2, 0.8]), label=None)
    reports = run.write()
    page = Page((reports / "index.html").read_text(encoding="utf-8"))
    found = [item["data-verdict"] for item in page.named("li") if "data-verdict" in item]
    rows = rows_of(reports / "predictions.csv")
    expected = ["right" if row["label"] == row["predicted"] else "wrong" for row in rows[:-1]]
    assert found == [*expected, "unlabelled"]
    assert "seen" not in [option.get("value") for option in page.named("option")]


def test_a_slide_that_was_trained_on_has_no_verdict(run: Run) -> None:
    run.add("drawn by all", np.array([0.2, 0.8]), label="normal", source="seen")
    text = (run.write() / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [item["data-verdict"] for item in page.named("li") if "data-verdict" in item][-1] == "seen"
    assert "not held out: models trained on it" in text
    assert "1 slide that no fold held out, or of which every model knows a copy, was predicted by all" in text
    assert "seen" in [option.get("value") for option in page.named("option")]


def test_the_same_run_gives_the_same_files(run: Run) -> None:
    first = {path.name: path.read_bytes() for path in run.write().glob("*.*")}
    assert first == {path.name: path.read_bytes() for path in run.write().glob("*.*")}
    assert set(first) == {"index.html", "predictions.csv", "metrics.json", "quality.tsv", "quarantine.tsv"}


def test_summary_says_what_was_done_and_where_to_look(run: Run) -> None:
    for number in range(7):
        error = SlideError("no tissue was found", remedy="look at its preview")
        run.add(f"bad-{number}", np.array([0.5, 0.5]), label=None, error=error)
    reports = run.write()
    words = report.summary(reports)
    assert "24 of 31 slides predicted, 7 left out." in words
    assert "bad-0: no tissue was found; look at its preview." in words
    assert "and 2 more" in words
    assert str(reports / "index.html") in words
    auroc = metrics_of(reports)["pooled"]["auroc"]
    assert f"AUROC {auroc['value']:.3f} (95% interval {auroc['low']:.3f} to {auroc['high']:.3f})" in words


def test_summary_without_a_report_says_so(tmp_path: Path) -> None:
    assert report.summary(tmp_path) == f"No report in {tmp_path} yet."


@pytest.mark.parametrize("name", ["metrics.json", "quarantine.tsv"])
@pytest.mark.parametrize("torn", [b"", b'{"n_predicted": 3, "n_co', b"\xff\xfe", b"[1]", b"{}"])
def test_the_closing_words_outlive_a_torn_file(run: Run, name: str, torn: bytes) -> None:
    run.add("bad", np.array([0.5, 0.5]), label=None, error=SlideError("no tissue was found", remedy="look"))
    reports = run.write()
    (reports / name).write_bytes(torn)
    words = report.summary(reports)
    assert "is damaged" in words or (name != "metrics.json" and "slides predicted" in words)


def test_the_closing_words_need_no_heavy_import() -> None:
    code = (
        "import sys, pipeline.report; print(sorted({'numpy', 'zarr', 'torch', 'jinja2', 'sklearn'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_curves_agree_with_scikit_learn() -> None:
    from sklearn.metrics import auc, average_precision_score, roc_auc_score

    rng = np.random.default_rng(3)
    positive = rng.random(200) < 0.3
    score = np.round(rng.normal(size=200) + positive, 1)  # rounded: with ties
    assert auc(*curves.roc(positive, score)) == pytest.approx(roc_auc_score(positive, score))
    recall, precision = curves.precision_recall(positive, score)
    steps = float((np.diff(recall) * precision[1:]).sum())
    assert steps == pytest.approx(average_precision_score(positive, score))


def test_a_chart_holds_its_points_thinned_to_what_a_screen_shows() -> None:
    lines = [charts.Line("<b>", [0, 0.5, 1], [0, 1, 1]), charts.Line("b", np.linspace(0, 1, 5000), np.zeros(5000))]
    drawn = charts.item(charts.line_chart(lines, title="a", x_label="x<y", y_label="y"), "place")
    found = re.findall(r'"y", \[([^]]+)\]', json.dumps(drawn))
    assert found[0] == "0.0, 1.0, 1.0"
    assert len(found[1].split(",")) == charts.MAX_POINTS
    assert drawn["target_id"] == "place"


def test_page_shows_how_attention_moved_and_how_alike_the_maps_of_an_ensemble_are(run: Run) -> None:
    assert "Attention while training" not in (run.write() / "index.html").read_text(encoding="utf-8")
    run.add("new", probability_of(0), label="", map_agreement=0.625)
    folder = run.results / "model" / "fold-1"
    folder.mkdir(parents=True)
    stale = run.results / "model" / "fold-9"  # of an earlier division
    stale.mkdir()
    columns = "epoch,jsd_lag1,jsd_lag5,spearman_lag1,top1_jaccard_lag1,entropy,effective_patches,top10_mass"
    (folder / "stability.csv").write_text(
        f"{columns},validation_cross_entropy,slides\n1,,,,,0.9,50,0.1,0.7,2\n2,0.2,,0.9,0.5,0.8,40,0.2,0.6,2\n"
    )
    shutil.copy(folder / "stability.csv", stale)
    page = (run.write() / "index.html").read_text(encoding="utf-8")
    assert "Movement of attention" in page
    assert "fold 1<" in page
    assert "fold 9" not in page
    assert page.count("rank correlation 0.62 between") == 1


def test_only_figures_from_0_to_1_have_a_place_on_that_scale() -> None:
    known: dict[str, float | None] = {"value": 0.5, "low": 0.4, "high": 0.6}
    pooled = {"auroc": known, "brier": known | {"high": 1.2}, "log_loss": known, "ece": known | {"low": None}}
    bars = {row["name"]: row["bar"] for row in report_page.metric_rows(pooled)}
    assert bars.pop("AUROC") == {"left": "40.0", "width": "20.0", "dot": "50.0"}
    assert set(bars.values()) == {None}
