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
        "jpeg"; "jpeg2000" for lossless pixels; or another name that tifffile knows.
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
    elif compression == "jpeg2000":
        tiled |= {"compression": 33005, "compressionargs": {"level": 0, "reversible": True}}
    else:
        tiled |= {"compression": compression}
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


def write_scn(path: Path, pixels: NDArray[np.uint8], *, origin: tuple[int, int], canvas: tuple[int, int]) -> Path:
    """Write a Leica SCN slide of 0.5 um per pixel, scanned from `origin` on of a larger canvas (width, height).

    OpenSlide states its bounds and shows the canvas around it as transparent.
    """
    height, width = pixels.shape[:2]
    factor, nm = 16, 500
    macro = np.full((canvas[1] // factor, canvas[0] // factor, 3), 240, np.uint8)
    image = """<image name="image_{ifd}"><pixels sizeX="{width}" sizeY="{height}">
      <dimension sizeX="{width}" sizeY="{height}" r="0" ifd="{ifd}"/></pixels>
      <view sizeX="{view_width}" sizeY="{view_height}" offsetX="{x}" offsetY="{y}" spacingZ="0"/>
      <creationDate>2020-01-01T00:00:00.00Z</creationDate><device model="Leica SCN400;Leica SCN" version="1.5"/>
      <scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
      <illuminationSettings><numericalAperture>0.4</numericalAperture>
      <illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"""
    parts = [
        image.format(
            ifd=0,
            width=macro.shape[1],
            height=macro.shape[0],
            x=0,
            y=0,
            view_width=canvas[0] * nm,
            view_height=canvas[1] * nm,
        ),
        image.format(
            ifd=1,
            width=width,
            height=height,
            x=origin[0] * nm,
            y=origin[1] * nm,
            view_width=width * nm,
            view_height=height * nm,
        ),
    ]
    description = (
        '<?xml version="1.0" encoding="UTF-8"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection name="c" sizeX="{canvas[0] * nm}" sizeY="{canvas[1] * nm}">{"".join(parts)}</collection></scn>'
    )
    tiled: dict[str, Any] = {"tile": (TILE_PX, TILE_PX), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(macro, description=description, **tiled)
        writer.write(pixels, **tiled, resolution=(1e7 / nm, 1e7 / nm), resolutionunit="CENTIMETER")
    return path
