import logging
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import check, check_command, cli, cohort, store
from pipeline.cohort_table import CohortRow, read_cohort
from pipeline.errors import ConfigError
from pipeline.fingerprint import fingerprint
from pipeline.forecast import Work
from pipeline.quality import QualityOptions
from pipeline.tile import run as tile_run
from pipeline.tissue import TissueOptions
from tests.slides import slide_with_tissue, write_generic, write_svs

WORK = Work(patch_px=64, mpp=0.5, overlap=0.0, encoder="texture")
BOX = (256, 128, 1024, 512)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a study of four good slides, one broken, one twice, one without mpp, one skipped."""
    raw = tmp_path / "data" / "raw"
    for index, name in enumerate("abcd"):
        write_svs(raw / f"{name}.svs", slide_with_tissue(1000, 1600, box=BOX, seed=index))
    (raw / "twin.svs").write_bytes((raw / "a.svs").read_bytes())
    (raw / "broken.svs").write_bytes((raw / "b.svs").read_bytes()[:9000])
    (raw / "skipped.svs").write_bytes(b"whatever")
    write_svs(raw / "jp2k.svs", slide_with_tissue(300, 300, box=(50, 50, 200, 200)), compression="jpeg2000", mpp=None)
    write_generic(raw / "coarse.tif", slide_with_tissue(300, 300, box=(50, 50, 200, 200)), mpp=2.0)
    labels = ["slide_id,label,patient_id", "a,x,p1", "b,x,p2", "c,y,p3", "d,y,p4", "absent,x,p5"]
    (tmp_path / "data" / "labels.csv").write_text("\n".join(labels) + "\n")
    (tmp_path / "data" / "overrides.csv").write_text(
        "slide_id,mpp,skip,note\njp2k,0.5,,from the archive\nskipped,,yes,smeared\n"
    )
    (tmp_path / "data" / "roi").mkdir()
    (tmp_path / "data" / "roi" / "a.geojson").write_text("{}")
    return tmp_path


def look(folder: Path, *, folds: int = 2, **changes: Any) -> tuple[dict[str, CohortRow], str]:
    data = folder / "data"
    found = cohort.load(
        data / "raw",
        labels=data / "labels.csv",
        overrides=data / "overrides.csv",
        target="label",
        folds=folds,
        roi=data / "roi",
        must_train=False,
    )
    options: dict[str, Any] = {"default_mpp": None, "mpp_from_objective": False, "threads": 2, "work": WORK} | changes
    check.run(found, output=folder / "cohort.tsv", summary=folder / "check.txt", **options)
    rows = {row.slide_id: row for row in read_cohort(folder / "cohort.tsv")}
    return rows, (folder / "check.txt").read_text(encoding="utf-8")


def test_the_table_has_a_row_a_slide_with_what_was_found(folder: Path) -> None:
    rows, _ = look(folder)
    assert sorted(rows) == ["a", "b", "broken", "c", "coarse", "d", "jp2k", "twin"]
    assert (rows["a"].label, rows["a"].patient_id, rows["a"].drawn) == ("x", "p1", "roi")
    assert (rows["a"].compression, rows["jp2k"].compression, rows["coarse"].compression) == (
        "JPEG",
        "JPEG 2000",
        "deflate",
    )
    assert (rows["jp2k"].mpp_source, rows["jp2k"].note) == ("override", "from the archive")
    assert float(rows["a"].area_mm2) == pytest.approx(0.8 * 0.5)
    assert (rows["broken"].status, rows["broken"].mpp) == ("quarantined", "")


def test_the_summary_says_what_to_mend_and_to_know(folder: Path) -> None:
    _, text = look(folder)
    for words in (
        "8 slides looked at",
        "7 usable, 1 not",
        "um per pixel: 0.50 (6), 2.00 (1)",
        "labels: x 2 (patients: 2), y 2 (patients: 2); without a label: 4",
        "folds: possible",
        "broken: the file is damaged or cut short",
        "a and twin",
        "names 1 slide(s) that are not in",
        "skipped: smeared",
        "1 coarser than the 0.5 um per pixel that patches are read at, so they will be left out: coarse",
        "1 compressed with JPEG 2000",
        "1 with tissue or regions that you drew: a",
    ):
        assert words in text


def test_labels_that_cannot_be_validated_are_told_and_the_table_is_there(folder: Path) -> None:
    _, text = look(folder, folds=5)
    assert "folds: not possible: " in text
    assert "4 labelled patients are fewer than the 5 folds" in text


def test_the_forecast_is_near_what_tiling_gives(folder: Path) -> None:
    for name in ("jp2k.svs", "coarse.tif", "broken.svs", "twin.svs"):
        (folder / "data" / "raw" / name).unlink()
    rows, text = look(folder)
    paths = {name: folder / "tiles" / f"{name}.zarr.zip" for name in rows}
    for name, path in paths.items():
        tile_run(
            Path(rows[name].path),
            slide_id=name,
            fingerprint="f",
            tiles=path,
            tissue=path.with_suffix(".geojson"),
            preview=path.with_suffix(".jpg"),
            patch_px=WORK.patch_px,
            target_mpp=WORK.mpp,
            overlap=0,
            min_tissue=0.5,
            tissue_options=TissueOptions(),
            quality=QualityOptions(max_blur=1),
        )
    patches = sum(len(store.read(path).arrays["coords"]) for path in paths.values())
    words = next(line for line in text.splitlines() if "patches and" in line)
    assert int(words.split()[1].replace(",", "")) == pytest.approx(patches, rel=0.15)
    assert "texture encodes" in text
    assert "training is not included" in text


def test_the_table_sums_up_what_tiling_found(folder: Path) -> None:
    raw, tiles = folder / "data" / "raw", folder / "tiles"
    for name, quality in (("a", QualityOptions(max_blur=1)), ("b", QualityOptions(max_blur=0.0)), ("c", None)):
        tile_run(
            raw / f"{name}.svs",
            slide_id=name,
            fingerprint=fingerprint(raw / f"{name}.svs"),
            tiles=tiles / f"{name}.zarr.zip",
            tissue=tiles / "tissue.geojson",
            preview=tiles / "preview.jpg",
            patch_px=64,
            target_mpp=0.5,
            overlap=0,
            min_tissue=0.5,
            tissue_options=TissueOptions(),
            quality=quality or QualityOptions(max_blur=1),
        )
    write_svs(raw / "c.svs", slide_with_tissue(1000, 1600, box=BOX, seed=9))  # another file than was tiled
    rows, _ = look(folder, tiles=tiles)
    stored = store.read(tiles / "a.zarr.zip")
    a, b = rows["a"], rows["b"]
    assert int(a.tiles) == len(stored.arrays["coords"])
    assert (a.left_out_pen, a.left_out_blur, a.left_out_fold) == ("0", "0", "0")
    assert float(a.blur) == pytest.approx(stored.arrays["blur"].mean(), rel=1e-3)
    assert float(a.tissue_mm2) == pytest.approx(1024 * 512 * 0.25e-6, rel=0.07)
    assert (b.tiles, b.status, a.not_tiled) == ("0", "ok", "")
    assert "spoilt" in b.not_tiled
    assert (rows["c"].tiles, rows["d"].tiles, rows["c"].pen) == ("", "", "")


def test_the_forecast_heeds_the_most_tiles_of_a_slide(folder: Path) -> None:
    rows, text = look(folder, work=Work(patch_px=64, mpp=0.5, overlap=0.0, encoder="texture", max_tiles=3))
    usable = sum(row.status == store.OK for row in rows.values())
    assert f"about {3 * usable} patches" in text


def test_an_encoder_on_the_gpu_is_forecast_by_what_is_assumed(folder: Path) -> None:
    _, text = look(folder, work=Work(patch_px=224, mpp=1.0, overlap=0.0, encoder="ctranspath"))
    assert "of one GPU, assuming ctranspath encodes 500 patches/s" in text


def test_check_alone_takes_its_options_from_the_configuration(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump({"encoder": {"name": "texture"}, "evaluation": {"folds": 2}}))
    monkeypatch.chdir(folder)
    arguments = check_command.completed(["check"])
    assert arguments[arguments.index("--folds") + 1] == "2"
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit) as ended:
        cli.app(arguments)
    assert ended.value.code == 0
    assert "folds: possible" in (folder / "results" / "check.txt").read_text()
    assert check_command.completed(["tile", "--help"]) == ["tile", "--help"]


def test_check_alone_ends_with_the_reason_why_no_run_can_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump({"encoder": {"name": "texture"}, "evaluation": {"folds": 9}}))
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="4 labelled patients are fewer than the 9 folds"):
        cli.app(check_command.completed(["check"]))
    assert (folder / "results" / "cohort.tsv").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_slide_that_may_not_be_read_is_one_row_and_no_crash(folder: Path) -> None:
    (folder / "data" / "raw" / "b.svs").chmod(0)
    rows, _ = look(folder)
    assert "cannot be read" in rows["b"].reason
