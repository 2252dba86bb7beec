"""How far a slide lies from those a model was trained on, in the space of their features.

A slide is the mean of its standardised patch features. Distances are Mahalanobis', with a covariance shrunk to a
multiple of the identity (Ledoit and Wolf 2004, J. Multivariate Anal. 88), as there are fewer slides than features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST_PATIENTS = 8
"""Training patients below which no distribution is fitted. In a simulation (60 cohorts a size, 30 and 200 features with
variances 1/1, 1/2, 1/3 ..., two classes, one validation slide in four) a slide moved by 3 standard deviations in each
feature exceeded the limit of a rate of 0.01 in 0.97 to 1.00 of cases with 8 patients, 0.72 with 6, 0.23 with 4 and 0
with 3, whose score was 0: it would have looked near. Slides like the training slides did in 0.01 or less throughout."""

PARTS = 5
"""Parts of the training slides whose distances come from the other parts: those from their own fit are too small."""


@dataclass(frozen=True)
class Outliers:
    """The training slides' distribution, and how far slides that had no part in it lie.

    Parameters
    ----------
    mean
        float32 [d].
    basis, variances
        Directions in which the slides vary, float32 [r, d], and the variance along each, float32 [r].
    floor
        Variance along every other direction.
    log_mean, log_sd, count
        Mean and standard deviation of the log distance of held-out slides, and how many there were.
    """

    mean: NDArray[np.float32]
    basis: NDArray[np.float32]
    variances: NDArray[np.float32]
    floor: float
    log_mean: float = 0.0
    log_sd: float = 0.0
    count: int = 0

    def distance(self, vector: NDArray[np.floating]) -> float:
        """Give the distance of one slide, [d]."""
        away = vector.astype(np.float64) - self.mean
        along = self.basis.astype(np.float64) @ away
        rest = max(0.0, float(away @ away - along @ along))
        return float(np.sqrt((along**2 / self.variances).sum() + rest / self.floor))

    def limit(self, rate: float) -> float:
        """Give the distance that a share `rate` of slides like the training slides would exceed.

        The bound of a prediction interval by Student's t on log distances: it widens where few slides were held out.
        """
        from scipy.stats import t

        if self.count < 2:
            return float("inf")
        spread = self.log_sd * np.sqrt(1 + 1 / self.count)
        return float(np.exp(self.log_mean + t.ppf(1 - rate, self.count - 1) * spread))

    def numbers(self) -> dict[str, Any]:
        """Give what is no array, for JSON."""
        return {name: getattr(self, name) for name in ("floor", "log_mean", "log_sd", "count")}


def summary_vector(features: NDArray[np.floating]) -> Floats:
    """Give what stands for a slide, float64 [d], of its features [N, d]."""
    mean: Floats = features.astype(np.float64).mean(axis=0)
    return mean


def fit(training: Floats, patients: Sequence[str], validation: Floats) -> Outliers | None:
    """Fit the distribution of the training slides; None where there are fewer than `FEWEST_PATIENTS`.

    Parameters
    ----------
    training, patients
        Vectors [n, d], and whose they are: a patient's slides are held out together.
    validation
        Vectors [m, d] of slides the model was not trained on.
    """
    names, member = np.unique(list(patients), return_inverse=True)
    if len(names) < FEWEST_PATIENTS:
        return None
    whole = _fitted(training)
    part = member % PARTS
    distances = [whole.distance(vector) for vector in validation]
    for index in range(PARTS):
        others = _fitted(training[part != index])
        distances += [others.distance(vector) for vector in training[part == index]]
    logs = np.log(np.maximum(distances, 1e-12))
    return Outliers(
        whole.mean,
        whole.basis,
        whole.variances,
        whole.floor,
        log_mean=float(logs.mean()),
        log_sd=float(logs.std(ddof=1)),
        count=len(logs),
    )


def _fitted(vectors: Floats) -> Outliers:
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean = vectors.mean(axis=0)
    centred = vectors - mean
    share = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    _, singular, basis = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2 / len(vectors)
    kept = variances > 1e-10 * max(float(variances.sum()), 1e-30)
    floor = max(share * float(variances.sum()) / vectors.shape[1], 1e-12)
    return Outliers(
        mean.astype(np.float32),
        basis[kept].astype(np.float32),
        ((1 - share) * variances[kept] + floor).astype(np.float32),
        floor,
    )
