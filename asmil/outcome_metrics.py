"""Metrics of predicted numbers and of predicted risks, for intervals by `asmil.resampling`; NumPy only."""

import numpy as np
from numpy.typing import ArrayLike

from asmil.resampling import Floats, Statistic
from asmil.survival import weighted_concordance


def regression_metrics(observed: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Judge predicted numbers.

    Parameters
    ----------
    observed, predicted
        Shape [n], finite, in the same unit.

    Returns
    -------
    `mae` and `rmse`, in that unit; `r2`, 1 - the share of the variance that is left, which is negative where the mean
    would have predicted better; `spearman`, the correlation of the ranks. The last two are NaN where a side does not
    vary.
    """
    truth, guess = _check(observed, predicted)
    return {name: float(value[0]) for name, value in _regression(truth, guess, np.ones((1, len(truth)))).items()}


def regression_statistic(observed: ArrayLike, predicted: ArrayLike) -> Statistic:
    """Give `regression_metrics` as a function of weights [R, n], for `asmil.resampling`."""
    truth, guess = _check(observed, predicted)
    return lambda weights: _regression(truth, guess, weights)


def survival_metrics(
    log_hazard: ArrayLike, time: ArrayLike, event: ArrayLike, *, strata: ArrayLike
) -> dict[str, float]:
    """Judge predicted risks.

    Parameters
    ----------
    log_hazard, time, event
        Shape [n].
    strata
        Shape [n], the model that gave each risk: risks of two models have no common zero.

    Returns
    -------
    `c_index`, the concordance over pairs judged by the same model; `c_index_pooled`, over all pairs.
    """
    ones = np.ones((1, len(np.asarray(time))))
    return {name: float(value[0]) for name, value in _survival(log_hazard, time, event, strata, ones).items()}


def survival_statistic(log_hazard: ArrayLike, time: ArrayLike, event: ArrayLike, *, strata: ArrayLike) -> Statistic:
    """Give `survival_metrics` as a function of weights [R, n], for `asmil.resampling`."""
    return lambda weights: _survival(log_hazard, time, event, strata, weights)


def _survival(
    log_hazard: ArrayLike, time: ArrayLike, event: ArrayLike, strata: ArrayLike, weights: Floats
) -> dict[str, Floats]:
    return {
        "c_index": weighted_concordance(log_hazard, time, event, weights, strata=strata),
        "c_index_pooled": weighted_concordance(log_hazard, time, event, weights),
    }


def _check(observed: ArrayLike, predicted: ArrayLike) -> tuple[Floats, Floats]:
    truth, guess = np.asarray(observed, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != guess.shape or len(truth) == 0:
        raise ValueError(f"observed {truth.shape} and predicted {guess.shape} must both be [n], n > 0")
    if not (np.isfinite(truth).all() and np.isfinite(guess).all()):
        raise ValueError("a value is not finite; leave its slide out")
    return truth, guess


def _regression(truth: Floats, guess: Floats, weights: Floats) -> dict[str, Floats]:
    """Give every metric [R] under weights [R, n]."""
    total = weights.sum(axis=1)
    squares = weights @ (guess - truth) ** 2 / total
    return {
        "mae": weights @ np.abs(guess - truth) / total,
        "rmse": np.sqrt(squares),
        "r2": 1 - _ratio(squares, _covariance(truth, truth, weights), unit=float(np.square(truth).max())),
        "spearman": _correlation(_ranks(truth, weights), _ranks(guess, weights), weights),
    }


def _covariance(first: Floats, second: Floats, weights: Floats) -> Floats:
    """Give the weighted covariance [R] of values [n] or [R, n]."""
    total = weights.sum(axis=1, keepdims=True)
    apart = [each - (weights * each).sum(axis=1, keepdims=True) / total for each in (first, second)]
    found: Floats = (weights * apart[0] * apart[1]).sum(axis=1) / total[:, 0]
    return found


def _correlation(first: Floats, second: Floats, weights: Floats) -> Floats:
    spread = np.sqrt(_covariance(first, first, weights) * _covariance(second, second, weights))
    return _ratio(_covariance(first, second, weights), spread, unit=1.0)


def _ratio(above: Floats, below: Floats, *, unit: float) -> Floats:
    """Divide; NaN where the divisor is 0 but for the rounding of values of the size of `unit`."""
    found: Floats = np.divide(above, below, out=np.full(len(above), np.nan), where=below > 1e-13 * unit)
    return found


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Give the mid-ranks [R, n] of values [n], where value i occurs `weights[r, i]` times."""
    distinct, member = np.unique(values, return_inverse=True)
    counts = np.zeros((len(weights), len(distinct)))
    for place, group in enumerate(member):
        counts[:, group] += weights[:, place]
    ranks: Floats = (counts.cumsum(axis=1) - counts / 2)[:, member]
    return ranks
