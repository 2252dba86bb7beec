"""With privacy.hash_ids nothing in the reports tells who a slide is from."""

import csv
import json

import pytest
from PIL import Image

from pipeline import pseudonyms
from tests.workflow.conftest import Study

pytestmark = pytest.mark.slow


def test_no_report_holds_the_name_of_a_slide_of_a_patient_or_of_a_file(finished: Study) -> None:
    drawn = finished.folder / "data" / "tissue" / "new.ü.geojson"  # its path becomes part of a quarantine's reason
    drawn.parent.mkdir()
    drawn.write_text("no GeoJSON")
    finished.configure(privacy={"hash_ids": True})
    assert finished.plan()["heatmap"] == 7
    assert not (finished.folder / "results" / "private").exists()  # who only looks makes no key
    ran = finished.run()
    assert ran.code == 0, ran.output
    assert ran.jobs == {"check": 1, "tile": 1, "cohort": 1, "embed": 1, "predict": 1, "heatmap": 7, "report": 1}

    reports, private = finished.folder / "reports", finished.folder / "results" / "private"
    with (private / "ids.tsv").open(encoding="utf-8", newline="") as handle:
        named = {(row["kind"], row["name"]): row["shown"] for row in csv.DictReader(handle, delimiter="\t")}
    with (reports / "predictions.csv").open(encoding="utf-8", newline="") as handle:
        rows = {row["slide_id"]: row for row in csv.DictReader(handle)}
    assert set(rows) == {shown for (kind, _), shown in named.items() if kind == "slide"}
    assert list(rows) == sorted(rows)  # their order tells nothing either
    third = rows[named["slide", "slide 3"]]
    assert (third["patient_id"], third["label"]) == (named["patient", "patient 3"], "tumour")
    new = named["slide", "new.ü"]
    assert f"data/tissue/{new}.geojson" in (reports / "quarantine.tsv").read_text(encoding="utf-8")
    assert {path.stem for path in (reports / "heatmaps").iterdir()} == set(rows)

    secrets = [*(name for _, name in named), str(finished.folder), finished.folder.name, "data/raw", ".svs"]
    spoken = [form for name in secrets for form in (name, name.replace(" ", "%20"), json.dumps(name)[1:-1])]
    for path in (file for file in reports.rglob("*") if file.is_file()):
        content = path.read_bytes()
        assert not [name for name in spoken if name in path.name or name.encode() in content], path
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert set(picture.info) <= {"dpi", "Software", "made_by"}
                told = " ".join(str(value) for value in picture.info.values())  # compressed texts, decoded here
                assert not [name for name in spoken if name in told], path
    assert finished.run().jobs == {}
    assert pseudonyms.load(private).slide("slide 3") == named["slide", "slide 3"]
