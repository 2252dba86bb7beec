import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import pytest
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.slide import Slide, open_slide, read_plan
from tests.slides import tissue_like, write_generic, write_svs

AWKWARD: dict[str, float | str] = {
    "CMU-1-Small-Region.svs": 0.499,
    "blank_black.tif": 0.499,
    "blank_white.tif": 0.499,
    "gap_1_32.tif": 0.499,
    "jp2k_33005.svs": 0.499,
    "mpp_comma.svs": 0.499,
    "name with space & ünïcode (1).svs": 0.499,
    "odd_1_3_10.tif": 0.499,
    "ome_subifd.ome.tif": 0.499,
    "pyramid_aperio.svs": 0.499,
    "pyramid_generic.tif": 0.499,
    "single_level.tif": 0.499,
    "tile_512_lzw.tif": 0.499,
    "tiny_120x90.tif": 0.499,
    "two_bad_tiles.tif": 0.499,
    "sm_image": 0.499,
    "anisotropic_mpp.tif": "not square: mpp is 0.25 in x and 0.5 in y",
    "generic_72dpi.tif": "352.8 um per pixel, which is 72 dots per inch",
    "generic_no_resolution.tif": "1000 um per pixel, which is what a TIFF file without a resolution",
    "multi_frame_jpeg_camelyon_challenge_image": "28.97 um per pixel",
    "multi_frame_jpeg2000_camelyon_challenge_image": "28.97 um per pixel",
    "mpp_zero.svs": "its mpp is 0 um per pixel",
    "mpp_text.svs": "its MPP entry reads 'unknown'",
    "mag_only_no_mpp.svs": "no mpp in its properties, only a 20x objective",
    "no_mpp_no_mag.svs": "no mpp in its properties",
    "grey.tif": "no mpp in its properties",
    "rgba.tif": "no mpp in its properties",
    "test_orient0.tif": "352.9 um per pixel",
    "test_orient2.tif": "Orientation tag is 2",
    "test_orient6.tif": "Orientation tag is 6",
    "uint16.tif": "16 bits a colour",
    "sm_image_jpegls": "compressed in a way OpenSlide cannot read",
    "dicom_unreadable": "holds no .dcm file",
    "empty.svs": "empty",
    "not_a_slide.svs": "web page",
    "http_503_page.svs": "web page",
    "random_text.svs": "text, not a slide",
    "truncated_60pct.svs": "damaged or cut short",
    "truncated_header.svs": "damaged or cut short",
    "truncated_tail_short_read.tif": "damaged or cut short",
    "no such file.svs": "no such file",
}


def find(shared_data: Path, name: str) -> Path:
    folders = ("slides", "slides/dicom", "awkward", "awkward/dicom_unreadable")
    return next(
        (shared_data / folder / name for folder in folders if (shared_data / folder / name).exists()), Path(name)
    )


@pytest.mark.parametrize(("name", "expected"), AWKWARD.items())
def test_every_awkward_file_opens_at_its_mpp_or_says_what_is_wrong(
    shared_data: Path, name: str, expected: float | str
) -> None:
    path = find(shared_data, name)
    if isinstance(expected, float):
        with open_slide(path) as slide:
            assert slide.mpp == pytest.approx(expected, rel=1e-4)
            assert slide.mpp_source == "properties"
        return
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    assert expected in caught.value.reason
    assert str(shared_data) not in caught.value.reason
    assert caught.value.remedy


def test_no_file_of_the_awkward_folder_is_left_out_of_the_table(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "awkward").iterdir()} <= AWKWARD.keys()


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return tissue_like(700, 900)


def test_an_override_wins_over_the_properties_and_says_so(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    path = write_svs(tmp_path / "a.svs", pixels, mpp=0.5)
    with open_slide(path, mpp=0.25, default_mpp=1.0, mpp_from_objective=True) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.25, "override")
        assert "0.25 was given; the slide's properties say 0.5" in slide.warnings[0]


def test_a_slide_without_mpp_takes_the_objective_then_the_default(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    with_power = write_svs(tmp_path / "a.svs", pixels, mpp=None, objective=40)
    without = write_svs(tmp_path / "b.svs", pixels, mpp=None, objective=None)
    with open_slide(with_power, default_mpp=0.4, mpp_from_objective=True) as slide:
        assert (slide.mpp, slide.mpp_source, slide.objective) == (0.25, "objective", 40)
    with open_slide(with_power, default_mpp=0.4) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.4, "default")
    with open_slide(without, default_mpp=0.4, mpp_from_objective=True) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.4, "default")


@pytest.mark.parametrize("mpp", ["0.04", "10.5", "-0.5", "0"])
def test_the_default_never_replaces_an_implausible_mpp(tmp_path: Path, pixels: NDArray[np.uint8], mpp: str) -> None:
    path = write_svs(tmp_path / "a.svs", pixels, mpp=mpp)
    with pytest.raises(SlideError, match=r"its mpp is .* um per pixel"):
        open_slide(path, default_mpp=0.5)
    with open_slide(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5


def test_pixels_two_per_cent_from_square_are_kept_and_three_are_not(tmp_path: Path) -> None:
    image = tissue_like(300, 300)
    near = write_generic(tmp_path / "a.tif", image, resolution=(20000, 19700))
    far = write_generic(tmp_path / "b.tif", image, resolution=(20000, 19400))
    with open_slide(near) as slide:
        assert slide.mpp == pytest.approx((slide.mpp_x + slide.mpp_y) / 2)
        assert slide.mpp_y > slide.mpp_x
    with pytest.raises(SlideError, match="not square"):
        open_slide(far)


def test_outside_and_transparent_pixels_are_white(tmp_path: Path) -> None:
    rgba = np.zeros((300, 300, 4), np.uint8)
    rgba[:150] = (200, 100, 50, 255)
    path = write_generic(tmp_path / "a.tif", rgba, extrasamples=["unassalpha"])
    with open_slide(path) as slide:
        region = slide.read(-50, -50, level=0, width=400, height=400)
    assert region.shape == (400, 400, 3)
    np.testing.assert_array_equal(region[50:200, 50:350], np.broadcast_to((200, 100, 50), (150, 300, 3)))
    region[50:200, 50:350] = 255
    assert region.min() == 255


def test_a_grey_slide_reads_as_three_equal_channels(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8)[None].repeat(256, 0)
    with open_slide(write_generic(tmp_path / "a.tif", grey)) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, level=0, width=256, height=256), grey[..., None].repeat(3, 2))


def test_levels_match_the_source(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    with open_slide(write_svs(tmp_path / "a.svs", pixels, factors=(4,), compression="jpeg2000")) as slide:
        assert slide.level_dimensions == ((900, 700), (225, 175))
        assert slide.bounds == (0, 0, 900, 700)
        region = slide.read(0, 0, level=1, width=225, height=175)
    reference = cv2.resize(pixels, (225, 175), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(region, reference)


@pytest.mark.parametrize(
    ("mpp", "level", "read_px"),
    [(0.5, 0, 224), (0.75, 0, 336), (1.0, 0, 448), (1.99, 1, 224), (2.0, 1, 224), (3.0, 1, 336), (8.0, 2, 224)],
)
def test_the_deepest_level_that_is_fine_enough_is_read_by_the_exact_ratio(
    tmp_path: Path, mpp: float, level: int, read_px: int
) -> None:
    with open_slide(write_svs(tmp_path / "a.svs", tissue_like(1024, 1024), mpp=0.5)) as slide:
        plan = read_plan(slide, patch_px=224, mpp=mpp)
    assert (plan.level, plan.read_px) == (level, read_px)
    assert plan.realised_mpp == pytest.approx(mpp, rel=0.011)
    assert plan.patch_level0_px == pytest.approx(plan.realised_mpp * 224 / 0.5)


def test_a_level_rounded_to_whole_pixels_counts_as_fine_enough(tmp_path: Path) -> None:
    """Also where its downsample is so far from whole pixels of any finer level that it is read itself."""
    with open_slide(write_svs(tmp_path / "a.svs", tissue_like(1500, 1500), factors=(8,))) as slide:
        assert slide.level_downsamples[1] == pytest.approx(1500 / 187)
        assert read_plan(slide, patch_px=64, mpp=4.0).level == 1


@pytest.mark.parametrize(
    ("name", "mpp", "level", "read_px"),
    [
        ("pyramid_aperio.svs", 0.998, 0, 448),
        ("pyramid_generic.tif", 0.998, 0, 448),
        ("odd_1_3_10.tif", 1.497, 1, 224),
        ("odd_1_3_10.tif", 4.99, 1, 747),
        ("gap_1_32.tif", 15.968, 1, 224),
        ("gap_1_32.tif", 2.0, 0, 898),
        ("single_level.tif", 2.0, 0, 898),
    ],
)
def test_a_level_on_whole_pixels_is_preferred_unless_it_is_far_finer(
    shared_data: Path, name: str, mpp: float, level: int, read_px: int
) -> None:
    with open_slide(shared_data / "awkward" / name) as slide:
        plan = read_plan(slide, patch_px=224, mpp=mpp)
        assert (plan.level, plan.read_px) == (level, read_px)
        assert plan.realised_mpp == pytest.approx(mpp, rel=0.011)


def test_the_plan_does_not_depend_on_how_the_slide_is_read(tmp_path: Path) -> None:
    """Two slides of one shape, one of which only OpenSlide can read."""
    image = tissue_like(1001, 1001)
    plans, names = [], []
    for title, compression in (("a", "jpeg"), ("b", "adobe_deflate")):
        path = tmp_path / f"{title}.svs"
        write_svs(path, image, factors=(4,), compression=compression)
        with open_slide(path) as slide:
            plans.append(read_plan(slide, patch_px=64, mpp=2.0))
            list(slide.patches(np.zeros((1, 2), np.int32), patch_px=64, mpp=2.0, threads=1))
            names.append(slide.patch_source_name)
    assert plans[0] == plans[1]
    assert (plans[0].level, plans[0].read_px) == (0, 256)
    assert names == ["direct", "openslide"]


def test_a_slide_is_never_enlarged(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    with open_slide(write_svs(tmp_path / "a.svs", pixels, mpp=0.52)) as slide:
        plan = read_plan(slide, patch_px=224, mpp=0.5)
        assert (plan.level, plan.read_px) == (0, 224)
        assert plan.realised_mpp == pytest.approx(0.52)
        with pytest.raises(SlideError, match=r"0\.52 um per pixel, coarser than the 0\.25 asked"):
            read_plan(slide, patch_px=224, mpp=0.25)
        with pytest.raises(SlideError, match="coarser"):
            slide.patches(np.zeros((1, 2), np.int32), patch_px=224, mpp=0.25, threads=1)


def all_patches(
    slide: Slide, coords: NDArray[np.int32], *, patch_px: int, mpp: float, threads: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    batches = list(slide.patches(coords, patch_px=patch_px, mpp=mpp, threads=threads))
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])


def grid(width: int, height: int, edge: int) -> NDArray[np.int32]:
    y, x = np.mgrid[0 : height - edge + 1 : edge, 0 : width - edge + 1 : edge]
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)


@pytest.mark.parametrize("threads", [1, 3])
def test_patches_equal_direct_reads_in_the_order_of_the_coordinates(tmp_path: Path, threads: int) -> None:
    coords = grid(1200, 1000, 64)
    with open_slide(write_svs(tmp_path / "a.svs", tissue_like(1000, 1200))) as slide:
        indices, patches = all_patches(slide, coords, patch_px=64, mpp=0.5, threads=threads)
        np.testing.assert_array_equal(indices, np.arange(len(coords)))
        assert indices.dtype == np.int64
        for index in range(0, len(coords), 17):
            x, y = coords[index].tolist()
            np.testing.assert_array_equal(patches[index], slide.read(x, y, level=0, width=64, height=64))


def test_a_known_pattern_is_averaged_over_areas(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    with open_slide(write_generic(tmp_path / "a.tif", image, mpp=0.5)) as slide:
        _, patches = all_patches(slide, grid(512, 512, 256), patch_px=64, mpp=2.0, threads=1)
    mean = image.reshape(2, 64, 4, 2, 64, 4, 3).mean(axis=(2, 5)).transpose(0, 2, 1, 3, 4).reshape(4, 64, 64, 3)
    assert np.abs(patches - mean).max() <= 0.5 + 1e-6


def test_a_fractional_ratio_weighs_cut_pixels_by_their_part(tmp_path: Path) -> None:
    stripes = np.zeros((300, 300, 3), np.uint8)
    stripes[:, 1::3] = 240
    with open_slide(write_generic(tmp_path / "a.tif", stripes, mpp=0.5)) as slide:
        _, patches = all_patches(slide, np.zeros((1, 2), np.int32), patch_px=100, mpp=0.75, threads=1)
    # 1.5 px each: 0 + half of 240, then half of 240 + 0
    np.testing.assert_array_equal(patches, np.full((1, 100, 100, 3), 80))


def test_bad_tiles_lose_only_the_patches_on_them(shared_data: Path) -> None:
    coords = grid(2220, 2967, 128)
    results = []
    for name in ("pyramid_generic.tif", "two_bad_tiles.tif"):
        with open_slide(shared_data / "awkward" / name) as slide:
            results.append(all_patches(slide, coords, patch_px=128, mpp=0.499, threads=2))
    (_, good), (indices, patches) = results
    on_bad = (coords[:, 0] < 512) & (coords[:, 1] >= 1536) & (coords[:, 1] < 1792)
    np.testing.assert_array_equal(indices, np.flatnonzero(~on_bad))
    np.testing.assert_array_equal(patches, good[indices])


def test_a_failed_read_is_an_error_and_the_next_one_works(shared_data: Path) -> None:
    with open_slide(shared_data / "awkward" / "two_bad_tiles.tif") as slide:
        with pytest.raises(SlideError, match=r"x 0, y 1536 of level 0 cannot be read"):
            slide.read(0, 1536, level=0, width=10, height=10)
        assert slide.read(0, 0, level=0, width=10, height=10).shape == (10, 10, 3)


def test_an_overview_shows_everything_but_the_bad_tiles(shared_data: Path) -> None:
    overviews = []
    for name in ("pyramid_generic.tif", "two_bad_tiles.tif"):
        with open_slide(shared_data / "awkward" / name) as slide:
            overviews.append(slide.thumbnail(0.499)[0])
    good, bad = overviews
    changed = np.argwhere((good != bad).any(axis=2))
    assert len(changed) > 1000
    assert changed.min(axis=0).tolist() >= [1300, 0]
    assert changed.max(axis=0).tolist() < [2000, 720]
    assert slide.warnings[0].endswith("of the slide cannot be read and was taken as background")


def test_an_unreadable_slide_is_given_up(shared_data: Path, tmp_path: Path) -> None:
    content = bytearray((shared_data / "awkward" / "single_level.tif").read_bytes())
    start, length = len(content) // 20, len(content) * 9 // 10
    content[start : start + length] = bytes(length)
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(SlideError), open_slide(path, mpp=0.5) as slide:
        slide.thumbnail(8)


def test_an_overview_is_an_area_average_at_most_as_coarse_as_asked(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    with open_slide(write_generic(tmp_path / "a.tif", image, mpp=0.5)) as slide:
        overview, mpp = slide.thumbnail(3.2)
    assert mpp == pytest.approx(3.0)
    assert np.abs(overview - image.reshape(100, 6, 150, 6, 3).mean(axis=(1, 3))).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("factor", [1, 3])
def test_an_overview_read_past_openslide_is_openslides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, factor: int
) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_like(2100, 2400), factors=())
    with caplog.at_level("INFO"), open_slide(path) as slide:
        overview, _ = slide.thumbnail(0.5 * factor)
    assert "through OpenSlide" not in caplog.text
    pixels = np.array(openslide.OpenSlide(path).read_region((0, 0), 0, (2400, 2100)).convert("RGB"))
    assert np.array_equal(overview, cv2.resize(pixels, (2400 // factor, 2100 // factor), interpolation=cv2.INTER_AREA))


def test_a_reader_that_stops_early_closes_its_handles(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_like(1024, 1024))
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("open files can only be counted on Linux")
    with open_slide(path) as slide:
        before = len(list(descriptors.iterdir()))
        batches = slide.patches(grid(1024, 1024, 32), patch_px=32, mpp=0.5, threads=2)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert len(list(descriptors.iterdir())) == before


# 4 batches through OpenSlide, each once in pieces and once joined, are 77 MB; the direct reader fills patches that
# share a tile together: at most 268 MB, and the 4 batches ahead
@pytest.mark.parametrize(("compression", "patches", "limit"), [("deflate", 2000, 100e6), ("jpeg", 6000, 350e6)])
def test_memory_does_not_grow_with_the_number_of_patches(
    tmp_path: Path, compression: str, patches: int, limit: float
) -> None:
    coords = np.zeros((patches, 2), np.int32)
    path, image = tmp_path / "a.tif", tissue_like(512, 512)
    write_svs(path, image) if compression == "jpeg" else write_generic(path, image)
    with open_slide(path) as slide:
        tracemalloc.start()
        seen = sum(len(indices) for indices, _ in slide.patches(coords, patch_px=224, mpp=0.5, threads=2))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seen == patches
    assert peak < limit


def test_no_coordinates_give_no_batches(tmp_path: Path) -> None:
    with open_slide(write_svs(tmp_path / "a.svs", tissue_like(512, 512))) as slide:
        assert list(slide.patches(np.empty((0, 2), np.int32), patch_px=224, mpp=0.5, threads=2)) == []


def test_label_and_macro_images_are_never_opened(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise AssertionError("an associated image was opened")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(refuse))
    with open_slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        assert slide.thumbnail(8)[0].shape == (186, 139, 3)


def test_the_fingerprint_is_the_files(shared_data: Path) -> None:
    with open_slide(shared_data / "slides" / "dicom" / "sm_image") as folder:
        assert len(folder.fingerprint) == 32
        assert (folder.vendor, folder.width) == ("dicom", 50)


def test_a_dicom_folder_of_two_series_is_refused(shared_data: Path, tmp_path: Path) -> None:
    for source in ("sm_image", "multi_frame_jpeg_camelyon_challenge_image"):
        for file in (shared_data / "slides" / "dicom" / source).glob("*.dcm"):
            (tmp_path / f"{source}-{file.name}").write_bytes(file.read_bytes())
    with pytest.raises(SlideError, match="the folder holds 2 DICOM series"):
        open_slide(tmp_path)


def test_a_hamamatsu_index_without_its_images_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.vms"
    path.write_text("[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=a-0.jpg\n")
    with pytest.raises(SlideError, match="image files that it names are missing"):
        open_slide(path, mpp=0.5)


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({"photometric": "miniswhite"}, 1),
        ({"photometric": "rgb", "planarconfig": "separate"}, 3),
        ({"photometric": "rgb", "predictor": 2}, 3),
        ({"photometric": "separated"}, 4),
    ],
    ids=["white is 0", "planar", "predictor", "CMYK"],
)
def test_rare_tiff_layouts_are_read_right(tmp_path: Path, options: dict[str, Any], channels: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    grey, zero = rgb[..., 0], np.zeros((300, 300, 1), np.uint8)
    stored, seen = {
        1: (grey, np.repeat(255 - grey[..., None], 3, 2)),
        3: (np.moveaxis(rgb, -1, 0).copy() if "planarconfig" in options else rgb, rgb),
        4: (np.concatenate([255 - rgb, zero], -1), rgb),
    }[channels]
    with open_slide(write_generic(tmp_path / "a.tif", stored, **options)) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, level=0, width=300, height=300), seen)


@pytest.mark.parametrize(
    ("dtype", "channels", "options", "words"),
    [
        (np.int8, 1, {"photometric": "minisblack"}, "signed or floating-point"),
        (np.float32, 1, {"photometric": "minisblack"}, "32 bits a colour"),
        (np.uint8, 4, {"extrasamples": ["unspecified"]}, "fourth channel of no stated meaning"),
        (
            np.uint8,
            2,
            {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]},
            "grey with a second channel",
        ),
    ],
)
def test_pixels_that_would_come_back_wrong_are_refused(
    tmp_path: Path, dtype: type, channels: int, options: dict[str, Any], words: str
) -> None:
    shape = (300, 300) if channels == 1 else (300, 300, channels)
    with pytest.raises(SlideError, match=words):
        open_slide(write_generic(tmp_path / "a.tif", np.full(shape, 7, dtype), **options))
