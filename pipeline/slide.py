"""Open a slide whatever its format, know its scale, and read pixels from it.

Coordinates are level-0 pixels, (x, y), top left. Label and macro images are never opened.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import openslide
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.fingerprint import fingerprint
from pipeline.intake import COPY_AGAIN, check_dicom_series, check_pixel_layout, explain_refusal, first_bytes
from pipeline.opencv import make_repeatable
from pipeline.reader import SourceChooser
from pipeline.regions import Batch, PatchSource, read_rgb
from pipeline.scale import Scale, objective_power, resolve_scale
from pipeline.thumbnail import fill_overview
from pipeline.tiff_tiles import DIRECT_VENDORS

LOG = logging.getLogger(__name__)

LEVEL_TOLERANCE = 0.01
"""How much coarser than asked a level may be and still count as fine enough: levels are rounded to whole pixels
(a half-size level of a 2967 px slide is 2.0003 times coarser), and reading the next finer one costs 4 to 16 times."""

MAX_DETOUR = 4.5
"""How many times finer than the deepest fitting level the one that is read may be, if that one alone lies on whole
pixels; see docs/adr/0002-direct-reader.md. At 4 times, level 0 read directly is 1.3 times as fast as the other level
interpolated by OpenSlide; at 8 times it is 3 times slower."""

MAX_UPSAMPLING = 0.05
"""How much coarser than asked level 0 may be; its pixels are then taken as they are. Scanners of one nominal
magnification differ by this much."""

MAX_UNREADABLE = 0.5
"""Share of an overview's blocks that may be unreadable before the slide is given up."""


@dataclass(frozen=True)
class ReadPlan:
    """How to read patches at a resolution.

    Parameters
    ----------
    level
        The level to read.
    read_px
        Edge of the square to read there, at least the patch's own edge.
    patch_level0_px
        Edge of a patch, level-0 px.
    realised_mpp
        um per patch pixel after rounding `read_px`.
    """

    level: int
    read_px: int
    patch_level0_px: float
    realised_mpp: float


class Slide:
    """An open slide; a context manager. Made by `open_slide`; not to be shared between threads.

    Parameters
    ----------
    path
        The file or folder the user named.
    file
        The file to open: `path`, or a file in the folder.
    handle
        `file`, opened.
    scale
        Size of a level-0 pixel.

    Attributes
    ----------
    patch_source_name
        How the last call of `patches` reads: "direct" or "openslide"; "" before.
    """

    def __init__(self, path: Path, *, file: Path, handle: openslide.OpenSlide, scale: Scale) -> None:
        self.path = path
        self.mpp, self.mpp_x, self.mpp_y = scale.mpp, scale.mpp_x, scale.mpp_y
        self.mpp_source = scale.source
        self.warnings: list[str] = list(scale.warnings)
        self.width, self.height = handle.dimensions
        self.level_dimensions: tuple[tuple[int, int], ...] = tuple(handle.level_dimensions)
        self.level_downsamples: tuple[float, ...] = tuple(handle.level_downsamples)
        self.vendor = str(handle.properties.get(openslide.PROPERTY_NAME_VENDOR, ""))
        self.objective = objective_power(handle.properties)
        self.bounds = _bounds(handle)
        self.patch_source_name = ""
        self._sources = SourceChooser(
            file,
            vendor=self.vendor,
            level_dimensions=self.level_dimensions,
            level_downsamples=self.level_downsamples,
        )
        self._file = file
        self._handle = handle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._handle.close()

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the file; see `pipeline.fingerprint`."""
        return fingerprint(self.path)

    def read(self, x: int, y: int, *, level: int, width: int, height: int) -> NDArray[np.uint8]:
        """Read a region.

        Parameters
        ----------
        x, y
            Top-left corner, level-0 px; may lie outside the slide.
        level, width, height
            The level, and the region's size in its pixels.

        Returns
        -------
        RGB, shape (height, width, 3), white outside the slide and where it is transparent.

        Raises
        ------
        SlideError
            If the region cannot be decoded.
        """
        message = ""
        for _ in range(2):
            try:
                return read_rgb(self._handle, x, y, level=level, width=width, height=height)
            except openslide.OpenSlideError as error:
                # one failed read makes every later one on the handle fail
                message = str(error)
                self._handle.close()
                self._handle = openslide.OpenSlide(self._file)
        raise SlideError(
            f"the region of {width} x {height} px at x {x}, y {y} of level {level} cannot be read ({message})",
            remedy=COPY_AGAIN,
        )

    def patches(self, coords: NDArray[np.int32], *, patch_px: int, mpp: float, threads: int) -> Iterator[Batch]:
        """Read square patches, ahead of the caller, in bounded memory.

        Parameters
        ----------
        coords
            Top-left corners, shape (N, 2), columns x, y, level-0 px; in row-major order reading is fastest.
        patch_px, mpp
            Edge of a patch in pixels, and the um per pixel it is wanted at; see `read_plan` for what is realised.
        threads
            How many threads read.

        Yields
        ------
        Indices int64 [B] into `coords`, ascending over the whole iteration, and patches uint8
        [B, patch_px, patch_px, 3]. A patch that cannot be read is left out of both: it never becomes white pixels.

        Raises
        ------
        SlideError
            If level 0 is too coarse for `mpp`; at the end, if the file changed while it was read.
        """
        plan = read_plan(self, patch_px=patch_px, mpp=mpp)
        return self._patch_source(coords, plan).batches(
            coords, level=plan.level, read_px=plan.read_px, patch_px=patch_px, threads=threads
        )

    def thumbnail(self, mpp: float) -> tuple[NDArray[np.uint8], float]:
        """Read the whole slide at a coarse resolution, by whole-number area averaging of a level.

        Blocks that cannot be read stay white and are told in `warnings`.

        Parameters
        ----------
        mpp
            Coarsest acceptable um per pixel.

        Returns
        -------
        RGB, shape (height, width, 3), and its realised um per pixel: at most `mpp` or, where level 0 is coarser,
        level 0's. Pixel (0, 0) starts at the slide's corner; the last row and column may reach beyond the slide.

        Raises
        ------
        SlideError
            If more than half of the slide cannot be read.
        """
        level = self._level_for(mpp)
        downsample = self.level_downsamples[level]
        factor = max(1, int(mpp / (self.mpp * downsample) + LEVEL_TOLERANCE))
        level_width, level_height = self.level_dimensions[level]
        overview = np.full((-(-level_height // factor), -(-level_width // factor), 3), 255, np.uint8)
        unreadable = fill_overview(
            overview, level=level, downsample=downsample, factor=factor, read=self.read, choose=self._sources.choose
        )
        if unreadable:
            share = unreadable / (overview.shape[0] * overview.shape[1])
            if share > MAX_UNREADABLE:
                raise SlideError(f"{share:.0%} of the slide cannot be read", remedy=COPY_AGAIN)
            note = f"{share:.1%} of the slide cannot be read and was taken as background"
            if note not in self.warnings:
                self.warnings.append(note)
        return overview, self.mpp * downsample * factor

    def _level_for(self, mpp: float) -> int:
        """Give the deepest level that is not coarser than `mpp`; level 0 if all are."""
        limit = mpp * (1 + LEVEL_TOLERANCE) / self.mpp
        fine_enough = [level for level, downsample in enumerate(self.level_downsamples) if downsample <= limit]
        return max(fine_enough, default=0)

    def _patch_source(self, coords: NDArray[np.int32], plan: ReadPlan) -> PatchSource:
        source = self._sources.choose(coords, level=plan.level, read_px=plan.read_px)
        self.patch_source_name = source.name
        return source


def open_slide(
    path: Path, *, mpp: float | None = None, default_mpp: float | None = None, mpp_from_objective: bool = False
) -> Slide:
    """Open a slide.

    Parameters
    ----------
    path
        A file of a format that OpenSlide reads, or the folder of a DICOM slide.
    mpp
        um per level-0 pixel, instead of what the slide states.
    default_mpp
        um per level-0 pixel if the slide states none.
    mpp_from_objective
        Whether a slide that states only its objective's power is taken at 10 um / power.

    Raises
    ------
    SlideError
        If it is no readable slide, its pixels would come back wrong, or its scale is unknown or implausible.
    """
    make_repeatable()
    file, handle = _open_handle(path)
    try:
        check_pixel_layout(file)
        scale = resolve_scale(
            handle.properties, mpp=mpp, default_mpp=default_mpp, mpp_from_objective=mpp_from_objective
        )
    except SlideError:
        handle.close()
        raise
    return Slide(path, file=file, handle=handle, scale=scale)


def read_plan(slide: Slide, *, patch_px: int, mpp: float) -> ReadPlan:
    """Choose the level and the size to read patches with.

    The deepest level that is not coarser than `mpp` is read, and area-averaged by the exact ratio. A level that is
    coarser by a little (level 0: up to 5 %, others: 1 %) is taken as it is: nothing is ever enlarged.

    In the formats whose tiles can be read directly, a finer level is taken if the deepest one's downsample is not whole
    (4.0001) and the finer one's is: patches lie between the pixels of the former, where OpenSlide interpolates. This
    depends on the slide alone and not on how it is then read, so that the pixels do not either.

    Parameters
    ----------
    patch_px, mpp
        Edge of a patch in pixels, and the um per pixel it is wanted at.

    Raises
    ------
    SlideError
        If even level 0 is coarser than `mpp` by more than 5 %.
    """
    if slide.mpp > mpp * (1 + MAX_UPSAMPLING):
        raise SlideError(
            f"its finest level has {slide.mpp:.4g} um per pixel, coarser than the {mpp:.4g} asked for",
            remedy=f"set the tiling mpp to {slide.mpp:.4g} or more, or scan the slide at a higher magnification",
        )
    level = _whole_level(slide, slide._level_for(mpp))
    downsample = slide.level_downsamples[level]
    level_mpp = slide.mpp * downsample
    read_px = max(patch_px, round(patch_px * mpp / level_mpp))
    return ReadPlan(
        level=level,
        read_px=read_px,
        patch_level0_px=read_px * downsample,
        realised_mpp=read_px * level_mpp / patch_px,
    )


def _whole_level(slide: Slide, deepest: int) -> int:
    """Give the deepest level up to `deepest` with a whole downsample, unless that is a long way off."""
    downsamples = slide.level_downsamples
    if slide.vendor not in DIRECT_VENDORS:
        return deepest
    whole = max(level for level in range(deepest + 1) if float(downsamples[level]).is_integer())
    return whole if downsamples[deepest] <= MAX_DETOUR * downsamples[whole] else deepest


def _open_handle(path: Path) -> tuple[Path, openslide.OpenSlide]:
    if not path.is_dir():
        return path, _open_file(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".dcm")
    if not files:
        raise SlideError("the folder holds no .dcm file", remedy="put all files of the DICOM series into it")
    check_dicom_series(files)
    refusal: SlideError | None = None
    for file in files:
        # a label or overview of its own series may come first
        try:
            return file, _open_file(file)
        except SlideError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _open_file(file: Path) -> openslide.OpenSlide:
    first_bytes(file)
    try:
        return openslide.OpenSlide(file)
    except openslide.OpenSlideError as error:
        raise explain_refusal(file, str(error)) from error


def _bounds(handle: openslide.OpenSlide) -> tuple[int, int, int, int]:
    """Give x, y, width, height of the scanned part, level-0 px: the whole slide where no bounds are stated."""
    width, height = handle.dimensions
    names = (f"openslide.bounds-{name}" for name in ("x", "y", "width", "height"))
    stated = [int(handle.properties[name]) for name in names if name in handle.properties]
    if len(stated) != 4:
        return 0, 0, width, height
    left, top = max(0, stated[0]), max(0, stated[1])
    right, bottom = min(width, stated[0] + stated[2]), min(height, stated[1] + stated[3])
    return (left, top, right - left, bottom - top) if right > left and bottom > top else (0, 0, width, height)
