"""How much work a cohort is: patches, disk and time, from a look at a few slides."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import encoders
from pipeline.cohort import Override
from pipeline.errors import SlideError
from pipeline.slide import Slide, open_slide
from pipeline.tissue import TissueOptions, find_tissue

log = logging.getLogger(__name__)

LOOKED_AT = 12
"""Slides whose tissue is measured: their mean share is known to about a tenth of itself."""

OVERVIEW_MPP, MOST_PIXELS = 32.0, 3e7
"""um per pixel of the overviews, and the most pixels that may be read for one: a large slide without a pyramid is
passed by."""

TIMED_PATCHES = 64
"""Patches that are read, and encoded if the encoder runs on the CPU, to learn how fast that is here."""

GPU_PATCHES_PER_S = 500.0
"""Assumed of an encoder on a GPU: a careful figure for a ViT-L in 16 bits, of which an H100 was seen to encode 2,600
patches a second; the forecast says that it is assumed."""

CPU_S_PER_SLIDE = 6.0
"""Assumed of the start and small work of a slide's four jobs (tile, embed, predict, heatmap): four interpreters, one
with torch; the demo's 18 slides took 118 CPU seconds in all, encoding and training included."""

BYTES_PER_SLIDE, BYTES_PER_TILE = 2_000_000, 330
"""Pictures and artefacts of a slide; coordinates, shares, scores and GeoJSON of a tile, features apart."""

UNKNOWN_DIM = 1536
"""Features of an encoder that does not say how many before it is built: the most of the usual ones."""


@dataclass(frozen=True)
class Work:
    """What is asked of each slide: edge and um per pixel of its patches, their overlap, the encoder, the most tiles."""

    patch_px: int
    mpp: float
    overlap: float
    encoder: str
    max_tiles: int | None = None


@dataclass(frozen=True)
class Forecast:
    """What a cohort will take.

    Parameters
    ----------
    slides, looked_at
        Usable slides, and those whose tissue was measured.
    patches, disk_bytes
        Of all slides together.
    cpu_s, gpu_s
        Seconds of one CPU core, and of one GPU; without training.
    read_per_s, encode_per_s
        Patches a second of one core, measured here; 0 where not measured. The second is 0 for an encoder on a GPU.
    """

    slides: int
    looked_at: int
    patches: int
    disk_bytes: int
    cpu_s: float
    gpu_s: float
    read_per_s: float
    encode_per_s: float


def forecast(
    areas_mm2: Mapping[str, float], paths: Mapping[str, Path], *, overrides: Mapping[str, Override], work: Work
) -> Forecast | None:
    """Forecast the work of a cohort; its cost is bounded by `LOOKED_AT`, whatever the cohort's size.

    Parameters
    ----------
    areas_mm2
        Scanned area of each usable slide.
    paths, overrides
        The slides, and what the user said of them.

    Returns
    -------
    None where no slide could be looked at.
    """
    shares: list[float] = []
    speed: tuple[float, float] | None = None
    for slide_id in _spread(areas_mm2):
        override = overrides.get(slide_id, Override())
        try:
            with open_slide(paths[slide_id], mpp=override.mpp) as slide:
                tissue, mpp = _tissue(slide)
                shares.append(float(tissue.mean()))
                if speed is None and tissue.any() and slide.mpp <= work.mpp:
                    speed = _speed(slide, tissue, mpp=mpp, work=work)
        except SlideError as error:
            log.debug("%s: passed by (%s)", slide_id, error)
    if not shares:
        return None
    per_mm2 = float(np.mean(shares)) * 1e6 / (work.patch_px * work.mpp * (1 - work.overlap)) ** 2
    most = np.inf if work.max_tiles is None else work.max_tiles
    patches = round(sum(min(area * per_mm2, most) for area in areas_mm2.values()))
    spec = encoders.spec(work.encoder)
    read_per_s, encode_per_s = speed or (0.0, 0.0)
    seconds = [patches / rate for rate in (read_per_s, encode_per_s) if rate]
    return Forecast(
        slides=len(areas_mm2),
        looked_at=len(shares),
        patches=patches,
        disk_bytes=patches * (2 * (spec.dim or UNKNOWN_DIM) + BYTES_PER_TILE) + len(areas_mm2) * BYTES_PER_SLIDE,
        cpu_s=len(areas_mm2) * CPU_S_PER_SLIDE + sum(seconds),
        gpu_s=patches / GPU_PATCHES_PER_S if spec.uses_gpu else 0.0,
        read_per_s=read_per_s,
        encode_per_s=encode_per_s,
    )


def describe(found: Forecast, *, encoder: str) -> list[str]:
    """Say a forecast in lines of text, with what it rests on."""
    lines = [
        f"about {found.patches:,} patches and {found.disk_bytes / 1e9:.2g} GB of results"
        f" (tissue measured on {found.looked_at} of {found.slides} slides)",
        f"{_duration(found.cpu_s)} of one CPU core"
        + (
            f" (here, one core reads {found.read_per_s:,.0f} patches/s"
            if found.read_per_s
            else " (reading not measured"
        )
        + (f" and {encoder} encodes {found.encode_per_s:,.0f})" if found.encode_per_s else ")"),
    ]
    if found.gpu_s:
        lines.append(f"{_duration(found.gpu_s)} of one GPU, assuming {encoder} encodes {GPU_PATCHES_PER_S:g} patches/s")
    return [*lines, "training is not included"]


def _spread(areas_mm2: Mapping[str, float]) -> Sequence[str]:
    """Choose slides evenly from the smallest to the largest."""
    by_area = sorted(areas_mm2, key=lambda slide_id: (areas_mm2[slide_id], slide_id))
    count = min(LOOKED_AT, len(by_area))
    return [by_area[(2 * index + 1) * len(by_area) // (2 * count)] for index in range(count)]


def _tissue(slide: Slide) -> tuple[NDArray[np.bool_], float]:
    """Find the tissue within the bounds at a coarse scale; give it with its um per pixel."""
    mpp = min(OVERVIEW_MPP, slide.mpp * min(slide.width, slide.height) / 16)
    coarsest = min(max(slide.level_downsamples), max(1.0, mpp / slide.mpp))
    usable = max(downsample for downsample in slide.level_downsamples if downsample <= coarsest * 1.01)
    if slide.width * slide.height / usable**2 > MOST_PIXELS:
        raise SlideError("its overview is too large to read for a forecast", remedy="none is needed")
    overview, mpp = slide.thumbnail(max(mpp, slide.mpp))
    tissue = find_tissue(overview, mpp=mpp, options=TissueOptions())
    x, y, width, height = (round(edge * slide.mpp / mpp) for edge in slide.bounds)
    return tissue[y : y + max(1, height), x : x + max(1, width)], mpp


def _speed(slide: Slide, tissue: NDArray[np.bool_], *, mpp: float, work: Work) -> tuple[float, float]:
    """Time reading, and encoding if it runs on the CPU: patches a second of one core."""
    # neighbours, as the embed stage reads them: a tile that two patches share is then decoded once
    places = np.argwhere(tissue)[:, ::-1]
    edge = work.patch_px * work.mpp / slide.mpp
    centre = np.median(places, axis=0) * mpp / slide.mpp + np.array(slide.bounds[:2])
    side = max(1, int(min(TIMED_PATCHES**0.5, slide.bounds[2] // edge, slide.bounds[3] // edge)))
    steps = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) * edge
    highest = np.array(slide.bounds[:2]) + np.array(slide.bounds[2:]) - side * edge
    corner = np.clip(centre - side * edge / 2, slide.bounds[:2], np.maximum(highest, slide.bounds[:2]))
    coords = np.floor(corner + steps).astype(np.int32)
    start = time.perf_counter()
    patches = [batch for _, batch in slide.patches(coords, patch_px=work.patch_px, mpp=work.mpp, threads=1)]
    read_s = time.perf_counter() - start
    if encoders.spec(work.encoder).uses_gpu or not patches:
        return len(coords) / read_s, 0.0
    encoder = encoders.load(work.encoder)
    encoder(patches[0][:1])  # the first call builds tables
    start = time.perf_counter()
    for batch in patches:
        encoder(batch)
    return len(coords) / read_s, sum(map(len, patches)) / (time.perf_counter() - start)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.0f} seconds"
