"""The report's figures of survival and regression: what takes the place of ROC and confusion."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import outcomes
from pipeline.charts import Line, line_chart
from pipeline.evaluation import SlideResult

METRIC_NAMES = {
    "c_index": (
        "Concordance index",
        "share of pairs of patients, judged by one model, whose order of events is ranked rightly; 0.5 is chance",
    ),
    "c_index_pooled": (
        "Concordance index, all pairs",
        "also of pairs judged by two models, whose risks have no common zero",
    ),
    "mae": ("Mean absolute error", "in the unit of the labels; lower is better"),
    "rmse": ("Root mean squared error", "in the unit of the labels; large errors weigh more"),
    "r2": ("R²", "1: exact; 0: no better than the mean of all labels; below 0: worse"),
    "spearman": ("Spearman correlation", "of the ranks of predicted and observed numbers; 0 is chance"),
}
"""Name and one clause of explanation, in the order of the table."""

ON_UNIT_SCALE = ("c_index", "c_index_pooled", "r2", "spearman")
"""Metrics that a bar from 0 to 1 can show."""


def charts(used: Sequence[SlideResult], task: str) -> list[dict[str, Any]]:
    """Draw Kaplan-Meier curves of the halves by risk, or predicted against observed numbers, out-of-fold.

    Parameters
    ----------
    used
        Slides that count, at least one.
    task
        `survival` or `regression`.

    Returns
    -------
    `title`, `figure` and `note` of each chart.
    """
    return [_survival_chart(used)] if task == "survival" else [_regression_chart(used)]


def kaplan_meier(
    time: NDArray[np.float64], event: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimate the share without the event by time.

    Source: Kaplan and Meier, JASA 1958; a patient whose time is censored at the time of an event is still at risk then.

    Parameters
    ----------
    time, event
        Shape [n], n > 0.

    Returns
    -------
    Times and shares, from (0, 1), a point an event time and a last one at the longest time; a share holds from its time
    to the next.
    """
    times = np.unique(time[event])
    at_risk = (time[None, :] >= times[:, None]).sum(1)
    events = (event & (time[None, :] == times[:, None])).sum(1)
    shares = np.cumprod(1 - events / at_risk)
    last = shares[-1] if len(shares) else 1.0
    return np.concatenate([[0.0], times, [time.max()]]), np.concatenate([[1.0], shares, [last]])


def log_rank(time: NDArray[np.float64], event: NDArray[np.bool_], first: NDArray[np.bool_]) -> float:
    """Give the p-value of the log-rank test of two groups, `first` and the others; NaN where it is not defined.

    Source: Mantel, Cancer Chemotherapy Reports 1966.
    """
    from scipy.stats import chi2

    times = np.unique(time[event])
    at_risk = time[None, :] >= times[:, None]
    events = event & (time[None, :] == times[:, None])
    total, of_first, died = at_risk.sum(1), (at_risk & first).sum(1), events.sum(1)
    share = of_first / total
    surplus = float(((events & first).sum(1) - died * share).sum())
    variance = float((died * share * (1 - share) * (total - died) / np.maximum(total - 1, 1)).sum())
    return float(chi2.sf(surplus**2 / variance, 1)) if variance > 0 else float("nan")


def _survival_chart(used: Sequence[SlideResult]) -> dict[str, Any]:
    risk, time, event = (np.array(column) for column in zip(*outcomes.patient_groups(used), strict=True))
    high = risk > np.median(risk)
    lines = []
    for name, half in (("higher risk", high), ("lower risk", ~high)):
        if half.any():
            of_half = f"{name}: {int(half.sum())} patients, {int(event[half].sum())} events"
            lines.append(Line(of_half, *kaplan_meier(time[half], event[half]), steps=True))
    p = log_rank(time, event, high)
    tested = "" if np.isnan(p) else f" Log-rank test of the halves: p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}."
    return {
        "title": "Patients without the event, by predicted risk",
        "figure": line_chart(
            lines,
            title="Kaplan-Meier curves of the patients above and below the median out-of-fold risk",
            x_label="Time, in the unit of the labels",
            y_label="Share without the event",
            x_range=(0.0, float(time.max())),
        ),
        "note": "Kaplan-Meier estimates of the halves above and below the median out-of-fold risk: the further apart,"
        f" the better the risk tells them.{tested}",
    }


def _regression_chart(used: Sequence[SlideResult]) -> dict[str, Any]:
    observed, predicted = outcomes.numbers(used)
    both = np.concatenate([observed, predicted])
    span = (float(both.min()), float(both.max()))
    if span[0] == span[1]:
        span = (span[0] - 1, span[1] + 1)
    return {
        "title": "Predicted and observed",
        "figure": line_chart(
            [Line("", observed, predicted, markers=True, line=False)],
            title="Predicted against observed numbers, out-of-fold, a point a slide",
            x_label="Observed",
            y_label="Predicted",
            x_range=span,
            y_range=span,
            diagonal=True,
        ),
        "note": "A point a slide; on the dotted diagonal predictions are exact. Points along a flatter line:"
        " predictions are drawn towards the mean.",
    }
