"""Hand-made image descriptors of one plane: distribution, bands, blobs, orientation, binary patterns, granulometry.

Each function takes planes of one patch and gives named floats, none of which depends on another patch, on threads or on
chance. Energies come as logarithms and shares as shares, so that every value survives a bag's float16. Directions are
averaged out: tissue has no up.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
"""A plane of optical density, shape (H, W)."""
BytePlane = NDArray[np.uint8]
"""A plane quantised to 256 levels, shape (H, W)."""
Features = dict[str, float]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
FLOOR = 1e-3
"""Added to an amplitude (optical density) before its logarithm, so that flat stays finite; below an 8-bit step."""
NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
"""The eight (row, column) steps of a binary pattern, in circular order."""


def histogram(plane: BytePlane, mask: BytePlane | None = None) -> NDArray[np.float64]:
    """Count the 256 levels of a plane, where `mask` is not 0 when there is one; shape (256,)."""
    return cv2.calcHist([plane], [0], mask, [256], [0, 256]).ravel().astype(np.float64)


def log_amplitude(mean_square: float) -> float:
    """Give the natural logarithm of a root mean square, held above `FLOOR`."""
    return float(np.log(np.sqrt(max(mean_square, 0.0)) + FLOOR))


def distribution(plane: BytePlane, *, step: float, offset: float) -> Features:
    """Describe the values of a plane by mean, spread, skewness and quantiles.

    Parameters
    ----------
    plane
        Quantised values; level k stands for `k * step - offset`.
    """
    share = histogram(plane) / plane.size
    values = np.arange(256) * step - offset
    mean = float(np.sum(share * values))
    centred = values - mean
    spread = float(np.sqrt(np.sum(share * centred**2)))
    features = {
        "mean": mean,
        "spread": spread,
        "skewness": float(np.cbrt(np.sum(share * centred**3))) / (spread + FLOOR),
    }
    levels = np.searchsorted(np.cumsum(share), np.asarray(QUANTILES) - 1e-9).clip(0, 255)
    features.update({f"q{quantile:g}": float(values[level]) for quantile, level in zip(QUANTILES, levels, strict=True)})
    return features


def band_energies(bands: list[Plane]) -> Features:
    """Describe band-pass planes by amplitude, sparseness, and the balance of their bright and dark parts.

    Parameters
    ----------
    bands
        Differences of Gaussians, from fine to coarse, zero-mean by construction.
    """
    features: Features = {}
    for index, band in enumerate(bands):
        energy = mean_square(band)
        above = mean_square(np.maximum(band, 0))
        features[f"band{index}.amplitude"] = log_amplitude(energy)
        features[f"band{index}.sparseness"] = cv2.norm(band, cv2.NORM_L1) / band.size / (energy**0.5 + FLOOR)
        features[f"band{index}.balance"] = above / (energy + FLOOR**2)
    return features


def mean_square(plane: Plane) -> float:
    """Give the mean of the squared values."""
    return float(cv2.norm(plane, cv2.NORM_L2SQR)) / plane.size


def blobs(band: Plane, density: Plane, *, thresholds: tuple[float, ...]) -> Features:
    """Count dark blobs of one size as local maxima of a band, and say how dense they are.

    Parameters
    ----------
    band
        Difference of Gaussians of a stain's density; its maxima are blobs as wide as the band.
    density
        The stain itself, same shape.
    thresholds
        Responses (optical density) above which a maximum counts.
    """
    peaks = (band >= cv2.dilate(band, np.ones((5, 5), np.uint8))).view(np.uint8)
    features: Features = {}
    for threshold in thresholds:
        found = peaks & (band > threshold).view(np.uint8)
        count = cv2.countNonZero(found)
        features[f"blobs{threshold:g}.count"] = float(np.log1p(count * 1e4 / band.size))
        features[f"blobs{threshold:g}.density"] = cv2.mean(density, mask=found)[0]
        features[f"blobs{threshold:g}.response"] = cv2.mean(band, mask=found)[0]
    return features


def orientation(plane: Plane, *, window_px: int) -> Features:
    """Describe how strongly and how uniformly a plane is oriented, by its structure tensor.

    Parameters
    ----------
    window_px
        Edge of the neighbourhood (pixels) of one block, over which a direction is averaged.

    Notes
    -----
    Coherence is (l1 - l2) / (l1 + l2) of the tensor's eigenvalues: 1 on parallel fibres, 0 where directions mix;
    J. Bigun and G. H. Granlund, "Optimal orientation detection of linear symmetry", ICCV 1987.
    """
    across, down = cv2.Sobel(plane, cv2.CV_32F, 1, 0, scale=0.125), cv2.Sobel(plane, cv2.CV_32F, 0, 1, scale=0.125)
    blocks = (max(1, plane.shape[1] // window_px), max(1, plane.shape[0] // window_px))
    tensor = (cv2.multiply(across, across), cv2.multiply(down, down), cv2.multiply(across, down))
    xx, yy, xy = (cv2.resize(product, blocks, interpolation=cv2.INTER_AREA).astype(np.float64) for product in tensor)
    energy, difference = xx + yy, xx - yy
    oriented = np.hypot(difference, 2 * xy)
    coherence = oriented / (energy + FLOOR**2)
    total, mean_difference, mean_product = float(energy.mean()), float(difference.mean()), float(xy.mean())
    ranked = np.sort(coherence, axis=None)
    features = {
        "gradient": log_amplitude(total),
        "coherence": float(coherence.mean()),
        "coherence_weighted": float(oriented.mean()) / (total + FLOOR**2),
        "coherence_whole": float(np.hypot(mean_difference, 2 * mean_product)) / (total + FLOOR**2),
        "gradient_evenness": float(np.sqrt(energy).mean()) / (total**0.5 + FLOOR),
    }
    for share in (0.1, 0.5, 0.9):
        features[f"coherence_q{share:g}"] = float(ranked[int(share * (ranked.size - 1))])
    return features


def _pattern_classes() -> NDArray[np.float64]:
    """Map the 256 patterns of 8 neighbours to their rotation classes: one-hot, shape (256, 36)."""
    rotations = [min(((code >> turn) | (code << (8 - turn))) & 255 for turn in range(8)) for code in range(256)]
    order = sorted(set(rotations))
    return np.eye(len(order))[[order.index(rotation) for rotation in rotations]]


PATTERN_CLASSES = _pattern_classes()


def binary_patterns(plane: BytePlane) -> Features:
    """Give the shares of the 36 rotation-invariant local binary patterns (8 neighbours at radius 1).

    Notes
    -----
    T. Ojala, M. Pietikainen and T. Maenpaa, "Multiresolution gray-scale and rotation invariant texture classification
    with local binary patterns", IEEE TPAMI 24(7), 2002.
    """
    height, width = plane.shape
    centre = plane[1:-1, 1:-1]
    code = np.zeros_like(centre)
    for bit, (row, column) in enumerate(NEIGHBOURS):
        neighbour = plane[1 + row : height - 1 + row, 1 + column : width - 1 + column]
        code |= (neighbour > centre).view(np.uint8) << np.uint8(bit)
    shares = (histogram(code) @ PATTERN_CLASSES) / code.size  # whole numbers: exact in whatever order they are added
    return {f"pattern{index}": float(share) for index, share in enumerate(shares)}


def granulometry(plane: BytePlane, *, sizes_px: tuple[int, ...], step: float) -> Features:
    """Say how much of a plane is in bright and in dark structures of each size.

    Parameters
    ----------
    sizes_px
        Edges (pixels, odd, rising) of the square structuring elements.
    step
        Optical density of one level.

    Notes
    -----
    The pattern spectrum: mean loss from one opening (bright) or closing (dark) to the next; P. Maragos, "Pattern
    spectrum and multiscale shape representation", IEEE TPAMI 11(7), 1989.
    """
    features: Features = {}
    whole = cv2.mean(plane)[0]
    for name, operation in (("open", cv2.MORPH_OPEN), ("close", cv2.MORPH_CLOSE)):
        before = whole
        for size in sizes_px:
            after = cv2.mean(cv2.morphologyEx(plane, operation, np.ones((size, size), np.uint8)))[0]
            features[f"{name}{size}"] = abs(before - after) * step
            before = after
    return features


def components(mask: BytePlane, density: Plane, *, smallest_px: int) -> Features:
    """Describe the connected parts of a mask: how many, how large, how compact, how dense.

    Parameters
    ----------
    mask
        255 on the parts, 0 elsewhere.
    density
        A stain's density, same shape.
    smallest_px
        Area below which a part is ignored.
    """
    _, _, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    statistics = statistics[1:]
    statistics = statistics[statistics[:, cv2.CC_STAT_AREA] >= smallest_px]
    areas = statistics[:, cv2.CC_STAT_AREA].astype(np.float64)
    mean, spread = cv2.meanStdDev(density, mask=mask)  # both 0 on an empty mask
    features = {
        "share": cv2.countNonZero(mask) / mask.size,
        "count": float(np.log1p(areas.size * 1e4 / mask.size)),
        "density": float(mean[0, 0]),
        "density_spread": float(spread[0, 0]),
    }
    if not areas.size:
        return features | dict.fromkeys(("area", "area_spread", "area_largest", "fill", "elongation"), 0.0)
    width, height = statistics[:, cv2.CC_STAT_WIDTH], statistics[:, cv2.CC_STAT_HEIGHT]
    logs = np.log(areas)
    return features | {
        "area": float(logs.mean()),
        "area_spread": float(logs.std()),
        "area_largest": float(logs.max()),
        "fill": float((areas / (width * height)).mean()),
        "elongation": float(np.abs(np.log(width / height)).mean()),
    }
