"""How much attention moves from epoch to epoch, and between models; NumPy only, in float64.

The divergence alone misleads: uniform attention never moves, and a learning rate that falls to 0 stops every method. So
it always comes with how concentrated the attention is, and is best compared at a constant learning rate.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LAGS = (1, 5)
"""Epochs between the two attentions that are compared: neighbours, and far enough apart for a drift to show."""

TOP_SHARE, TOP_COUNT = 0.01, 10


def jensen_shannon(first: ArrayLike, second: ArrayLike) -> Floats:
    """Give the Jensen-Shannon divergence of weights [..., N] that sum to 1, divided by ln 2.

    Returns
    -------
    Shape [...], from 0 (the same) to 1 (no patch in common).
    """
    p, q = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    middle = (p + q) / 2
    divergence = (_relative(p, middle) + _relative(q, middle)) / 2
    return np.asarray(np.clip(divergence / math.log(2), 0.0, 1.0))  # rounding leaves -1e-17 where they are the same


def entropy_share(weights: ArrayLike) -> Floats:
    """Give the entropy of weights [..., N] as a share of log N; 1 for a bag of one patch."""
    values = np.asarray(weights, dtype=np.float64)
    count = values.shape[-1]
    if count == 1:
        return np.ones(values.shape[:-1])
    return np.asarray(-(values * np.log(np.where(values > 0, values, 1))).sum(-1) / math.log(count))


def effective_number(weights: ArrayLike) -> Floats:
    """Give the effective number of patches, 1 / sum a^2, of weights [..., N]: from 1 to N."""
    values = np.asarray(weights, dtype=np.float64)
    return np.asarray(1 / (values**2).sum(-1))


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Give the rank correlation of two weights [N], ties at their mean rank; NaN where one of them is constant."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    scale = math.sqrt(float((centred[0] ** 2).sum()) * float((centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / scale if scale else math.nan


def top_overlap(first: ArrayLike, second: ArrayLike) -> float:
    """Give the Jaccard index of the top 1 % of patches (at least one) under two weights [N], from 0 to 1.

    NaN where patches in and out of the top weigh the same: which of them are in it would be chance.
    """
    a, b = np.asarray(first), np.asarray(second)
    count = max(1, math.ceil(TOP_SHARE * a.size))
    for values in (np.sort(a)[::-1], np.sort(b)[::-1]) if count < a.size else ():
        if values[count - 1] == values[count]:
            return math.nan
    common = len(set(_top(a, count)) & set(_top(b, count)))
    return common / (2 * count - common)


def top_mass(weights: ArrayLike) -> float:
    """Give the attention on the ten most attended patches of weights [N]."""
    values = np.asarray(weights, dtype=np.float64)
    return float(values[_top(values, TOP_COUNT)].sum())


def agreement(maps: ArrayLike) -> float:
    """Say how alike the maps of several models of one slide are.

    Parameters
    ----------
    maps
        Attention by model, [F, N].

    Returns
    -------
    The mean rank correlation over the pairs of models, from -1 to 1; NaN with fewer than two models, or where no pair
    has one.
    """
    rows = np.asarray(maps, dtype=np.float64)
    pairs = [spearman(rows[i], rows[j]) for i in range(len(rows)) for j in range(i + 1, len(rows))]
    return _mean(pairs)


class StabilityTracker:
    """Compare the attention on a fixed panel of bags with that of earlier epochs.

    Every epoch, give it the attention of the same bags in the same order. The epochs are numbers that the caller gives,
    so a run that is continued compares the right ones.
    """

    def __init__(self) -> None:
        self._past: dict[int, list[NDArray[np.float32]]] = {}
        self.rows: list[dict[str, float]] = []

    def add(self, epoch: int, attention: Sequence[NDArray[Any]]) -> dict[str, float]:
        """Measure one epoch.

        Parameters
        ----------
        epoch
            Its number, later than those before.
        attention
            For each bag of the panel, weights [R, N] that sum to 1 over N; R branches (heads times tokens).

        Returns
        -------
        Means over the panel. Of the attention averaged over branches: `jsd_lag1`, `jsd_lag5`, `spearman_lag1`,
        `top1_jaccard_lag1`, `entropy` (share of log N), `effective_patches`, `top10_mass`; of single branches, averaged
        after the measure is taken: `branch_jsd_lag1`, `branch_jsd_lag5`, `branch_entropy`. NaN where there is no
        epoch so long ago, or where a measure is not defined.

        Raises
        ------
        ValueError
            If the epoch is not later than the last, or the bags differ from those before.
        """
        if self.rows and epoch <= self.rows[-1]["epoch"]:
            raise ValueError(f"epoch {epoch} comes after epoch {self.rows[-1]['epoch']:.0f}; give later epochs only")
        if any([each.shape for each in attention] != [each.shape for each in past] for past in self._past.values()):
            raise ValueError(f"the panel of epoch {epoch} is not that of the epochs before; give the same bags")
        now = [np.asarray(each, dtype=np.float32) for each in attention]
        row: dict[str, float] = {"epoch": epoch, "slides": len(now)}
        for lag in LAGS:
            before = self._past.get(epoch - lag)
            row[f"jsd_lag{lag}"] = _over(before, now, lambda a, b: jensen_shannon(_mean_branch(a), _mean_branch(b)))
            row[f"branch_jsd_lag{lag}"] = _over(before, now, lambda a, b: jensen_shannon(_unit(a), _unit(b)).mean())
        before = self._past.get(epoch - 1)
        row["spearman_lag1"] = _over(before, now, lambda a, b: spearman(_mean_branch(a), _mean_branch(b)))
        row["top1_jaccard_lag1"] = _over(before, now, lambda a, b: top_overlap(_mean_branch(a), _mean_branch(b)))
        means = [_mean_branch(each) for each in now]
        row["entropy"] = _mean([float(entropy_share(each)) for each in means])
        row["branch_entropy"] = _mean([float(entropy_share(_unit(each)).mean()) for each in now])
        row["effective_patches"] = _mean([float(effective_number(each)) for each in means])
        row["top10_mass"] = _mean([top_mass(each) for each in means])
        self._past[epoch] = now
        self._past = {number: kept for number, kept in self._past.items() if number > epoch - max(LAGS)}
        self.rows.append(row)
        return row

    def state_dict(self) -> dict[str, Any]:
        """Give everything the next epoch depends on; arrays are not copied, as they never change."""
        return {"past": {epoch: list(kept) for epoch, kept in self._past.items()}, "rows": list(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave; the attention may be given as anything NumPy reads."""
        self._past = {int(epoch): [np.asarray(each) for each in kept] for epoch, kept in state["past"].items()}
        self.rows = [dict(row) for row in state["rows"]]


def _relative(p: Floats, middle: Floats) -> Floats:
    """Give KL(p | middle) in nats; where p is 0 it adds nothing, and where it is not, neither is the middle."""
    ratio = np.divide(p, middle, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log(ratio)).sum(-1))


def _ranks(values: Floats) -> Floats:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[place], dtype=np.float64)


def _top(values: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Give the places of the largest values; among equal ones the earlier, so that a tie gives the same set again."""
    return np.argsort(-values, kind="stable")[:count]


def _unit(rows: NDArray[Any]) -> Floats:
    """Make rows stored in float32 sum to 1 in float64."""
    wide = np.asarray(rows, dtype=np.float64)
    return np.asarray(wide / wide.sum(-1, keepdims=True))


def _mean_branch(rows: NDArray[Any]) -> Floats:
    return np.asarray(_unit(rows).mean(0))


def _over(before: Sequence[Any] | None, now: Sequence[Any], measure: Any) -> float:
    if before is None:
        return math.nan
    return _mean([float(measure(a, b)) for a, b in zip(before, now, strict=True)])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
