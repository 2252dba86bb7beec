"""Whether attention points at what a prediction rests on: it falls faster when the most attended patches are dropped.

The deletion test (Samek et al. 2017, IEEE TNNLS 28) on bags: the model predicts again without a share of the patches,
taken from the most attended ones or at random.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from asmil.inference import predict
from asmil.protocol import AttentionMIL

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
DRAWS = 3
"""Random deletions whose mean is compared."""
MOST_PATCHES = 2048
"""Patches of a slide that the test uses, drawn at random: 24 passes over them cost what 2.5 over 20,000 do."""
FEWEST_PATCHES = 20


def deletion(
    model: AttentionMIL, features: NDArray[np.float32], score: NDArray[np.float32], *, device: str, seed: int = 0
) -> dict[str, Any] | None:
    """Measure how the probability of the predicted class falls; None for a slide of fewer than 20 patches.

    Parameters
    ----------
    features, score
        Shapes (N, d), as the model takes them, and (N,).
    seed
        Of what is drawn at random.

    Returns
    -------
    `whole`, the probability with all patches, and by `fractions` the probability after the most attended patches were
    dropped (`attended`) and after as many random ones were (`random`).
    """
    if len(score) < FEWEST_PATCHES:
        return None
    rng = np.random.default_rng(seed)
    used = np.sort(rng.permutation(len(score))[:MOST_PATCHES])
    bag, order = features[used], np.argsort(-score[used], kind="stable")
    whole = predict(model, bag, device=device).probabilities
    winner = int(whole.argmax())

    def left(dropped: NDArray[np.intp]) -> float:
        kept = np.ones(len(bag), np.bool_)
        kept[dropped] = False
        return float(predict(model, bag[kept], device=device).probabilities[winner])

    counts = [max(1, round(fraction * len(bag))) for fraction in FRACTIONS]
    drawn = [rng.permutation(len(bag)) for _ in range(DRAWS)]
    return {
        "fractions": list(FRACTIONS),
        "whole": float(whole[winner]),
        "attended": [left(order[:count]) for count in counts],
        "random": [float(np.mean([left(each[:count]) for each in drawn])) for count in counts],
    }
