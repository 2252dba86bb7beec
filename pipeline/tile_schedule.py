"""In which order to decode a level's tiles, so that patches come out in order and each tile is decoded once.

A *piece* is the part of one tile that lies on one patch. Patches are put out in batches, in the order they were asked
for. A tile is decoded at the *step* of the first batch that needs it, and all its pieces are copied then, also those of
later batches; how far ahead is limited, which bounds the memory. For patches in row-major order the limit spans several
rows and no tile is decoded twice; for another order, or a very wide slide, some are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Mesh:
    """A grid of tiles, and the edge of the patches on it, all in one pixel size.

    Parameters
    ----------
    columns, rows
        How many tiles there are.
    tile_width, tile_height
        A tile's size.
    edge
        Edge of a patch.
    """

    columns: int
    rows: int
    tile_width: int
    tile_height: int
    edge: int


@dataclass(frozen=True)
class Schedule:
    """What to decode, and what to copy where.

    Parameters
    ----------
    tiles, patches
        Of each piece, int32 [P], ordered by step, then tile.
    visits
        First piece of each decoding of a tile, and P: int64 [V + 1].
    steps
        First visit of each step, and V: int64 [B + 1] for B batches.
    """

    tiles: NDArray[np.int32]
    patches: NDArray[np.int32]
    visits: NDArray[np.int64]
    steps: NDArray[np.int64]


def make_schedule(left: NDArray[np.int64], top: NDArray[np.int64], *, mesh: Mesh, batch: int, window: int) -> Schedule:
    """Order the decoding.

    Parameters
    ----------
    left, top
        Corner of each patch, shape (N,), in the mesh's pixels.
    batch
        Patches of a batch.
    window
        How many batches, from the one being made on, a tile's pieces may be copied to.
    """
    tiles, patches = find_pieces(left, top, mesh=mesh)
    order = np.lexsort((patches, tiles))
    tiles, patches = tiles[order], patches[order]
    step = _steps(tiles, patches // batch, window=window)
    order = np.lexsort((patches, tiles, step))
    tiles, patches, step = tiles[order], patches[order], step[order]
    new = np.ones(len(tiles), np.bool_)
    new[1:] = (tiles[1:] != tiles[:-1]) | (step[1:] != step[:-1])
    first = np.flatnonzero(new)
    batches = -(-len(left) // batch)
    steps = np.searchsorted(step[first], np.arange(batches + 1))
    return Schedule(tiles, patches, np.append(first, len(tiles)), steps.astype(np.int64))


def find_pieces(
    left: NDArray[np.int64], top: NDArray[np.int64], *, mesh: Mesh
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Find which tiles lie on which patches: tile and patch of each piece, int32 [P], ordered by patch."""
    first_column = np.maximum(left // mesh.tile_width, 0)
    first_row = np.maximum(top // mesh.tile_height, 0)
    across = np.minimum((left + mesh.edge - 1) // mesh.tile_width, mesh.columns - 1) - first_column + 1
    down = np.minimum((top + mesh.edge - 1) // mesh.tile_height, mesh.rows - 1) - first_row + 1
    across, down = np.maximum(across, 0), np.maximum(down, 0)
    count = across * down
    patches = np.repeat(np.arange(len(left), dtype=np.int32), count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    row = first_row[patches] + within // across[patches]
    column = first_column[patches] + within % across[patches]
    return (row * mesh.columns + column).astype(np.int32), patches


def _steps(tiles: NDArray[np.int32], batches: NDArray[np.int32], *, window: int) -> NDArray[np.int32]:
    """Give the step of each piece; `tiles` is sorted, and `batches` within each tile."""
    step = batches.copy()
    left_over = np.arange(len(tiles))
    while len(left_over):
        tile, wanted = tiles[left_over], batches[left_over]
        new = np.ones(len(tile), np.bool_)
        new[1:] = tile[1:] != tile[:-1]
        first = wanted[np.flatnonzero(new)[np.cumsum(new) - 1]]
        near = wanted < first + window
        step[left_over[near]] = first[near]
        left_over = left_over[~near]
    return step
