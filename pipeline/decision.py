"""From calibrated probabilities to a decision; none where models disagree or the slide is unlike those they know."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.calibration import AT_LEAST

ABSTAINED = "abstained"
DISAGREE, OUTLIER = "folds disagree", "out of distribution"
UNKNOWN = "distance to the training slides unknown"
"""Said of a decision that could not ask whether the slide is like the training slides, which were too few."""
RULES = ("balanced_accuracy", "sensitivity", "specificity", "most_probable")


@dataclass(frozen=True)
class DecisionOptions:
    """When to decide, and how.

    Parameters
    ----------
    threshold
        For two classes: which of the thresholds chosen on validation (`calibration.choose_thresholds`) is used;
        `most_probable` uses none.
    min_agreement
        Share of the models that must decide alike; fewer: abstained. It needs two models.
    outlier_rate
        Share of slides like the training slides that may be called out of distribution.
    at_least
        The sensitivity or specificity that the threshold of that name reaches on validation.
    """

    threshold: str = "balanced_accuracy"
    min_agreement: float = 0.75
    outlier_rate: float = 0.01
    at_least: float = AT_LEAST


@dataclass(frozen=True)
class Decision:
    """A class or `ABSTAINED`, why, the threshold used (None: the most probable class), and how many models agree.

    Of a class, the reason says what could not be asked (`UNKNOWN`), and is empty otherwise.
    """

    decision: str
    reason: str
    threshold: float | None
    agreement: float


def decide(
    calibrated: NDArray[np.float64],
    classes: list[str],
    *,
    thresholds: list[float] | None,
    ood_score: float,
    options: DecisionOptions,
) -> Decision:
    """Decide on one slide.

    Parameters
    ----------
    calibrated
        Class probabilities by model, [F, C].
    thresholds
        Of each model, on the second class's probability; None for the most probable class.
    ood_score
        Distance to the training slides over its limit; above 1 is out of distribution. NaN if unknown.
    """
    mean = calibrated.mean(axis=0)
    if thresholds is None:
        threshold, winner, votes = None, int(mean.argmax()), calibrated.argmax(axis=1)
    else:
        threshold = float(np.mean(thresholds))
        winner = int(mean[1] >= threshold)
        votes = (calibrated[:, 1] >= np.array(thresholds)).astype(np.int64)
    agreement = float((votes == winner).mean())
    reasons = [
        *([DISAGREE] if len(calibrated) > 1 and agreement < options.min_agreement else []),
        *([OUTLIER] if ood_score > 1 else []),
    ]
    said = [*reasons, *([UNKNOWN] if math.isnan(ood_score) else [])]
    return Decision(ABSTAINED if reasons else classes[winner], "; ".join(said), threshold, agreement)
