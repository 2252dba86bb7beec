"""Slides for tests: real pyramidal files that OpenSlide reads."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

TILE_PX = 256


def write_svs(
    path: Path,
    pixels: NDArray[np.uint8],
    *,
    mpp: float | str | None = 0.5,
    objective: float | None = 20,
    factors: tuple[int, ...] = (4, 16),
    compression: str = "jpeg",
    quality: int = 90,
) -> Path:
    """Write an Aperio slide.

    Parameters
    ----------
    pixels
        Level 0, RGB, shape (H, W, 3).
    mpp, objective
        What the description states; None leaves it out.
    factors
        Downsamples of the further levels; levels that would vanish are left out.
    compression
        "jpeg", or "jpeg2000" for lossless pixels.
    quality
        Of the JPEG.
    """
    height, width = pixels.shape[:2]
    entries = [f"AppMag = {objective:g}"] if objective is not None else []
    entries += [f"MPP = {mpp}"] if mpp is not None else []
    title = f"Aperio Image Library v12.0.15 \r\n{width}x{height} ({TILE_PX}x{TILE_PX})"
    description = "|".join([title, *entries])
    tiled: dict[str, Any] = {"tile": (TILE_PX, TILE_PX), "photometric": "rgb", "metadata": None}
    if compression == "jpeg":
        tiled |= {"compression": "jpeg", "compressionargs": {"level": quality}}
    else:
        tiled |= {"compression": 33005, "compressionargs": {"level": 0, "reversible": True}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, description=description, **tiled)
        for factor in factors:
            size = (width // factor, height // factor)
            if min(size) > 0:
                level = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
                writer.write(level, description=description, **tiled)
    return path


def write_generic(path: Path, pixels: NDArray[Any], *, mpp: float = 0.5, **options: Any) -> Path:
    """Write a tiled TIFF of one lossless level (deflate), with `mpp` in its resolution tags."""
    per_cm = 1e4 / mpp
    grey = pixels.ndim == 2
    settings: dict[str, Any] = {
        "tile": (TILE_PX, TILE_PX),
        "photometric": "minisblack" if grey else "rgb",
        "compression": "adobe_deflate",
        "resolution": (per_cm, per_cm),
        "resolutionunit": "CENTIMETER",
        "metadata": None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, **(settings | options))
    return path


def tissue_like(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Make pink and purple texture that fills the whole image, shape (height, width, 3)."""
    generator = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(generator.normal(size=(height, width)).astype(np.float32), (0, 0), 3)
    share = np.clip(0.5 + noise / noise.std() / 4, 0, 1)[..., None]
    pixels: NDArray[np.uint8] = np.rint(share * (232, 168, 200) + (1 - share) * (110, 70, 150)).astype(np.uint8)
    return pixels


def slide_with_tissue(
    height: int, width: int, *, box: tuple[int, int, int, int], glass: int = 243, seed: int = 0
) -> NDArray[np.uint8]:
    """Make glass with tissue in `box` (x, y, width, height), shape (height, width, 3)."""
    x, y, box_width, box_height = box
    generator = np.random.default_rng(seed)
    pixels = np.clip(generator.normal(glass, 1.5, (height, width, 3)), 0, 255).astype(np.uint8)
    pixels[y : y + box_height, x : x + box_width] = tissue_like(box_height, box_width, seed=seed)
    return pixels
