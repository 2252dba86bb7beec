"""Slides of several makers, written as their scanners do and read by OpenSlide's own rules for each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import store
from pipeline.discovery import discover
from pipeline.errors import SlideError
from pipeline.fingerprint import fingerprint
from pipeline.quality import QualityOptions
from pipeline.slide import open_slide
from pipeline.tile import run
from pipeline.tissue import TissueOptions
from tests.scanner_slides import MIRAX_IMAGE_PX, half, write_bif, write_mirax, write_philips, write_trestle, write_vms
from tests.slides import slide_with_tissue, tissue_like

ORIGIN, CANVAS = (2, 4), (12, 14)
"""Of the MIRAX slide, in camera images."""

CORNER = (ORIGIN[0] * MIRAX_IMAGE_PX, ORIGIN[1] * MIRAX_IMAGE_PX)
JPEG_ERROR = 3.0
"""Mean difference in grey levels that JPEG of quality 95 may make; a shift by one pixel makes 4 and more."""


def mirax(path: Path, pixels: NDArray[np.uint8], *, mpp: float = 0.5) -> Path:
    return write_mirax(path, pixels, origin=ORIGIN, canvas=CANVAS, mpp=mpp)


Writer = Callable[..., Path]
SCANNERS: dict[str, tuple[str, Writer, str, tuple[int, int]]] = {
    "mirax": ("a.mrxs", mirax, "mirax", CORNER),
    "hamamatsu": ("a.vms", write_vms, "hamamatsu", (0, 0)),
    "ventana": ("a.bif", write_bif, "ventana", (0, 0)),
    "philips": ("a.tiff", write_philips, "philips", (0, 0)),
    "trestle": ("a.tif", write_trestle, "trestle", (0, 0)),
}


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return tissue_like(512, 768)


@pytest.mark.parametrize("maker", SCANNERS)
def test_a_scanner_s_slide_is_one_slide_with_its_scale_and_its_pixels(
    maker: str, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    name, write, vendor, corner = SCANNERS[maker]
    path = write(tmp_path / name, pixels, mpp=0.4)
    slides, warnings = discover(tmp_path)
    assert slides == {"a": path}
    assert warnings == []
    with open_slide(path) as slide:
        assert slide.vendor == vendor
        assert slide.mpp == pytest.approx(0.4, rel=1e-3)
        assert slide.bounds == (*corner, 768, 512)
        assert slide.level_downsamples[:2] == (1, 2)
        for level, expected in enumerate((pixels, half(pixels))):
            found = slide.read(*corner, level=level, width=expected.shape[1], height=expected.shape[0])
            assert np.abs(found.astype(int) - expected).mean() < JPEG_ERROR


@pytest.mark.parametrize("maker", SCANNERS)
@pytest.mark.parametrize(("mpp", "edge"), [(0.4, 128), (0.8, 64)])
def test_patches_of_a_scanner_s_slide_show_their_place(
    maker: str, mpp: float, edge: int, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    name, write, _, corner = SCANNERS[maker]
    own = np.array([(0, 0), (256, 128), (640, 384)], np.int32)
    with open_slide(write(tmp_path / name, pixels, mpp=0.4)) as slide:
        batches = list(slide.patches(own + np.array(corner, np.int32), patch_px=edge, mpp=mpp, threads=2))
    found = np.concatenate([batch for _, batch in batches])
    source = pixels if mpp == 0.4 else half(pixels)
    step = round(mpp / 0.4)
    for patch, (x, y) in zip(found, own // step, strict=True):
        assert np.abs(patch.astype(int) - source[y : y + edge, x : x + edge]).mean() < JPEG_ERROR


@pytest.mark.parametrize(
    ("maker", "companion"),
    [("mirax", "a/Data0000.dat"), ("mirax", "a/Slidedat.ini"), ("hamamatsu", "a.jpg"), ("hamamatsu", "a_map.jpg")],
)
def test_a_file_that_belongs_to_a_slide_is_part_of_it(
    maker: str, companion: str, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    name, write, _, _ = SCANNERS[maker]
    path = write(tmp_path / name, pixels)
    before = fingerprint(path)
    (tmp_path / companion).write_bytes((tmp_path / companion).read_bytes() + b"\n")
    assert fingerprint(path) != before
    (tmp_path / companion).unlink()
    with pytest.raises(SlideError, match="a"):
        open_slide(path)


def test_a_mirax_slide_is_tiled_within_its_bounds_and_outlined_from_their_corner(tmp_path: Path) -> None:
    box = (128, 64, 512, 320)
    path = mirax(tmp_path / "a.mrxs", slide_with_tissue(512, 768, box=box))
    files: dict[str, Any] = {
        "tiles": tmp_path / "a.zarr.zip",
        "tissue": tmp_path / "a.geojson",
        "preview": tmp_path / "a.jpg",
    }
    options: dict[str, Any] = {"tissue_options": TissueOptions(), "quality": QualityOptions(max_blur=1)}
    run(
        path,
        slide_id="a",
        fingerprint="f",
        patch_px=64,
        target_mpp=0.5,
        overlap=0.0,
        min_tissue=0.5,
        **options,
        **files,
    )
    artefact = store.read(files["tiles"])
    assert artefact.ok
    coords = artefact.arrays["coords"] - np.array(CORNER)
    assert coords.min(axis=0).tolist() == [box[0], box[1]]
    assert (coords.max(axis=0) + 64).tolist() == [box[0] + box[2], box[1] + box[3]]
    outline = np.array(
        [
            point
            for feature in json.loads(files["tissue"].read_text())["features"]
            for polygon in feature["geometry"]["coordinates"]
            for point in np.array(polygon, float).reshape(-1, 2)
        ]
    )
    assert np.abs(outline.min(axis=0) - box[:2]).max() <= 32  # the overview's pixel is 16 level-0 px
    assert np.abs(outline.max(axis=0) - (box[0] + box[2], box[1] + box[3])).max() <= 32
