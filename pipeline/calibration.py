"""What inner validation decides after training: the temperature of the probabilities, and thresholds for a decision."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRIOR_SD = 0.7
"""Standard deviation of the prior of log temperature, around 0. A handful of validation slides that are all right would
ask for a temperature of 0; the prior weighs as much as a few slides and is nothing beside fifty."""
BOUND = 3.0
"""Log temperatures looked at: -3 to 3, a temperature of 0.05 to 20."""
STEPS = 60
"""Steps of golden section, which leave less than 1e-11 of the bounds."""
AT_LEAST = 0.9
"""Sensitivity or specificity that a threshold of that name reaches on validation, unless the user says another."""


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Give class probabilities, float64 [..., C], of logits divided by a temperature."""
    scaled = np.asarray(logits, np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Fit the temperature that makes probabilities most likely (Guo et al. 2017, arXiv 1706.04599), with a prior.

    Parameters
    ----------
    logits
        Shape [n, C], of slides the model was not trained on.
    labels
        Their class indices, [n].
    """
    rows = np.arange(len(labels))

    def cost(log_temperature: float) -> float:
        likely = softmax(logits, math.exp(log_temperature))[rows, labels]
        return float(-np.log(np.maximum(likely, 1e-300)).sum() + 0.5 * (log_temperature / PRIOR_SD) ** 2)

    ratio = (math.sqrt(5) - 1) / 2
    low, high = -BOUND, BOUND
    for _ in range(STEPS):  # the cost has one minimum: the loss is convex in 1 / T, and the prior pulls to 0
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if cost(left) <= cost(right) else (left, high)
    return math.exp((low + high) / 2)


def choose_thresholds(
    positive: NDArray[np.bool_], probability: Floats, *, at_least: float = AT_LEAST
) -> dict[str, float]:
    """Choose thresholds on the probability of the second of two classes, of slides the model was not trained on.

    Returns
    -------
    `balanced_accuracy`: the best one; `sensitivity`, `specificity`: the best of those that reach `at_least`. Among
    thresholds that serve equally well it is the nearest to 0.5: a few slides say little, and nothing speaks for the
    extremes. 0.5 where a class is missing.
    """
    if positive.all() or not positive.any():
        return dict.fromkeys(("balanced_accuracy", "sensitivity", "specificity"), 0.5)
    values = np.unique(probability)
    middles = (values[1:] + values[:-1]) / 2
    gaps = np.concatenate([[0.0], values, [1.0]])
    # within a gap between two neighbours every threshold does the same: its middle, or 0.5 where the gap holds it
    candidates = np.unique(np.concatenate([[gaps[1] / 2], middles, [(1 + gaps[-2]) / 2], [0.5]]))
    above = probability[None, :] >= candidates[:, None]
    sensitivity = above[:, positive].mean(axis=1)
    specificity = (~above[:, ~positive]).mean(axis=1)
    balanced = (sensitivity + specificity) / 2
    reach = {
        "balanced_accuracy": np.ones(len(candidates), bool),
        "sensitivity": sensitivity >= at_least,
        "specificity": specificity >= at_least,
    }
    chosen = {}
    for name, enough in reach.items():
        quality = np.where(enough, balanced, -1.0)
        best = candidates[quality >= quality.max() - 1e-12]
        chosen[name] = float(best[np.abs(best - 0.5).argmin()])
    return chosen
