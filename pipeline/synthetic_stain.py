"""The colours of a synthetic H&E slide: from amounts of haematoxylin and eosin to red, green and blue."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

ERYTHROCYTE = 238
"""Amounts of eosin from here on stand for haemoglobin, which is red rather than pink."""


@dataclass(frozen=True)
class Stain:
    """How one laboratory's haematoxylin and eosin look.

    Parameters
    ----------
    haematoxylin, eosin
        Optical density per unit of stain in red, green and blue (after Ruifrok and Johnston 2001, the eosin less
        magenta, as scanners with a white balance show it).
    haematoxylin_density, eosin_density
        Units of stain that the largest amount (255) stands for.
    glass
        Colour of empty glass, in [0, 255].
    """

    haematoxylin: tuple[float, float, float] = (0.56, 0.74, 0.34)
    eosin: tuple[float, float, float] = (0.09, 0.84, 0.42)
    haematoxylin_density: float = 1.15
    eosin_density: float = 0.60
    glass: tuple[float, float, float] = (244.0, 242.0, 245.0)

    def varied(self, rng: Generator, amount: float) -> "Stain":
        """Give a stain like this one, its colours and densities moved by about `amount` (a share, such as 0.1)."""

        def moved(values: tuple[float, float, float], share: float) -> tuple[float, float, float]:
            red, green, blue = (float(value * np.exp(rng.normal(0.0, share))) for value in values)
            return red, green, blue

        return Stain(
            haematoxylin=moved(self.haematoxylin, amount / 2),
            eosin=moved(self.eosin, amount / 2),
            haematoxylin_density=self.haematoxylin_density * float(np.exp(np.clip(rng.normal(0, amount), -0.3, 0.3))),
            eosin_density=self.eosin_density * float(np.exp(np.clip(rng.normal(0, 1.5 * amount), -0.4, 0.4))),
            glass=moved(self.glass, amount / 30),
        )

    def table(self) -> NDArray[np.uint8]:
        """Give the colour of every pair of amounts: shape (65536, 3), row 256 * haematoxylin + eosin."""
        blue_dye, pink_dye = (amount.astype(np.float64) for amount in np.mgrid[0:256, 0:256])
        # chromatin keeps eosin out: nuclei lying on pink fibres would turn magenta without this
        pink = pink_dye * (1.0 - 0.6 * np.clip((blue_dye - 60.0) / 120.0, 0.0, 1.0)) / 255.0 * self.eosin_density
        blue = blue_dye / 255.0 * self.haematoxylin_density
        red_cell = np.clip((pink_dye - ERYTHROCYTE + 8) / 16.0, 0.0, 1.0)[..., None]
        pink_vector = (1 - red_cell) * np.asarray(self.eosin) + red_cell * np.asarray([0.16, 0.92, 0.86])
        density = blue[..., None] * np.asarray(self.haematoxylin) + pink[..., None] * pink_vector
        colour = np.asarray(self.glass) * 10.0**-density
        return np.asarray(np.clip(np.rint(colour), 0, 255), np.uint8).reshape(-1, 3)
