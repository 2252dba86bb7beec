"""What spoils a tile: pen, bubbles, folds (seen on the overview) and lack of focus (seen in a sample of patches)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bubbles import find_bubbles
from pipeline.flags import FLAGS
from pipeline.tissue import Overview, find_pen, mean

FOLD_DENSITY_RATIO, FOLD_EDGE_RATIO = 2.6, 1.5
"""Mean optical density in the heart and at the edge of a fold, over the median of the slide's tissue: where tissue lies
double, light is absorbed twice."""

FOLD_EXCESS, FOLD_EDGE_EXCESS = 0.25, -0.1
"""Saturation minus intensity there, both in [0, 1]: folds are the darkest and most saturated tissue. After Bautista and
Yagi, J Pathol Inform 2010;1:25, and, for a strict and a lenient threshold joined by connectivity, Kothari et al., J
Pathol Inform 2013;4:22. Set where CMU-1-Small-Region (a dark epidermis, no fold) stays free: benchmarks/quality.py."""

FOLD_SMOOTHING_UM, MIN_FOLD_MM2 = 16.0, 0.01
"""Gaussian sigma, so that single nuclei do not count; smaller regions are nuclei or dirt."""

FOCUS_MPP = 0.5
"""Finest um per pixel that focus is judged at: below it, optics and not focus limit what is seen."""

FOCUS_WINDOW_PX = 128
"""Edge of the window that is read of a sampled tile: 64 um at 0.5 um per pixel, a few nuclei."""

FOCUS_SAMPLES = 64
"""Windows read of a slide at first, and at most as often again where they look out of focus: 0.4 s at 40x."""

FINE_SIGMA_PX, COARSE_SIGMA_PX, FOCUS_BOX_PX = 0.6, 2.4, 33
"""Standard deviations of the Gaussians whose octaves are compared, and edge of the box they are averaged over."""

BLUR_RATIO = 0.135
"""Energy of the fine octave over that of the coarse one, below which a place is out of focus. On real H&E at 0.5 um per
pixel, in focus: 1st percentile 0.22, median 0.5 to 0.9; at a Gaussian blur of sigma 1 um, where nuclei lose their
texture: 95th percentile 0.10 (benchmarks/quality.py)."""

FAINT_ENERGY = 4.0
"""Energy of the coarse octave, grey levels squared, below which a place has nothing to focus on."""

Windows = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.uint8]]]


@dataclass(frozen=True)
class QualityOptions:
    """Largest shares of a tile, in [0, 1], that may be of each of `FLAGS`; 1 keeps every tile."""

    max_pen: float = 0.1
    max_bubble: float = 0.5
    max_blur: float = 0.5
    max_fold: float = 0.4

    def limit(self, flag: str) -> float:
        """Give the largest share that a tile may have of one of `FLAGS`."""
        return float(getattr(self, f"max_{flag}"))


def exclude(
    coords: NDArray[np.int32], shares: Mapping[str, NDArray[np.float32]], options: QualityOptions
) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.int32]]]:
    """Tell good tiles, shape (N,), from spoilt ones; the corners of those by the first of `FLAGS` above its limit."""
    good = np.ones(len(coords), np.bool_)
    excluded = {}
    for flag in FLAGS:
        spoilt = good & (shares[flag] > options.limit(flag))
        excluded[flag] = coords[spoilt]
        good &= ~spoilt
    return good, excluded


def spoilt_regions(
    overview: Overview, tissue: NDArray[np.bool_], *, mpp: float, find_pens: bool
) -> dict[str, NDArray[np.bool_]]:
    """Find pen, bubbles and folds; none where the background is dark, as densities mean nothing there."""
    if overview.is_dark:
        return {flag: np.zeros_like(tissue) for flag in ("pen", "bubble", "fold")}
    pen = find_pen(overview, tissue) if find_pens else np.zeros_like(tissue)
    return {
        "pen": pen,
        "bubble": find_bubbles(overview, mpp=mpp),
        "fold": find_folds(overview.density, tissue & ~pen, mpp=mpp),
    }


def find_folds(density: NDArray[np.float32], tissue: NDArray[np.bool_], *, mpp: float) -> NDArray[np.bool_]:
    """Find folds: tissue that is much denser than the rest of the slide's, and saturated.

    Parameters
    ----------
    density
        Optical density, shape (H, W, 3).
    tissue
        Shape (H, W).
    mpp
        um per pixel of both.
    """
    if not tissue.any():
        return np.zeros_like(tissue)
    smooth = cv2.GaussianBlur(density, (0, 0), max(0.5, FOLD_SMOOTHING_UM / mpp)).astype(np.float32, copy=False)
    overall = mean(smooth)
    usual = float(np.median(overall[tissue]))
    dense = tissue & (overall > FOLD_EDGE_RATIO * usual)
    light = np.power(10.0, -smooth[dense])  # a hundredth of the slide: the power is what costs
    intensity = light.mean(axis=1)
    excess = np.full(tissue.shape, -1.0)
    excess[dense] = 1 - light.min(axis=1) / np.maximum(intensity, 1e-3) - intensity
    edge = dense & (excess > FOLD_EDGE_EXCESS)
    heart = edge & (overall > FOLD_DENSITY_RATIO * usual) & (excess > FOLD_EXCESS)
    if not heart.any():
        return np.zeros_like(tissue)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(edge.astype(np.uint8), connectivity=8)
    kept = np.zeros(len(stats), np.bool_)
    kept[np.unique(labels[heart])] = True
    kept &= stats[:, cv2.CC_STAT_AREA] * (mpp / 1000) ** 2 >= MIN_FOLD_MM2
    kept[0] = False
    folds: NDArray[np.bool_] = kept[labels]
    return folds


def blurred_share(window: NDArray[np.uint8]) -> float:
    """Give the share of a window that is out of focus, of the part that has structure to focus on.

    Defocus takes the fine octave of an image and leaves the coarse one, whatever the stain and its contrast: their
    ratio, and neither alone, tells a blurred nucleus from a smooth collagen fibre.

    Parameters
    ----------
    window
        RGB, shape (H, W, 3), at `FOCUS_MPP` or coarser.

    Returns
    -------
    In [0, 1]; 0 where less than a tenth of the window has structure.
    """
    grey = cv2.cvtColor(window, cv2.COLOR_RGB2GRAY).astype(np.float32)
    sigmas = (FINE_SIGMA_PX, 2 * FINE_SIGMA_PX, COARSE_SIGMA_PX, 2 * COARSE_SIGMA_PX)
    first, second, third, fourth = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in sigmas)
    box = (FOCUS_BOX_PX, FOCUS_BOX_PX)
    fine, coarse = cv2.blur(np.square(first - second), box), cv2.blur(np.square(third - fourth), box)
    structured = coarse > FAINT_ENERGY
    if structured.mean() < 0.1:
        return 0.0
    return float(np.mean(fine[structured] < BLUR_RATIO * coarse[structured]))


def sample_blur(coords: NDArray[np.int32], *, stride_px: float, limit: float, windows: Windows) -> NDArray[np.float32]:
    """Judge the focus of every tile from a sample of them.

    The tiles are divided into square blocks, and one tile of each is looked at. Where it is more blurred than `limit`
    its block is divided further, so that a large block is never given up for one tile. A slide of few tiles is looked
    at tile by tile.

    Parameters
    ----------
    coords
        Top-left corners, shape (N, 2), columns x, y, level-0 px.
    stride_px
        Distance of neighbouring tiles, level-0 px.
    limit
        Blurred share above which a block is looked at more closely.
    windows
        Reads a window of the tiles whose rows it is given: rows that could be read, and uint8 [B, p, p, 3].

    Returns
    -------
    Blurred share, shape (N,); that of the nearest tile that was looked at within the block, 0 where none could be read.
    """
    blur = np.zeros(len(coords), np.float32)
    if not len(coords):
        return blur
    place = np.floor((coords - coords.min(axis=0)) / stride_px + 0.5).astype(np.int64)
    edge = 1
    while len(np.unique(_cells(place, edge))) > FOCUS_SAMPLES:
        edge *= 2
    measured: dict[int, float] = {}
    pending, budget = _blocks(np.arange(len(coords)), place, edge), 2 * FOCUS_SAMPLES
    while pending and budget > 0:
        asked = np.array([_middle(block, place) for block in pending[:budget]])
        new = np.array([row for row in np.unique(asked) if int(row) not in measured], np.int64)
        budget -= len(asked)
        if len(new):
            rows, pixels = windows(new)
            measured |= dict.fromkeys(new.tolist(), 0.0)
            measured |= {int(row): blurred_share(window) for row, window in zip(rows, pixels, strict=True)}
        doubtful = []
        for block, row in zip(pending, asked.tolist(), strict=False):
            blur[block] = measured[row]
            if measured[row] > limit and len(block) > 1:
                doubtful.append(block)
        edge //= 2
        pending = [part for block in doubtful for part in _blocks(block, place, max(1, edge))]
    return blur


def _blocks(rows: NDArray[np.int64], place: NDArray[np.int64], edge: int) -> list[NDArray[np.int64]]:
    """Divide tiles into square blocks of `edge` by `edge` places, row-major."""
    _, block = np.unique(_cells(place[rows], edge), return_inverse=True)
    return [rows[block == number] for number in range(block.max() + 1)]


def _cells(place: NDArray[np.int64], edge: int) -> NDArray[np.int64]:
    """Give the number of the block that each place lies in, row-major."""
    block = place // edge
    return np.asarray(block[:, 1] * (block[:, 0].max() + 1) + block[:, 0])


def _middle(block: NDArray[np.int64], place: NDArray[np.int64]) -> int:
    """Give the tile nearest to the middle of a block."""
    inside = place[block]
    distance = np.square(inside - inside.mean(axis=0)).sum(axis=1)
    return int(block[np.argmin(distance)])
