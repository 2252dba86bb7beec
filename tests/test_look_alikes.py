"""Copies of a slide are found though they were saved anew; other slides are not taken for copies."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import look_alikes
from pipeline.synthetic import draw_slide
from pipeline.tissue import TissueOptions, find_tissue

SLIDES = 8


def overview(seed: int) -> NDArray[np.uint8]:
    """Give a slide of synthetic tissue at 4 um per pixel (0.5 shrunk by 8)."""
    pixels = draw_slide(seed, width_px=1344, height_px=1344, tumour=bool(seed % 2)).pixels
    return np.asarray(cv2.resize(pixels, (168, 168), interpolation=cv2.INTER_AREA), np.uint8)


def hash_of(picture: NDArray[np.uint8], *, mpp: float = 4.0) -> str:
    options = TissueOptions(
        method="otsu", threshold=0.04, mpp=mpp, min_area_mm2=0.001, min_hole_mm2=0.05, exclude_pen=True
    )
    return look_alikes.overview_hash(picture, find_tissue(picture, mpp=mpp, options=options))


@pytest.fixture(scope="module")
def overviews() -> list[NDArray[np.uint8]]:
    return [overview(seed) for seed in range(SLIDES)]


def as_jpeg(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)


@pytest.mark.parametrize("way", ["compressed", "coarser", "another stain", "wider glass"])
def test_a_slide_that_was_saved_anew_is_recognised(overviews: list[NDArray[np.uint8]], way: str) -> None:
    for picture in overviews:
        mpp = 4.0
        match way:
            case "compressed":
                again = as_jpeg(picture, 40)
            case "coarser":
                again = np.asarray(cv2.resize(picture, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA), np.uint8)
                mpp /= 0.7
            case "another stain":
                again = (picture * np.array([1.0, 0.92, 0.97])).astype(np.uint8)
            case _:
                wider = cv2.copyMakeBorder(picture, 20, 5, 10, 40, cv2.BORDER_CONSTANT, value=(242, 242, 242))
                again = np.asarray(wider, np.uint8)
        assert look_alikes.alike(hash_of(picture), hash_of(again, mpp=mpp))


def test_other_slides_are_not_taken_for_copies(overviews: list[NDArray[np.uint8]]) -> None:
    hashes = {f"slide {index:02d}": hash_of(picture) for index, picture in enumerate(overviews)}
    assert look_alikes.find_pairs(hashes) == []


def test_pairs_are_named_once_and_slides_without_a_hash_are_like_none(overviews: list[NDArray[np.uint8]]) -> None:
    one, other = hash_of(overviews[0]), hash_of(overviews[1])
    found = look_alikes.find_pairs({"b": one, "a": one, "c": other, "none": "", "nor": ""})
    assert found == [("a", "b")]
    assert look_alikes.find_pairs({}) == []


def test_pairs_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = {f"{index:03d}": rng.bytes(32).hex() for index in range(100)}
    hashes["003"] = hashes["098"] = hashes["050"]
    monkeypatch.setattr("pipeline.look_alikes.BLOCK", 7)
    assert look_alikes.find_pairs(hashes) == [("003", "050"), ("003", "098"), ("050", "098")]
