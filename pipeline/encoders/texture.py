"""The embedded encoder: colour and texture of a patch in numbers, with nothing to download and nothing to train.

A patch is separated into haematoxylin, eosin and a residual, halved three times, and described at each scale: where
stain lies (quantiles), how coarse it is (bands, granulometry), how nuclei differ in number, size and darkness (blobs,
components), how fibres and glands run (orientation), and which small patterns repeat (binary patterns).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.descriptors import (
    BytePlane,
    Features,
    Plane,
    band_energies,
    binary_patterns,
    blobs,
    components,
    distribution,
    granulometry,
    mean_square,
    orientation,
)
from pipeline.encoders.registry import TEXTURE_SMALLEST_PX, EncoderSpec
from pipeline.opencv import make_repeatable

BATCH = 32
"""Patches of a batch: enough to share between threads, few enough to stay in the cache."""
Prepare = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
"""Optical density in red, green, blue of haematoxylin and of eosin: A. C. Ruifrok and D. A. Johnston,
"Quantification of histochemical staining by color deconvolution", Anal. Quant. Cytol. Histol. 23, 2001."""
STEP = 0.01
"""Optical density of one level of a quantised plane: about that of one 8-bit level at mid grey (log10(129/128) = 0.003)
to dark tissue (log10(33/32) = 0.013)."""
OFFSETS = {"haematoxylin": 0.3, "eosin": 0.3, "residual": 1.0, "mean": 0.0}
"""Optical density added to a plane before it is quantised: unmixed stains may be negative."""
SIGMAS_PX = (1.0, 1.6)
"""Scales of the differences of Gaussians within an octave; the octave below has twice these."""
COARSE_SIGMAS_PX = (1.0, 1.6, 2.5)
"""The same in the last octave, which has none below it."""
BLOB_THRESHOLDS = (0.01, 0.03)
"""Band responses (optical density) above which a maximum is a blob: a lenient count and a strict one."""
GRAIN_SIZES_PX = (3, 5, 9, 15, 25, 41)
"""Edges of the squares of granulometry, on the halved patch: 3 um (half a nucleus) to 41 um (a gland) at 0.5 um."""
NUCLEAR_DENSITIES = (0.4, 0.7)
"""Haematoxylin densities above which a pixel counts as nucleus, and as dark nucleus; beside Otsu's, which adapts."""
LUMEN_DENSITY = 0.12
"""Mean optical density below which a pixel is glass: a lumen, a vacuole, a tear."""
SMALLEST_PART_PX = 6
"""Area on the halved patch below which a part is noise: 6 um2, a tenth of a small nucleus."""
TENSOR_WINDOW_PX = 8
"""Block over which a direction is averaged: 4 um at the finest scale, 16 um at the third."""


def _unmixing() -> NDArray[np.float32]:
    """Give the matrix from optical densities of red, green, blue to the four planes of `OFFSETS`, shape (4, 3)."""
    haematoxylin, eosin = (np.asarray(stain) / np.linalg.norm(stain) for stain in STAINS)
    residual = np.cross(haematoxylin, eosin)
    stains = np.stack([haematoxylin, eosin, residual / np.linalg.norm(residual)])
    return np.vstack([np.linalg.inv(stains).T, np.full(3, 1 / 3)]).astype(np.float32)


UNMIXING = _unmixing()
OPTICAL_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
"""Optical density of an 8-bit level; one is added so that black stays finite."""


def stain_planes(patch: NDArray[np.uint8]) -> dict[str, Plane]:
    """Separate a patch, uint8 RGB [p, p, 3], into planes of optical density, float32 [p, p], named as `OFFSETS`."""
    density = cv2.LUT(patch, OPTICAL_DENSITY)
    return {name: _plane(cv2.transform(density, UNMIXING[row : row + 1])) for row, name in enumerate(OFFSETS)}


def describe(patch: NDArray[np.uint8]) -> Features:
    """Describe one patch, uint8 RGB [p, p, 3], by named numbers; the names and their order are the same for all."""
    scales = [stain_planes(patch)]
    for _ in range(3):
        scales.append({name: _halve(plane) for name, plane in scales[-1].items()})
    features: Features = {}
    for name, offset in OFFSETS.items():
        _add(features, name, distribution(_quantise(scales[1][name], name), step=STEP, offset=offset))
    _add(features, "stains", _correlations(scales[2]))
    for octave, planes in enumerate(scales):
        _describe_octave(features, octave, planes)
    for name in ("haematoxylin", "mean"):
        grains = granulometry(_quantise(scales[1][name], name), sizes_px=GRAIN_SIZES_PX, step=STEP)
        _add(features, name, grains)
    _describe_parts(features, scales[1])
    return features


def _describe_octave(features: Features, octave: int, planes: dict[str, Plane]) -> None:
    """Add the bands, blobs, directions and patterns of one scale: 2 ** `octave` pixels of the patch a pixel."""
    sigmas_px = SIGMAS_PX if octave < 3 else COARSE_SIGMAS_PX
    for name in ("haematoxylin", "eosin", "mean") if octave else ("haematoxylin",):
        prefix = f"{name}.octave{octave}"
        plane = planes[name]
        bands = _bands(plane, sigmas_px)
        _add(features, prefix, band_energies(bands))
        if octave == 3:
            continue
        if name != "eosin":
            _add(features, prefix, orientation(plane, window_px=TENSOR_WINDOW_PX))
        if name == "haematoxylin":
            _add(features, prefix, blobs(bands[1], plane, thresholds=BLOB_THRESHOLDS))
            _add(features, prefix, binary_patterns(_quantise(plane, name)))


def _describe_parts(features: Features, planes: dict[str, Plane]) -> None:
    """Add nuclei, by three thresholds on haematoxylin, and lumina."""
    haematoxylin = planes["haematoxylin"]
    levels = _quantise(haematoxylin, "haematoxylin")
    masks = {"nuclei_otsu": cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]}
    for density in NUCLEAR_DENSITIES:
        level = (density + OFFSETS["haematoxylin"]) / STEP
        masks[f"nuclei{density:g}"] = cv2.threshold(levels, level, 255, cv2.THRESH_BINARY)[1]
    lumen_level = LUMEN_DENSITY / STEP
    masks["lumina"] = cv2.threshold(_quantise(planes["mean"], "mean"), lumen_level, 255, cv2.THRESH_BINARY_INV)[1]
    for name, mask in masks.items():
        _add(features, name, components(np.asarray(mask, np.uint8), haematoxylin, smallest_px=SMALLEST_PART_PX))


def _correlations(planes: dict[str, Plane]) -> Features:
    """Correlate the stains over a patch; 0 where a stain does not vary."""
    stains = [planes[name] - cv2.mean(planes[name])[0] for name in ("haematoxylin", "eosin", "residual")]
    spreads = [mean_square(stain) ** 0.5 + STEP for stain in stains]
    return {
        f"correlation{first}{second}": cv2.mean(stains[first] * stains[second])[0] / (spreads[first] * spreads[second])
        for first, second in ((0, 1), (0, 2), (1, 2))
    }


def _bands(plane: Plane, sigmas_px: tuple[float, ...]) -> list[Plane]:
    smoothed = [plane, *(_plane(cv2.GaussianBlur(plane, (0, 0), sigma)) for sigma in sigmas_px)]
    return [fine - coarse for fine, coarse in pairwise(smoothed)]


def _plane(result: NDArray[Any]) -> Plane:
    """Tell the type checker what OpenCV's stubs do not say; copies nothing."""
    return np.asarray(result, np.float32)


def _halve(plane: Plane) -> Plane:
    return _plane(cv2.resize(plane, (plane.shape[1] // 2, plane.shape[0] // 2), interpolation=cv2.INTER_AREA))


def _quantise(plane: Plane, name: str) -> BytePlane:
    levels = cv2.addWeighted(plane, 1 / STEP, plane, 0, OFFSETS[name] / STEP, dtype=cv2.CV_8U)
    return np.asarray(levels, np.uint8)


def _add(features: Features, prefix: str, more: Features) -> None:
    for name, value in more.items():
        features[f"{prefix}.{name}"] = value


def feature_names() -> tuple[str, ...]:
    """Give the names of the features, in the order of an encoded row."""
    return tuple(describe(np.zeros((TEXTURE_SMALLEST_PX, TEXTURE_SMALLEST_PX, 3), np.uint8)))


class TextureEncoder:
    """Encode patches on the CPU, one by one, so that a row depends on its patch alone, bit for bit.

    Parameters
    ----------
    spec
        What the encoder declares of itself.
    threads
        Threads over the patches of a batch.
    prepare
        What is done to patches [B, p, p, 3] first; None for nothing.
    """

    def __init__(self, spec: EncoderSpec, *, threads: int = 1, prepare: Prepare | None = None) -> None:
        self.spec = spec
        self.mpp = spec.mpp
        self.patch_px = spec.patch_px
        self.dim = spec.dim or len(feature_names())
        self.batch_size = BATCH
        self._threads = threads
        self._prepare = prepare

    def use_threads(self, threads: int) -> None:
        """Use this many threads from now on."""
        self._threads = threads

    def buffer(self, patch_px: int) -> NDArray[np.uint8]:
        """Give memory for one batch, uint8 [batch_size, patch_px, patch_px, 3]."""
        return np.empty((self.batch_size, patch_px, patch_px, 3), np.uint8)

    def submit(self, patches: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        """Encode patches, and give a function that gives their features."""
        features = self(patches)
        return lambda: features

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches, uint8 RGB [B, p, p, 3] with p of 32 or more, into features, float32 [B, dim].

        Raises
        ------
        ValueError
            If the patches have another shape or dtype.
        """
        _check_patches(patches)
        if self._prepare is not None:
            patches = self._prepare(patches)
        make_repeatable()
        features = np.empty((len(patches), self.dim), np.float32)
        if self._threads == 1:
            for row, patch in zip(features, patches, strict=True):
                _encode(patch, row)
            return features
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(_encode, patches, features))
        return features


def _encode(patch: NDArray[np.uint8], row: NDArray[np.float32]) -> None:
    row[:] = list(describe(np.ascontiguousarray(patch)).values())


def _check_patches(patches: NDArray[np.uint8]) -> None:
    shape = patches.shape
    square = len(shape) == 4 and shape[1] == shape[2] >= TEXTURE_SMALLEST_PX and shape[3] == 3
    if not square or patches.dtype != np.uint8:
        raise ValueError(
            f"patches are {patches.dtype} {shape}; give uint8 [B, p, p, 3] with p of {TEXTURE_SMALLEST_PX} or more"
        )
