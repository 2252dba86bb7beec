"""The tile stage: find tissue on a slide and place tiles on it."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import store
from pipeline.errors import SlideError
from pipeline.geojson import to_geojson
from pipeline.preview import draw_placeholder, draw_preview, preview_mpp, save_jpeg
from pipeline.slide import ReadPlan, Slide, open_slide, read_plan
from pipeline.tissue import TissueOptions, find_tissue

LOG = logging.getLogger(__name__)

SHARE_TOLERANCE = 1e-6
"""A tile that is all tissue may come out this much below 1."""


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of a slide lie, and what they were placed on.

    Parameters
    ----------
    coords
        Top-left corners, int32 [N, 2], columns x, y, level-0 px, row-major.
    tissue
        Share of each tile that is tissue, float32 [N].
    plan
        How the patches are read.
    stride_level0_px
        Distance of neighbouring tiles, level-0 px.
    mask, mask_downsample
        Tissue, shape (H, W), and the level-0 px per mask pixel.
    """

    coords: NDArray[np.int32]
    tissue: NDArray[np.float32]
    plan: ReadPlan
    stride_level0_px: float
    mask: NDArray[np.bool_]
    mask_downsample: float

    @property
    def tissue_area_level0_px(self) -> float:
        """Area of the tissue, level-0 px."""
        return float(np.count_nonzero(self.mask)) * self.mask_downsample**2


def place_tiles(
    tissue: NDArray[np.bool_],
    *,
    downsample: float,
    patch_px: float,
    stride_px: float,
    bounds: tuple[int, int, int, int],
    min_tissue: float,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Place a regular grid of tiles and keep those on tissue.

    The grid starts at the bounds' corner; every tile lies wholly inside the bounds. A tile's share of tissue is exact
    for the mask: mask pixels that its edge cuts count with the part inside.

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
    x, y = (_grid(bounds[axis], bounds[axis + 2], patch_px=patch_px, stride_px=stride_px) for axis in (0, 1))
    integral = np.pad(np.cumsum(np.cumsum(tissue, axis=0, dtype=np.float64), axis=1), ((1, 0), (1, 0)))
    # the integral is linear between pixel corners in each axis, so interpolating it counts cut pixels by their part
    top, bottom = (_interpolate(integral, (y + offset) / downsample) for offset in (0.0, patch_px))
    left, right = (_interpolate((bottom - top).T, (x + offset) / downsample).T for offset in (0.0, patch_px))
    share = (right - left) / (patch_px / downsample) ** 2
    rows, columns = np.nonzero(share >= min_tissue - SHARE_TOLERANCE)
    coords = np.stack([x[columns], y[rows]], axis=1).astype(np.int32)
    return coords, np.clip(share[rows, columns], 0, 1).astype(np.float32)


def tile_slide(
    slide: Slide,
    overview: NDArray[np.uint8],
    *,
    overview_mpp: float,
    patch_px: int,
    target_mpp: float,
    overlap: float,
    min_tissue: float,
    max_tiles: int | None,
    options: TissueOptions,
) -> Tiling:
    """Find tissue on a slide's overview and place tiles on it.

    Parameters
    ----------
    overview, overview_mpp
        RGB, shape (H, W, 3), and its um per pixel.
    patch_px, target_mpp
        Edge of a patch in pixels, and the um per pixel it is wanted at.
    overlap
        Share of a tile's edge that it shares with its neighbour, in [0, 1).
    min_tissue
        Smallest tissue share of a kept tile, in [0, 1].
    max_tiles
        If there are more, an even random subset of this size is kept, the same in every run; None keeps all.

    Raises
    ------
    SlideError
        If the slide is too coarse, smaller than a tile, not bright-field, or without tissue.
    """
    plan = read_plan(slide, patch_px=patch_px, mpp=target_mpp)
    _check_size(slide, plan)
    mask = find_tissue(overview, mpp=overview_mpp, options=options)
    if not mask.any():
        raise SlideError("no tissue was found", remedy="look at the preview; if there is tissue, lower the threshold")
    downsample, stride_px = overview_mpp / slide.mpp, plan.patch_level0_px * (1 - overlap)
    coords, share = place_tiles(
        mask,
        downsample=downsample,
        patch_px=plan.patch_level0_px,
        stride_px=stride_px,
        bounds=slide.bounds,
        min_tissue=min_tissue,
    )
    if not len(coords):
        raise SlideError(
            f"no tile of {plan.patch_level0_px * slide.mpp:.0f} um is covered by tissue to {min_tissue:.0%}",
            remedy="lower min_tissue, or leave the slide out: it has very little tissue",
        )
    if max_tiles is not None and len(coords) > max_tiles:
        slide.warnings.append(f"{max_tiles} of {len(coords)} tiles were kept (max_tiles)")
        kept = np.sort(np.random.default_rng(0).choice(len(coords), max_tiles, replace=False))
        coords, share = coords[kept], share[kept]
    return Tiling(coords, share, plan, stride_px, mask, downsample)


def run(
    slide_path: Path,
    *,
    slide_id: str,
    fingerprint: str,
    tiles: Path,
    tissue: Path,
    preview: Path,
    patch_px: int,
    target_mpp: float,
    overlap: float,
    min_tissue: float,
    tissue_options: TissueOptions,
    max_tiles: int | None = None,
    mpp: float | None = None,
    default_mpp: float | None = None,
    mpp_from_objective: bool = False,
    parameters: dict[str, Any] | None = None,
) -> None:
    """Run the stage for one slide: write its tiles, its tissue's outline and a preview.

    A slide that cannot be used gets an empty artefact that says why, an empty outline and a picture that says why.

    Parameters
    ----------
    slide_path, slide_id, fingerprint
        The slide.
    tiles, tissue, preview
        Where to write: the artefact (`.zarr.zip`), the outline (`.geojson`) and the preview (`.jpg`).
    patch_px, target_mpp, overlap, min_tissue, max_tiles
        As for `tile_slide`.
    mpp, default_mpp, mpp_from_objective
        As for `open_slide`.
    parameters
        What the workflow watches; kept in the artefact.
    """
    attributes: dict[str, Any] = {"parameters": parameters or {}, "target_mpp": target_mpp, "patch_px": patch_px}
    overview: NDArray[np.uint8] | None = None
    try:
        with open_slide(slide_path, mpp=mpp, default_mpp=default_mpp, mpp_from_objective=mpp_from_objective) as slide:
            attributes |= _slide_attributes(slide)
            overview, overview_mpp = slide.thumbnail(tissue_options.mpp)
            tiling = tile_slide(
                slide,
                overview,
                overview_mpp=overview_mpp,
                patch_px=patch_px,
                target_mpp=target_mpp,
                overlap=overlap,
                min_tissue=min_tissue,
                max_tiles=max_tiles,
                options=tissue_options,
            )
            picture = _preview(slide, tiling, overview, overview_mpp=overview_mpp, slide_id=slide_id)
            attributes |= _slide_attributes(slide) | _tiling_attributes(slide, tiling)
    except SlideError as error:
        LOG.warning("%s: quarantined: %s", slide_id, error)
        attributes = store.stage_attributes(
            "tile", slide_id=slide_id, fingerprint=fingerprint, error=error, **attributes
        )
        empty = {"coords": np.empty((0, 2), np.int32), "tissue": np.empty(0, np.float32)}
        save_jpeg(preview, draw_placeholder(slide_id, error, overview=overview))
        store.write_text(tissue, json.dumps({"type": "FeatureCollection", "features": []}))
        store.write(tiles, empty, attributes)
        return
    save_jpeg(preview, picture)
    store.write_text(tissue, json.dumps(to_geojson(tiling.mask, downsample=tiling.mask_downsample)))
    attributes = store.stage_attributes("tile", slide_id=slide_id, fingerprint=fingerprint, **attributes)
    store.write(tiles, {"coords": tiling.coords, "tissue": tiling.tissue}, attributes)
    LOG.info(
        "%s: %d tiles at %.3f mpp (asked: %.3f), %.1f mm2 of tissue",
        slide_id,
        len(tiling.coords),
        tiling.plan.realised_mpp,
        target_mpp,
        attributes["tissue_area_mm2"],
    )


def _grid(start: int, length: int, *, patch_px: float, stride_px: float) -> NDArray[np.int64]:
    """Give the corners of the tiles along one axis, whole level-0 px; every tile ends inside `start + length`."""
    # one more than fits, as rounding may push the last corner either way
    count = max(0, int((length - patch_px) // stride_px) + 2)
    corners: NDArray[np.int64] = np.floor(start + np.arange(count) * stride_px + 0.5).astype(np.int64)
    inside: NDArray[np.int64] = corners[corners + patch_px <= start + length]
    return inside


def _interpolate(integral: NDArray[np.float64], position: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Interpolate the rows of `integral` at fractional positions; beyond the last row it stays constant."""
    position = np.clip(position, 0, len(integral) - 1)
    below = np.minimum(position.astype(np.int64), len(integral) - 2)
    part = (position - below)[:, None]
    interpolated: NDArray[np.float64] = integral[below] * (1 - part) + integral[below + 1] * part
    return interpolated


def _check_size(slide: Slide, plan: ReadPlan) -> None:
    _, _, width, height = slide.bounds
    if min(width, height) < plan.patch_level0_px:
        raise SlideError(
            f"it has {width} x {height} px at {slide.mpp:.4g} um per pixel, less than one tile "
            f"of {plan.patch_level0_px:.0f} px",
            remedy="leave it out: it is a thumbnail or a test image, or its mpp is wrong",
        )


def _preview(
    slide: Slide, tiling: Tiling, overview: NDArray[np.uint8], *, overview_mpp: float, slide_id: str
) -> NDArray[np.uint8]:
    """Draw the preview on the tissue overview if it is fine enough, else (small slides) on a finer one."""
    wanted = preview_mpp(slide.width, slide.height, mpp=slide.mpp)
    picture, picture_mpp = (overview, overview_mpp) if wanted >= overview_mpp else slide.thumbnail(wanted)
    if wanted > picture_mpp:
        shrink = picture_mpp / wanted
        size = (max(1, round(picture.shape[1] * shrink)), max(1, round(picture.shape[0] * shrink)))
        picture_mpp *= picture.shape[1] / size[0]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return draw_preview(
        picture,
        downsample=picture_mpp / slide.mpp,
        mpp=slide.mpp,
        mask=tiling.mask,
        mask_downsample=tiling.mask_downsample,
        coords=tiling.coords,
        patch_level0_px=tiling.plan.patch_level0_px,
        slide_id=slide_id,
        warnings=slide.warnings,
    )


def _slide_attributes(slide: Slide) -> dict[str, Any]:
    return {
        "width": slide.width,
        "height": slide.height,
        "mpp_x": slide.mpp_x,
        "mpp_y": slide.mpp_y,
        "mpp_source": slide.mpp_source,
        "bounds": list(slide.bounds),
        "vendor": slide.vendor,
        "objective": slide.objective,
        "warnings": list(slide.warnings),
    }


def _tiling_attributes(slide: Slide, tiling: Tiling) -> dict[str, Any]:
    return {
        "realised_mpp": tiling.plan.realised_mpp,
        "level": tiling.plan.level,
        "read_px": tiling.plan.read_px,
        "patch_level0_px": tiling.plan.patch_level0_px,
        "stride_level0_px": tiling.stride_level0_px,
        "tissue_area_mm2": tiling.tissue_area_level0_px * slide.mpp_x * slide.mpp_y / 1e6,
    }
