"""How often the patient-level bootstrap intervals hold the truth: simulated cohorts, percentile against BCa.

Patients have one to three slides; the slides of a patient share most of their score. The truth is measured on a
simulated population of 200,000 patients. The ratio is the coverage of the default method, averaged over metrics and
sizes, to the 95 % that it states.

    python benchmarks/intervals.py [--cohorts 400] [--quick]
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from asmil.metrics import bootstrap_intervals, classification_metrics  # noqa: E402
from asmil.resampling import Method  # noqa: E402

METRICS = ("accuracy", "balanced_accuracy", "auroc", "auprc", "brier", "sensitivity_at_90_specificity")
SIZES = (30, 60, 150)
SEPARATION = 1.5
"""Distance of the classes' scores in standard deviations: an AUROC of 0.86."""
METHODS: tuple[Method, ...] = ("percentile", "bca")
DEFAULT: Method = "bca"


def simulate(
    rng: np.random.Generator, patients: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Give labels [n], probabilities [n, 2] and patients [n] of a simulated cohort, 40 % positive."""
    positive = rng.random(patients) < 0.4
    slides = rng.integers(1, 4, size=patients)
    groups = np.repeat(np.arange(patients), slides)
    own = rng.normal(size=patients) * 0.8 + SEPARATION * positive
    score = own[groups] + rng.normal(size=len(groups)) * 0.6
    probability = 1 / (1 + np.exp(-(SEPARATION * score - SEPARATION**2 / 2 - 0.4)))
    return positive[groups].astype(np.int64), np.stack([1 - probability, probability], 1), groups


def main() -> None:
    """Simulate, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="60 cohorts")
    arguments = parser.parse_args()
    cohorts = 60 if arguments.quick else arguments.cohorts
    labels, probabilities, _ = simulate(np.random.default_rng(0), 200_000)
    truth = classification_metrics(labels, probabilities)
    print("| patients | metric | truth | " + " | ".join(METHODS) + " |\n|---|---|---|" + "---|" * len(METHODS))
    held: dict[tuple[Method, int, str], list[bool]] = {}
    for size in SIZES:
        for cohort in range(cohorts):
            rng = np.random.default_rng([1, size, cohort])
            labels, probabilities, groups = simulate(rng, size)
            for method in METHODS:
                found = bootstrap_intervals(labels, probabilities, groups, resamples=1000, seed=cohort, method=method)
                for name in METRICS:
                    low, high = found[name]
                    held.setdefault((method, size, name), []).append(low <= truth[name] <= high)
        for name in METRICS:
            shares = " | ".join(f"{np.mean(held[method, size, name]):.3f}" for method in METHODS)
            print(f"| {size} | {name} | {truth[name]:.3f} | {shares} |", flush=True)
    coverage = {m: float(np.mean([np.mean(v) for key, v in held.items() if key[0] == m])) for m in METHODS}
    result = {"benchmark": "intervals", "ratio": round(coverage[DEFAULT] / 0.95, 3), "cohorts": cohorts}
    print(json.dumps(result | {name: round(value, 3) for name, value in coverage.items()}))


if __name__ == "__main__":
    main()
