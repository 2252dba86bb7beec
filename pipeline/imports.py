"""Take over features that another toolbox computed: HDF5 files of CLAM, TRIDENT or STAMP become tiles and bags.

What those files hold, as their public code writes it:

- TRIDENT: `features` [N, d] and `coords` [N, 2] in level-0 pixels, whose attributes have `patch_size` (pixels of a
  patch) and `patch_size_level0`.
- CLAM: `features` and `coords` without any attribute; `patch_size`, `patch_level` are with the coordinates of the same
  slide in the folder `patches`.
- STAMP, version 2: `feats` and `coords`, and on the file itself `unit` ("um"), `tile_size_um`, `tile_size_px`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import encoders, isolation, store
from pipeline.discovery import discover
from pipeline.errors import ConfigError, SlideError
from pipeline.hdf5 import number, read_hdf5, whole
from pipeline.options import STALLED_AFTER_S
from pipeline.slide import Slide, open_slide

log = logging.getLogger(__name__)

FEATURE_NAMES = ("features", "feats")
FEATURE_LIMIT = float(np.finfo(np.float16).max)
STAMP_UNIT = "um"
MPP_RANGE = (0.05, 100.0)
"""um per pixel that patches may have: finer than any objective, and coarser than a whole slide's overview."""


@dataclass(frozen=True)
class Imported:
    """Features of one slide, and where they were taken.

    Parameters
    ----------
    features
        Shape [N, d], float16.
    coords
        Top-left corners, int32 [N, 2], columns x, y, level-0 px.
    patch_px
        Edge of a patch in pixels.
    patch_level0_px
        The same in level-0 px.
    layout
        Which toolbox wrote them.
    """

    features: NDArray[np.float16]
    coords: NDArray[np.int32]
    patch_px: int
    patch_level0_px: float
    layout: str


def read_features(path: Path, *, slide: Slide, coordinates: Path | None = None) -> Imported:
    """Read one file of features.

    Parameters
    ----------
    path
        The HDF5 file.
    slide
        The slide it was made of, for its scale and levels.
    coordinates
        CLAM's file of coordinates for the same slide, where `path` does not say the scale.

    Raises
    ------
    ConfigError
        If it is none of the known layouts, or lacks coordinates or scale.
    """
    found = read_hdf5(path, FEATURE_NAMES)
    features, corners, of_coords = found.features, found.corners, found.of_coords
    if features is None:
        raise ConfigError(
            f"{path}: holds no features with coords; without coordinates there is no heatmap, so compute the features"
            " again"
        )
    _check_shapes(path, features, corners)
    if "unit" in found.own:
        corners, patch_px, edge_px, layout = _of_stamp(path, found.own, corners, slide)
    elif "patch_size_level0" in of_coords and "patch_size" in of_coords:
        patch_px, edge_px = whole(path, of_coords, "patch_size"), number(path, of_coords, "patch_size_level0")
        layout = "TRIDENT"
    else:
        patch_px, edge_px, layout = _of_clam(path, of_coords, corners, slide, coordinates)
    _check_place(path, corners, slide, edge_px=edge_px, patch_px=patch_px)
    return Imported(
        np.clip(features, -FEATURE_LIMIT, FEATURE_LIMIT).astype(np.float16),
        np.rint(corners).astype(np.int32),
        patch_px,
        edge_px,
        layout,
    )


def _check_shapes(path: Path, features: NDArray[Any], corners: NDArray[Any]) -> None:
    if features.ndim != 2 or not features.size or corners.shape != (len(features), 2):
        raise ConfigError(
            f"{path}: features are {features.shape} and coords {corners.shape}; [N, d] and [N, 2] are needed"
        )
    if not np.issubdtype(features.dtype, np.floating) or not np.isfinite(features).all():
        raise ConfigError(f"{path}: its features are not all finite numbers; compute them again")


def _of_stamp(
    path: Path, own: Mapping[str, Any], corners: NDArray[Any], slide: Slide
) -> tuple[NDArray[np.float64], int, float, str]:
    unit = own["unit"].decode(errors="replace") if isinstance(own["unit"], bytes) else str(own["unit"])
    if unit != STAMP_UNIT or "tile_size_um" not in own or "tile_size_px" not in own:
        raise ConfigError(
            f"{path}: its coords are in {unit!r} and it {'has' if 'tile_size_um' in own else 'lacks'} tile_size_um; "
            "only features of STAMP 2 (unit um, tile_size_um, tile_size_px) say their scale"
        )
    scale = np.array([slide.mpp_x, slide.mpp_y])
    return corners / scale, whole(path, own, "tile_size_px"), number(path, own, "tile_size_um") / slide.mpp, "STAMP"


def _of_clam(
    path: Path, of_coords: Mapping[str, Any], corners: NDArray[Any], slide: Slide, coordinates: Path | None
) -> tuple[int, float, str]:
    if coordinates is not None and coordinates.is_file():
        planned = read_hdf5(coordinates)
        of_coords = planned.of_coords
        if not np.array_equal(planned.corners, corners):
            raise ConfigError(f"{coordinates}: its coords are not those of {path}; give the ones it was made at")
    if "patch_size" not in of_coords or "patch_level" not in of_coords:
        raise ConfigError(
            f"{path}: does not say the scale of its patches; give CLAM's folder `patches` with --coordinates"
        )
    level, patch_px = whole(path, of_coords, "patch_level", least=0), whole(path, of_coords, "patch_size")
    if level >= len(slide.level_downsamples):
        raise ConfigError(f"{path}: was made at level {level}, which {slide.path} does not have; give the same slide")
    return patch_px, patch_px * slide.level_downsamples[level], "CLAM"


def _check_place(path: Path, corners: NDArray[Any], slide: Slide, *, edge_px: float, patch_px: int) -> None:
    """Raise where patches lie far outside: the features are of another slide, or the scale is wrong."""
    low, high = corners.min(0), corners.max(0)
    inside = (low >= -edge_px).all() and high[0] <= slide.width and high[1] <= slide.height  # false for NaN
    if not inside or not 1 <= edge_px <= 2 * max(slide.width, slide.height):
        raise ConfigError(
            f"{path}: patches of {edge_px:.0f} px reach x {high[0]:.0f}, y {high[1]:.0f}, "
            f"outside the {slide.width} x {slide.height} px of {slide.path}; give the slide they were made of"
        )
    mpp = edge_px * slide.mpp / patch_px
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise ConfigError(f"{path}: its patches of {patch_px} px have {mpp:.3g} um per pixel; compute them again")


def write_artefacts(found: Imported, *, slide: Slide, slide_id: str, encoder: str, tiles: Path, bag: Path) -> None:
    """Write the tiles and the bag of one slide, as the stages `tile` and `embed` would.

    Parameters
    ----------
    found
        From `read_features`.
    slide, slide_id
        The slide.
    encoder
        What the features were made with, the value of `encoder.name`.
    tiles, bag
        Artefacts to write.
    """
    edge = found.patch_level0_px
    mpp = round(edge * slide.mpp / found.patch_px, 4)
    about: dict[str, Any] = {
        "width": slide.width,
        "height": slide.height,
        "mpp_x": slide.mpp_x,
        "mpp_y": slide.mpp_y,
        "mpp_source": slide.mpp_source,
        "bounds": list(slide.bounds),
        "vendor": slide.vendor,
        "objective": slide.objective,
        "warnings": [*slide.warnings, f"features were imported from {found.layout}"],
        "patch_px": found.patch_px,
        "target_mpp": mpp,
        "realised_mpp": mpp,
        "patch_level0_px": edge,
        "stride_level0_px": _stride(found.coords, edge),
        "tiles": len(found.coords),
        "tissue_area_mm2": len(found.coords) * edge**2 * slide.mpp_x * slide.mpp_y / 1e6,
        "parameters": {"imported": found.layout},
    }
    identity: dict[str, Any] = {"slide_id": slide_id, "fingerprint": slide.fingerprint}
    share = np.ones(len(found.coords), np.float32)
    store.write(tiles, {"coords": found.coords, "tissue": share}, store.stage_attributes("tile", **identity, **about))
    of_bag: dict[str, Any] = {
        "encoder": encoder,
        "weights_sha256": "",
        "dim": found.features.shape[1],
        "precision": "imported",
        "unreadable": 0,
        "standardise": False,
    }
    features: dict[str, NDArray[Any] | store.Rows] = {"features": found.features, "coords": found.coords}
    store.write(bag, features, store.stage_attributes("embed", **identity, **about, **of_bag))


def _stride(coords: NDArray[np.int32], edge: float) -> float:
    """Give the distance of neighbouring patches: the smallest between two columns, or two rows."""
    steps = [np.diff(np.unique(coords[:, axis])) for axis in (0, 1)]
    smallest = [float(step.min()) for step in steps if len(step)]
    return min(smallest, default=edge)


def run(
    folder: Path,
    *,
    slides: Path,
    results: Path,
    encoder: str,
    coordinates: Path | None = None,
    mpp: float | None = None,
    default_mpp: float | None = None,
    mpp_from_objective: bool = False,
) -> list[str]:
    """Import every file of a folder whose slide is there.

    Parameters
    ----------
    folder
        HDF5 files, named as the slides.
    slides
        Folder of the slides.
    results
        Folder of the workflow's results.
    encoder
        What the features were made with, the value of `encoder.name`.
    coordinates
        CLAM's folder `patches`.
    mpp, default_mpp, mpp_from_objective
        As for `pipeline.slide.open_slide`.

    Returns
    -------
    Ids of the slides.

    Raises
    ------
    ConfigError
        If there is nothing to import, or a file cannot be.
    """
    width = encoders.spec(encoder).dim
    known, _ = discover(slides)
    files = {path.relative_to(folder).with_suffix("").as_posix().replace("/", "__"): path for path in _files(folder)}
    matched = sorted(set(files) & set(known))
    if not matched:
        raise ConfigError(f"{folder}: no .h5 file there is named as a slide in {slides}; names must be the same")
    for slide_id in sorted(set(files) - set(known)):
        log.warning("%s: no slide of this name in %s; left out", files[slide_id], slides)

    def one(slide_id: str) -> str:
        beside = coordinates / f"{files[slide_id].stem}.h5" if coordinates else None
        try:
            with open_slide(
                known[slide_id], mpp=mpp, default_mpp=default_mpp, mpp_from_objective=mpp_from_objective
            ) as slide:
                found = read_features(files[slide_id], slide=slide, coordinates=beside)
                if width is not None and found.features.shape[1] != width:
                    raise ConfigError(
                        f"{files[slide_id]}: {found.features.shape[1]} features, {encoder} gives {width}; "
                        "name the encoder they were made with"
                    )
                write_artefacts(
                    found,
                    slide=slide,
                    slide_id=slide_id,
                    encoder=encoder,
                    tiles=results / "tiles" / f"{slide_id}.zarr.zip",
                    bag=results / "bags" / f"{slide_id}.zarr.zip",
                )
        except SlideError as error:
            log.warning("%s: %s; %s.", slide_id, error.reason, error.remedy)
            return ""
        log.info("%s: %d features of %s from %s", slide_id, len(found.coords), encoder, found.layout)
        return ""

    def crashed(slide_id: str, error: SlideError) -> str:
        return f"{files[slide_id]} or {known[slide_id]}: {error.reason}; copy both again"

    # HDF5 files and slides are read by native code: a crash costs its slide, not those after it
    for fault in isolation.each(matched, one, failed=crashed, threads=1, stalled_after_s=STALLED_AFTER_S):
        if fault:
            raise ConfigError(fault)
    return matched


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in {".h5", ".hdf5"})
