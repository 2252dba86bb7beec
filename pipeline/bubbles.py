"""Find air bubbles under the cover glass, on an overview.

At a bubble's edge the light is bent out of the lens, whatever its colour: a thin, dark, grey line that closes on itself
and is round. Tissue that it crosses adds its colours, but little beside its darkness.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.tissue import Overview

RIM_DENSITIES = (0.12, 0.18, 0.27)
"""Optical densities that a rim may add to its surroundings in every channel. Several are tried: a low one finds faint
rims on glass, a high one frees strong rims from the fine structure of the tissue they cross."""

RIM_CAST = 0.4
"""Largest share of what a rim adds by which the channels may differ: it is grey on any ground, where the thin dark
lines of tissue have the stain's colour."""

MAX_RIM_UM = 100.0
"""A wider dark ring is a pen's: the finest leave 300 um."""

GAP_UM = 24.0
"""Half the widest gap in a rim that is closed."""

MIN_BUBBLE_MM2, MIN_CIRCULARITY, MIN_SOLIDITY = 0.06, 0.88, 0.85
"""Smaller rings are dirt and fat cells. Circularity, of the convex hull, is 4 pi area / perimeter^2: 1 of a disc, 0.84
of an ellipse twice as long as wide. Solidity is the share of the hull that the
ring encloses: tissue may bulge into it."""


def find_bubbles(overview: Overview, *, mpp: float) -> NDArray[np.bool_]:
    """Find bubbles with what lies under them.

    Parameters
    ----------
    overview
        What `pipeline.tissue.look_at` made of the thumbnail, shape (H, W).
    mpp
        Its um per pixel.

    Returns
    -------
    Shape (H, W), True on a bubble and its rim; nowhere on a greyscale or dark-field slide.
    """
    found = np.zeros(overview.scanned.shape, np.uint8)
    if overview.is_grey or overview.is_dark:
        return found.astype(np.bool_)
    raised_least, raised_most = (_raised(part, mpp=mpp) for part in (overview.lightest, overview.densest))
    grey = (raised_most - raised_least < RIM_CAST * raised_most) & overview.scanned
    for density in RIM_DENSITIES:
        _fill_rings(found, (raised_least > density) & grey, mpp=mpp)
    if not found.any():
        return found.astype(np.bool_)
    return cv2.dilate(found, _disc(MAX_RIM_UM / 2 / mpp)).astype(np.bool_)


def _fill_rings(found: NDArray[np.uint8], rim: NDArray[np.bool_], *, mpp: float) -> None:
    """Set `found` to 1 in what the rings of a mask (H, W) enclose."""
    margin = max(1, round(GAP_UM / mpp)) + 1
    closed = cv2.morphologyEx(np.pad(rim.astype(np.uint8), margin), cv2.MORPH_CLOSE, _disc(GAP_UM / mpp))
    closed = np.ascontiguousarray(closed[margin:-margin, margin:-margin])
    contours, nesting = cv2.findContours(closed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for number, contour in enumerate(contours):
        is_hole = nesting[0, number, 3] >= 0
        hull = cv2.convexHull(contour)
        if is_hole and _is_round(contour, hull, mpp=mpp):
            cv2.fillConvexPoly(found, hull, 1)


def _raised(density: NDArray[np.float32], *, mpp: float) -> NDArray[np.float32]:
    """Give how far the density (H, W) of lines up to `MAX_RIM_UM` wide lies above their surroundings'."""
    size = 2 * max(1, round(MAX_RIM_UM / 2 / mpp)) + 1
    levels = np.minimum(density * 100, 255).astype(np.uint8)  # bytes are ten times faster than floats
    lines = cv2.morphologyEx(levels, cv2.MORPH_TOPHAT, np.ones((size, size), np.uint8))
    return np.divide(lines, 100, dtype=np.float32)


def _is_round(contour: NDArray[Any], hull: NDArray[Any], *, mpp: float) -> bool:
    area = cv2.contourArea(hull)
    if area * (mpp / 1000) ** 2 < MIN_BUBBLE_MM2:
        return False
    circularity = 4 * np.pi * area / cv2.arcLength(hull, True) ** 2
    return bool(circularity >= MIN_CIRCULARITY and cv2.contourArea(contour) >= MIN_SOLIDITY * area)


def _disc(radius_px: float) -> NDArray[np.uint8]:
    size = 2 * max(1, round(radius_px)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)).astype(np.uint8)
