"""Encode a slide's patches into a bag of features."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import encoders, store
from pipeline.encoders import Encoder
from pipeline.errors import ArtefactError, SlideError
from pipeline.slide import Slide, open_slide

log = logging.getLogger(__name__)

FEATURE_LIMIT = float(np.finfo(np.float16).max)


def encode(
    slide: Slide, coords: NDArray[np.int32], *, encoder: Encoder, patch_px: int, mpp: float, threads: int
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Read and encode the patches of one slide.

    Parameters
    ----------
    slide
        An open slide.
    coords
        Top-left corners, shape (N, 2), columns x, y, level-0 pixels.
    encoder
        From `pipeline.encoders.load`.
    patch_px, mpp
        Edge of a patch in pixels, and the resolution (um per pixel) it is read at.
    threads
        Threads that read ahead.

    Returns
    -------
    features
        Shape (M, d), in the order of `coords`, M <= N.
    readable
        Shape (N,), True where the patch could be read; its sum is M.
    """
    features = np.empty((len(coords), encoder.dim), np.float16)
    readable = np.zeros(len(coords), np.bool_)
    for indices, patches in _batches(slide, coords, patch_px=patch_px, mpp=mpp, threads=threads):
        encoded = encoder(patches)
        if not np.isfinite(encoded).all():
            raise ValueError(f"the encoder {encoder.spec.name} gave NaN or infinite features for {slide.path}")
        features[indices] = np.clip(encoded, -FEATURE_LIMIT, FEATURE_LIMIT)
        readable[indices] = True
    return features[readable], readable


def _batches(
    slide: Slide, coords: NDArray[np.int32], *, patch_px: int, mpp: float, threads: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    for indices, patches in slide.patches(coords, patch_px=patch_px, mpp=mpp, threads=threads):
        if len(indices):
            yield indices, patches


def run(
    slide_path: Path,
    *,
    slide_id: str,
    tiles: Path,
    bag: Path,
    encoder: str,
    weights: str | None,
    weights_folder: Path,
    precision: str,
    batch_size: int | None,
    max_unreadable: float,
    device: str,
    threads: int,
    mpp: float | None,
    default_mpp: float | None,
    mpp_from_objective: bool,
    parameters: dict[str, Any],
) -> None:
    """Write the bag of one slide; a slide that cannot be used gets an empty bag that says why.

    Parameters
    ----------
    tiles, bag
        The tiles to read, and the bag to write.
    max_unreadable
        Largest share of tiles that may be unreadable; above it the slide is quarantined.
    parameters
        Settings recorded in the bag.

    Raises
    ------
    ArtefactError
        If the slide is not the file that was tiled.
    """
    placed = store.read(tiles)
    found = store.carried_over(placed.attributes)
    error = store.inherited_error(placed.attributes)
    arrays: dict[str, NDArray[Any]] = {}
    start = time.perf_counter()
    try:
        if error is not None:
            raise error
        with open_slide(slide_path, mpp=mpp, default_mpp=default_mpp, mpp_from_objective=mpp_from_objective) as slide:
            if slide.fingerprint != placed.attributes["fingerprint"]:
                raise ArtefactError(f"{slide_path} changed after it was tiled; run the workflow again")
            model = encoders.load(
                encoder,
                weights=weights,
                folder=weights_folder,
                device=device,
                threads=threads,
                precision=precision,
                batch_size=batch_size,
            )
            coords = placed.arrays["coords"]
            features, readable = encode(
                slide,
                coords,
                encoder=model,
                patch_px=placed.attributes["patch_px"],
                mpp=placed.attributes["target_mpp"],
                threads=threads,
            )
            found["reader"] = slide.patch_source_name
        lost = int((~readable).sum())
        if lost > max_unreadable * len(coords):
            raise SlideError(
                f"{lost} of {len(coords)} tiles cannot be read",
                remedy="copy or export the slide again, or raise tiling.max_unreadable",
            )
        arrays = {"features": features, "coords": coords[readable]}
        found |= {
            "encoder": encoder,
            "weights_sha256": encoders.check_weights(encoder, folder=weights_folder, weights=weights),
            "dim": model.dim,
            "precision": precision,
            "unreadable": lost,
            "standardise": model.spec.standardise,
        }
        seconds = time.perf_counter() - start
        log.info("%s: %d patches, %d unreadable, %.0f patches/s", slide_id, len(features), lost, len(coords) / seconds)
    except SlideError as caught:
        error = caught
        log.warning("%s: %s; %s.", slide_id, caught.reason, caught.remedy)
    store.write(
        bag,
        arrays,
        store.stage_attributes(
            "embed",
            slide_id=slide_id,
            fingerprint=placed.attributes["fingerprint"],
            error=error,
            **found,
            parameters=parameters,
        ),
    )
