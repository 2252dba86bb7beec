"""Decide how many micrometres a level-0 pixel covers, and refuse what no scanner produces."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import SlideError

MPP_RANGE = (0.05, 10.0)
"""Plausible um per level-0 pixel: 0.05 is finer than 100x oil, 10 is coarser than a 1.25x overview."""

MAX_ANISOTROPY = 0.02
"""Largest relative difference of x and y: patches are square in pixels, 2 % more would visibly stretch nuclei."""

OBJECTIVE_UM = 10.0
"""mpp times objective power of the usual scanners (20x: 0.5, 40x: 0.25)."""

OME_UNITS_UM = {"µm": 1.0, "\N{GREEK SMALL LETTER MU}m": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3}
"""um of the units of length that scanners write; OME's default is the first."""

GIVE_MPP = "give its mpp (um per pixel) in data/overrides.csv"

MppSource = Literal["properties", "override", "default", "objective"]


@dataclass(frozen=True)
class Scale:
    """Size of a level-0 pixel in um, where it is known from, and sentences worth telling the user."""

    mpp_x: float
    mpp_y: float
    source: MppSource
    warnings: tuple[str, ...] = ()

    @property
    def mpp(self) -> float:
        """Mean of x and y, um per level-0 pixel."""
        return (self.mpp_x + self.mpp_y) / 2


def objective_power(properties: Mapping[str, str]) -> float | None:
    """Give the objective's power that a slide's properties state, or None."""
    power = _number(properties.get("openslide.objective-power"))
    return power if power is not None and math.isfinite(power) and power > 0 else None


def resolve_scale(
    properties: Mapping[str, str],
    *,
    mpp: float | None = None,
    default_mpp: float | None = None,
    mpp_from_objective: bool = False,
) -> Scale:
    """Find a slide's scale: the override, else its own properties, else (if allowed) its objective, else the default.

    A value that the slide states and no scanner produces is never replaced by the default: the slide may be of
    another kind than the cohort's, so somebody has to look.

    Parameters
    ----------
    properties
        OpenSlide's properties of the slide.
    mpp
        um per level-0 pixel that the user gives for this slide; wins over everything.
    default_mpp
        um per level-0 pixel of slides that state none.
    mpp_from_objective
        Whether a slide that states only its objective's power is taken at 10 um / power.

    Raises
    ------
    SlideError
        If there is no mpp, it is outside `MPP_RANGE`, or x and y differ by more than `MAX_ANISOTROPY`.
    """
    if mpp is not None:
        return _override(mpp, properties)
    stated = _stated(properties)
    if stated is not None:
        return stated
    power = objective_power(properties)
    if mpp_from_objective and power is not None:
        value = _plausible(OBJECTIVE_UM / power, f"the mpp that follows from its {power:g}x objective")
        note = f"mpp {value:.4g} was derived from the {power:g}x objective, which is known to be off by up to 20 %"
        return Scale(value, value, "objective", (note,))
    if default_mpp is not None:
        value = _plausible(default_mpp, "default_mpp")
        return Scale(value, value, "default", (f"the slide states no mpp; default_mpp {value:g} was used",))
    raise _missing(properties, power)


def _override(mpp: float, properties: Mapping[str, str]) -> Scale:
    value = _plausible(mpp, "the mpp given for this slide")
    stated = _number(properties.get("openslide.mpp-x"))
    if stated is not None and abs(stated / value - 1) > MAX_ANISOTROPY:
        return Scale(value, value, "override", (f"mpp {value:g} was given; the slide's properties say {stated:.4g}",))
    return Scale(value, value, "override")


def _stated(properties: Mapping[str, str]) -> Scale | None:
    """Give the scale that the properties state, or None where they state none."""
    stated = [_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    notes = []
    if stated == [None, None]:
        stated = _ome(properties)
        notes = ["its scale is from its OME-XML; of its levels OpenSlide reads the first alone"]
    known = [value for value in stated if value is not None]
    if not known:
        return None
    if len(known) == 1:
        notes.append(f"only one axis states an mpp ({known[0]:.4g}); it was used for both")
    x, y = _plausible(known[0], "its mpp"), _plausible(known[-1], "its mpp")
    if max(x, y) > (1 + MAX_ANISOTROPY) * min(x, y):
        raise SlideError(
            f"its pixels are not square: mpp is {x:.4g} in x and {y:.4g} in y",
            remedy=f"find out which one is right and {GIVE_MPP}, or export the slide again",
        )
    power = objective_power(properties)
    if power is not None and not 1 / 1.5 < power * (x + y) / 2 / OBJECTIVE_UM < 1.5:
        notes.append(f"mpp {(x + y) / 2:.4g} is unusual for the stated {power:g}x objective; mpp was used")
    return Scale(x, y, "properties", tuple(notes))


def _ome(properties: Mapping[str, str]) -> list[float | None]:
    """Give um per pixel in x and y by the OME-XML of a TIFF, where there is any."""
    pixels = re.search(r"<(?:\w+:)?Pixels\s[^>]*", properties.get("tiff.ImageDescription", ""))
    written = dict(re.findall(r'(\w+)="([^"]*)"', pixels[0])) if pixels else {}
    found: list[float | None] = []
    for axis in "XY":
        size, unit = _number(written.get(f"PhysicalSize{axis}")), written.get(f"PhysicalSize{axis}Unit", "µm")
        found.append(size * OME_UNITS_UM[unit] if size is not None and unit in OME_UNITS_UM else None)
    return found


def _plausible(value: float, what: str) -> float:
    low, high = MPP_RANGE
    if math.isfinite(value) and low <= value <= high:
        return value
    hint = ""
    if math.isclose(value, 25400 / 72, rel_tol=1e-3):
        hint = ", which is 72 dots per inch, a default of image software and no measurement"
    elif math.isclose(value, 1000, rel_tol=1e-3):
        hint = ", which is what a TIFF file without a resolution reads as"
    raise SlideError(f"{what} is {value:.4g} um per pixel{hint} (plausible: {low:g} to {high:g})", remedy=GIVE_MPP)


def _missing(properties: Mapping[str, str], power: float | None) -> SlideError:
    # OpenSlide drops what it cannot read as a number; the vendor's own entry shows what the scanner wrote
    written = properties.get("aperio.MPP")
    found = f" (its MPP entry reads '{written}')" if written else ""
    if power is None:
        return SlideError(
            f"no mpp in its properties{found}", remedy=f"{GIVE_MPP}, or set slide.default_mpp in config.yaml"
        )
    return SlideError(
        f"no mpp in its properties{found}, only a {power:g}x objective",
        remedy=f"{GIVE_MPP}, or set slide.default_mpp or slide.mpp_from_objective in config.yaml",
    )


def _number(text: str | None) -> float | None:
    """Read a number, also one with a decimal comma; None where there is none."""
    try:
        return None if text is None else float(text.strip().replace(",", "."))
    except ValueError:
        return None
