from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.tissue import TissueOptions, find_tissue

MPP = 8.0
GLASS = 243
STAIN = (205, 130, 175)
BOX = (slice(80, 220), slice(60, 240))


def glass(shape: tuple[int, int] = (300, 400), *, background: tuple[int, int, int] = (GLASS,) * 3) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, 1.5, (*shape, 3))
    return np.clip(np.array(background) + noise, 0, 255).astype(np.uint8)


def textured(shape: tuple[int, int], colour: tuple[int, int, int], *, spread: float = 15) -> NDArray[np.uint8]:
    noise = np.random.default_rng(1).normal(0, spread, (*shape, 1))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def slide(colour: tuple[int, int, int] = STAIN, **options: Any) -> NDArray[np.uint8]:
    overview = glass(**options)
    overview[BOX] = textured((140, 180), colour, spread=3 if min(colour) > 200 else 15)
    return overview


def find(overview: NDArray[np.uint8], **options: Any) -> NDArray[np.bool_]:
    return find_tissue(overview, mpp=MPP, options=TissueOptions(**options))


def overlap(mask: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    """Give intersection over union."""
    return float((mask & expected).sum() / max(1, (mask | expected).sum()))


def box() -> NDArray[np.bool_]:
    expected = np.zeros((300, 400), np.bool_)
    expected[BOX] = True
    return expected


@pytest.mark.parametrize(
    "colour",
    [STAIN, (233, 216, 228), (75, 30, 85), (120, 90, 160), (225, 180, 150), (150, 100, 60)],
    ids=["H&E", "faint", "overstained", "haematoxylin", "eosin, orange", "DAB"],
)
@pytest.mark.parametrize("background", [(243, 243, 243), (232, 228, 214), (214, 214, 216)], ids=str)
def test_tissue_of_every_stain_is_found_on_every_glass(
    colour: tuple[int, int, int], background: tuple[int, int, int]
) -> None:
    if min(colour) > 200:
        colour = (background[0] - 8, background[1] - 25, background[2] - 13)  # faint, on this glass
    assert overlap(find(slide(colour, background=background)), box()) > 0.9


def test_the_shadow_of_a_coverslip_is_no_tissue() -> None:
    overview = glass()
    overview[:, :20] = 200
    assert not find(overview).any()


@pytest.mark.parametrize("level", [0, 3, 214, 243, 255])
def test_an_empty_slide_has_no_tissue(level: int) -> None:
    assert not find(glass(background=(level,) * 3)).any()
    assert not find(np.full((300, 400, 3), level, np.uint8)).any()


@pytest.mark.parametrize("padding", [0, 255])
def test_padding_and_gaps_are_no_tissue(padding: int) -> None:
    overview = slide()
    overview[:, 300:] = padding
    overview[140:150] = padding
    overview[:30] = padding
    expected = box()
    expected[140:150] = False
    mask = find(overview)
    assert not mask[143:147].any()
    assert overlap(mask, expected) > 0.88


@pytest.mark.parametrize(
    "ink",
    [(40, 70, 190), (20, 30, 120), (30, 140, 70), (35, 35, 38), (220, 35, 45)],
    ids=["blue", "navy", "green", "black", "red"],
)
def test_pen_is_no_tissue(ink: tuple[int, int, int]) -> None:
    overview = slide()
    cv2.polylines(overview, [np.array([[270, 20], [380, 150], [280, 280]])], False, ink, 9, cv2.LINE_AA)
    overview = cv2.GaussianBlur(overview, (0, 0), 0.8).astype(np.uint8)
    assert overlap(find(overview), box()) > 0.9
    assert find(overview)[:, 265:].sum() == 0
    assert find(overview, exclude_pen=False)[:, 265:].sum() > 500 or ink == (35, 35, 38)


def test_a_blue_stain_is_not_taken_for_pen() -> None:
    assert overlap(find(slide((90, 120, 180))), box()) > 0.9


def test_fat_is_tissue_although_its_cells_are_empty() -> None:
    overview = glass()
    overview[BOX] = textured((140, 180), STAIN)
    for row in range(86, 216, 12):
        for column in range(66, 236, 12):
            cv2.circle(overview, (column, row), 5, (GLASS,) * 3, -1)
    assert overlap(find(overview), box()) > 0.9


def test_specks_are_dropped_and_sections_are_kept_by_area() -> None:
    overview = slide()
    overview[20:30, 300:310] = STAIN  # 10 x 10 px of 8 um: 0.0064 mm2
    overview[100:130, 300:330] = STAIN  # 0.058 mm2
    mask = find(overview, min_area_mm2=0.02)
    assert not mask[15:35, 295:315].any()
    assert mask[105:125, 305:325].all()
    assert not find(overview, min_area_mm2=0.1)[95:135, 295:335].any()


def test_small_holes_are_filled_and_big_ones_stay() -> None:
    overview = slide()
    overview[100:120, 80:100] = GLASS  # 0.026 mm2
    overview[140:190, 130:180] = GLASS  # 0.16 mm2
    mask = find(overview, min_hole_mm2=0.05)
    assert mask[100:120, 80:100].all()
    assert not mask[150:180, 140:170].any()


def test_grey_slides_are_told_by_darkness() -> None:
    overview = slide((150, 150, 150)).mean(axis=2).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert overlap(find(overview), box()) > 0.9


def test_tissue_that_fills_the_picture_is_found() -> None:
    assert find(textured((200, 200), STAIN)).mean() > 0.99


@pytest.mark.parametrize("colour", [(10, 10, 160), (200, 40, 30), (30, 220, 60)])
def test_fluorescence_is_refused(colour: tuple[int, int, int]) -> None:
    overview = np.full((300, 400, 3), 6, np.uint8)
    overview[BOX] = textured((140, 180), colour)
    with pytest.raises(SlideError, match="background is dark, as on a fluorescence slide"):
        find(overview)


def test_a_bright_field_slide_in_much_black_padding_is_not_refused() -> None:
    overview = np.zeros((600, 800, 3), np.uint8)
    overview[:300, :400] = slide()
    assert overlap(find(overview)[:300, :400], box()) > 0.9


def test_a_fixed_threshold_is_taken_as_given() -> None:
    overview = slide((225, 200, 215))
    assert overlap(find(overview, method="fixed", threshold=0.03), box()) > 0.9
    assert not find(overview, method="fixed", threshold=0.3).any()
