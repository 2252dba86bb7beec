import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline import store
from pipeline.cohort import Drawn
from pipeline.errors import SlideError
from pipeline.fingerprint import fingerprint
from pipeline.flags import FLAGS
from pipeline.geojson import from_geojson
from pipeline.grid import place_tiles
from pipeline.preview import draw_placeholder
from pipeline.quality import QualityOptions
from pipeline.slide import open_slide
from pipeline.tile import overview_scale, run
from pipeline.tissue import TissueOptions
from tests.slides import slide_with_tissue, write_scn, write_svs

SETTINGS: dict[str, Any] = {
    "patch_px": 64,
    "target_mpp": 0.5,
    "overlap": 0.0,
    "min_tissue": 0.5,
    "tissue_options": TissueOptions(),
    "quality": QualityOptions(max_blur=1),  # the tissue drawn here is as smooth as one out of focus
}
TISSUE_BOX = (256, 128, 1024, 512)


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = slide_with_tissue(1000, 1600, box=TISSUE_BOX)
    return write_svs(tmp_path_factory.mktemp("slides") / "a.svs", pixels, mpp=0.5)


def tile(path: Path, folder: Path, **changes: Any) -> store.Artefact:
    run(
        path,
        slide_id="case 1__ä",
        fingerprint=fingerprint(path),
        tiles=folder / "a.zarr.zip",
        tissue=folder / "a.geojson",
        preview=folder / "a.jpg",
        **(SETTINGS | changes),
    )
    return store.read(folder / "a.zarr.zip")


def test_tiles_cover_the_tissue_and_nothing_else(slide_path: Path, tmp_path: Path) -> None:
    artefact = tile(slide_path, tmp_path)
    coords, share = artefact.arrays["coords"], artefact.arrays["tissue"]
    assert coords.dtype == np.int32
    assert share.dtype == np.float32
    expected = {(x, y) for x in range(256, 1280, 64) for y in range(128, 640, 64)}
    found = set(map(tuple, coords.tolist()))
    assert len(found ^ expected) <= 0.05 * len(expected)
    assert share.min() >= 0.5
    assert np.lexsort((coords[:, 0], coords[:, 1])).tolist() == list(range(len(coords)))


def test_doubling_mpp_halves_tiles_per_axis(slide_path: Path, tmp_path: Path) -> None:
    fine = tile(slide_path, tmp_path / "fine", patch_px=64, target_mpp=0.5)
    coarse = tile(slide_path, tmp_path / "coarse", patch_px=64, target_mpp=1.0)
    for axis, length in ((0, 1024), (1, 512)):
        assert len(np.unique(fine.arrays["coords"][:, axis])) == length / 64
        assert len(np.unique(coarse.arrays["coords"][:, axis])) == length / 128
    assert (coarse.attributes["read_px"], coarse.attributes["patch_level0_px"]) == (128, 128)


def test_attributes_say_how_the_tiles_are_read(slide_path: Path, tmp_path: Path) -> None:
    attributes = tile(slide_path, tmp_path, overlap=0.25, parameters={"a": 1}).attributes
    expected = {
        "stage": "tile",
        "slide_id": "case 1__ä",
        "fingerprint": fingerprint(slide_path),
        "parameters": {"a": 1},
        "width": 1600,
        "height": 1000,
        "mpp_x": 0.5,
        "mpp_y": 0.5,
        "mpp_source": "properties",
        "target_mpp": 0.5,
        "realised_mpp": 0.5,
        "patch_px": 64,
        "level": 0,
        "read_px": 64,
        "patch_level0_px": 64.0,
        "stride_level0_px": 48.0,
        "bounds": [0, 0, 1600, 1000],
        "vendor": "aperio",
        "objective": 20.0,
        "warnings": [],
    }
    assert {name: attributes[name] for name in expected} == expected
    assert attributes["tissue_area_mm2"] == pytest.approx(1024 * 512 * 0.25e-6, rel=0.07)


def test_the_outline_is_the_tissue_in_level_0_pixels(slide_path: Path, tmp_path: Path) -> None:
    tile(slide_path, tmp_path)
    collection = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    mask = from_geojson(collection, shape=(1000, 1600), downsample=1)
    x, y, width, height = TISSUE_BOX
    truth = np.zeros((1000, 1600), np.bool_)
    truth[y : y + height, x : x + width] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.92


def test_the_preview_shows_tissue_tiles_and_legend(slide_path: Path, tmp_path: Path) -> None:
    tile(slide_path, tmp_path)
    with Image.open(tmp_path / "a.jpg") as picture:
        pixels = np.asarray(picture).astype(int)
    assert picture.format == "JPEG"
    assert 900 < pixels.shape[0] < 1100
    assert 1300 < pixels.shape[1] < 1500
    green = (pixels[..., 1] - pixels[..., 0] > 60) & (pixels[..., 1] > pixels[..., 2])
    assert green.sum() > 3000


def test_tiles_can_be_capped_the_same_way_in_every_run(slide_path: Path, tmp_path: Path) -> None:
    full = tile(slide_path, tmp_path / "full").arrays["coords"]
    first, second = (tile(slide_path, tmp_path / name, max_tiles=20) for name in "ab")
    np.testing.assert_array_equal(first.arrays["coords"], second.arrays["coords"])
    assert set(map(tuple, first.arrays["coords"].tolist())) < set(map(tuple, full.tolist()))
    assert first.attributes["warnings"] == [f"20 of {len(full)} tiles were kept (tiling.max_tiles)"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"target_mpp": 0.1}, "coarser than the 0.1 asked for"),
        ({"patch_px": 1001}, "less than one tile of 1001 px"),
        ({"patch_px": 900, "min_tissue": 0.99}, "no tile of 450 um is covered by tissue to 99%"),
        ({"tissue_options": TissueOptions(method="fixed", threshold=5.0)}, "no tissue was found"),
    ],
)
def test_a_slide_without_tiles_is_quarantined_with_its_reason(
    slide_path: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    artefact = tile(slide_path, tmp_path, **changes)
    assert not artefact.ok
    assert reason in artefact.attributes["reason"]
    assert artefact.arrays["coords"].shape == (0, 2)
    outline = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    assert outline["features"] == []
    with Image.open(tmp_path / "a.jpg") as picture:
        assert json.loads(picture.info["comment"])["made_by"] == outline["made_by"]
    assert outline["made_by"]["stage_version"] == artefact.attributes["stage_version"]


def test_an_unreadable_slide_gets_a_picture_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"")
    artefact = tile(path, tmp_path)
    assert "empty" in artefact.attributes["reason"]
    with Image.open(tmp_path / "a.jpg") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert np.count_nonzero(pixels < 128) > 500  # letters
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.geojson", "a.jpg", "a.svs", "a.zarr.zip"]


def test_real_files_are_tiled_or_quarantined(shared_data: Path, tmp_path: Path) -> None:
    good = tile(shared_data / "slides" / "CMU-1-Small-Region.svs", tmp_path / "good", patch_px=224)
    assert 40 <= len(good.arrays["coords"]) <= 60
    dark = tile(shared_data / "slides" / "fluorescence-dapi.ndpi", tmp_path / "dark", patch_px=224)
    assert "fluorescence" in dark.attributes["reason"]
    assert dark.attributes["width"] == 3968


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(5, 400),
    st.integers(5, 400),
    st.floats(1, 90),
    st.floats(0, 0.9),
    st.floats(1, 40),
)
def test_tiles_always_lie_inside_the_bounds(
    x: int, y: int, width: int, height: int, patch_px: float, overlap: float, downsample: float
) -> None:
    mask = np.ones((int(440 / downsample) + 1, int(440 / downsample) + 1), np.bool_)
    stride = max(1.0, patch_px * (1 - overlap))
    coords, share = place_tiles(
        mask, downsample=downsample, patch_px=patch_px, stride_px=stride, bounds=(x, y, width, height), min_tissue=1
    )
    assert (len(coords) > 0) == (patch_px <= min(width, height))
    assert (coords >= (x, y)).all()
    assert (coords + patch_px <= (x + width, y + height)).all()
    np.testing.assert_allclose(share, 1, atol=1e-6)


def brute_force_share(mask: NDArray[np.bool_], x: float, y: float, edge: float, downsample: float) -> float:
    """Count tissue in a tile by sampling it at 200 x 200 points."""
    at = (np.arange(200) + 0.5) / 200 * edge
    rows = np.floor((y + at) / downsample).astype(int).clip(0, mask.shape[0] - 1)
    columns = np.floor((x + at) / downsample).astype(int).clip(0, mask.shape[1] - 1)
    return float(mask[np.ix_(rows, columns)].mean())


def test_shares_count_cut_mask_pixels_by_their_part() -> None:
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    coords, share = place_tiles(
        mask, downsample=16.06, patch_px=41.3, stride_px=33.7, bounds=(0, 0, 470, 310), min_tissue=0
    )
    assert len(coords) > 80
    reference = [brute_force_share(mask, x, y, 41.3, 16.06) for x, y in coords.tolist()]
    np.testing.assert_allclose(share, reference, atol=0.01)


def test_a_tile_at_the_least_share_is_kept() -> None:
    mask = np.zeros((4, 4), np.bool_)
    mask[:2, :1] = True  # half of the first tile
    options: dict[str, Any] = {"downsample": 8, "patch_px": 16, "stride_px": 16, "bounds": (0, 0, 32, 32)}
    assert place_tiles(mask, min_tissue=0.5, **options)[0].tolist() == [[0, 0]]
    assert place_tiles(mask, min_tissue=0.51, **options)[0].tolist() == []
    assert len(place_tiles(mask, min_tissue=0, **options)[0]) == 4


def test_drawn_tissue_replaces_the_one_that_is_found(slide_path: Path, tmp_path: Path) -> None:
    outline = draw(tmp_path / "t.geojson", (320, 192, 192, 128))
    artefact = tile(slide_path, tmp_path, drawn=Drawn(tissue=outline))
    assert set(map(tuple, artefact.arrays["coords"].tolist())) == {(x, y) for x in (320, 384, 448) for y in (192, 256)}
    assert artefact.attributes["drawn"] == ["tissue"]


def test_regions_restrict_the_tissue(slide_path: Path, tmp_path: Path) -> None:
    region = draw(tmp_path / "r.geojson", (0, 0, 512, 1000))
    coords = tile(slide_path, tmp_path, drawn=Drawn(roi=region)).arrays["coords"]
    assert coords[:, 0].max() == 448
    assert len(coords) >= 0.9 * 4 * 8
    outside = draw(tmp_path / "o.geojson", (1400, 800, 100, 100))
    left_out = tile(slide_path, tmp_path, drawn=Drawn(roi=outside))
    assert "no tissue in the regions of" in left_out.attributes["reason"]


def test_a_malformed_drawing_quarantines_its_slide(slide_path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.geojson").write_text("{")
    artefact = tile(slide_path, tmp_path, drawn=Drawn(tissue=tmp_path / "bad.geojson"))
    assert "bad.geojson is not JSON" in artefact.attributes["reason"]


def draw(path: Path, box: tuple[int, int, int, int]) -> Path:
    x, y, width, height = box
    ring = [[x, y], [x + width, y], [x + width, y + height], [x, y + height], [x, y]]
    path.write_text(json.dumps([{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}}]))
    return path


def test_spoilt_tiles_are_left_out_counted_and_crossed_out(shared_data: Path, tmp_path: Path) -> None:
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        pixels = slide.read(0, 0, level=0, width=slide.width, height=slide.height)
    good = write_svs(tmp_path / "good.svs", pixels, mpp=0.499)
    pixels[1500:2400] = cv2.GaussianBlur(pixels[1500:2400], (0, 0), 4)
    spoilt = write_svs(tmp_path / "spoilt.svs", pixels, mpp=0.499)
    changes: dict[str, Any] = {"patch_px": 224, "quality": QualityOptions()}
    before, after = tile(good, tmp_path / "good", **changes), tile(spoilt, tmp_path / "spoilt", **changes)
    assert before.attributes["excluded"] == {"pen": 0, "bubble": 0, "blur": 0, "fold": 0}
    lost = after.attributes["excluded"]["blur"]
    assert lost == len(before.arrays["coords"]) - len(after.arrays["coords"])
    y, kept_y = before.arrays["coords"][:, 1], after.arrays["coords"][:, 1]
    assert not ((kept_y >= 1500) & (kept_y + 224 <= 2400)).any()
    outside = [(corners + 224 <= 1500) | (corners >= 2400) for corners in (y, kept_y)]
    assert outside[0].sum() == outside[1].sum()
    assert {after.arrays[name].dtype for name in ("tissue", *FLAGS)} == {np.dtype(np.float32)}
    assert after.arrays["excluded_flag"].tolist() == [FLAGS.index("blur")] * lost
    corners = {tuple(corner) for corner in before.arrays["coords"].tolist()}
    kept_corners = {tuple(corner) for corner in after.arrays["coords"].tolist()}
    assert {tuple(corner) for corner in after.arrays["excluded"].tolist()} == corners - kept_corners
    kept = tile(spoilt, tmp_path / "kept", patch_px=224, quality=QualityOptions(max_blur=1))
    assert len(kept.arrays["coords"]) == len(before.arrays["coords"])
    assert kept.arrays["blur"].max() > 0.9


def test_a_slide_that_is_spoilt_all_over_is_quarantined(slide_path: Path, tmp_path: Path) -> None:
    artefact = tile(slide_path, tmp_path, quality=QualityOptions())
    assert "128 tiles are spoilt (128 by blur)" in artefact.attributes["reason"]


def test_tiles_on_pen_are_left_out(tmp_path: Path) -> None:
    pixels = slide_with_tissue(1000, 1600, box=TISSUE_BOX)
    cv2.line(pixels, (300, 150), (1200, 150), (30, 140, 70), 40)
    path = write_svs(tmp_path / "a.svs", pixels)
    changes: dict[str, Any] = {"tissue_options": TissueOptions(), "min_tissue": 0.1}
    strict = tile(path, tmp_path / "strict", **changes)
    lax = tile(path, tmp_path / "lax", quality=QualityOptions(max_pen=1, max_blur=1), **changes)
    assert strict.attributes["excluded"]["pen"] >= 10
    assert len(lax.arrays["coords"]) > len(strict.arrays["coords"])
    assert strict.arrays["pen"].max() <= 0.1 < lax.arrays["pen"].max()


def test_a_slide_with_bounds_is_tiled_inside_them_and_outlined_in_qupaths_frame(tmp_path: Path) -> None:
    path = write_scn(
        tmp_path / "a.scn", slide_with_tissue(1000, 1600, box=TISSUE_BOX), origin=(640, 320), canvas=(3200, 2400)
    )
    artefact = tile(path, tmp_path)
    assert (artefact.attributes["vendor"], artefact.attributes["bounds"]) == ("leica", [640, 320, 1600, 1000])
    coords = artefact.arrays["coords"]
    assert (coords >= (640 + 256 - 32, 320 + 128 - 32)).all()
    assert (coords + 64 <= (640 + 256 + 1024 + 32, 320 + 128 + 512 + 32)).all()
    assert ((coords - (640, 320)) % 64 == 0).all()
    outline = json.loads((tmp_path / "a.geojson").read_text(encoding="utf-8"))
    corners = np.array(outline["features"][0]["geometry"]["coordinates"][0])
    x, y, width, height = TISSUE_BOX
    np.testing.assert_allclose(corners.min(axis=0), (x, y), atol=24)
    np.testing.assert_allclose(corners.max(axis=0), (x + width, y + height), atol=24)
    # what was written can be drawn again as it is
    again = tile(path, tmp_path / "again", drawn=Drawn(tissue=tmp_path / "a.geojson"))
    np.testing.assert_array_equal(again.arrays["coords"], coords)


def test_the_overview_of_a_large_slide_is_bounded(slide_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_slide(slide_path) as slide:
        assert overview_scale(slide, 8.0) == 8.0
        monkeypatch.setattr("pipeline.tile.MAX_OVERVIEW_PX", 2000)
        assert overview_scale(slide, 8.0) == 16.0
        assert overview_scale(slide, 0.1) == 16.0


def test_a_long_sentence_stays_on_the_picture(tmp_path: Path) -> None:
    words = "WWWW " * 60 + "W" * 300
    picture = draw_placeholder("case", SlideError(words, remedy="look"))
    ink = np.asarray((picture < 128).all(axis=2))
    assert ink.any()
    assert not ink[:, -10:].any()


def test_a_fluorescence_slide_whose_tissue_is_drawn_is_tiled(shared_data: Path, tmp_path: Path) -> None:
    outline = draw(tmp_path / "t.geojson", (0, 0, 2000, 2000))
    path = shared_data / "slides" / "fluorescence-dapi.ndpi"
    artefact = tile(path, tmp_path, drawn=Drawn(tissue=outline), patch_px=224)
    assert len(artefact.arrays["coords"]) == 16
    assert artefact.arrays["pen"].max() == artefact.arrays["fold"].max() == 0
