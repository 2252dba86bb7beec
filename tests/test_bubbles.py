import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.bubbles import find_bubbles
from pipeline.tissue import look_at
from tests.slides import slide_with_tissue

MPP = 8.0
CENTRE, RADIUS = (150, 120), 40


def overview(
    *, radius: int = RADIUS, thickness: int = 3, ink: tuple[int, int, int] = (70, 70, 70), arc: float = 360
) -> NDArray[np.uint8]:
    """Draw a ring, dark as given, half on glass and half on tissue; its density is added to what it lies on."""
    pixels = slide_with_tissue(240, 320, box=(150, 40, 120, 160))
    ring = np.full_like(pixels, 255)
    cv2.ellipse(ring, CENTRE, (radius, radius), 0, 0, arc, ink, thickness, cv2.LINE_AA)
    return (pixels.astype(float) * ring / 255).astype(np.uint8)


def test_a_bubble_is_found_with_what_lies_under_it() -> None:
    found = find_bubbles(look_at(overview()), mpp=MPP)
    inside = np.zeros(found.shape, np.uint8)
    cv2.circle(inside, CENTRE, RADIUS, 1, -1)
    assert found[inside > 0].mean() > 0.95
    assert found.sum() < 1.5 * inside.sum()


@pytest.mark.parametrize(
    "options",
    [
        {"thickness": 30},  # a pen's ring: 240 um wide
        {"ink": (60, 90, 220)},  # of blue ink
        {"ink": (150, 60, 160)},  # of the stain's colour: a gland, a vessel
        {"arc": 200},  # a hair
        {"radius": 8},  # 128 um: dirt
    ],
)
def test_other_rings_are_no_bubbles(options: dict[str, int | tuple[int, int, int]]) -> None:
    assert not find_bubbles(look_at(overview(**options)), mpp=MPP).any()  # type: ignore[arg-type]


def test_a_greyscale_slide_has_no_bubbles() -> None:
    grey = overview().mean(axis=2).astype(np.uint8)
    assert not find_bubbles(look_at(np.repeat(grey[..., None], 3, axis=2)), mpp=MPP).any()
