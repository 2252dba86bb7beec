"""Stain normalisation on the device: bring every patch's colours to those of one reference.

Macenko: M. Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009. Reinhard:
E. Reinhard et al., "Color transfer between images", IEEE Computer Graphics and Applications 21, 2001. Written from the
papers. A patch with too little tissue to tell its stains is left as it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ConfigError

LIGHT = 255.0
"""Intensity of glass."""
GLASS_DENSITY = 0.15
"""Optical density (natural logarithm) below which a pixel is glass, in every channel; beta of Macenko's paper."""
ANGLE_PERCENTILE = 1.0
"""Percentile of the angles that is taken as an extreme; alpha of Macenko's paper."""
MAX_PERCENTILE = 99.0
SMALLEST_SHARE = 0.05
"""Share of a patch's pixels that must be tissue."""
REFERENCE_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11))
"""Directions of haematoxylin and eosin: A. C. Ruifrok and D. A. Johnston, Anal. Quant. Cytol. Histol. 23, 2001."""
REFERENCE_MAXIMA = (1.9, 1.0)
"""The 99th percentiles of their concentrations in a well stained slide, natural logarithm."""
REFERENCE_MEAN, REFERENCE_SPREAD = (-0.55, 0.02, 0.04), (0.30, 0.04, 0.015)
"""Mean and spread of a well stained slide in Reinhard's l, alpha, beta, over its tissue (base 10)."""

RGB_TO_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
"""Equation 4 of Reinhard's paper."""
_L, _A, _B = 1 / math.sqrt(3), 1 / math.sqrt(6), 1 / math.sqrt(2)
LMS_TO_LAB = ((_L, _L, _L), (_A, _A, -2 * _A), (_B, -_B, 0.0))
"""Equation 6 of Reinhard's paper."""

Normaliser = Callable[[Tensor], Tensor]
"""From RGB in 0 to 255, float [B, 3, p, p], to the same."""


def _density(image: Tensor) -> Tensor:
    density: Tensor = -torch.log((image + 1) / (LIGHT + 1))
    return density


def _intensity(density: Tensor) -> Tensor:
    return (torch.exp(-density) * (LIGHT + 1) - 1).clamp(0, LIGHT)


@dataclass(frozen=True)
class Macenko:
    """Exchange a patch's own two stains for the reference's.

    Parameters
    ----------
    stains
        Directions of haematoxylin and eosin in optical density, [2, 3], of length 1.
    maxima
        99th percentiles of their concentrations, [2].
    """

    stains: Tensor
    maxima: Tensor

    @classmethod
    def default(cls) -> "Macenko":
        """Give the built-in reference."""
        stains = torch.tensor(REFERENCE_STAINS)
        return cls(stains / stains.norm(dim=1, keepdim=True), torch.tensor(REFERENCE_MAXIMA))

    @classmethod
    def of(cls, patch: Tensor) -> "Macenko":
        """Take a patch, float RGB [3, p, p], as the reference.

        Raises
        ------
        ValueError
            If it has too little tissue.
        """
        density = _density(patch[None]).flatten(2)[0].T
        found = _stains_of(density)
        if found is None:
            raise ValueError("the reference patch has too little tissue to tell its stains")
        return cls(found, _maxima(_concentrations(density, found)))

    def to(self, device: torch.device) -> "Macenko":
        """Give the same on a device."""
        return Macenko(self.stains.to(device), self.maxima.to(device))

    def __call__(self, image: Tensor) -> Tensor:
        """Normalise patches, float RGB [B, 3, p, p] in 0 to 255."""
        return torch.stack([self._one(patch) for patch in image])

    def _one(self, patch: Tensor) -> Tensor:
        density = _density(patch).flatten(1).T  # (pixels, 3)
        stains = _stains_of(density)
        if stains is None:
            return patch
        concentrations = _concentrations(density, stains)
        scaled = concentrations * (self.maxima / _maxima(concentrations).clamp(min=1e-3))
        return _intensity(scaled @ self.stains).T.reshape(patch.shape)


def _stains_of(density: Tensor) -> Tensor | None:
    """Find the two stains of a patch, haematoxylin first, [2, 3], from its pixels [n, 3]; None with too little tissue.

    The directions of the pixels' densities span a plane; its extreme angles are the stains.
    """
    tissue = density[(density > GLASS_DENSITY).all(1)]
    if len(tissue) < SMALLEST_SHARE * len(density):
        return None
    covariance = torch.cov(tissue.T)
    plane = torch.linalg.eigh(covariance).eigenvectors[:, 1:]  # (3, 2), the two largest spreads
    plane = plane * torch.where(plane.sum(0) < 0, -1.0, 1.0)
    on_plane = tissue @ plane
    angle = torch.atan2(on_plane[:, 0], on_plane[:, 1])
    extremes = _percentile(angle, ANGLE_PERCENTILE), _percentile(angle, 100 - ANGLE_PERCENTILE)
    first, second = (plane @ torch.stack([extreme.sin(), extreme.cos()]) for extreme in extremes)
    # haematoxylin takes more of the red light than eosin does
    stains = torch.stack([first, second] if first[0] > second[0] else [second, first])
    if torch.linalg.cross(stains[0], stains[1]).norm() < 0.02:
        return None  # one stain alone: there is nothing to separate
    return stains


def _concentrations(density: Tensor, stains: Tensor) -> Tensor:
    found: Tensor = density @ torch.linalg.pinv(stains)  # (n, 2)
    return found


def _maxima(concentrations: Tensor) -> Tensor:
    return torch.stack([_percentile(column, MAX_PERCENTILE) for column in concentrations.T])


def _percentile(values: Tensor, percent: float) -> Tensor:
    # torch.quantile refuses more than 16 million values and sorts all of them
    position = min(len(values), max(1, round(percent / 100 * len(values))))
    return values.kthvalue(position).values


@dataclass(frozen=True)
class Reinhard:
    """Bring mean and spread of a patch's tissue, in a space without correlations, to the reference's.

    Parameters
    ----------
    mean, spread
        In l, alpha, beta, each [3].
    """

    mean: Tensor
    spread: Tensor

    @classmethod
    def default(cls) -> "Reinhard":
        """Give the built-in reference."""
        return cls(torch.tensor(REFERENCE_MEAN), torch.tensor(REFERENCE_SPREAD))

    @classmethod
    def of(cls, patch: Tensor) -> "Reinhard":
        """Take a patch, float RGB [3, p, p], as the reference.

        Raises
        ------
        ValueError
            If it has too little tissue.
        """
        pixels = patch.flatten(1).T
        found = _moments(_to_lab(pixels), pixels)
        if found is None:
            raise ValueError("the reference patch has too little tissue to measure its colours")
        return cls(*found)

    def to(self, device: torch.device) -> "Reinhard":
        """Give the same on a device."""
        return Reinhard(self.mean.to(device), self.spread.to(device))

    def __call__(self, image: Tensor) -> Tensor:
        """Normalise patches, float RGB [B, 3, p, p] in 0 to 255."""
        return torch.stack([self._one(patch) for patch in image])

    def _one(self, patch: Tensor) -> Tensor:
        pixels = patch.flatten(1).T  # (pixels, 3)
        lab = _to_lab(pixels)
        own = _moments(lab, pixels)
        if own is None:
            return patch
        mean, spread = own
        moved = _from_lab((lab - mean) * (self.spread / spread.clamp(min=1e-4)) + self.mean)
        glass = _is_glass(pixels)[:, None]
        return torch.where(glass, pixels, moved).T.reshape(patch.shape)


def _is_glass(pixels: Tensor) -> Tensor:
    glass: Tensor = (_density(pixels) < GLASS_DENSITY).all(1)
    return glass


def _moments(lab: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor] | None:
    tissue = lab[~_is_glass(pixels)]
    if len(tissue) < max(2, SMALLEST_SHARE * len(lab)):
        return None
    return tissue.mean(0), tissue.std(0)


def _to_lab(pixels: Tensor) -> Tensor:
    lms = ((pixels + 1) / (LIGHT + 1)) @ pixels.new_tensor(RGB_TO_LMS).T
    lab: Tensor = lms.clamp(min=1e-6).log10() @ pixels.new_tensor(LMS_TO_LAB).T
    return lab


def _from_lab(lab: Tensor) -> Tensor:
    lms = 10 ** (lab @ torch.linalg.inv(lab.new_tensor(LMS_TO_LAB)).T)
    pixels: Tensor = lms @ torch.linalg.inv(lab.new_tensor(RGB_TO_LMS)).T
    return (pixels * (LIGHT + 1) - 1).clamp(0, LIGHT)


def stain_normaliser(name: str, device: torch.device) -> Normaliser | None:
    """Give the normalisation by the value of `encoder.stain`, or None for `none`.

    Raises
    ------
    ConfigError
        If there is none of that name.
    """
    match name:
        case "none":
            return None
        case "macenko":
            return Macenko.default().to(device)
        case "reinhard":
            return Reinhard.default().to(device)
        case _:
            raise ConfigError(f"stain {name!r} is not one of none, macenko, reinhard")


def on_arrays(name: str) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]]:
    """Give the normalisation for an encoder that works on arrays, uint8 [B, p, p, 3]; raises as `stain_normaliser`."""
    normalise = stain_normaliser(name, torch.device("cpu"))
    assert normalise is not None

    def apply(patches: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = torch.from_numpy(np.ascontiguousarray(patches)).permute(0, 3, 1, 2).float()
        rounded = normalise(image).round().to(torch.uint8)
        return np.ascontiguousarray(rounded.permute(0, 2, 3, 1).numpy())

    return apply
