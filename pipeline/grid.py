"""Where tiles lie: a regular grid on a slide, and the share of each tile that a mask covers."""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.outline import Bounds

SHARE_TOLERANCE = 1e-6
"""A tile that is all tissue may come out this much below 1."""


def place_tiles(
    tissue: NDArray[np.bool_],
    *,
    downsample: float,
    patch_px: float,
    stride_px: float,
    bounds: Bounds,
    min_tissue: float,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Place a regular grid of tiles and keep those on tissue.

    The grid starts at the bounds' corner; every tile lies wholly inside the bounds.

    Parameters
    ----------
    tissue
        Mask, shape (H, W), True on tissue, its corner at the slide's.
    downsample
        Level-0 px per mask pixel.
    patch_px, stride_px
        Edge of a tile, and distance of neighbouring tiles, level-0 px.
    bounds
        x, y, width, height of the part of the slide to cover, level-0 px.
    min_tissue
        Smallest tissue share of a kept tile, in [0, 1].

    Returns
    -------
    Top-left corners, int32 [N, 2], columns x, y, level-0 px, row-major, and tissue shares, float32 [N]. N may be 0.
    """
    x, y = (_corners(bounds[axis], bounds[axis + 2], patch_px=patch_px, stride_px=stride_px) for axis in (0, 1))
    integral = _integral(tissue)
    top, bottom = (_interpolate(integral, (y + offset) / downsample) for offset in (0.0, patch_px))
    left, right = (_interpolate((bottom - top).T, (x + offset) / downsample).T for offset in (0.0, patch_px))
    share = (right - left) / (patch_px / downsample) ** 2
    rows, columns = np.nonzero(share >= min_tissue - SHARE_TOLERANCE)
    coords = np.stack([x[columns], y[rows]], axis=1).astype(np.int32)
    return coords, np.clip(share[rows, columns], 0, 1).astype(np.float32)


def tile_shares(
    mask: NDArray[np.bool_], coords: NDArray[np.int32], *, downsample: float, patch_px: float
) -> NDArray[np.float32]:
    """Give the share of each tile that a mask covers, exact for the mask: pixels that an edge cuts count by their part.

    Parameters
    ----------
    mask
        Shape (H, W), its corner at the slide's.
    coords
        Top-left corners, shape (N, 2), columns x, y, level-0 px.
    downsample
        Level-0 px per mask pixel.
    patch_px
        Edge of a tile, level-0 px.

    Returns
    -------
    Shape (N,), in [0, 1].
    """
    if not mask.any():
        return np.zeros(len(coords), np.float32)
    integral = _integral(mask)
    # tiles of a grid share few rows and columns, so these are interpolated once
    x, column = np.unique(coords[:, 0], return_inverse=True)
    y, row = np.unique(coords[:, 1], return_inverse=True)
    top, bottom = (_interpolate(integral, (y + offset) / downsample) for offset in (0.0, patch_px))
    left, right = (_interpolate((bottom - top).T, (x + offset) / downsample).T for offset in (0.0, patch_px))
    share = (right - left)[row, column] / (patch_px / downsample) ** 2
    return np.clip(share, 0, 1).astype(np.float32)


def _integral(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sum a mask from its corner: linear between pixel corners in each axis, so that cut pixels count by their part."""
    return cv2.integral(mask.view(np.uint8), sdepth=cv2.CV_64F).astype(np.float64, copy=False)


def _corners(start: int, length: int, *, patch_px: float, stride_px: float) -> NDArray[np.int64]:
    """Give the corners of the tiles along one axis, whole level-0 px; every tile ends inside `start + length`."""
    # one more than fits, as rounding may push the last corner either way
    count = max(0, int((length - patch_px) // stride_px) + 2)
    corners: NDArray[np.int64] = np.floor(start + np.arange(count) * stride_px + 0.5).astype(np.int64)
    inside: NDArray[np.int64] = corners[corners + patch_px <= start + length]
    return inside


def _interpolate(integral: NDArray[np.float64], position: NDArray[np.floating]) -> NDArray[np.float64]:
    """Interpolate the rows of `integral` at fractional positions; beyond the last row it stays constant."""
    position = np.clip(position, 0, len(integral) - 1)
    below = np.minimum(position.astype(np.int64), len(integral) - 2)
    part = (position - below)[:, None]
    interpolated: NDArray[np.float64] = integral[below] * (1 - part) + integral[below + 1] * part
    return interpolated
