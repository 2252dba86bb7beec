"""Random fields that synthetic slides are shaped with: smooth noise, and periodic textures."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

TEXTURE_PX = 1024
"""Edge of the periodic fibre and grain textures, px: larger than any structure that repeats visibly."""


def smooth_noise(rng: Generator, shape: tuple[int, int], cell: int) -> NDArray[np.float32]:
    """Give smooth noise of mean 0 and deviation about 1: float32 of `shape`, with features of about `cell` pixels."""
    lattice = rng.standard_normal((shape[0] // cell + 4, shape[1] // cell + 4), dtype=np.float32) * 1.5
    enlarged = cv2.resize(lattice, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
    return np.asarray(enlarged[cell : cell + shape[0], cell : cell + shape[1]], np.float32)


def enlarge(values: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Enlarge a field, shape (h, w), to `shape` by linear interpolation."""
    return np.asarray(cv2.resize(values, shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


@lru_cache(maxsize=8)
def texture(along_px: float, across_px: float, seed: int) -> NDArray[np.uint8]:
    """Give periodic noise, smoothed over so many px: uint8, mean 128, deviation 40, [TEXTURE_PX, TEXTURE_PX]."""
    white = default_rng(seed).standard_normal((TEXTURE_PX, TEXTURE_PX))
    row, column = np.fft.fftfreq(TEXTURE_PX)[:, None], np.fft.rfftfreq(TEXTURE_PX)[None, :]
    smoothing = np.exp(-2.0 * np.pi**2 * ((across_px * row) ** 2 + (along_px * column) ** 2))
    smooth = np.fft.irfft2(np.fft.rfft2(white) * smoothing, s=white.shape)
    return np.asarray(np.clip(128.0 + 40.0 * smooth / smooth.std(), 0, 255), np.uint8)
