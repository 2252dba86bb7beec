"""The demo cohort: real Aperio files, a drawn tissue whose truth is known, a structure that folds can be made of."""

import csv
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from pipeline import store
from pipeline.demo import DemoCohort, plan_cohort, remove_demo, slide_stain, write_demo, write_svs
from pipeline.errors import ConfigError
from pipeline.synthetic import Drawing, draw_slide
from pipeline.synthetic_nuclei import NucleusKind, stamp_nuclei

# Ruifrok and Johnston 2001; third row: what neither explains
STAINS = np.asarray([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> DemoCohort:
    return write_demo(tmp_path_factory.mktemp("demo"), side_px=704)


@pytest.fixture(scope="module")
def with_tumour() -> Drawing:
    return draw_slide(5, width_px=2048, height_px=1792, tumour=True)


@pytest.fixture(scope="module")
def without_tumour() -> Drawing:
    return draw_slide(6, width_px=2048, height_px=1792, tumour=False)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def tissue_of(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 6).min(axis=2) < 215)


def inside_of(outlines: list[NDArray[np.int32]], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    inside = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(inside, outlines, 1)
    return inside.astype(bool)


def haematoxylin_of(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    density = -np.log10((pixels.astype(np.float64) + 1) / 256)
    return np.asarray((density @ np.linalg.inv(STAINS))[..., 0])


def bytes_of(cohort: DemoCohort) -> dict[str, bytes]:
    files = sorted(path for path in cohort.folder.rglob("*") if path.is_file())
    return {path.relative_to(cohort.folder).as_posix(): path.read_bytes() for path in files}


# --- the files ------------------------------------------------------------------------------------------------------


def test_openslide_reads_an_aperio_slide_with_its_scale_and_levels(tmp_path: Path) -> None:
    pixels = np.full((1600, 2048, 3), 230, np.uint8)
    write_svs(tmp_path / "a.svs", pixels, mpp=0.5, objective=20)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == float(slide.properties["openslide.mpp-y"]) == 0.5
        assert float(slide.properties["openslide.objective-power"]) == 20
        assert slide.properties["aperio.AppMag"] == "20"
        assert slide.level_dimensions == ((2048, 1600), (512, 400), (128, 100))
        assert slide.level_downsamples == (1.0, 4.0, 16.0)
        assert slide.properties["openslide.level[0].tile-width"] == "256"


def test_slide_has_a_thumbnail_that_is_no_level(tmp_path: Path, with_tumour: Drawing) -> None:
    write_svs(tmp_path / "a.svs", with_tumour.pixels, mpp=0.5, objective=20)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        thumbnail = np.asarray(slide.associated_images["thumbnail"].convert("RGB"), np.float64)
    expected = cv2.resize(with_tumour.pixels, thumbnail.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(thumbnail - expected).mean() < 6


def test_colours_come_back_as_written_on_every_level(tmp_path: Path) -> None:
    colours = np.asarray([[200, 60, 60], [60, 200, 60], [60, 60, 200], [230, 160, 190]], np.uint8)
    pixels = np.repeat(colours, 512, axis=0)[:, None].repeat(1600, axis=1)
    write_svs(tmp_path / "a.svs", pixels, mpp=0.5, objective=20)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        for level, (width, height) in enumerate(slide.level_dimensions):
            read = np.asarray(slide.read_region((0, 0), level, (width, height)).convert("RGB"), np.int64)
            middles = read[height // 8 :: height // 4, width // 2]
            assert np.abs(middles - colours).max() <= 4


def test_small_picture_has_level_0_alone(tmp_path: Path) -> None:
    write_svs(tmp_path / "a.svs", np.full((300, 260, 3), 200, np.uint8), mpp=0.25, objective=40)
    with openslide.OpenSlide(tmp_path / "a.svs") as slide:
        assert slide.level_dimensions == ((260, 300),)


def test_every_slide_but_the_broken_one_opens_and_decodes(cohort: DemoCohort) -> None:
    for slide_id, path in cohort.slides.items():
        if slide_id != cohort.broken:
            assert tissue_of(pixels_of(path)).mean() > 0.2, slide_id


def test_openslide_refuses_the_broken_slide(cohort: DemoCohort) -> None:
    with pytest.raises(openslide.OpenSlideError):
        openslide.OpenSlide(cohort.slides[cohort.broken])


# --- the picture ----------------------------------------------------------------------------------------------------


def test_tissue_is_pink_to_purple_and_glass_is_near_white(cohort: DemoCohort) -> None:
    for slide_id in set(cohort.slides) - {cohort.broken}:
        pixels = pixels_of(cohort.slides[slide_id])
        red, green, blue = pixels[tissue_of(pixels)].mean(axis=0)
        assert red > green + 25, slide_id
        assert blue > green + 10, slide_id
        assert pixels[:12].min() > 220, slide_id


@pytest.mark.parametrize("seed", range(6))
def test_tumour_covers_a_twentieth_to_a_quarter_of_the_tissue(seed: int) -> None:
    drawing = draw_slide(seed, width_px=1024, height_px=896, tumour=True)
    assert 0.05 <= drawing.tumour_share <= 0.25
    tissue, inside = tissue_of(drawing.pixels), inside_of(drawing.outlines, drawing.pixels.shape)
    assert (inside & tissue).sum() / tissue.sum() == pytest.approx(drawing.tumour_share, abs=0.03)


def test_normal_slide_has_no_outline(without_tumour: Drawing) -> None:
    assert without_tumour.outlines == []
    assert without_tumour.tumour_px == 0
    assert without_tumour.tissue_px > 0.3 * without_tumour.pixels[..., 0].size


@pytest.mark.parametrize("seed", [3, 5, 10])
def test_nuclei_are_denser_and_darker_inside_the_tumour(seed: int) -> None:
    # of seeds 0 to 11 these had the least contrast, beside large lymphoid patches: 1.50 and 1.40 times at the lowest
    drawing = draw_slide(seed, width_px=2048, height_px=1792, tumour=True)
    haematoxylin, tissue = haematoxylin_of(drawing.pixels), tissue_of(drawing.pixels)
    inside = tissue & inside_of(drawing.outlines, drawing.pixels.shape)
    outside = tissue & ~inside
    assert haematoxylin[inside].mean() > 1.3 * haematoxylin[outside].mean()
    nuclei = haematoxylin > 0.45
    assert nuclei[inside].mean() > 1.25 * nuclei[outside].mean()


def test_normal_slide_has_patches_as_dark_as_a_tumour(with_tumour: Drawing, without_tumour: Drawing) -> None:
    in_tumour, in_normal = (
        cv2.blur(haematoxylin_of(drawing.pixels), (112, 112)) for drawing in (with_tumour, without_tumour)
    )
    inside = inside_of(with_tumour.outlines, with_tumour.pixels.shape)
    assert in_normal.max() > np.median(in_tumour[inside])


def test_tumour_nuclei_are_larger_and_more_varied_than_lymphocytes() -> None:
    def areas(kind: NucleusKind) -> NDArray[np.intp]:
        plane = np.zeros((640, 640), np.uint8)
        points = np.stack(np.meshgrid(np.arange(16), np.arange(16)), axis=-1).reshape(-1, 2) * 40.0 + 20.0
        stamp_nuclei(
            plane,
            kind,
            points=points.astype(np.float32),
            angles=np.zeros(len(points), np.float32),
            rng=np.random.default_rng(0),
        )
        return np.asarray(np.count_nonzero(plane.reshape(16, 40, 16, 40) > 60, axis=(1, 3)))

    lymphocytes, tumour = areas("lymphocyte"), areas("tumour")
    assert np.median(tumour) > 1.7 * np.median(lymphocytes)
    assert tumour.std() > 3 * lymphocytes.std()


def test_nuclei_that_would_cross_the_border_are_left_out() -> None:
    plane = np.zeros((64, 64), np.uint8)
    points = np.asarray([[2, 30], [62, 30], [30, 1], [30, 63]], np.float32)
    stamp_nuclei(plane, "tumour", points=points, angles=np.zeros(4, np.float32), rng=np.random.default_rng(0))
    assert not plane.any()


def test_patients_differ_in_stain_more_than_slides_of_one_patient() -> None:
    planned = plan_cohort(20, seed=7)
    fibre_and_nucleus = [130, 256 * 180 + 60]
    colour = np.asarray([slide_stain(plan, seed=7).table()[fibre_and_nucleus].ravel() for plan in planned], np.float64)
    patient = np.asarray([plan.patient_id for plan in planned])
    apart = np.linalg.norm(colour[:, None] - colour[None], axis=-1)
    same = patient[:, None] == patient[None]
    between, within = apart[~same], apart[same & ~np.eye(len(patient), dtype=bool)]
    assert 0 < np.median(within) < 0.5 * np.median(between)


def test_slide_without_room_for_tissue_is_refused() -> None:
    with pytest.raises(ValueError, match="400 x 600 px has no room"):
        draw_slide(1, width_px=400, height_px=600, tumour=False)


# --- the cohort -----------------------------------------------------------------------------------------------------


def test_classes_are_balanced_and_the_extra_slides_have_no_label(cohort: DemoCohort) -> None:
    labels = {row["slide_id"]: row["label"] for row in rows_of(cohort.labels)}
    assert sorted(labels.values()) == ["normal"] * 8 + ["tumour"] * 8
    assert set(cohort.slides) - set(labels) == {cohort.unlabelled, cohort.broken}


def test_slides_of_a_patient_share_the_class_and_are_named_after_the_patient() -> None:
    planned = plan_cohort(20, seed=7)
    assert len({(plan.patient_id, plan.label) for plan in planned}) == len({plan.patient_id for plan in planned}) == 18
    assert all(plan.slide_id.startswith(f"{plan.patient_id}-") for plan in planned)
    assert len({plan.slide_id for plan in planned}) == 22


@pytest.mark.parametrize("seed", [1, 7])
def test_four_folds_by_patient_have_both_classes_in_every_role(cohort: DemoCohort, seed: int) -> None:
    rows = rows_of(cohort.labels)
    label = np.asarray([row["label"] for row in rows])
    patient = np.asarray([row["patient_id"] for row in rows])
    outer = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    for rest, test in outer.split(label, label, patient):
        assert len(set(label[test])) == 2
        inner = StratifiedGroupKFold(3, shuffle=True, random_state=seed)
        for train, validation in inner.split(rest, label[rest], patient[rest]):
            assert len(set(label[rest][train])) == len(set(label[rest][validation])) == 2


def test_truth_agrees_with_labels_and_outlines(cohort: DemoCohort) -> None:
    labels = {row["slide_id"]: row["label"] for row in rows_of(cohort.labels)}
    truth = rows_of(cohort.truth)
    assert {row["slide_id"] for row in truth} == set(cohort.slides) - {cohort.broken}
    for row in truth:
        slide_id = row["slide_id"]
        outlines = json.loads((cohort.folder / "truth" / f"{slide_id}.geojson").read_text(encoding="utf-8"))
        rings = [feature["geometry"]["coordinates"][0] for feature in outlines["features"]]
        has_tumour = labels.get(slide_id, "tumour") == "tumour"
        assert bool(rings) == has_tumour
        assert (0.05 <= float(row["tumour_share"]) <= 0.25) == has_tumour
        pixels = pixels_of(cohort.slides[slide_id])
        inside = inside_of([np.asarray(ring, np.int32) for ring in rings], pixels.shape)
        assert inside.sum() * 0.25e-6 == pytest.approx(float(row["tumour_mm2"]), rel=0.12)
        assert all(ring[0] == ring[-1] for ring in rings)


def test_unlabelled_slide_has_a_tumour(cohort: DemoCohort) -> None:
    share = {row["slide_id"]: float(row["tumour_share"]) for row in rows_of(cohort.truth)}
    assert share[cohort.unlabelled] > 0.05


def test_same_seed_gives_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    first, second, other = (
        bytes_of(write_demo(tmp_path / name, slides=4, side_px=640, seed=seed, workers=workers))
        for name, seed, workers in (("first", 3, 1), ("second", 3, 2), ("other", 4, 1))
    )
    assert first == second
    assert first["data/raw/patient-01-a.svs"] != other["data/raw/patient-01-a.svs"]


def test_second_call_leaves_the_files_and_a_users_changes_alone(tmp_path: Path) -> None:
    cohort = write_demo(tmp_path, slides=4, side_px=640)
    assert cohort.written
    cohort.labels.write_text("slide_id,label,patient_id\n", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = write_demo(tmp_path, slides=4, side_px=640)
    assert not again.written
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("lost", ["demo.json", "data/raw/patient-02-a.svs", "truth.csv"])
def test_incomplete_demo_is_written_anew(tmp_path: Path, lost: str) -> None:
    before = bytes_of(write_demo(tmp_path, slides=4, side_px=640))
    (tmp_path / lost).unlink()
    again = write_demo(tmp_path, slides=4, side_px=640)
    assert again.written
    assert bytes_of(again) == before


@pytest.mark.parametrize("changed", ["data/labels.csv", "data/raw/patient-02-a.svs"])
def test_an_older_demo_is_drawn_anew_unless_its_user_changed_it(tmp_path: Path, changed: str) -> None:
    cohort = write_demo(tmp_path, slides=4, side_px=640)
    drawn = bytes_of(cohort)
    path = tmp_path / "demo.json"
    older = json.loads(path.read_text()) | {"version": 0, "digest": "of version 0"}
    path.write_text(json.dumps(older))
    assert write_demo(tmp_path, slides=4, side_px=640).written
    assert bytes_of(cohort) == drawn
    path.write_text(json.dumps(older))
    (tmp_path / changed).write_bytes(b"mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"{changed} was changed since the demo was drawn.* a folder of its own"):
        write_demo(tmp_path, slides=4, side_px=640)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"files": [1]}', '{"files": {"a": 1}}'])
def test_a_damaged_record_of_a_demo_costs_a_drawing(tmp_path: Path, content: str) -> None:
    before = bytes_of(write_demo(tmp_path, slides=4, side_px=640))
    (tmp_path / "demo.json").write_text(content)
    assert bytes_of(write_demo(tmp_path, slides=4, side_px=640)) == before


def test_smaller_demo_leaves_no_slide_of_the_larger_one(tmp_path: Path) -> None:
    write_demo(tmp_path, slides=6, side_px=640)
    mine = tmp_path / "data" / "raw" / "my own.svs"
    mine.write_bytes(b"")
    cohort = write_demo(tmp_path, slides=4, side_px=640)
    assert set((tmp_path / "data" / "raw").iterdir()) == {*cohort.slides.values(), mine}


def test_labels_of_a_users_own_study_are_not_overwritten(tmp_path: Path) -> None:
    labels = tmp_path / "data" / "labels.csv"
    labels.parent.mkdir()
    labels.write_text("slide_id,label\nmine,a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="would be overwritten; give the demo its own folder"):
        write_demo(tmp_path, slides=4, side_px=640)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [labels]


def test_a_removed_demo_leaves_what_a_user_put_there_and_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cohort = write_demo(tmp_path, slides=4, side_px=640)
    mine = [tmp_path / "data" / "raw" / "my own.svs", tmp_path / "results" / "notes.txt", tmp_path / "config.yaml"]
    made = [tmp_path / "results" / "logs" / "tile" / "a.log", tmp_path / ".snakemake" / "log" / "x.log"]
    made.append(tmp_path / "reports" / "predictions.csv")
    for path in (*mine, *made):
        path.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(path, "x")
    cohort.labels.write_text("slide_id,label,patient_id\n", encoding="utf-8")  # the user's own words
    remove_demo(tmp_path)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*mine, cohort.labels}
    assert not (tmp_path / "reports").exists()
    left = {record.getMessage() for record in caplog.records}
    assert {f"left: {path}" for path in (*mine[:2], cohort.labels)} < left
    assert sum(message.startswith("left: ") for message in left) == 3
    remove_demo(tmp_path)  # once more is no error
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {*mine, cohort.labels}


def test_a_manifest_that_names_a_file_outside_removes_nothing_there(tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.write_bytes(b"x")
    folder = tmp_path / "demo"
    folder.mkdir()
    digest = hashlib.sha256(b"x").hexdigest()
    (folder / "demo.json").write_text(json.dumps({"files": {"../precious": digest, str(outside): digest}}))
    remove_demo(folder)
    assert outside.exists()


@pytest.mark.parametrize(("settings", "message"), [({"slides": 3}, "3 labelled slides"), ({"side_px": 300}, "300 px")])
def test_demo_that_cannot_be_is_refused(tmp_path: Path, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_demo(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []
