"""ROC and precision-recall curves of one class against the rest."""

import numpy as np
from numpy.typing import NDArray


def roc(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give a ROC curve: false and true positive rates, from (0, 0) to (1, 1), a point a distinct score."""
    hits, misses = _cumulative(positive, score)
    return np.append(0.0, misses / misses[-1]), np.append(0.0, hits / hits[-1])


def precision_recall(
    positive: NDArray[np.bool_], score: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give a precision-recall curve: recall and precision, a point a distinct score, recall rising."""
    hits, misses = _cumulative(positive, score)
    return np.append(0.0, hits / hits[-1]), np.append(1.0, hits / (hits + misses))


def _cumulative(
    positive: NDArray[np.bool_], score: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    order = np.argsort(-score, kind="stable")
    last_of_score = np.append(np.diff(score[order]) != 0, True)
    hits = np.cumsum(positive[order])[last_of_score]
    misses = np.cumsum(~positive[order])[last_of_score]
    return hits.astype(np.float64), misses.astype(np.float64)
