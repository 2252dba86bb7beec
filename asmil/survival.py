"""Time to an event: Cox's partial likelihood to learn by, and the concordance index to judge by.

A model's single output is the log of a bag's hazard, up to a constant that all bags share. The loss compares the bags
of one risk set, so a step needs several bags; `asmil.training.Trainer` gives it without holding their graphs together.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Floats = NDArray[np.float64]

_PAIRS = 4_000_000
"""Pairs held at once, 32 MB: bounds the memory of a concordance whatever the size of the cohort."""


def partial_likelihood_loss(log_hazard: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Give Cox's negative log partial likelihood, averaged over the events; 0 where there is none.

    Each event is compared with all bags whose time is not shorter (Breslow's handling of ties). Source: Cox, JRSS B
    1972; on parts of the data, as here, its maximum is still consistent, and the nearer to the whole data's the larger
    the parts (Zeng and Zhang, arXiv 2408.02839).

    Parameters
    ----------
    log_hazard, time, event
        Shape [n]: float, float, bool.

    Returns
    -------
    A scalar.
    """
    at_risk = time[None, :] >= time[:, None]  # row i: who could still have had the event when i had it
    total = log_hazard[None, :].masked_fill(~at_risk, -torch.inf).logsumexp(1)
    terms = (total - log_hazard).masked_fill(~event, 0)
    return terms.sum() / event.sum().clamp(min=1)


def concordance(log_hazard: ArrayLike, time: ArrayLike, event: ArrayLike, *, strata: ArrayLike | None = None) -> float:
    """Give Harrell's concordance index: of the pairs whose order is known, the share that is ranked rightly.

    The order of a pair is known if the one with the shorter time had the event; at equal times, if one had it and the
    other was still observed. Equal risks count half. NaN where no order is known.

    Parameters
    ----------
    log_hazard, time, event
        Shape [n]; the larger the log hazard, the sooner the event is expected.
    strata
        Shape [n]: only pairs of one stratum are compared; None: all pairs.
    """
    risk = np.asarray(log_hazard, dtype=np.float64)
    return float(weighted_concordance(risk, time, event, np.ones((1, len(risk))), strata=strata)[0])


def weighted_concordance(
    log_hazard: ArrayLike, time: ArrayLike, event: ArrayLike, weights: Floats, *, strata: ArrayLike | None = None
) -> Floats:
    """Give `concordance` [R] where sample i counts as `weights[r, i]` samples, shape [R, n]."""
    risk, when = np.asarray(log_hazard, dtype=np.float64), np.asarray(time, dtype=np.float64)
    had = np.asarray(event, dtype=bool)
    part = np.zeros(len(risk)) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1]
    right, known = np.zeros(len(weights)), np.zeros(len(weights))
    rows = np.flatnonzero(had)
    for chosen in np.array_split(rows, max(1, -(-len(rows) * len(risk) // _PAIRS))):
        later = (when > when[chosen, None]) | ((when == when[chosen, None]) & ~had)
        pairs = (later & (part == part[chosen, None])).astype(np.float64)  # (chosen, n)
        won = pairs * ((risk < risk[chosen, None]) + 0.5 * (risk == risk[chosen, None]))
        right += (weights[:, chosen] * (weights @ won.T)).sum(1)
        known += (weights[:, chosen] * (weights @ pairs.T)).sum(1)
    share: Floats = np.divide(right, known, out=np.full(len(weights), np.nan), where=known > 0)
    return share
