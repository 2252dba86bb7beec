import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tifffile import TiffFile

from pipeline import drawing, heatmap, maps, pseudonyms, sheet, specimens, store, wording
from pipeline.drawing import Page
from pipeline.errors import SlideError
from pipeline.slide import open_slide
from pipeline.versions import STAGE_VERSIONS, __version__
from tests.slides import slide_with_tissue, write_svs

SETTINGS: dict[str, Any] = {"colormap": "viridis", "opacity": 0.5, "top_patches": 4, "width_px": 1488}
EDGE = 224


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = slide_with_tissue(1400, 2000, box=(224, 224, 1344, 896))
    return write_svs(tmp_path_factory.mktemp("slides") / "case.svs", pixels)


def grid(columns: int = 6, rows: int = 4) -> NDArray[np.int32]:
    x, y = np.meshgrid(np.arange(columns), np.arange(rows))
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32) * EDGE + EDGE


def write_attention(
    path: Path, coords: NDArray[np.int32], score: NDArray[np.floating], *, folds: int = 1, **changed: Any
) -> Path:
    probability = np.tile(np.array([[0.1, 0.9]], np.float32), (folds, 1))
    known: dict[str, Any] = {
        "width": 2000,
        "height": 1400,
        "mpp_x": 0.5,
        "mpp_y": 0.5,
        "mpp_source": "properties",
        "target_mpp": 0.5,
        "realised_mpp": 0.5,
        "patch_px": EDGE,
        "patch_level0_px": float(EDGE),
        "bounds": [0, 0, 2000, 1400],
        "tissue_area_mm2": 0.3,
        "unreadable": 0,
        "warnings": [],
        "encoder": "texture",
        "classes": ["normal", "tumour"],
        "folds": list(range(folds)),
        "source": "out_of_fold" if folds == 1 else "ensemble",
        "label": "tumour",
        "slide_id": "case",
        "patient_id": "p1",
        "predicted": "tumour",
        "probabilities": [0.1, 0.9],
        "fold_spread": 0.0,
    }
    arrays = {
        "score": (score / score.sum()).astype(np.float32),
        "fold_scores": np.tile((score / score.sum()).astype(np.float32), (folds, 1)),
        "coords": coords,
        "probability": probability,
    }
    attributes = store.stage_attributes("predict", fingerprint="f", **(known | changed))
    store.write(path, arrays, attributes)
    return path


def draw(slide: Path, attention: Path, folder: Path, **changed: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    png, geojson = folder / "case.png", folder / "case.geojson"
    heatmap.run(slide, attention=attention, png=png, geojson=geojson, **(SETTINGS | changed))
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("RGB"))
    return pixels, json.loads(geojson.read_text(encoding="utf-8"))


def panels(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut the tissue and the attention panel of a 2000 x 1400 px slide out of a page."""
    layout = sheet.panel_layout(Page(pixels.shape[1]), width=2000, height=1400)
    width, height = layout.size
    tissue, attention = (pixels[top : top + height, left : left + width] for left, top in layout.corners)
    return tissue, attention


def test_untiled_pixels_of_the_page_equal_the_plain_thumbnail(slide_path: Path, tmp_path: Path) -> None:
    attention = write_attention(tmp_path / "a.zarr.zip", grid(), np.arange(1.0, 25.0))
    pixels, _ = draw(slide_path, attention, tmp_path, top_patches=0)
    tissue, overlay = panels(pixels)
    boxes = drawing.tile_boxes(
        grid(), edge_px=EDGE, origin=(0, 0), scale=(tissue.shape[1] / 2000, tissue.shape[0] / 1400)
    )
    _, covered = drawing.paint(np.ones(24), boxes, shape=tissue.shape[:2])
    np.testing.assert_array_equal(overlay[~covered], tissue[~covered])
    assert (overlay[covered] != tissue[covered]).any(axis=-1).mean() > 0.99
    assert 0.3 < covered.mean() < 0.5


def test_the_highest_score_has_the_hottest_colour_at_its_place(slide_path: Path, tmp_path: Path) -> None:
    score = np.ones(24) + np.linspace(0, 0.1, 24)
    score[8] = 50.0  # column 2, row 1
    pixels, _ = draw(
        slide_path, write_attention(tmp_path / "a.zarr.zip", grid(), score), tmp_path, opacity=1.0, top_patches=0
    )
    _, overlay = panels(pixels)
    scale = overlay.shape[1] / 2000
    hottest = (overlay == drawing.palette("viridis")[255]).all(axis=-1)
    rows, columns = np.nonzero(hottest)
    expected = [int(edge * scale) for edge in (EDGE * 3, EDGE * 2, EDGE * 4, EDGE * 3)]
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found, expected, atol=1)
    assert hottest[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()


def test_overlapping_tiles_are_averaged() -> None:
    boxes = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [8, 8, 99, 99]])
    values, covered = drawing.paint(np.array([10.0, 30.0, 70.0]), boxes, shape=(10, 10))
    np.testing.assert_allclose(values[0, :7], [10, 10, 20, 20, 30, 30, 0])
    np.testing.assert_allclose(values[8:, 8:], 70)
    assert covered.sum() == 24 + 4


def test_neighbouring_tiles_leave_no_gap_at_any_scale() -> None:
    for scale in (0.0131, 0.0707, 0.31, 1.0):
        boxes = drawing.tile_boxes(grid(), edge_px=EDGE, origin=(13, 7), scale=(scale, scale))
        size = int(boxes.max()) + 1
        _, covered = drawing.paint(np.ones(24), boxes, shape=(size, size))
        left, top, right, bottom = boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()
        assert covered.sum() == covered[top:bottom, left:right].size


def test_ranks_go_from_0_to_100_and_ties_share_theirs() -> None:
    np.testing.assert_allclose(drawing.percentile_ranks(np.array([0.1, 0.7, 0.2])), [0, 100, 50])
    np.testing.assert_allclose(
        drawing.percentile_ranks(np.array([3.0, 1.0, 1.0, 1.0])), [100, 100 / 3, 100 / 3, 100 / 3]
    )
    np.testing.assert_allclose(drawing.percentile_ranks(np.ones(5)), 50)
    np.testing.assert_allclose(drawing.percentile_ranks(np.ones(1)), 50)


@pytest.mark.parametrize(("longest", "expected"), [(99, 50), (100, 100), (420, 200), (4999, 2000), (0.7, 0.5)])
def test_scale_bar_lengths_are_round(longest: float, expected: float) -> None:
    assert drawing.round_length_um(longest) == pytest.approx(expected)


@pytest.mark.parametrize(("mpp", "thumbnail_width"), [(0.5, 400), (0.25, 731)])
def test_the_scale_bar_has_its_length_in_panel_pixels(mpp: float, thumbnail_width: int) -> None:
    view = sheet.View(np.zeros((300, thumbnail_width, 3), np.uint8), bounds=(0, 0, 40000, 30000), mpp=mpp)
    page = Page(1488)
    sheet.draw_scale_bar(page, view)
    row = np.asarray(page.image)[page.px(sheet.BARS_TOP + 5.0)]
    bar_px = int((row == np.array(drawing.INK)).all(axis=-1).sum())
    slide_um = 40000 * mpp
    length_um = drawing.round_length_um(slide_um / 3)
    assert bar_px == pytest.approx(length_um / slide_um * thumbnail_width, abs=1)


def test_a_slide_with_bounds_is_shown_and_tinted_within_them(slide_path: Path, tmp_path: Path) -> None:
    attention = write_attention(tmp_path / "a.zarr.zip", grid(1, 1), np.ones(1), bounds=[224, 224, 448, 448])
    pixels, _ = draw(slide_path, attention, tmp_path, top_patches=0, opacity=1.0)
    layout = sheet.panel_layout(Page(pixels.shape[1]), width=448, height=448)
    width, height = layout.size
    left, top = layout.corners[1]
    colour = drawing.colours(np.array(50.0), "viridis")
    tinted = (pixels[top : top + height, left : left + width] == colour).all(axis=-1)
    assert tinted[: height // 2, : width // 2].all()
    assert not tinted[height // 2 + 1 :].any()


def test_the_same_input_gives_the_same_bytes(slide_path: Path, tmp_path: Path) -> None:
    attention = write_attention(tmp_path / "a.zarr.zip", grid(), np.arange(1.0, 25.0), folds=5)
    draw(slide_path, attention, tmp_path / "one")
    draw(slide_path, attention, tmp_path / "two")
    first = (tmp_path / "one/case.png").read_bytes()
    assert first == (tmp_path / "two/case.png").read_bytes()
    assert b"tIME" not in first


def test_a_page_and_its_outlines_say_what_made_them(slide_path: Path, tmp_path: Path) -> None:
    attention = write_attention(tmp_path / "a.zarr.zip", grid(), np.arange(1.0, 25.0), folds=5)
    _, collection = draw(slide_path, attention, tmp_path)
    with Image.open(tmp_path / "case.png") as page:
        made = json.loads(page.text["made_by"])  # type: ignore[attr-defined]
    known = store.read_attributes(attention)
    assert made == collection["made_by"]
    assert made["asmil_wsi"] == __version__
    assert made["stage_version"] == STAGE_VERSIONS["heatmap"]
    assert made["fingerprint"] == known["fingerprint"]
    assert made["folds"] == known["folds"]
    assert made["parameters"] == {"colormap": "viridis", "opacity": 0.5}


def test_specimens_do_not_overlap_and_no_tile_is_shown_twice() -> None:
    coords = np.array([[0, 0], [100, 0], [224, 0], [448, 0], [672, 0]], np.int32)
    most, least = specimens.choose(np.array([0.9, 0.8, 0.7, 0.1, 0.2]), coords, edge_px=EDGE, count=2)
    assert (most, least) == ([0, 2], [3, 4])
    assert specimens.choose(np.ones(1), coords[:1], edge_px=EDGE, count=6) == ([0], [])
    assert specimens.choose(np.ones(5), coords, edge_px=EDGE, count=0) == ([], [])


def test_the_page_shows_the_pixels_of_the_most_attended_patch(tmp_path: Path) -> None:
    pixels = slide_with_tissue(1400, 2000, box=(224, 224, 1344, 896))
    pixels[EDGE * 3 : EDGE * 4, EDGE * 2 : EDGE * 3] = (10, 200, 30)
    slide = write_svs(tmp_path / "case.svs", pixels, compression="jpeg2000")
    score = np.linspace(1, 2, 24)
    score[13] = 9.0  # column 1, row 2
    page, _ = draw(slide, write_attention(tmp_path / "a.zarr.zip", grid(), score), tmp_path)
    sidebar = page[:, Page(SETTINGS["width_px"]).px(sheet.SIDEBAR[0]) :]
    assert (sidebar == (10, 200, 30)).all(axis=-1).sum() > 1000


def test_a_tile_that_can_no_longer_be_read_is_shown_as_such(slide_path: Path, tmp_path: Path) -> None:
    content = bytearray(slide_path.read_bytes())
    with TiffFile(slide_path) as tiff:
        start, length = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
    content[start : start + length] = bytes(length)
    damaged = tmp_path / "damaged.svs"
    damaged.write_bytes(content)
    path = write_attention(tmp_path / "a.zarr.zip", grid(), np.arange(24.0, 0.0, -1.0))
    attention = maps.load(store.read(path))
    with open_slide(damaged) as slide:
        first, last = specimens.read(slide, attention.coords[[0, 23]], patch_px=EDGE, mpp=0.5)
    assert first is None
    assert last is not None
    assert last.shape == (EDGE, EDGE, 3)
    assert last.std() > 5
    pixels, _ = draw(damaged, path, tmp_path)
    assert not (pixels == (150, 32, 32)).all(axis=-1).any()  # still a picture, not a placeholder


def test_geojson_has_a_square_of_level_0_pixels_a_tile(slide_path: Path, tmp_path: Path) -> None:
    score = np.arange(1.0, 25.0)
    _, collection = draw(slide_path, write_attention(tmp_path / "a.zarr.zip", grid(), score), tmp_path)
    assert len(collection["features"]) == 24
    feature = collection["features"][-1]
    assert feature["geometry"]["coordinates"] == [[[1344, 896], [1568, 896], [1568, 1120], [1344, 1120], [1344, 896]]]
    assert feature["properties"]["objectType"] == "tile"
    assert "classification" not in feature["properties"]
    assert feature["properties"]["measurements"]["attention"] == pytest.approx(24 / 300, rel=1e-4)
    assert feature["properties"]["measurements"]["attention percentile"] == 100


def test_geojson_is_in_qupaths_frame_on_a_slide_with_bounds(slide_path: Path, tmp_path: Path) -> None:
    attention = write_attention(tmp_path / "a.zarr.zip", grid(1, 1), np.ones(1), bounds=[224, 112, 448, 448])
    _, collection = draw(slide_path, attention, tmp_path)
    corner = collection["features"][0]["geometry"]["coordinates"][0][0]
    assert corner == (grid(1, 1)[0] - (224, 112)).tolist()


@pytest.mark.parametrize("opens", [True, False])
def test_a_quarantined_slide_gets_a_page_and_no_tiles(slide_path: Path, tmp_path: Path, opens: bool) -> None:
    error = SlideError("no tissue was found", remedy="look at the preview in results/tissue")
    attributes = store.stage_attributes("predict", slide_id="case", fingerprint="f", error=error)
    store.write(tmp_path / "a.zarr.zip", {}, attributes)
    slide = slide_path
    if not opens:
        slide = tmp_path / "broken.svs"
        slide.write_bytes(b"not a slide")
    pixels, collection = draw(slide, tmp_path / "a.zarr.zip", tmp_path)
    assert collection["features"] == []
    page = Page(SETTINGS["width_px"])
    picture = pixels[page.px(45) : page.px(100), page.px(200) : page.px(285)]
    assert bool((picture < 240).mean() > 0.2) is opens
    words = pixels[page.px(60) : page.px(130), page.px(10) : page.px(150)]
    assert 0.01 < (words < 100).mean() < 0.2


def test_a_slide_that_no_longer_opens_gets_a_page_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "gone.svs").write_bytes(b"not a slide any more")
    attention = write_attention(tmp_path / "a.zarr.zip", grid(), np.ones(24))
    pixels, collection = draw(tmp_path / "gone.svs", attention, tmp_path)
    assert len(collection["features"]) == 24
    red = np.array((150, 32, 32))
    assert (pixels == red).all(axis=-1).sum() > 100


@pytest.mark.parametrize("shape", [(400, 4000), (4000, 400), (1000, 1000), (90, 120)])
def test_panels_have_one_size_and_stay_apart_in_their_area(shape: tuple[int, int]) -> None:
    page = Page(2480)
    layout = sheet.panel_layout(page, width=shape[1], height=shape[0])
    (width, height), (first, second) = layout.size, layout.corners
    left, top, area_width, area_height = sheet.PANELS
    assert second[0] >= first[0] + width or second[1] >= first[1] + height
    assert second[0] + width <= page.px(left + area_width) + 1
    assert second[1] + height <= page.px(top + area_height) + 1
    assert width <= shape[1]
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.03)


@pytest.mark.parametrize("text", ["a$b_{c}", "slide\nwith\tbreaks", "ünïcode ≠ 日本", "x" * 400, "", "bad \udcff name"])
def test_any_text_is_drawn_within_its_width(text: str) -> None:
    page = Page(1000)
    page.text(10, 20, text, 12, width=60)
    page.paragraph(10, 40, text, 12, width=60)
    ink = (np.asarray(page.image) < 128).all(axis=-1)
    assert not np.asarray(ink)[:, page.px(73) :].any()


def test_warnings_come_first_on_the_page(tmp_path: Path) -> None:
    path = write_attention(
        tmp_path / "a.zarr.zip", grid(), np.ones(24), warnings=["x and y differ by 1.2 %."], unreadable=1
    )
    notes = wording.quality_notes(store.read_attributes(path), 24)
    assert notes[0] == "Warning: x and y differ by 1.2 %."
    assert "1 unreadable tile left out" in notes[1]


def test_only_the_ensemble_is_called_one(tmp_path: Path) -> None:
    one = store.read_attributes(write_attention(tmp_path / "a.zarr.zip", grid(), np.ones(24)))
    five = store.read_attributes(write_attention(tmp_path / "b.zarr.zip", grid(), np.ones(24), folds=5))
    assert "models that never saw this slide" in wording.source_text(one)
    assert "ensemble of 5 models" in wording.source_text(five)


def test_a_slide_that_was_trained_on_is_never_called_held_out(tmp_path: Path) -> None:
    path = write_attention(tmp_path / "a.zarr.zip", grid(), np.ones(24), folds=5, source="seen")
    attributes = store.read_attributes(path)
    assert wording.source_text(attributes).startswith("NOT HELD OUT: models that drew this were trained on this slide")
    assert wording.label_text(attributes) == "Label: tumour."
    assert wording.label_text({**attributes, "task": "regression", "value": 3.1, "label": "3"}) == "Label: 3."


def test_the_page_says_when_attention_is_nearly_even() -> None:
    assert "rests on all of them" in wording.reading_note(np.full(10, 0.1))
    assert "rests on all of them" not in wording.reading_note(np.array([0.5, 0.3, 0.2]))


@pytest.mark.parametrize("usable", [True, False])
def test_a_page_with_hashed_ids_is_the_page_of_a_slide_of_that_name(
    slide_path: Path, tmp_path: Path, usable: bool
) -> None:
    hashed = pseudonyms.make(tmp_path / "private", keep=True)
    said = f"{slide_path}: read {slide_path.name} of p1 in part"
    names = {"slide_id": "case", "patient_id": "p1", "sentence": said}
    shown = {
        "slide_id": hashed.slide("case"),
        "patient_id": hashed.patient("p1"),
        "sentence": f"{hashed.slide('case')}.svs: read {hashed.slide('case')}.svs of {hashed.patient('p1')} in part",
    }
    pages = []
    for number, (words, private) in enumerate([(names, tmp_path / "private"), (shown, None)]):
        more: dict[str, Any] = {"slide_id": words["slide_id"], "patient_id": words["patient_id"]}
        attention = tmp_path / f"{number}.zarr.zip"
        if usable:
            write_attention(attention, grid(), np.arange(1.0, 25.0), **more, warnings=[words["sentence"]])
        else:
            error = SlideError(words["sentence"], remedy=f"look at {words['slide_id']}.geojson")
            store.write(attention, {}, store.stage_attributes("predict", fingerprint="f", error=error, **more))
        pages.append(draw(slide_path, attention, tmp_path, private=private)[0])
    assert np.array_equal(pages[0], pages[1])
    assert not np.array_equal(pages[0], draw(slide_path, tmp_path / "0.zarr.zip", tmp_path)[0])


def test_the_page_says_that_a_slide_was_abstained_from_and_why(slide_path: Path, tmp_path: Path) -> None:
    known: dict[str, Any] = {"decision": "abstained", "decision_reason": "out of distribution"}
    words = wording.decision_text({"predicted": "tumour", **known})
    assert words == "ABSTAINED, left to a person: out of distribution."
    assert wording.decision_text({"predicted": "tumour", "decision": "normal"}) == "Decided by the threshold: normal."
    assert wording.decision_text({"predicted": "tumour", "decision": "tumour"}) == ""
    attention = write_attention(tmp_path / "a.zarr.zip", grid(), np.ones(24), **known)
    pixels, _ = draw(slide_path, attention, tmp_path)
    assert (pixels == np.array(drawing.WARNING)).all(axis=-1).sum() > 100


@pytest.mark.parametrize("name", ["viridis", "cividis"])
def test_the_default_colour_maps_are_matplotlibs(name: str) -> None:
    expected = matplotlib.colormaps[name](np.linspace(0.0, 1.0, 256), bytes=True)[:, :3]
    assert np.array_equal(drawing.palette(name), expected)


def test_a_tint_is_the_mean_of_tissue_and_colour_by_opacity() -> None:
    thumbnail = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    percentile = np.random.default_rng(1).uniform(0, 100, (30, 40))
    covered = percentile > 20
    tinted = drawing.tint(thumbnail, percentile, covered, colormap="viridis", opacity=0.3)
    mixed = 0.7 * thumbnail + 0.3 * drawing.colours(percentile, "viridis")
    assert np.abs(tinted[covered] - mixed[covered]).max() <= 0.51
    assert np.array_equal(tinted[~covered], thumbnail[~covered])


def test_drawing_imports_neither_torch_nor_for_the_default_colours_matplotlib() -> None:
    check = (
        "import sys; from pipeline import drawing, heatmap; drawing.palette('viridis');"
        " sys.exit(sum(name in sys.modules for name in ('torch', 'matplotlib', 'bokeh', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
