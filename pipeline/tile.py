"""The tile stage: find tissue on a slide and place tiles on it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import store
from pipeline.cohort import Drawn
from pipeline.errors import SlideError
from pipeline.fingerprint import require
from pipeline.flags import FLAGS
from pipeline.geojson import read_geojson, to_geojson
from pipeline.grid import place_tiles, tile_shares
from pipeline.look_alikes import overview_hash
from pipeline.preview import draw_placeholder, draw_preview, preview_mpp, write_pictures
from pipeline.quality import (
    FOCUS_MPP,
    FOCUS_WINDOW_PX,
    QualityOptions,
    Windows,
    exclude,
    sample_blur,
    spoilt_regions,
)
from pipeline.slide import ReadPlan, Slide, open_slide, read_plan
from pipeline.tissue import Overview, TissueOptions, find_tissue, look_at
from pipeline.versions import made_by

LOG = logging.getLogger(__name__)

MAX_OVERVIEW_PX = 4_500_000
"""Most pixels of an overview: with them the stage stays within 2 s and 400 MB, whatever the slide's size."""


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of a slide lie, and what they were placed on.

    Parameters
    ----------
    coords
        Top-left corners, int32 [N, 2], columns x, y, level-0 px, row-major.
    shares
        Share of each tile that is tissue, pen, bubble, blur (out of focus) and fold, float32 [N] each.
    excluded
        Corners, int32 [M, 2], of the tiles that were left out, by the first of `FLAGS` that says so.
    flagged
        Mean share of pen, blur and fold over all tiles on tissue, those left out included.
    plan
        How the patches are read.
    stride_level0_px
        Distance of neighbouring tiles, level-0 px.
    mask, mask_downsample
        Tissue, shape (H, W), and the level-0 px per mask pixel.
    roi
        The user's regions, shape (H, W); None where there are none.
    """

    coords: NDArray[np.int32]
    shares: dict[str, NDArray[np.float32]]
    excluded: dict[str, NDArray[np.int32]]
    flagged: dict[str, float]
    plan: ReadPlan
    stride_level0_px: float
    mask: NDArray[np.bool_]
    mask_downsample: float
    roi: NDArray[np.bool_] | None = None

    @property
    def tissue_area_level0_px(self) -> float:
        """Area of the tissue, level-0 px."""
        return float(np.count_nonzero(self.mask)) * self.mask_downsample**2


def tile_slide(
    slide: Slide,
    thumbnail: NDArray[np.uint8],
    *,
    overview_mpp: float,
    patch_px: int,
    target_mpp: float,
    overlap: float,
    min_tissue: float,
    max_tiles: int | None,
    options: TissueOptions,
    quality: QualityOptions,
    drawn: Drawn,
) -> Tiling:
    """Find tissue on a slide's overview, place tiles on it, and leave out those that are spoilt.

    Parameters
    ----------
    thumbnail, overview_mpp
        RGB, shape (H, W, 3), and its um per pixel.
    patch_px, target_mpp
        Edge of a patch in pixels, and the um per pixel it is wanted at.
    overlap
        Share of a tile's edge that it shares with its neighbour, in [0, 1).
    min_tissue
        Smallest tissue share of a kept tile, in [0, 1].
    max_tiles
        If more are good, a random subset of this size is kept, the same in every run; None keeps all.
    drawn
        What the user drew: tissue replaces the one found here, regions restrict it.

    Raises
    ------
    SlideError
        If the slide is too coarse, smaller than a tile, not bright-field, without tissue, or spoilt all over.
    """
    plan = read_plan(slide, patch_px=patch_px, mpp=target_mpp)
    _check_size(slide, plan)
    overview, downsample = look_at(thumbnail), overview_mpp / slide.mpp
    mask, roi = _tissue(slide, overview, downsample=downsample, mpp=overview_mpp, options=options, drawn=drawn)
    stride_px = plan.patch_level0_px * (1 - overlap)
    coords, tissue = place_tiles(
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
            remedy="lower tiling.min_tissue, or leave the slide out: it has very little tissue",
        )
    shares = {"tissue": tissue}
    for name, spoilt in spoilt_regions(overview, mask, mpp=overview_mpp, find_pens=options.exclude_pen).items():
        shares[name] = tile_shares(spoilt, coords, downsample=downsample, patch_px=plan.patch_level0_px)
    shares["blur"] = sample_blur(
        coords, stride_px=stride_px, limit=quality.max_blur, windows=_focus_windows(slide, coords, plan)
    )
    flagged = {name: float(values.mean()) for name, values in shares.items() if name != "tissue"}
    good, excluded = exclude(coords, shares, quality)
    if not good.any():
        counts = ", ".join(f"{len(found)} by {name}" for name, found in excluded.items() if len(found))
        raise SlideError(
            f"all {len(coords)} tiles are spoilt ({counts})",
            remedy="look at the preview; scan the slide again, or raise the limits in the config's section quality",
        )
    kept = np.flatnonzero(good)
    if max_tiles is not None and len(kept) > max_tiles:
        slide.warnings.append(f"{max_tiles} of {len(kept)} tiles were kept (tiling.max_tiles)")
        kept = np.sort(np.random.default_rng(0).choice(kept, max_tiles, replace=False))
    shares = {name: values[kept] for name, values in shares.items()}
    return Tiling(coords[kept], shares, excluded, flagged, plan, stride_px, mask, downsample, roi)


def overview_scale(slide: Slide, mpp: float) -> float:
    """Give the um per pixel of the overview: `mpp`, doubled until the overview is small enough."""
    while slide.width * slide.height * (slide.mpp / max(mpp, slide.mpp)) ** 2 > MAX_OVERVIEW_PX:
        mpp = 2 * max(mpp, slide.mpp)
    return mpp


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
    quality: QualityOptions,
    drawn: Drawn | None = None,
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
    patch_px, target_mpp, overlap, min_tissue, quality, drawn, max_tiles
        As for `tile_slide`.
    mpp, default_mpp, mpp_from_objective
        As for `open_slide`.
    parameters
        What the workflow watches; kept in the artefact.
    """
    drawn = drawn or Drawn()
    attributes: dict[str, Any] = {"parameters": parameters or {}, "target_mpp": target_mpp, "patch_px": patch_px}
    overview: NDArray[np.uint8] | None = None
    try:
        with open_slide(slide_path, mpp=mpp, default_mpp=default_mpp, mpp_from_objective=mpp_from_objective) as slide:
            attributes |= _slide_attributes(slide)
            overview, overview_mpp = slide.thumbnail(overview_scale(slide, tissue_options.mpp))
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
                quality=quality,
                drawn=drawn,
            )
            picture = _preview(slide, tiling, overview, overview_mpp=overview_mpp, slide_id=slide_id)
            outline = to_geojson(tiling.mask, downsample=tiling.mask_downsample, bounds=slide.bounds)
            attributes |= _slide_attributes(slide) | _tiling_attributes(slide, tiling)
            attributes["overview_hash"] = overview_hash(overview, tiling.mask)
            attributes["drawn"] = [name for name in ("tissue", "roi") if getattr(drawn, name) is not None]
    except SlideError as error:
        require(slide_path, fingerprint)
        write_quarantined(
            error,
            slide_id=slide_id,
            fingerprint=fingerprint,
            tiles=tiles,
            tissue=tissue,
            preview=preview,
            attributes=attributes,
            overview=overview,
        )
        return
    made = made_by("tile", fingerprint=fingerprint, parameters=attributes["parameters"])
    write_pictures(preview, picture, tissue, outline, made_by=made)
    attributes = store.stage_attributes("tile", slide_id=slide_id, fingerprint=fingerprint, **attributes)
    store.write(tiles, {"coords": tiling.coords, **tiling.shares, **_left_out(tiling.excluded)}, attributes)
    LOG.info(
        "%s: %d tiles (%d left out) at %.3f mpp (asked: %.3f), %.1f mm2 of tissue",
        slide_id,
        len(tiling.coords),
        sum(map(len, tiling.excluded.values())),
        tiling.plan.realised_mpp,
        target_mpp,
        attributes["tissue_area_mm2"],
    )


def write_quarantined(
    error: SlideError,
    *,
    slide_id: str,
    fingerprint: str,
    tiles: Path,
    tissue: Path,
    preview: Path,
    attributes: Mapping[str, Any],
    overview: NDArray[np.uint8] | None = None,
) -> None:
    """Write what stands for a slide that cannot be used: an empty artefact, an empty outline, a picture that says why.

    Parameters
    ----------
    error
        Why it cannot be used.
    slide_id, fingerprint, tiles, tissue, preview
        As for `run`.
    attributes
        What is known of the slide.
    overview
        RGB, shape (H, W, 3), if it could be read.
    """
    LOG.warning("%s: quarantined: %s", slide_id, error)
    found = store.stage_attributes("tile", slide_id=slide_id, fingerprint=fingerprint, error=error, **attributes)
    empty = {name: np.empty(0, np.float32) for name in ("tissue", *FLAGS)}
    made = made_by("tile", fingerprint=fingerprint, parameters=attributes.get("parameters", {}))
    picture = draw_placeholder(slide_id, error, overview=overview)
    write_pictures(preview, picture, tissue, None, made_by=made)
    store.write(tiles, {"coords": np.empty((0, 2), np.int32), **empty, **_left_out({})}, found)


def _tissue(
    slide: Slide, overview: Overview, *, downsample: float, mpp: float, options: TissueOptions, drawn: Drawn
) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """Give the tissue to tile, and the user's regions, which it is cut to; both of the overview's shape."""
    shape: tuple[int, int] = overview.scanned.shape
    tissue, roi = (
        None if file is None else read_geojson(file, shape=shape, downsample=downsample, bounds=slide.bounds)
        for file in (drawn.tissue, drawn.roi)
    )
    if tissue is None:
        tissue = find_tissue(overview, mpp=mpp, options=options)
        if not tissue.any():
            raise SlideError(
                "no tissue was found",
                remedy="look at its preview; if it shows tissue, set tissue.method fixed and lower tissue.threshold,"
                " or draw the tissue in QuPath",
            )
    if roi is None:
        return tissue, None
    if not (tissue & roi).any():
        raise SlideError(f"there is no tissue in the regions of {drawn.roi}", remedy="draw them on the tissue")
    return tissue & roi, roi


def _focus_windows(slide: Slide, coords: NDArray[np.int32], plan: ReadPlan) -> Windows:
    """Give what reads the middle of tiles, at the patches' own resolution but no finer than focus shows."""
    mpp = max(FOCUS_MPP, plan.realised_mpp)
    edge_px = max(1, min(FOCUS_WINDOW_PX, int(plan.patch_level0_px * slide.mpp / mpp + 1e-6)))
    margin = (plan.patch_level0_px - edge_px * mpp / slide.mpp) / 2
    corners = np.floor(coords + max(0.0, margin)).astype(np.int32)

    def read(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        batches = list(slide.patches(corners[rows], patch_px=edge_px, mpp=mpp, threads=1))
        found = np.concatenate([np.empty(0, np.int64), *(indices for indices, _ in batches)])
        empty = np.empty((0, edge_px, edge_px, 3), np.uint8)
        return rows[found], np.concatenate([empty, *(pixels for _, pixels in batches)])

    return read


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
        excluded=tiling.excluded,
        roi=tiling.roi,
        slide_id=slide_id,
        warnings=slide.warnings,
    )


def _left_out(excluded: Mapping[str, NDArray[np.int32]]) -> dict[str, NDArray[Any]]:
    """Give the tiles that were left out as arrays: their corners, int32 [M, 2], and their flags, indices of `FLAGS`."""
    named = [(index, excluded[name]) for index, name in enumerate(FLAGS) if name in excluded]
    return {
        "excluded": np.concatenate([np.empty((0, 2), np.int32), *(corners for _, corners in named)]),
        "excluded_flag": np.repeat(
            np.array([index for index, _ in named], np.uint8), [len(corners) for _, corners in named]
        ),
    }


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
        "tiles": len(tiling.coords),
        "flagged": tiling.flagged,
        "excluded": {name: len(coords) for name, coords in tiling.excluded.items()},
        "tissue_area_mm2": tiling.tissue_area_level0_px * slide.mpp_x * slide.mpp_y / 1e6,
    }
