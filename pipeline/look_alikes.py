"""Tell slides that show the same picture, though their files differ: exported again, compressed again, renamed.

A fingerprint finds copies of a file; a scan that was saved anew has another one. Here the look of the tissue decides: a
perceptual hash (the signs of low frequencies, as in Zauner 2010, "Implementation and benchmarking of perceptual image
hash functions") of the overview that the tile stage reads anyway.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

SIDE_PX = 64
"""The tissue is shrunk to a square of this edge: what is finer depends on the scanner and the compression."""

FREQUENCIES = 16
"""Frequencies kept along each axis; 16 x 16 less the constant make 255 bits."""

MARGIN = 0.002
"""Share of the tissue that may lie beyond each edge of the frame, so that a speck does not move it."""

MOST_DIFFERENT = 40
"""Bits in which two pictures of one slide may differ, of 255. Measured: 40 composed slides against themselves after
JPEG at quality 30, halving, noise, another gamma or stain and wider glass differ in 0 to 26 bits; two of them in 104 to
150; 1,850 patches of real tissue pairwise (1.7 million pairs) in 86 or more; grey blobs without structure in 50 or
more. A copy that was cropped by 2 % differs in 38 on average, so of such copies about half are found."""

BLOCK = 2048
"""Slides compared with all others at a time: 2048 x 20,000 float32 products are 160 MB."""


def overview_hash(overview: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> str:
    """Give the perceptual hash of a slide's tissue, 64 hexadecimal digits.

    Parameters
    ----------
    overview
        RGB, shape (H, W, 3).
    tissue
        Mask, shape (H, W), True somewhere.
    """
    import cv2

    top, bottom = _frame(tissue.sum(axis=1))
    left, right = _frame(tissue.sum(axis=0))
    framed = cv2.cvtColor(overview[top:bottom, left:right], cv2.COLOR_RGB2GRAY)
    small = cv2.resize(framed, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    bits = np.append(low > np.median(low), False)
    return np.packbits(bits).tobytes().hex()


def _frame(counts: NDArray[np.int64]) -> tuple[int, int]:
    """Give the first row (or column) of the frame and the one after its last."""
    share = np.cumsum(counts) / counts.sum()
    first = int(np.searchsorted(share, MARGIN, side="right"))
    last = int(np.searchsorted(share, 1 - MARGIN, side="left"))
    return first, max(last, first) + 1


def alike(one: str, other: str) -> bool:
    """Whether two hashes are of one picture."""
    return (int(one, 16) ^ int(other, 16)).bit_count() <= MOST_DIFFERENT


def find_pairs(hashes: Mapping[str, str]) -> list[tuple[str, str]]:
    """Give the pairs of slides that look the same, in the order of their ids.

    Parameters
    ----------
    hashes
        As `overview_hash` gives them, by slide id; an empty one is like none.
    """
    names = sorted(name for name, found in hashes.items() if found)
    signs = _signs([hashes[name] for name in names])
    pairs = []
    for start in range(0, len(names), BLOCK):
        block = signs[start : start + BLOCK]
        different = (signs.shape[1] - block @ signs.T) / 2
        rows, columns = np.nonzero(different <= MOST_DIFFERENT)
        later = columns > rows + start
        pairs += [(names[row + start], names[column]) for row, column in zip(rows[later], columns[later], strict=True)]
    return pairs


def _signs(hashes: Sequence[str]) -> NDArray[np.float32]:
    """Give hashes as rows of +1 and -1, [n, 256]."""
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), (FREQUENCIES**2) // 8)
    return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
