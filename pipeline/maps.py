"""What a slide's pictures show: values over its tiles, and the tiles that have none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import drawing
from pipeline.flags import WORDS
from pipeline.outcomes import values_array
from pipeline.store import Artefact

DISAGREEMENT_TOP = 30.0
"""Standard deviation of percentiles at the end of the bar: what maps drawn at random would have is 28.9."""

EVIDENCE_COLOURS = "BrBG"
"""Brown speaks against the class, teal for it: told apart by colour-blind readers, and neither occurs in H&E."""

MAX_EVIDENCE = 4
"""Classes whose evidence is shown; of more, those of the highest probability."""

LEFT_OUT_NAMES = (*WORDS.values(), "unreadable")
UNREADABLE = len(LEFT_OUT_NAMES) - 1
"""Why tiles have no value: a flag of a tile, by its place in `pipeline.flags.FLAGS`, or that it cannot be read."""


@dataclass(frozen=True)
class Style:
    """How a page looks: colour map, opacity of the tint in [0, 1], patches shown at each end."""

    colormap: str
    opacity: float
    top_patches: int


@dataclass(frozen=True)
class LeftOut:
    """Tiles that were placed on tissue and not judged: corners, int32 [M, 2], level-0 px, and flags, uint8 [M]."""

    coords: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 2), np.int32))
    flags: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def counts(self) -> dict[str, int]:
        """Give how many there are, by reason; only reasons that occur."""
        found = np.bincount(self.flags, minlength=len(LEFT_OUT_NAMES))
        return {name: int(count) for name, count in zip(LEFT_OUT_NAMES, found, strict=True) if count}


@dataclass(frozen=True)
class Attention:
    """Attention over a slide's tiles and what it predicts.

    Parameters
    ----------
    score
        Sums to 1, shape (N,).
    percentile
        Rank of the score in the slide, in [0, 100], shape (N,).
    coords
        Top-left corners of the tiles, int32, shape (N, 2), level-0 px.
    probability
        What each fold says: class probabilities (F, C), log hazards or numbers (F, 1).
    attributes
        The attention artefact's attributes.
    disagreement
        Standard deviation over the folds of a tile's percentile, shape (N,); None with one fold.
    evidence
        How much a tile speaks for each class, shape (N, C), see `asmil.inference.evidence`; None where it is not known.
    left_out
        Tiles that were not judged.
    """

    score: NDArray[np.float64]
    percentile: NDArray[np.float64]
    coords: NDArray[np.int32]
    probability: NDArray[np.float32]
    attributes: Mapping[str, Any]
    disagreement: NDArray[np.float64] | None = None
    evidence: NDArray[np.float64] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)


@dataclass(frozen=True)
class Layer:
    """One map.

    Parameters
    ----------
    title
        What it shows.
    values
        Place of each tile on the colour bar, in [0, 100], shape (N,).
    colormap
        A matplotlib colour map.
    low, high
        What the ends of the bar mean.
    """

    title: str
    values: NDArray[np.float64]
    colormap: str
    low: str
    high: str


def load(attention: Artefact, tiles: Artefact | None = None) -> Attention:
    """Take what pictures need from an attention artefact, and rank its scores.

    Parameters
    ----------
    attention
        With all arrays.
    tiles
        The slide's tiles, which tell those that were left out; None where they are not known.
    """
    arrays = attention.arrays
    score, folds = arrays["score"].astype(np.float64), arrays["fold_scores"]
    evidence = arrays.get("evidence")
    return Attention(
        score=score,
        percentile=drawing.percentile_ranks(score),
        coords=arrays["coords"],
        probability=arrays[values_array(attention.attributes)].reshape(len(folds), -1),
        attributes=attention.attributes,
        disagreement=disagreement(folds) if len(folds) > 1 else None,
        evidence=None if evidence is None else evidence.astype(np.float64),
        left_out=LeftOut() if tiles is None else left_out(tiles, arrays["coords"]),
    )


def disagreement(fold_scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """Give the standard deviation over the folds of each tile's percentile; scores [F, N] to [N]."""
    ranks = np.stack([drawing.percentile_ranks(scores.astype(np.float64)) for scores in fold_scores])
    return np.asarray(ranks.std(axis=0), dtype=np.float64)


def left_out(tiles: Artefact, judged: NDArray[np.int32]) -> LeftOut:
    """Find the tiles that were not judged: left out for their quality, or placed and then unreadable.

    Parameters
    ----------
    judged
        Corners of the tiles that have a score, int32 [N, 2].
    """
    placed, excluded = tiles.arrays["coords"], tiles.arrays.get("excluded", np.empty((0, 2), np.int32))
    flags = tiles.arrays.get("excluded_flag", np.empty(0, np.uint8))
    lost = placed[~np.isin(_keys(placed), _keys(judged))]
    unreadable = np.full(len(lost), UNREADABLE, np.uint8)
    return LeftOut(np.concatenate([excluded, lost]), np.concatenate([flags, unreadable]))


def _keys(coords: NDArray[np.int32]) -> NDArray[np.int64]:
    return coords[:, 0].astype(np.int64) << 32 | coords[:, 1].astype(np.int64)


def further(attention: Attention) -> list[Layer]:
    """Give the maps beside attention's own: the folds' disagreement, and the evidence for each class."""
    layers = []
    if attention.disagreement is not None:
        values = np.clip(attention.disagreement / DISAGREEMENT_TOP, 0.0, 1.0) * 100.0
        layers.append(Layer("Folds' disagreement", values, "cividis", "alike", "as at random"))
    if attention.evidence is not None:
        names = list(attention.attributes["classes"])
        largest = float(np.abs(attention.evidence).max()) or 1.0
        likeliest = sorted(range(len(names)), key=lambda c: -attention.attributes["probabilities"][c])[:MAX_EVIDENCE]
        for index in sorted(likeliest):
            values = 50.0 + 50.0 * attention.evidence[:, index] / largest
            layers.append(Layer(f"Evidence: {names[index]}", values, EVIDENCE_COLOURS, "against", "for"))
    return layers
