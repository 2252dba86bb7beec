"""Masks to rings and back, exactly: a ring runs along pixel edges, a pixel is inside if its centre is."""

from collections import defaultdict
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.float64]
"""Closed (the first vertex again at the end): shape (V, 2), columns x, y, in pixels; pixel (0, 0) begins at (0, 0)."""

Bounds = tuple[int, int, int, int]
"""x, y, width, height of the scanned part of a slide, level-0 px; the whole slide where none is stated."""

# right, down, left, up, as (dx, dy): the next one is a turn to the right, because y points down
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def to_qupath(points: NDArray[np.floating | np.integer], *, bounds: Bounds) -> NDArray[np.float64]:
    """Move points from level-0 px, shape (..., 2), columns x, y, to the frame in which QuPath shows the slide.

    QuPath crops a slide to the bounds that OpenSlide states (MRXS, SCN and others) since its version 0.2.0, so its
    origin is the bounds' corner; on slides without bounds the frames are one. Source: qupath/qupath, thread 1278.
    """
    return np.asarray(points - np.array(bounds[:2]), np.float64)


def from_qupath(points: NDArray[np.floating | np.integer], *, bounds: Bounds) -> NDArray[np.float64]:
    """Move points from QuPath's frame to level-0 px: the inverse of `to_qupath`."""
    return np.asarray(points + np.array(bounds[:2]), np.float64)


@dataclass
class Polygon:
    """One connected region: its outer ring and its holes."""

    outer: Ring
    holes: list[Ring] = field(default_factory=list)


def trace_polygons(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Trace the outlines of a mask's regions along pixel edges.

    Regions are 4-connected, so no outer ring touches itself. Rings keep the region on their right; only corners are
    vertices.

    Parameters
    ----------
    mask
        Shape (H, W).

    Returns
    -------
    One polygon a region, in row-major order of the regions' first pixels.
    """
    labels = _label(mask)
    outers: dict[int, Ring] = {}
    holes: defaultdict[int, list[Ring]] = defaultdict(list)
    for ring, label in _rings(mask, labels):
        if _signed_area(ring) > 0:
            outers[label] = ring
        else:
            holes[label].append(ring)
    return [Polygon(outers[label], holes[label]) for label in sorted(outers)]


def fill_rings(rings: list[Ring], *, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Rasterise rings by the even-odd rule: a pixel is inside if its centre is.

    Parameters
    ----------
    rings
        In pixels of the result.
    shape
        (H, W) of the result.
    """
    height, width = shape
    crossings = np.zeros((height, width + 1), np.int64)
    for ring in rings:
        start, end = ring[:-1], ring[1:]
        top, bottom = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        first = np.clip(np.ceil(top - 0.5), 0, height).astype(np.int64)
        last = np.clip(np.ceil(bottom - 0.5), 0, height).astype(np.int64)
        count = last - first
        edge = np.repeat(np.arange(len(start)), count)
        row = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        share = (row + 0.5 - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
        x = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        np.add.at(crossings, (row, column), 1)
    inside: NDArray[np.bool_] = np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
    return inside


def _label(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=4, ltype=cv2.CV_32S)[1].astype(np.int32)


def _rings(mask: NDArray[np.bool_], labels: NDArray[np.int32]) -> list[tuple[Ring, int]]:
    """Join the edges between inside and outside to rings; each with the label of the region it bounds."""
    edges = _edges(mask)
    rings = []
    while edges:
        start = vertex, direction = next(iter(edges))
        row, column = edges.pop(start)
        corners = []
        while True:
            vertex = (vertex[0] + STEPS[direction][0], vertex[1] + STEPS[direction][1])
            # at a vertex where two pixels touch, the right turn stays with the pixel at hand
            turns = ((direction + 1) % 4, direction, (direction + 3) % 4)
            onward = next(turn for turn in turns if (vertex, turn) in edges or (vertex, turn) == start)
            if onward != direction:
                corners.append(vertex)
            direction = onward
            if (vertex, direction) == start:
                break
            del edges[vertex, direction]
        rings.append((np.array([*corners, corners[0]], np.float64), int(labels[row, column])))
    return rings


def _edges(mask: NDArray[np.bool_]) -> dict[tuple[tuple[int, int], int], tuple[int, int]]:
    """Give the directed unit edges with the mask on their right: (start (x, y), direction) to pixel (row, column)."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # side of the pixel that is open, the edge's direction, and where it starts relative to the pixel's corner
    sides = (
        (padded[:-2, 1:-1], 0, (0, 0)),
        (padded[1:-1, 2:], 1, (1, 0)),
        (padded[2:, 1:-1], 2, (1, 1)),
        (padded[1:-1, :-2], 3, (0, 1)),
    )
    edges = {}
    for neighbour, direction, (dx, dy) in sides:
        for row, column in np.argwhere(inside & ~neighbour).tolist():
            edges[(column + dx, row + dy), direction] = (row, column)
    return edges


def _signed_area(ring: Ring) -> float:
    """Give the ring's area, positive for an outer ring (clockwise on the screen)."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)
