"""Intervals from resampling groups (patients) with replacement; NumPy only.

A statistic is a function of weights, one a group: a resample is a row of counts, so that all resamples are evaluated
together. Two calls with the same seed and number of groups draw the same groups, which makes differences paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Mapping[str, Floats]]
"""From weights [R, G] to values [R] by name; NaN where one is not defined under a row of weights."""
Method = Literal["percentile", "bca"]

BLOCK = 4_000_000
"""Weights held at once, 32 MB: bounds the memory of a bootstrap whatever the size of the cohort."""

JACKKNIFE_GROUPS = 500
"""Rows of the jackknife at most; with more patients, several are left out together."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN where it is not defined.

    `p` is two-sided, and for differences: 1 - the level of the narrowest interval of the same method that holds 0.
    """

    value: float
    low: float
    high: float
    p: float


def bootstrap(
    statistic: Statistic,
    groups: int,
    *,
    width: int | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int,
    method: Method = "percentile",
) -> dict[str, Estimate]:
    """Give the value and the interval of every part of a statistic.

    Parameters
    ----------
    statistic
        What is estimated.
    groups
        Number of groups (patients), at least 1.
    width
        Values that a row of weights becomes inside the statistic (samples); for the size of a block.
    resamples, level
        Number of resamples, and the share of them inside the interval.
    method
        `percentile`, or `bca`: bias-corrected and accelerated (Efron 1987, J. Am. Stat. Assoc. 82), which shifts the
        percentiles by the median's bias and by the skewness that a jackknife shows.

    Raises
    ------
    ValueError
        If a number is out of range.
    """
    if groups < 1 or resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"groups is {groups}, resamples {resamples} and level {level}; give at least 1, and a level in (0, 1)"
        )
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // max(groups, width or groups))
    parts = [
        statistic(_draw_counts(rng, rows=min(block, resamples - start), groups=groups))
        for start in range(0, resamples, block)
    ]
    drawn = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    whole = {name: float(values[0]) for name, values in statistic(np.ones((1, groups))).items()}
    left_out = _jackknife(statistic, groups, block) if method == "bca" and groups > 1 else {}
    return {name: _estimate(whole[name], values, left_out.get(name), level) for name, values in drawn.items()}


def resampled_intervals(
    compute: Statistic,
    groups: Sequence[Any] | NDArray[Any],
    *,
    resamples: int,
    level: float,
    seed: int,
    method: Method = "percentile",
) -> dict[str, tuple[float, float]]:
    """Give the intervals, (low, high), of metrics that take a weight a sample; parameters as for `resampled`."""
    found = resampled(compute, groups, resamples=resamples, level=level, seed=seed, method=method)
    return {name: (estimate.low, estimate.high) for name, estimate in found.items()}


def resampled(
    compute: Statistic,
    groups: Sequence[Any] | NDArray[Any],
    *,
    resamples: int,
    level: float,
    seed: int,
    method: Method = "percentile",
) -> dict[str, Estimate]:
    """Give value and interval of metrics that take a weight a sample; other parameters as for `bootstrap`.

    Parameters
    ----------
    compute
        Gives every metric, [R], under weights [R, n]: how often each of the n samples was drawn.
    groups
        The patient of each sample, [n]; all samples of a patient are drawn together.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    return bootstrap(
        lambda counts: compute(counts[:, member]),
        len(names),
        width=len(member),
        resamples=resamples,
        level=level,
        seed=seed,
        method=method,
    )


def difference(first: Statistic, second: Statistic) -> Statistic:
    """Give the statistic of `second` minus `first`: both under one row of weights, so that the difference is paired.

    Where a part has no value under either, it has no difference.
    """

    def subtracted(weights: Floats) -> dict[str, Floats]:
        before, after = first(weights), second(weights)
        return {name: after[name] - before[name] for name in before if name in after}

    return subtracted


def _draw_counts(rng: np.random.Generator, *, rows: int, groups: int) -> Floats:
    """Give how often each group is drawn in each resample, [rows, groups]; every row sums to `groups`."""
    drawn = rng.integers(groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def _jackknife(statistic: Statistic, groups: int, block: int) -> dict[str, Floats]:
    """Give the statistic with each group (or each of `JACKKNIFE_GROUPS` sets of them) left out."""
    sets = min(groups, JACKKNIFE_GROUPS)
    member = np.arange(groups) * sets // groups
    parts = []
    for start in range(0, sets, block):
        chosen = np.arange(start, min(start + block, sets))
        parts.append(statistic((member[None, :] != chosen[:, None]).astype(np.float64)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _estimate(value: float, drawn: Floats, left_out: Floats | None, level: float) -> Estimate:
    known = drawn[~np.isnan(drawn)]
    if len(known) == 0:
        return Estimate(value, np.nan, np.nan, np.nan)
    shift = None
    if left_out is not None and not np.isnan(value):
        shift = _shift(value, known, left_out[~np.isnan(left_out)])
    ends = (1 - level) / 2, (1 + level) / 2
    low, high = np.quantile(known, ends if shift is None else [shift.moved(end) for end in ends])
    # how far into the resamples an interval may reach before it holds 0, counted on either side
    sides = (int((known <= 0).sum()), int((known >= 0).sum()))
    shares = [(extreme + 1) / (len(known) + 1) for extreme in sides]
    if shift is not None:
        shares = [shift.moved_back(shares[0]), 1 - shift.moved_back(1 - shares[1])]
    p = min(1.0, max(2 * min(shares), 2 / (len(known) + 1)))  # no smaller than the resamples can tell
    return Estimate(value, float(low), float(high), p)


@dataclass(frozen=True)
class _Shift:
    """How BCa moves a percentile: by the bias of the median, and by the acceleration."""

    bias: float
    acceleration: float

    def moved(self, end: float) -> float:
        """Give the share of the resamples that stands for a nominal one."""
        shifted = self.bias + NormalDist().inv_cdf(end)
        return NormalDist().cdf(self.bias + shifted / (1 - self.acceleration * shifted))

    def moved_back(self, share: float) -> float:
        """Give the nominal share that `moved` makes this one of; `share` of 1 is left alone."""
        if not 0 < share < 1:
            return share
        beyond = NormalDist().inv_cdf(share) - self.bias
        return NormalDist().cdf(beyond / (1 + self.acceleration * beyond) - self.bias)


def _shift(value: float, drawn: Floats, left_out: Floats) -> _Shift | None:
    """Give how BCa moves percentiles; None where it is not defined, and those of the percentile interval hold."""
    below = (float((drawn < value).sum()) + float((drawn == value).sum()) / 2) / len(drawn)  # ties count half
    deviations = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    squares = float((deviations**2).sum())
    if not 0 < below < 1 or squares == 0:
        return None
    return _Shift(NormalDist().inv_cdf(below), float((deviations**3).sum()) / (6 * squares**1.5))
