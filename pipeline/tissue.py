"""Find tissue on an overview of a bright-field slide."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SlideError

PADDING_BLACK, PADDING_WHITE = 12, 254
"""Grey levels up to and from which (in all three channels) a pixel is padding or a gap: no stain gets that dark at
overview resolution, and glass is seldom that white. Black up to 12 allows for JPEG."""

GLASS_MIN, GLASS_MAX_CAST = 180, 30
"""Glass is at least this bright in every channel, and its channels differ by no more than this (yellowed mounts)."""

FALLBACK_GLASS = 242.0
"""Brightness of glass on a slide that shows none: between the 235 to 248 of common scanners."""

COLOUR_FLOOR, COLOUR_CEILING = 0.02, 0.05
"""Bounds of Otsu's threshold on colour (difference of optical density between channels). On empty slides Otsu splits
noise, which stays below 0.01; on slides with dark and pale tissue it splits the tissue, whose pale part starts at 0.05.
(Faintest legible H&E, 235/220/230 on glass of 243: 0.03.)"""

GREY_FLOOR, GREY_CEILING = 0.05, 0.12
"""The same for slides without any colour, on mean optical density."""

MAX_COLOURED_SHARE = 0.001
"""A slide is greyscale if fewer pixels than this have channels that differ at all: a colour scan of bare glass is
never that even, and there a shadow must not be taken for grey tissue."""

SMOOTHING_UM, CLOSING_UM = 8.0, 32.0
"""Gaussian sigma against noise and thin fringes; radius of the closing that joins nuclei, fibres and fat cells."""

DARK_MEDIAN, WHITE_LIGHT, MIN_WHITE_SHARE = 60, 150, 0.05
"""A slide is dark-field or fluorescence if its median brightness (brightest channel) is below the first and the share
of pixels with all channels above the second is below the third: bright-field slides always show some white light."""

Method = Literal["otsu", "fixed"]
Channel = TypeVar("Channel", np.uint8, np.float32)


@dataclass(frozen=True)
class TissueOptions:
    """How tissue is told from glass.

    Parameters
    ----------
    method
        "otsu" finds the threshold within fixed bounds; "fixed" takes `threshold`.
    threshold
        Smallest difference of optical density between colour channels on tissue; for "fixed" only.
    mpp
        um per pixel of the overview that tissue is found on.
    min_area_mm2
        Smaller pieces are dropped.
    min_hole_mm2
        Smaller holes are filled.
    exclude_pen
        Whether marks of blue, green, black and red pens are taken out.
    """

    method: Method = "otsu"
    threshold: float = 0.04
    mpp: float = 8.0
    min_area_mm2: float = 0.02
    min_hole_mm2: float = 0.05
    exclude_pen: bool = True


@dataclass(frozen=True)
class Overview:
    """What an overview shows, apart from tissue.

    Parameters
    ----------
    density
        Optical density against the slide's own glass, float32 [H, W, 3].
    scanned
        Where there are pixels of the slide and no padding, shape (H, W).
    is_grey
        Whether the slide has no colour.
    is_dark
        Whether its background is dark, as on a fluorescence or dark-field slide.
    """

    density: NDArray[np.float32]
    scanned: NDArray[np.bool_]
    is_grey: bool
    is_dark: bool

    @cached_property
    def densest(self) -> NDArray[np.float32]:
        """The largest of the three channels' densities, shape (H, W)."""
        return largest(self.density)

    @cached_property
    def lightest(self) -> NDArray[np.float32]:
        """The smallest of the three channels' densities, shape (H, W)."""
        return smallest(self.density)

    @cached_property
    def pen_coloured(self) -> NDArray[np.bool_]:
        """Where the colours are of pen, shape (H, W); nowhere on a greyscale slide. See `find_pen`."""
        if self.is_grey:
            return np.zeros_like(self.scanned)
        red, green, blue = (self.density[..., channel] for channel in range(3))
        overall = mean(self.density)
        blue_or_green = (red > 0.12) & (red > 1.15 * green + 0.03)
        # so dark that all channels near their end: no stain of tissue averaged over 8 um is, and red leads all the same
        navy = (red > 0.6) & (red > 1.05 * green)
        black = (overall > 0.5) & (self.densest - self.lightest < 0.15 * overall)
        red_ink = (green > 0.6) & (blue > 0.8 * green) & (red < 0.15 * green)
        return _drop_small((blue_or_green | navy | black | red_ink) & self.scanned, 4)


def look_at(thumbnail: NDArray[np.uint8]) -> Overview:
    """Measure an overview, RGB, shape (H, W, 3)."""
    brightest, darkest = largest(thumbnail), smallest(thumbnail)
    padding = (brightest <= PADDING_BLACK) | (darkest >= PADDING_WHITE)
    return Overview(
        density=_optical_density(thumbnail, _glass(thumbnail, brightest, darkest, padding)),
        # black touches tissue with mixed pixels whose colours JPEG makes up; white fades into glass
        scanned=~_dilate(brightest <= PADDING_BLACK, 2) & ~padding,
        is_grey=bool(np.count_nonzero(brightest != darkest) < MAX_COLOURED_SHARE * brightest.size),
        is_dark=_is_dark_field(brightest, darkest),
    )


def find_tissue(thumbnail: NDArray[np.uint8] | Overview, *, mpp: float, options: TissueOptions) -> NDArray[np.bool_]:
    """Find tissue on an overview.

    Tissue is what absorbs the colours unequally: shadows, dust, bubbles and gaps are grey. Optical density is taken
    against the slide's own glass, so yellow mounts and dim lamps do not matter.

    Parameters
    ----------
    thumbnail
        RGB, shape (H, W, 3), or what `look_at` made of it.
    mpp
        Its um per pixel.

    Returns
    -------
    Shape (H, W), True on tissue; all False on an empty slide.

    Raises
    ------
    SlideError
        If the background is dark: a fluorescence or dark-field slide.
    """
    overview = thumbnail if isinstance(thumbnail, Overview) else look_at(thumbnail)
    if overview.is_dark:
        raise SlideError(
            "its background is dark, as on a fluorescence slide",
            remedy="leave it out: only bright-field slides (H&E, IHC) can be used",
        )
    density = overview.density
    feature = mean(density) if overview.is_grey else overview.densest - overview.lightest
    found = _stained(feature, overview.scanned, is_grey=overview.is_grey, mpp=mpp, options=options)
    if options.exclude_pen:
        found &= ~find_pen(overview, found)
    found = _close(found, CLOSING_UM / mpp) & overview.scanned
    found = _drop_small(found, options.min_area_mm2 / (mpp / 1000) ** 2)
    return _fill_small_holes(found, options.min_hole_mm2 / (mpp / 1000) ** 2)


def largest(channels: NDArray[Channel]) -> NDArray[Channel]:
    """Give the largest of three channels, (H, W, 3) to (H, W): ten times faster than along NumPy's last axis."""
    return np.maximum(np.maximum(channels[..., 0], channels[..., 1]), channels[..., 2])


def smallest(channels: NDArray[Channel]) -> NDArray[Channel]:
    """Give the smallest of three channels, (H, W, 3) to (H, W)."""
    return np.minimum(np.minimum(channels[..., 0], channels[..., 1]), channels[..., 2])


def mean(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the mean of three channels, (H, W, 3) to (H, W)."""
    return cv2.transform(channels, np.full((1, 3), 1 / 3)).astype(np.float32, copy=False)


def _is_dark_field(brightest: NDArray[np.uint8], darkest: NDArray[np.uint8]) -> bool:
    seen = brightest > PADDING_BLACK
    if np.count_nonzero(seen) < 0.001 * seen.size:
        return False  # entirely black: nothing was scanned, so there is no tissue
    return bool(np.median(brightest) < DARK_MEDIAN and np.mean(darkest[seen] > WHITE_LIGHT) < MIN_WHITE_SHARE)


def _glass(
    thumbnail: NDArray[np.uint8],
    brightest: NDArray[np.uint8],
    darkest: NDArray[np.uint8],
    padding: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Estimate the colour of bare glass, shape (3,): the brightest shade that covers at least 1 % of the slide."""
    candidate = ~padding & (darkest >= GLASS_MIN) & (brightest - darkest <= GLASS_MAX_CAST)
    shades = np.bincount(darkest[candidate], minlength=256)
    nearby = np.convolve(shades, np.ones(5, np.int64), mode="same")
    common = np.flatnonzero(nearby >= 0.01 * max(1, int(np.count_nonzero(~padding))))
    if not common.size:
        return np.full(3, FALLBACK_GLASS)
    brightest_shade = int(common[-1])
    peak = brightest_shade - 2 + int(np.argmax(shades[brightest_shade - 2 : brightest_shade + 3]))
    glass = candidate & (np.abs(darkest.astype(np.int16) - peak) <= 2)
    seen = glass.astype(np.uint8)
    counts = [
        cv2.calcHist([thumbnail], [channel], seen, [256], [0, 256]).ravel().astype(np.int64) for channel in range(3)
    ]
    return np.array([float(np.searchsorted(np.cumsum(count), count.sum() / 2)) for count in counts])


def _optical_density(thumbnail: NDArray[np.uint8], glass: NDArray[np.float64]) -> NDArray[np.float32]:
    """Give -log10(I / glass), shape (H, W, 3), 0 where brighter than glass; grey level 0 counts as 1."""
    levels = np.maximum(np.arange(256), 1)[:, None]
    table = np.maximum(-np.log10(levels / glass), 0).astype(np.float32)
    return cv2.LUT(thumbnail, table[None]).astype(np.float32, copy=False)


def _stained(
    feature: NDArray[np.float32], scanned: NDArray[np.bool_], *, is_grey: bool, mpp: float, options: TissueOptions
) -> NDArray[np.bool_]:
    """Threshold `feature`: colour or, on a greyscale slide, darkness."""
    feature[~scanned] = 0
    feature = cv2.GaussianBlur(feature, (0, 0), max(0.5, SMOOTHING_UM / mpp)).astype(np.float32, copy=False)
    floor, ceiling = (GREY_FLOOR, GREY_CEILING) if is_grey else (COLOUR_FLOOR, COLOUR_CEILING)
    threshold = options.threshold
    if options.method == "otsu":
        threshold = float(np.clip(_otsu(feature[scanned]), floor, ceiling))
    stained: NDArray[np.bool_] = (feature > threshold) & scanned
    return stained


def _otsu(values: NDArray[np.float32]) -> float:
    """Give Otsu's threshold of optical densities; they count up to 0.5."""
    if not values.size:
        return 0.0
    grey = np.minimum(values * (255 / 0.5), 255).astype(np.uint8)
    level: float = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0]
    return level * 0.5 / 255


def find_pen(overview: Overview, tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find pen by colours that H&E cannot have, shape (H, W).

    Eosin and haematoxylin absorb green most. Blue and green ink absorb red most; black ink absorbs all alike, and
    much; red ink absorbs blue about as much as green, and no red at all. Where "pen" is most of `tissue`, shape (H, W),
    it is the stain (trichrome, Giemsa) and no pen.
    """
    pen = overview.pen_coloured
    if np.count_nonzero(pen & tissue) > 0.5 * np.count_nonzero(tissue):
        return np.zeros_like(tissue)
    return _dilate(pen, 2)  # the soft rim of a stroke


def _kernel(radius_px: int) -> NDArray[np.uint8]:
    size = 2 * radius_px + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)).astype(np.uint8)


def _dilate(mask: NDArray[np.bool_], radius_px: int) -> NDArray[np.bool_]:
    return cv2.dilate(mask.astype(np.uint8), _kernel(radius_px)).astype(np.bool_)


def _close(mask: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    radius = max(1, round(radius_px))
    # without a margin, closing would see tissue beyond the picture's edge
    padded = np.pad(mask.astype(np.uint8), radius)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _kernel(radius))
    return closed[radius:-radius, radius:-radius].astype(np.bool_)


def _drop_small(mask: NDArray[np.bool_], area_px: float) -> NDArray[np.bool_]:
    """Drop 4-connected pieces of fewer than `area_px` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    large = stats[:, cv2.CC_STAT_AREA] >= area_px
    large[0] = False
    kept: NDArray[np.bool_] = large[labels]
    return kept


def _fill_small_holes(mask: NDArray[np.bool_], area_px: float) -> NDArray[np.bool_]:
    """Fill holes of fewer than `area_px` pixels; glass that reaches the picture's edge is no hole."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] < area_px
    small[0] = False
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        small[np.unique(edge)] = False
    filled: NDArray[np.bool_] = mask | small[labels]
    return filled
