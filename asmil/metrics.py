"""Metrics of class probabilities, and their bootstrap intervals over patients; NumPy only.

Every metric is computed with a weight a sample. One evaluation has weights of 1; a bootstrap resample is a row of
counts, so that all resamples share one sort and are a few matrix products.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from asmil.resampling import Floats, Method, Statistic, resampled_intervals

CALIBRATION_BINS = 15
"""Equal-width bins of the highest probability; the usual number since Guo et al. 2017 (arXiv 1706.04599)."""

OPERATING_POINT = 0.9
"""The specificity at which sensitivity is given, and the other way round."""

_EPS = 1e-12
"""Smallest probability in the logarithmic loss."""


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """Judge class probabilities.

    Parameters
    ----------
    labels
        int [n], class indices from 0 to C - 1.
    probabilities
        float [n, C], C >= 2; the predicted class is the first with the highest probability.

    Returns
    -------
    `accuracy`; `balanced_accuracy`, the mean recall of the classes that occur; `macro_f1`, the mean over the classes
    that occur or are predicted; `brier`, the mean squared error of class 1 when C = 2, else summed over classes;
    `log_loss`; `ece`, the expected calibration error. Of class 1 when C = 2, else the mean of one class against the
    rest, NaN where a class does not occur (or is the only one): `auroc`; `auprc` (average precision);
    `sensitivity_at_90_specificity` and `specificity_at_90_sensitivity`, the best of the thresholds that reach 0.9 of
    the other.

    Raises
    ------
    ValueError
        If the shapes do not fit, a label is not a class, or a probability is not finite.
    """
    metrics = classification_statistic(labels, probabilities)(np.ones((1, len(np.asarray(labels)))))
    return {name: float(value[0]) for name, value in metrics.items()}


def classification_statistic(labels: ArrayLike, probabilities: ArrayLike) -> Statistic:
    """Give `classification_metrics` as a function of weights [R, n], for `asmil.resampling`; raises as they do."""
    classes, values = _check(labels, probabilities)
    return lambda weights: weighted_metrics(classes, values, weights)


def bootstrap_intervals(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: Sequence[Any] | NDArray[Any],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int,
    method: Method = "percentile",
) -> dict[str, tuple[float, float]]:
    """Give intervals of `classification_metrics`, resampling groups (patients) with replacement.

    Parameters
    ----------
    labels, probabilities
        As for `classification_metrics`.
    groups
        The patient of each sample, [n]; all samples of a patient are drawn together.
    resamples, level
        Number of resamples, and the share of them inside the interval.
    method
        `percentile` or `bca`, see `asmil.resampling.bootstrap`.

    Returns
    -------
    (low, high) by metric. Resamples in which a metric is NaN are left out; NaN where all are.
    """
    statistic = classification_statistic(labels, probabilities)
    if len(groups) != len(np.asarray(labels)):
        raise ValueError(f"{len(groups)} groups for {len(np.asarray(labels))} labels; give one a sample")
    return resampled_intervals(
        statistic,
        groups,
        resamples=resamples,
        level=level,
        seed=seed,
        method=method,
    )


def _check(labels: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    given, values = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if values.ndim != 2 or given.shape != values.shape[:1] or len(given) == 0 or values.shape[1] < 2:
        raise ValueError(f"labels {given.shape} and probabilities {values.shape} must be [n] and [n, C], n > 0, C > 1")
    classes = given.astype(np.int64)
    if (classes != given).any() or classes.min() < 0 or classes.max() >= values.shape[1]:
        raise ValueError(f"labels must be class indices from 0 to {values.shape[1] - 1}, found {np.unique(given)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).any(axis=1).sum())} rows of probabilities are not finite")
    return classes, values


def weighted_metrics(labels: NDArray[np.int64], probabilities: Floats, weights: Floats) -> dict[str, Floats]:
    """Give every metric of `classification_metrics`, [R], under weights [R, n]; no argument is checked."""
    count = probabilities.shape[1]
    truth = np.eye(count)[labels]
    guess = np.eye(count)[probabilities.argmax(axis=1)]
    total = weights.sum(axis=1)
    support, predicted, hits = weights @ truth, weights @ guess, weights @ (truth * guess)
    error = (probabilities - truth) ** 2
    ranked = [1] if count == 2 else range(count)
    ranks = [_rank_metrics(labels == index, probabilities[:, index], weights) for index in ranked]
    return {
        "accuracy": hits.sum(axis=1) / total,
        "balanced_accuracy": _mean_where(hits, support),
        "macro_f1": _mean_where(2 * hits, support + predicted),
        **{name: np.mean([found[name] for found in ranks], axis=0) for name in ranks[0]},
        "brier": weights @ (error[:, 1] if count == 2 else error.sum(axis=1)) / total,
        "log_loss": weights @ -np.log(np.clip((probabilities * truth).sum(axis=1), _EPS, 1)) / total,
        "ece": _calibration_error(labels, probabilities, weights) / total,
    }


def _mean_where(numerator: Floats, denominator: Floats) -> Floats:
    """Give the mean over classes of numerator / denominator, [R] of [R, C], of the classes whose denominator is not 0.

    At least one class of a row has one, as each row holds at least one sample.
    """
    known = denominator > 0
    ratio = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=known)
    mean: Floats = ratio.sum(axis=1) / known.sum(axis=1)
    return mean


def _rank_metrics(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> dict[str, Floats]:
    """Give what depends on the order of the scores alone, [R] each; NaN without a positive or without a negative.

    AUROC (ties count half), average precision, and the best sensitivity (specificity) of the thresholds whose
    specificity (sensitivity) is at least `OPERATING_POINT`.
    """
    order = np.argsort(scores, kind="stable")
    ascending = scores[order]
    starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])  # one group for each distinct score
    ordered, sign = weights[:, order], positive[order]
    positives = np.add.reduceat(ordered * sign, starts, axis=1)
    negatives = np.add.reduceat(ordered * ~sign, starts, axis=1)
    all_positive, all_negative = positives.sum(axis=1), negatives.sum(axis=1)
    below = negatives.cumsum(axis=1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=1)
    caught = all_positive[:, None] - positives.cumsum(axis=1) + positives  # at this score or above
    raised = caught + all_negative[:, None] - below
    precision = np.divide(caught, raised, out=np.zeros_like(caught), where=raised > 0)
    known = (all_positive > 0) & (all_negative > 0)

    def share(numerator: Floats, denominator: Floats) -> Floats:
        found: Floats = np.divide(numerator, denominator, out=np.full(len(weights), np.nan), where=known)
        return found

    # weights are whole numbers: what is added guards the comparison against rounding
    specific = below >= OPERATING_POINT * all_negative[:, None] - 1e-9
    sensitive = caught >= OPERATING_POINT * all_positive[:, None] - 1e-9
    return {
        "auroc": share(wins, all_positive * all_negative),
        "auprc": share((positives * precision).sum(axis=1), all_positive),
        "sensitivity_at_90_specificity": share((caught * specific).max(axis=1), all_positive),
        "specificity_at_90_sensitivity": share((below * sensitive).max(axis=1), all_negative),
    }


def _calibration_error(labels: NDArray[np.int64], probabilities: Floats, weights: Floats) -> Floats:
    """Give the sum over bins of |hits - confidence|, [R], each weighted."""
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    gaps: Floats = np.abs(weights @ (np.eye(CALIBRATION_BINS)[bins] * (hit - confidence)[:, None])).sum(axis=1)
    return gaps
