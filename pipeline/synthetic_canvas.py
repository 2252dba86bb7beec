"""What a synthetic slide is drawn on: two planes of stain, and a grid that says what covers each place."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pipeline.synthetic_nuclei import NucleusKind, stamp_nuclei

GRID_PX = 8
"""Edge of a cell of the grid that large shapes are made on, level-0 px."""


class Zone(IntEnum):
    """What covers a grid cell."""

    GLASS = 0
    STROMA = 1
    GLAND = 2
    LYMPHOID = 3
    TUMOUR = 4
    VESSEL = 5


@dataclass
class Canvas:
    """The planes under the brush, and what covers each grid cell.

    Points are float (N, 2), columns x, y, level-0 px.

    Parameters
    ----------
    rng
        Of everything random in the drawing.
    haematoxylin, eosin
        Amounts of stain, uint8 [H, W].
    zones
        Members of `Zone`, uint8 [H / GRID_PX, W / GRID_PX], as the other grids.
    pieces
        About the distance to the tissue's outline, px, positive inside.
    dense
        From loose lamina propria, 0, to dense fibres, 1.
    fibre_angle
        Direction of the fibres, radians from x towards y.
    outlines
        The tumour's polygons, int32 (M, 2).
    """

    rng: Generator
    haematoxylin: NDArray[np.uint8]
    eosin: NDArray[np.uint8]
    zones: NDArray[np.uint8]
    pieces: NDArray[np.float32]
    dense: NDArray[np.float32]
    fibre_angle: NDArray[np.float32]
    outlines: list[NDArray[np.int32]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, level-0 px."""
        return self.eosin.shape[0], self.eosin.shape[1]

    def sample(self, grid: NDArray[Any], points: NDArray[np.floating]) -> NDArray[Any]:
        """Give the values of a grid at `points`."""
        rows = np.clip((points[:, 1] / GRID_PX).astype(np.intp), 0, grid.shape[0] - 1)
        columns = np.clip((points[:, 0] / GRID_PX).astype(np.intp), 0, grid.shape[1] - 1)
        return np.asarray(grid[rows, columns])

    def scatter(self, spacing_px: float, share: NDArray[Any], *, jitter: float = 0.45) -> NDArray[np.float32]:
        """Spread points about `spacing_px` apart, moved by up to `jitter` of it, keeping the `share` a grid gives."""
        height, width = self.shape
        ys, xs = np.mgrid[0 : height / (spacing_px * 0.87), 0 : width / spacing_px].astype(np.float32)
        xs += 0.5 * (ys % 2)  # rows 0.87 apart, every second one shifted: a hexagonal lattice
        points = np.stack([xs.ravel(), ys.ravel() * np.float32(0.87)], axis=1) * np.float32(spacing_px)
        points += self.rng.uniform(-jitter, jitter, points.shape).astype(np.float32) * np.float32(spacing_px)
        kept = self.rng.random(len(points)) < self.sample(share, points).astype(np.float32)
        return np.asarray(points[kept & (points >= 0).all(axis=1) & (points < (width, height)).all(axis=1)])

    def stamp(self, kind: NucleusKind, points: NDArray[np.float32], angles: NDArray[np.float32]) -> None:
        """Stamp nuclei of one kind at `points`, their long axes at `angles` (N,), radians."""
        stamp_nuclei(self.haematoxylin, kind, points=points, angles=angles, rng=self.rng)

    def fill(self, polygon: NDArray[np.floating], *, eosin: int, haematoxylin: int) -> None:
        """Fill a polygon with amounts of stain."""
        corners = [np.asarray(polygon * 8, np.int32)]
        cv2.fillPoly(self.eosin, corners, eosin, cv2.LINE_AA, 3)
        cv2.fillPoly(self.haematoxylin, corners, haematoxylin, cv2.LINE_AA, 3)

    def claim(self, polygon: NDArray[np.floating], zone: Zone) -> None:
        """Mark the grid cells under a polygon as covered by `zone`."""
        cv2.fillPoly(self.zones, [np.asarray(polygon / GRID_PX, np.int32)], int(zone))


def closed_curve(
    rng: Generator,
    centre: NDArray[np.float32],
    half: NDArray[np.float64],
    angle: float,
    *,
    points: int,
    wobble: float,
) -> NDArray[np.float32]:
    """Give a wobbly ellipse: float32 (points, 2), x, y, its long half axis `half[0]` at `angle`."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    reach = 1.0 + sum(rng.normal(0, wobble) * np.cos(k * turn + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 6))
    x, y = half[0] * np.cos(turn) * reach, half[1] * np.sin(turn) * reach
    curve = np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y], axis=1)
    return np.asarray(centre + curve, np.float32)


def eighths(point: NDArray[np.floating]) -> tuple[int, int]:
    """Give a point (x, y) in eighths of a pixel, as OpenCV takes it with a shift of 3."""
    return int(point[0] * 8), int(point[1] * 8)
