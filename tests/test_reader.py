import contextlib
import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import embed, store
from pipeline.discovery import discover
from pipeline.errors import SlideError
from pipeline.fingerprint import fingerprint
from pipeline.reader import DirectPatches, SourceChooser, compare
from pipeline.regions import OpenSlidePatches, PatchSource
from pipeline.slide import Slide, open_slide
from pipeline.tiff_tiles import NotDirectError, read_grid
from pipeline.tile_schedule import Mesh, make_schedule
from tests.slides import tissue_like, write_svs

SHARED = {
    "slides/CMU-1-Small-Region.svs": "direct",
    "awkward/anisotropic_mpp.tif": "direct",
    "awkward/blank_black.tif": "direct",
    "awkward/blank_white.tif": "direct",
    "awkward/gap_1_32.tif": "direct",
    "awkward/generic_72dpi.tif": "direct",
    "awkward/generic_no_resolution.tif": "direct",
    "awkward/jp2k_33005.svs": "direct",
    "awkward/mag_only_no_mpp.svs": "direct",
    "awkward/mpp_comma.svs": "direct",
    "awkward/mpp_text.svs": "direct",
    "awkward/mpp_zero.svs": "direct",
    "awkward/name with space & ünïcode (1).svs": "direct",
    "awkward/no_mpp_no_mag.svs": "direct",
    "awkward/odd_1_3_10.tif": "direct",
    "awkward/ome_subifd.ome.tif": "direct",
    "awkward/pyramid_aperio.svs": "direct",
    "awkward/pyramid_generic.tif": "direct",
    "awkward/single_level.tif": "direct",
    "awkward/tiny_120x90.tif": "direct",
    "awkward/two_bad_tiles.tif": "direct",
    "awkward/grey.tif": "openslide",
    "awkward/rgba.tif": "openslide",
    "awkward/test_orient0.tif": "openslide",
    "awkward/tile_512_lzw.tif": "openslide",
    "slides/fluorescence-dapi.ndpi": "openslide",
    "slides/fluorescence-tritc.ndpi": "openslide",
    "slides/dicom/multi_frame_jpeg2000_camelyon_challenge_image": "openslide",
    "slides/dicom/multi_frame_jpeg_camelyon_challenge_image": "openslide",
    "slides/dicom/sm_image": "openslide",
}
"""How level 0 of each shared file that opens is read."""


def source_of(slide: Slide, *, level: int, coords: NDArray[np.int32], read_px: int = 64) -> PatchSource:
    chooser = SourceChooser(
        slide._file,
        vendor=slide.vendor,
        level_dimensions=slide.level_dimensions,
        level_downsamples=slide.level_downsamples,
    )
    return chooser.choose(coords, level=level, read_px=read_px)


def all_patches(
    source: PatchSource, coords: NDArray[np.int32], *, level: int = 0, read_px: int, patch_px: int, threads: int = 2
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    batches = list(source.batches(coords, level=level, read_px=read_px, patch_px=patch_px, threads=threads))
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])


def assert_same(
    slide: Slide, coords: NDArray[np.int32], *, level: int, read_px: int, patch_px: int, source: PatchSource
) -> None:
    options = {"level": level, "read_px": read_px, "patch_px": patch_px}
    indices, patches = all_patches(source, coords, **options)
    expected_indices, expected = all_patches(OpenSlidePatches(slide._file), coords, **options)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(patches, expected)


def scattered(slide: Slide, level: int, *, count: int, seed: int) -> NDArray[np.int32]:
    """Draw corners on the pixels of a level, also outside the slide, in no order."""
    width, height = slide.level_dimensions[level]
    drawn = np.random.default_rng(seed).integers((-300, -300), (width + 100, height + 100), (count, 2))
    return np.asarray(drawn * slide.level_downsamples[level], np.int32)


@pytest.mark.parametrize(("name", "expected"), SHARED.items())
def test_every_shared_slide_reads_as_openslide_does_at_every_level(shared_data: Path, name: str, expected: str) -> None:
    with open_slide(shared_data / name, mpp=0.5) as slide:
        for level, downsample in enumerate(slide.level_downsamples):
            if not float(downsample).is_integer():
                continue
            for read_px, patch_px in ((1, 1), (97, 97), (256, 128), (150, 100)):
                coords = scattered(slide, level, count=12, seed=read_px)
                source = source_of(slide, level=level, coords=coords, read_px=read_px)
                assert source.name == expected
                assert_same(slide, coords, level=level, read_px=read_px, patch_px=patch_px, source=source)


def test_no_shared_slide_that_opens_is_left_out_of_the_table(shared_data: Path) -> None:
    opened = set()
    for path in discover(shared_data)[0].values():
        with contextlib.suppress(SlideError), open_slide(path, mpp=0.5):
            opened.add(path.relative_to(shared_data).as_posix())
    assert opened == SHARED.keys()


@pytest.fixture(scope="module")
def shared_levels(shared_data: Path) -> list[tuple[Path, int, DirectPatches]]:
    """Give every level of the shared slides that is read directly: its slide, its number and its source."""
    found = []
    for name in (name for name, reader in SHARED.items() if reader == "direct"):
        with open_slide(shared_data / name, mpp=0.5) as slide:
            for level, downsample in enumerate(slide.level_downsamples):
                if float(downsample).is_integer():
                    grid = read_grid(
                        slide._file, vendor=slide.vendor, level=level, level_dimensions=slide.level_dimensions
                    )
                    found.append((slide.path, level, DirectPatches(slide._file, grid, downsample)))
    return found


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_region_of_any_shared_slide_is_openslides(
    shared_levels: list[tuple[Path, int, DirectPatches]], data: st.DataObject
) -> None:
    path, level, source = data.draw(st.sampled_from(shared_levels))
    grid = source.grid
    patch_px = data.draw(st.integers(1, 300))
    read_px = data.draw(st.sampled_from([patch_px, 2 * patch_px, patch_px + 7]))
    # around the corners, the edges and the tiles' seams, well outside, and anywhere
    x, y = (
        st.one_of(
            st.sampled_from([0, -read_px, 1 - read_px, edge - 1, edge, edge - read_px, tile, tile - read_px]),
            st.integers(-400, edge + 50),
        )
        for edge, tile in ((grid.width, grid.tile_width), (grid.height, grid.tile_height))
    )
    corners = np.array(data.draw(st.lists(st.tuples(x, y), min_size=1, max_size=6)), np.int64)
    coords = (corners * int(source.downsample)).astype(np.int32)
    with open_slide(path, mpp=0.5) as slide:
        assert_same(slide, coords, level=level, read_px=read_px, patch_px=patch_px, source=source)


def test_the_slides_read_directly_are_all_that_can_be(shared_data: Path) -> None:
    """No file is read through OpenSlide by an oversight: each has a reason that this table knows."""
    reasons = set()
    for name, expected in SHARED.items():
        if expected == "direct":
            continue
        with open_slide(shared_data / name, mpp=0.5) as slide, pytest.raises(NotDirectError) as caught:
            read_grid(slide._file, vendor=slide.vendor, level=0, level_dimensions=slide.level_dimensions)
        reasons.add(str(caught.value))
    assert reasons == {
        "its TIFF directory states samples a pixel 1",
        "its TIFF directory states samples a pixel 4",
        "its TIFF directory states predictor 2",
        "its format is hamamatsu",
        "its format is dicom",
    }


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pyramid")
    return write_svs(folder / "a.svs", tissue_like(1200, 1600), factors=(2, 8), quality=80)


@pytest.fixture(scope="module")
def pyramid_jp2k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pyramid_jp2k")
    return write_svs(folder / "a.svs", tissue_like(600, 800), factors=(2,), compression="jpeg2000")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_patches_at_any_level_are_openslides(pyramid: Path, data: st.DataObject) -> None:
    with open_slide(pyramid) as slide:
        level = data.draw(st.integers(0, 2))
        width, height = slide.level_dimensions[level]
        factor = data.draw(st.sampled_from([1, 2, 3, 4]))
        patch_px = data.draw(st.integers(1, 130))
        read_px = data.draw(st.one_of(st.just(factor * patch_px), st.integers(patch_px, 3 * patch_px)))
        align = data.draw(st.sampled_from([1, 2, 4]))  # the way by reduced tiles needs corners that are multiples
        corner = st.tuples(st.integers(-400, width + 50), st.integers(-400, height + 50))
        corners = np.array(data.draw(st.lists(corner, min_size=1, max_size=8)), np.int64) // align * align
        coords = (corners * round(slide.level_downsamples[level])).astype(np.int32)
        grid = read_grid(pyramid, vendor="aperio", level=level, level_dimensions=slide.level_dimensions)
        source = DirectPatches(pyramid, grid, slide.level_downsamples[level])
        assert_same(slide, coords, level=level, read_px=read_px, patch_px=patch_px, source=source)


def test_jpeg_2000_is_read_directly_and_equals_openslide(pyramid_jp2k: Path) -> None:
    with open_slide(pyramid_jp2k) as slide:
        for level in (0, 1):
            coords = scattered(slide, level, count=30, seed=level)
            source = source_of(slide, level=level, coords=coords)
            assert source.name == "direct"
            assert_same(slide, coords, level=level, read_px=130, patch_px=65, source=source)


def write_pyramid(path: Path, pixels: NDArray[np.uint8], options: dict[str, object]) -> Path:
    settings: dict[str, object] = {
        "tile": (256, 256),
        "photometric": "ycbcr",
        "subsampling": (2, 2),
        "compression": "jpeg",
        "compressionargs": {"level": 80},
        "resolution": (2e4, 2e4),
        "resolutionunit": "CENTIMETER",
        "metadata": None,
    }
    tifffile.imwrite(path, pixels, **(settings | options))  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("tile", [(256, 256), (64, 128), (240, 240), (512, 512)])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
def test_tiles_of_any_shape_and_subsampling_equal_openslide(
    tmp_path: Path, tile: tuple[int, int], subsampling: tuple[int, int]
) -> None:
    path = write_pyramid(tmp_path / "a.tif", tissue_like(700, 900), {"tile": tile, "subsampling": subsampling})
    with open_slide(path) as slide:
        coords = scattered(slide, 0, count=20, seed=0)
        source = source_of(slide, level=0, coords=coords)
        assert source.name == "direct"
        assert_same(slide, coords, level=0, read_px=224, patch_px=112, source=source)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compression": "adobe_deflate", "compressionargs": {}, "subsampling": None}, "its compression is 8"),
        ({"planarconfig": "separate", "compression": "lzw", "compressionargs": {}, "subsampling": None}, "planes 2"),
        ({"photometric": "minisblack"}, "samples a pixel 1"),
    ],
)
def test_unusual_tiffs_are_refused_with_a_reason(tmp_path: Path, options: dict[str, object], reason: str) -> None:
    pixels = tissue_like(300, 300)
    if options.get("photometric") == "minisblack":
        pixels, options = pixels[..., 0], options | {"subsampling": None}
    elif "compression" in options:
        options = options | {"photometric": "rgb"}
    if options.get("planarconfig"):
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    path = write_pyramid(tmp_path / "a.tif", pixels, options)
    with pytest.raises(NotDirectError, match=reason):
        read_grid(path, vendor="generic-tiff", level=0, level_dimensions=[(300, 300)])


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as handle:
        handle.seek(offset)
        handle.write(content)


def set_table(path: Path, code: int, tile: int, value: int, *, page: int = 0) -> None:
    """Overwrite a tile's offset (324) or length (325) in a TIFF directory."""
    with tifffile.TiffFile(path) as tiff:
        found = tiff.pages[page]
        assert isinstance(found, tifffile.TiffPage)
        tag = found.tags[code]
        width = {3: 2, 4: 4}[int(tag.dtype)]
        offset = tag.valueoffset + tile * width
    overwrite(path, offset, value.to_bytes(width, "little"))


def test_a_missing_tile_sends_its_level_and_all_coarser_ones_to_openslide(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_like(1200, 1600), factors=(2, 4))
    set_table(path, 325, 3, 0, page=1)
    with open_slide(path) as slide:
        names = []
        for level in range(3):
            coords = scattered(slide, level, count=5, seed=0)
            names.append(source_of(slide, level=level, coords=coords).name)
    assert names == ["direct", "openslide", "openslide"]


def test_patches_between_a_levels_pixels_are_left_to_openslide(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_like(1000, 1000), factors=(4,))
    with open_slide(path) as slide:
        aligned = np.array([[0, 0], [400, 8]], np.int32)
        assert source_of(slide, level=1, coords=aligned).name == "direct"
        assert source_of(slide, level=1, coords=aligned + 1).name == "openslide"


def test_a_slide_whose_pixels_differ_is_read_through_openslide(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_like(600, 600))
    with open_slide(path) as slide:
        coords = np.zeros((1, 2), np.int32)
        assert source_of(slide, level=0, coords=coords).name == "direct"

        def other_pixels(*_: object, **__: object) -> NDArray[np.uint8]:
            return np.full((256, 256, 3), 7, np.uint8)

        monkeypatch.setattr("pipeline.reader.decode_tile", other_pixels)
        with caplog.at_level(logging.WARNING):
            assert source_of(slide, level=0, coords=coords).name == "openslide"
    assert "5 compared regions differ" in caplog.text


def test_a_slide_is_compared_with_openslide_once_a_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_like(600, 600), factors=(2,))
    compared: list[int] = []

    def count(source: DirectPatches, *, level: int, coords: NDArray[np.int32], edge_px: int) -> list[tuple[int, int]]:
        compared.append(level)
        return compare(source, level=level, coords=coords, edge_px=edge_px)

    monkeypatch.setattr("pipeline.reader.compare", count)
    with open_slide(path) as slide:
        for mpp in (0.5, 0.5, 1.0, 1.0, 0.5):
            list(slide.patches(np.zeros((2, 2), np.int32), patch_px=64, mpp=mpp, threads=1))
    assert compared == [0, 1]


def test_what_a_jpeg_tile_says_of_its_colours_does_not_count(tmp_path: Path) -> None:
    """OpenSlide goes by the Photometric tag; a JFIF marker in each tile says the opposite."""
    path = write_svs(tmp_path / "a.svs", tissue_like(600, 600))
    with open_slide(path) as slide:
        grid = read_grid(path, vendor="aperio", level=0, level_dimensions=slide.level_dimensions)
        offset, count = int(grid.offsets[0]), int(grid.counts[0])
        content = path.read_bytes()[offset : offset + count]
        jfif = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
        moved = path.stat().st_size
        with path.open("ab") as handle:
            handle.write(content[:2] + jfif + content[2:])
    set_table(path, 324, 0, moved)
    set_table(path, 325, 0, count + len(jfif))
    with open_slide(path) as slide:
        coords = np.zeros((1, 2), np.int32)
        source = source_of(slide, level=0, coords=coords)
        assert source.name == "direct"
        assert_same(slide, coords, level=0, read_px=224, patch_px=224, source=source)


def damage(path: Path, tile: int, *, how: str) -> None:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    if how == "zeros":
        overwrite(path, offset, bytes(count))
    elif how == "cut short":
        overwrite(path, offset + count // 2, b"\xff\xd9" + bytes(count - count // 2 - 2))
    elif how == "another size":
        content = path.read_bytes()[offset : offset + count]
        frame = content.index(b"\xff\xc0")
        overwrite(path, offset + frame + 5, (65000).to_bytes(2, "big") * 2)


@pytest.mark.parametrize("how", ["zeros", "cut short", "another size"])
@pytest.mark.parametrize("read_px", [128, 256, 200])
def test_a_damaged_tile_loses_only_the_patches_on_it(
    tmp_path: Path, how: str, read_px: int, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = tissue_like(1024, 1024)
    good = write_svs(tmp_path / "good.svs", pixels, factors=())
    bad = write_svs(tmp_path / "bad.svs", pixels, factors=())
    damage(bad, 5, how=how)  # x, y from 256 to 512
    y, x = np.mgrid[0:1024:128, 0:1024:128]
    coords = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)
    with open_slide(bad) as slide:
        grid = read_grid(bad, vendor="aperio", level=0, level_dimensions=slide.level_dimensions)
    with caplog.at_level(logging.WARNING):
        indices, patches = all_patches(DirectPatches(bad, grid, 1.0), coords, read_px=read_px, patch_px=128)
    on_bad = ((coords > 256 - read_px) & (coords < 512)).all(axis=1)
    np.testing.assert_array_equal(indices, np.flatnonzero(~on_bad))
    _, expected = all_patches(OpenSlidePatches(good), coords, read_px=read_px, patch_px=128)
    np.testing.assert_array_equal(patches, expected[indices])
    assert "1 tiles of level 0 are unreadable: (1, 1)" in caplog.text


def test_a_read_that_fails_once_is_tried_on_a_fresh_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_like(512, 512))
    with open_slide(path) as slide:
        source = source_of(slide, level=0, coords=np.zeros((1, 2), np.int32))
    used: list[int] = []
    read = os.pread

    def stale_at_first(descriptor: int, count: int, offset: int) -> bytes:
        used.append(descriptor)
        if descriptor == used[0]:
            raise OSError("Stale file handle")
        return read(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", stale_at_first)
    coords = np.array([[0, 0], [256, 256]], np.int32)
    indices, _ = all_patches(source, coords, read_px=224, patch_px=224)
    assert indices.tolist() == [0, 1]
    assert len(set(used)) == 2


@pytest.mark.parametrize("reader", ["direct", "openslide"])
def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path, reader: str) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_like(512, 512))
    coords = np.zeros((200, 2), np.int32)
    with open_slide(path) as slide:
        source = source_of(slide, level=0, coords=coords) if reader == "direct" else OpenSlidePatches(path)
        assert source.name == reader
        batches = source.batches(coords, level=0, read_px=32, patch_px=32, threads=1)
        next(batches)
        os.utime(path, ns=(0, 0))
        with pytest.raises(SlideError, match="changed while it was read"):
            list(batches)


def test_each_tile_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_like(2048, 2048), factors=())
    y, x = np.mgrid[0 : 2048 - 224 : 224, 0 : 2048 - 224 : 224]
    coords = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)
    with open_slide(path) as slide:
        source = source_of(slide, level=0, coords=coords)
    offsets: list[int] = []
    read = os.pread

    def count(descriptor: int, size: int, offset: int) -> bytes:
        offsets.append(offset)
        return read(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", count)
    all_patches(source, coords, read_px=224, patch_px=224)
    needed = -(-(int(coords.max()) + 224) // 256)
    assert len(offsets) == len(set(offsets)) == needed**2


def test_a_patch_that_is_kept_is_not_written_over(tmp_path: Path) -> None:
    """Memory is used again only when nothing is left of the batch that lay in it, not even a view of a view."""
    path = write_svs(tmp_path / "a.svs", tissue_like(2048, 2048), factors=())
    coords = np.tile(np.array([[0, 0], [500, 300], [1200, 900]], np.int32), (200, 1))
    with open_slide(path) as slide:
        source = source_of(slide, level=0, coords=coords)
        kept = {}
        for indices, patches in source.batches(coords, level=0, read_px=64, patch_px=64, threads=1):
            kept[int(indices[1])] = patches[1][8:, 8:]
            del patches
        assert len(kept) > 5
        for index, patch in kept.items():
            x, y = coords[index].tolist()
            np.testing.assert_array_equal(patch, slide.read(x + 8, y + 8, level=0, width=56, height=56))


@settings(max_examples=100, deadline=None)
@given(
    corners=st.lists(st.tuples(st.integers(-50, 500), st.integers(-50, 300)), min_size=1, max_size=40),
    edge=st.integers(1, 120),
    batch=st.integers(1, 7),
    window=st.integers(1, 5),
)
def test_a_schedule_copies_every_piece_once_in_time_and_within_the_window(
    corners: list[tuple[int, int]], edge: int, batch: int, window: int
) -> None:
    left, top = np.array(corners, np.int64).T
    mesh = Mesh(columns=8, rows=5, tile_width=64, tile_height=48, edge=edge)
    schedule = make_schedule(left, top, mesh=mesh, batch=batch, window=window)
    expected = {
        (row * 8 + column, patch)
        for patch, (x, y) in enumerate(corners)
        for row in range(5)
        for column in range(8)
        if x < column * 64 + 64 and x + edge > column * 64 and y < row * 48 + 48 and y + edge > row * 48
    }
    found = list(zip(schedule.tiles.tolist(), schedule.patches.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == expected
    for step in range(len(schedule.steps) - 1):
        for visit in range(schedule.steps[step], schedule.steps[step + 1]):
            pieces = slice(schedule.visits[visit], schedule.visits[visit + 1])
            assert len(set(schedule.tiles[pieces].tolist())) == 1
            batches = schedule.patches[pieces] // batch
            assert batches.min() == step
            assert batches.max() < step + window


def test_a_slide_says_how_it_is_read(tmp_path: Path) -> None:
    pixels = tissue_like(512, 512)
    with open_slide(write_svs(tmp_path / "a.svs", pixels)) as slide:
        assert slide.patch_source_name == ""
        coords = np.array([[0, 0]], np.int32)
        for indices, patches in slide.patches(coords, patch_px=224, mpp=0.5, threads=1):
            assert indices.tolist() == [0]
            assert cv2.absdiff(patches[0], pixels[:224, :224]).mean() < 10
        assert slide.patch_source_name == "direct"


def test_a_bag_records_how_its_slide_was_read(tmp_path: Path) -> None:
    path, tiles, bag = write_svs(tmp_path / "a.svs", tissue_like(512, 512)), tmp_path / "t.zip", tmp_path / "b.zip"
    coords = np.array([[0, 0], [224, 224]], np.int32)
    attributes = store.stage_attributes(
        "tile", slide_id="a", fingerprint=fingerprint(path), patch_px=224, target_mpp=0.5
    )
    store.write(tiles, {"coords": coords}, attributes)
    embed.run(
        path,
        slide_id="a",
        tiles=tiles,
        bag=bag,
        options=embed.EncoderOptions("texture"),
        max_unreadable=0.0,
        threads=1,
        mpp=None,
        default_mpp=None,
        mpp_from_objective=False,
        parameters={},
    )
    found = store.read(bag)
    assert found.attributes["reader"] == "direct"
    np.testing.assert_array_equal(found.arrays["coords"], coords)
