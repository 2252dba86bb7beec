"""Stamps of cell nuclei for synthetic slides: how much haematoxylin each pixel of a nucleus holds.

A stamp is drawn once per kind, shape and direction and then laid down thousands of times: a nucleus costs some
microseconds. Sizes are in pixels at 0.5 um per pixel.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

SHAPES, DIRECTIONS = 48, 12
"""Different nuclei of a kind, and directions that each is drawn in over half a turn."""

STAMP_PX = 32
"""Edge of a stamp: the largest nucleus is 13 px from its centre to its tip."""

NucleusKind = Literal["columnar", "lymphocyte", "spindle", "stromal", "tumour", "mitosis"]


@dataclass(frozen=True)
class _Look:
    """What nuclei of one kind look like; pairs are bounds of a uniform draw.

    Parameters
    ----------
    long_px, short_px
        Half axes.
    density
        Amount of haematoxylin of the chromatin, in [0, 255].
    irregular
        Deviation of the outline from an ellipse, as a share of the radius.
    clumps
        Swing of the chromatin's texture, as a share of the density.
    vesicular
        Share of nuclei with a pale body, a dark rim and a nucleolus.
    """

    long_px: tuple[float, float]
    short_px: tuple[float, float]
    density: tuple[float, float]
    irregular: float
    clumps: float
    vesicular: float = 0.0


_LOOKS: dict[NucleusKind, _Look] = {
    "columnar": _Look((6.0, 8.0), (3.2, 4.2), (150, 185), 0.04, 0.16),
    "lymphocyte": _Look((4.2, 5.2), (3.9, 4.8), (190, 225), 0.04, 0.16),
    "spindle": _Look((7.0, 11.0), (1.6, 2.5), (160, 205), 0.06, 0.12),
    "stromal": _Look((5.0, 7.0), (3.0, 4.2), (130, 180), 0.06, 0.22, vesicular=0.3),
    "tumour": _Look((6.5, 11.5), (5.0, 7.6), (150, 225), 0.09, 0.22, vesicular=0.4),
    "mitosis": _Look((6.5, 8.5), (2.6, 4.0), (245, 255), 0.22, 0.05),
}


def stamp_nuclei(
    plane: NDArray[np.uint8],
    kind: NucleusKind,
    *,
    points: NDArray[np.float32],
    angles: NDArray[np.float32],
    rng: Generator,
) -> None:
    """Lay nuclei over a plane of haematoxylin, in place; a later nucleus covers an earlier one.

    Parameters
    ----------
    plane
        uint8 [H, W]; nuclei whose stamp would cross its border are left out.
    kind
        Which nuclei.
    points
        Centres, shape (N, 2), columns x, y, px.
    angles
        Directions of the long axes, shape (N,), radians from x towards y.
    rng
        Chooses each nucleus's shape.
    """
    cover, paint = _stamps(kind)
    corners = np.rint(points).astype(np.intp) - STAMP_PX // 2
    fits = ((corners >= 0) & (corners <= np.asarray(plane.shape[::-1]) - STAMP_PX)).all(axis=1)
    shapes = rng.integers(0, SHAPES, len(points))
    directions = np.rint(angles / np.pi * DIRECTIONS).astype(np.intp) % DIRECTIONS
    chosen = shapes * DIRECTIONS + directions
    for (x, y), stamp in zip(corners[fits].tolist(), chosen[fits].tolist(), strict=True):
        under = plane[y : y + STAMP_PX, x : x + STAMP_PX]
        under[...] = (under * cover[stamp] + paint[stamp]) >> 8


@lru_cache
def _stamps(kind: NucleusKind) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Draw the stamps of a kind: what stays of the plane, and what is added, in 256ths, each [S, P, P]."""
    rng = default_rng([2001, list(_LOOKS).index(kind)])
    drawn = [stamp for _ in range(SHAPES) for stamp in _draw_shape(_LOOKS[kind], rng)]
    opacity = np.stack([stamp[0] for stamp in drawn])
    amount = np.stack([stamp[1] for stamp in drawn])
    covered = np.rint(256 * opacity)
    return (256 - covered).astype(np.uint16), (covered * amount).clip(0, 65535).astype(np.uint16)


def _draw_shape(look: _Look, rng: Generator) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Draw one nucleus in every direction: pairs of opacity in [0, 1] and amount of haematoxylin in [0, 255]."""
    half_long, half_short = rng.uniform(*look.long_px), rng.uniform(*look.short_px)
    density = rng.uniform(*look.density)
    vesicular = rng.random() < look.vesicular
    waves = [(k, rng.normal(0, look.irregular), rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)]
    clumps = cv2.GaussianBlur(rng.standard_normal((STAMP_PX, STAMP_PX)), (0, 0), 1.1) * 3.5
    nucleolus = rng.uniform(-0.35, 0.35, 2)
    stamps = []
    for direction in range(DIRECTIONS):
        turn = np.pi * direction / DIRECTIONS
        ys, xs = np.mgrid[0:STAMP_PX, 0:STAMP_PX] - (STAMP_PX - 1) / 2
        along = (np.cos(turn) * xs + np.sin(turn) * ys) / half_long
        across = (-np.sin(turn) * xs + np.cos(turn) * ys) / half_short
        angle = np.arctan2(across, along)
        radius = np.hypot(along, across) / (1 + sum(swing * np.cos(k * angle + phase) for k, swing, phase in waves))
        opacity = np.clip((1 - radius) * half_short / 1.4 + 0.5, 0, 1)
        rim = np.clip((radius - 0.62) / 0.3, 0, 1)
        tone = (0.60 + 0.42 * rim) if vesicular else (0.92 + 0.10 * rim)
        tone = tone * (1 + look.clumps * clumps)
        if vesicular:
            spot = np.hypot(along - nucleolus[0], across - nucleolus[1]) * half_short
            tone = np.maximum(tone, 1.15 * np.clip(2.6 - spot, 0, 1))
        stamps.append((0.94 * opacity, np.clip(density * tone, 20, 255)))
    return stamps
