"""The embed stage: from a slide and its tiles to a bag of features; a job that was killed goes on where it stopped."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import encoders, store
from pipeline.chunks import Chunks, digest_of
from pipeline.encoders import Encoder
from pipeline.encoders.registry import WEIGHTS_FOLDER
from pipeline.encoding import encode
from pipeline.errors import ArtefactError, ConfigError, SlideError
from pipeline.fingerprint import require
from pipeline.slide import Slide, open_slide
from pipeline.versions import STAGE_VERSIONS, library_versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderOptions:
    """Which encoder, and how it runs; see `pipeline.encoders.load`.

    `device` may be a kind of device, `cuda`; `claim` then gives the one to use, when all else is ready for it.
    """

    name: str
    weights: str | None = None
    folder: Path = WEIGHTS_FOLDER
    precision: str = "auto"
    batch_size: int | None = None
    device: str = "cpu"
    claim: Callable[[], str] | None = None
    compiled: bool = False
    stain: str = "none"

    def load(self, *, threads: int, patch_px: int) -> Encoder:
        """Build the encoder."""
        return encoders.load(
            self.name,
            weights=self.weights,
            folder=self.folder,
            device=self.claim or self.device,
            threads=threads,
            precision=self.precision,
            batch_size=self.batch_size,
            compiled=self.compiled,
            stain=self.stain,
            patch_px=patch_px,
        )


def run(
    slide_path: Path,
    *,
    slide_id: str,
    tiles: Path,
    bag: Path,
    options: EncoderOptions,
    max_unreadable: float,
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
    options
        The encoder.
    max_unreadable
        Largest share of tiles that may be unreadable; above it the slide is quarantined.
    parameters
        Settings recorded in the bag.

    Raises
    ------
    ArtefactError
        If the slide is not the file that was tiled.
    ConfigError
        If the encoder, its weights or the tiles' scale do not fit.
    """
    placed = store.read(tiles)
    found = store.carried_over(placed.attributes)
    error = store.inherited_error(placed.attributes)
    arrays: dict[str, NDArray[Any] | store.Rows] = {}
    chunks: Chunks | None = None
    try:
        if error is not None:
            raise error
        with open_slide(slide_path, mpp=mpp, default_mpp=default_mpp, mpp_from_objective=mpp_from_objective) as slide:
            if slide.fingerprint != placed.attributes["fingerprint"]:
                raise ArtefactError(f"{slide_path} changed after it was tiled; run the workflow again")
            chunks, described = _encode_slide(slide, placed, bag=bag, options=options, threads=threads)
        found |= described
        arrays = _features_of(chunks, placed.arrays["coords"], max_unreadable=max_unreadable)
        found["unreadable"] = chunks.rows - len(arrays["coords"])  # type: ignore[arg-type]
        log.info(
            "%s: %d patches, %d unreadable, %.0f patches/s, bound by %s",
            slide_id,
            chunks.rows,
            found["unreadable"],
            found["patches_per_s"],
            found["bound_by"],
        )
    except SlideError as caught:
        if caught is not error:
            require(slide_path, placed.attributes["fingerprint"])
        error = caught
        log.warning("%s: %s; %s.", slide_id, caught.reason, caught.remedy)
    attributes = store.stage_attributes(
        "embed",
        slide_id=slide_id,
        fingerprint=placed.attributes["fingerprint"],
        error=error,
        **found,
        parameters=parameters,
        versions=library_versions(),
    )
    store.write(bag, arrays, attributes)
    if chunks is not None:
        chunks.remove()


def read_only(
    slide_path: Path,
    *,
    tiles: Path,
    threads: int,
    mpp: float | None,
    default_mpp: float | None,
    mpp_from_objective: bool,
) -> None:
    """Read every patch as `run` does, without an encoder: to see whether the slide or the encoder crashed a job."""
    placed = store.read(tiles)
    with (
        contextlib.suppress(SlideError),  # one sentence about the slide is no crash
        open_slide(slide_path, mpp=mpp, default_mpp=default_mpp, mpp_from_objective=mpp_from_objective) as slide,
    ):
        patch_px, target_mpp = placed.attributes["patch_px"], placed.attributes["target_mpp"]
        for _ in slide.patches(placed.arrays["coords"], patch_px=patch_px, mpp=target_mpp, threads=threads):
            pass


def write_quarantined(
    error: SlideError, *, slide_id: str, tiles: Path, bag: Path, parameters: Mapping[str, Any]
) -> None:
    """Write an empty bag that says why the slide cannot be used; parameters as for `run`."""
    placed = store.read_attributes(tiles)
    log.warning("%s: %s; %s.", slide_id, error.reason, error.remedy)
    attributes = store.stage_attributes(
        "embed",
        slide_id=slide_id,
        fingerprint=placed["fingerprint"],
        error=error,
        **store.carried_over(placed),
        parameters=dict(parameters),
    )
    store.write(bag, {}, attributes)


def _encode_slide(
    slide: Slide, placed: store.Artefact, *, bag: Path, options: EncoderOptions, threads: int
) -> tuple[Chunks, dict[str, Any]]:
    """Encode what is missing; give the finished chunks, and what the bag says of the encoder."""
    spec = encoders.spec(options.name, options.folder)
    patch_px, mpp = placed.attributes["patch_px"], placed.attributes["target_mpp"]
    if spec.builder == "plugin" and patch_px != spec.patch_px:
        raise ConfigError(f"{options.name} takes patches of {spec.patch_px} px, the tiles have {patch_px}; tile again")
    coords = placed.arrays["coords"]
    identity: dict[str, Any] = {
        "encoder": options.name,
        "weights_sha256": encoders.check_weights(options.name, folder=options.folder, weights=options.weights),
        "precision": options.precision,
        "stain": options.stain,
    }
    digest = digest_of(
        identity,
        [STAGE_VERSIONS["embed"], store.CHUNK_ROWS, slide.fingerprint, patch_px, mpp, slide.mpp],
        options.device.partition(":")[0],
        coords,
    )
    chunks = Chunks(bag, digest=digest, rows=len(coords))
    timing = encode(
        slide,
        coords,
        chunks=chunks,
        load=lambda: options.load(threads=threads, patch_px=patch_px),
        patch_px=patch_px,
        mpp=mpp,
        threads=threads,
        on_cpu=options.device == "cpu" and spec.builder != "plugin",
    )
    described = {
        **identity,
        "dim": int(chunks.load(0)[0].shape[1]),
        "standardise": spec.standardise,
        "patches_per_s": round(timing.per_second, 1),
        "bound_by": timing.bound_by,
        "reader": slide.patch_source_name,
    }
    return chunks, described


def _features_of(
    chunks: Chunks, coords: NDArray[np.int32], *, max_unreadable: float
) -> dict[str, NDArray[Any] | store.Rows]:
    """Give the arrays of the bag, the features chunk by chunk.

    Raises
    ------
    SlideError
        If too many tiles could not be read.
    """
    readable = np.concatenate([chunks.load(index)[1] for index in range(chunks.count)])
    lost = int((~readable).sum())
    if lost > max_unreadable * len(coords):
        raise SlideError(
            f"{lost} of {len(coords)} tiles cannot be read",
            remedy="copy or export the slide again, or raise tiling.max_unreadable",
        )

    def blocks() -> Iterator[NDArray[np.float16]]:
        for index in range(chunks.count):
            yield chunks.load(index)[0]

    width = chunks.load(0)[0].shape[1]
    return {
        "features": store.Rows((int(readable.sum()), width), np.float16, blocks()),
        "coords": coords[readable],
    }
