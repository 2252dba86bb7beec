"""What `metrics.json` says of how far predictions can be trusted: calibration, abstention, evidence, confounding.

Every figure is of slides that count: labelled, and predicted by models that never saw their patient.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import confounding, store
from pipeline.cohort import Label
from pipeline.decision import ABSTAINED, UNKNOWN
from pipeline.figures import LEVEL, Interval, figures_of

if TYPE_CHECKING:
    from pipeline.evaluation import SlideResult

GROUPS = 10
"""Groups of a reliability diagram at most."""
FEWEST = 5
"""Slides that a group has at least, where there are as many."""
COVERAGES = tuple(step / 10 for step in range(10, 0, -1))
CALIBRATED = ("brier", "ece", "log_loss")


def figures(used: "Sequence[SlideResult]", *, interval: Interval) -> dict[str, Any]:
    """Give `calibrated`, `reliability`, `decisions`, `abstention` and `deletion`; null where slides lack what it takes.

    Parameters
    ----------
    used
        Slides that count.
    interval
        How intervals over patients are made.
    """
    from asmil.metrics import classification_statistic

    empty: dict[str, Any] = dict.fromkeys(("calibrated", "reliability", "decisions", "abstention"))
    empty["deletion"] = deletion(used, interval=interval)
    known = [slide.prediction for slide in used if slide.prediction is not None and slide.prediction.calibrated]
    if not used or len(known) < len(used):
        return empty
    labels = np.array([found.classes.index(slide.label) for slide, found in zip(used, known, strict=True)])
    calibrated = np.array([found.calibrated for found in known])
    plain = np.array([found.probabilities for found in known])
    whole = figures_of(classification_statistic(labels, calibrated), [slide.patient_id for slide in used], interval)
    right, patients = calibrated.argmax(axis=1) == labels, np.array([slide.patient_id for slide in used])
    certain = {"confidence": calibrated.max(axis=1), "ood": -np.array([found.ood_score for found in known])}
    return empty | {
        "calibrated": {name: whole[name] for name in CALIBRATED},
        "reliability": {
            "uncalibrated": reliability(labels, plain, patients),
            "calibrated": reliability(labels, calibrated, patients),
        },
        "decisions": decisions(used),
        "abstention": {
            name: abstention(right, score, patients) for name, score in certain.items() if np.isfinite(score).all()
        },
    }


def wilson(share: float, n: float) -> tuple[float, float]:
    """Give Wilson's interval of a share of n > 0 (1927, J. Am. Stat. Assoc. 22)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    width = z * z / n
    centre = (share + width / 2) / (1 + width)
    half = z / (1 + width) * float(np.sqrt(share * (1 - share) / n + width / (4 * n)))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_of(right: NDArray[np.bool_], patients: NDArray[np.str_]) -> dict[str, float | None]:
    """Give the share of some slides that are right, and Wilson's interval of it; None of no slide.

    A patient's slides are not independent. The interval takes them for repetitions of one: n is Kish's effective number
    (Survey Sampling, 1965), (sum n_p)^2 / sum n_p^2 of n_p slides of patient p. Unlike resampling it keeps its width
    where all slides are right.
    """
    if len(right) == 0:
        return dict.fromkeys(("value", "low", "high"))
    slides = np.unique(patients, return_counts=True)[1]
    value = float(right.mean())
    low, high = wilson(value, float(slides.sum() ** 2 / (slides**2).sum()))
    return {"value": value, "low": low, "high": high}


def _group(right: NDArray[np.bool_], patients: NDArray[np.str_]) -> dict[str, float | None]:
    found = share_of(right, patients)
    return {"n": len(right), "accuracy": found["value"], "low": found["low"], "high": found["high"]}


def reliability(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64], patients: NDArray[np.str_]
) -> list[dict[str, float | None]]:
    """Give confidence and accuracy of groups of equal size, by rising probability of the most probable class."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, min(GROUPS, max(1, len(order) // FEWEST)))
    return [{**_group(right[part], patients[part]), "confidence": float(confidence[part].mean())} for part in parts]


def abstention(
    right: NDArray[np.bool_], certain: NDArray[np.float64], patients: NDArray[np.str_]
) -> list[dict[str, float | None]]:
    """Give the accuracy where only the most certain share (`coverage`) of the slides is decided."""
    order = np.argsort(-certain, kind="stable")
    counts = [max(1, round(coverage * len(order))) for coverage in COVERAGES]
    surest = [order[:count] for count in dict.fromkeys(counts)]
    return [{"coverage": len(part) / len(order), **_group(right[part], patients[part])} for part in surest]


def decisions(used: "Sequence[SlideResult]") -> dict[str, Any]:
    """Give how many slides were decided, how well, and why the others were not; intervals as `share_of`."""
    decided = [s for s in used if s.prediction is not None and s.prediction.decision != ABSTAINED]
    said = [reason for s in used if s.prediction is not None for reason in s.prediction.decision_reason.split("; ")]
    reasons = Counter(reason for reason in said if reason not in ("", UNKNOWN))
    classes = next((slide.prediction.classes for slide in used if slide.prediction is not None), ())
    pairs = Counter((slide.label, slide.prediction.decision) for slide in decided if slide.prediction is not None)
    confusion = [[pairs[label, name] for name in classes] for label in classes]
    labels, patients = (np.array([getattr(slide, name) for slide in decided]) for name in ("label", "patient_id"))
    right = np.array([s.prediction.decision == s.label for s in decided if s.prediction is not None], dtype=bool)
    counted = {"accuracy": np.ones(len(decided), dtype=bool)}
    if len(classes) == 2:
        counted |= {"sensitivity": labels == classes[1], "specificity": labels == classes[0]}
    return {
        "n_slides": len(used),
        "n_decided": len(decided),
        "n_abstained": len(used) - len(decided),
        "reasons": dict(reasons),
        "n_distance_unknown": said.count(UNKNOWN),
        "pooled": {name: share_of(right[among], patients[among]) for name, among in counted.items()},
        "confusion": confusion,
    }


def deletion(used: "Sequence[SlideResult]", *, interval: Interval) -> dict[str, Any] | None:
    """Give the mean curves of the deletion test with intervals over patients; None where no slide has one."""
    from asmil.resampling import Floats, bootstrap

    tested = [(s.patient_id, s.prediction.deletion) for s in used if s.prediction is not None and s.prediction.deletion]
    if not tested:
        return None
    fractions = tested[0][1]["fractions"]
    curves = {key: np.array([[found["whole"], *found[key]] for _, found in tested]) for key in ("attended", "random")}
    columns = {f"{key} {place}": curve[:, place] for key, curve in curves.items() for place in range(curve.shape[1])}
    columns["gap"] = (curves["random"] - curves["attended"])[:, 1:].mean(axis=1)
    names, member = np.unique([patient for patient, _ in tested], return_inverse=True)

    def means(counts: Floats) -> dict[str, Floats]:
        weights = counts[:, member]
        return {name: weights @ values / weights.sum(axis=1) for name, values in columns.items()}

    found = bootstrap(means, len(names), width=len(member), **interval.options())
    entries = {name: {"value": each.value, "low": each.low, "high": each.high} for name, each in found.items()}
    return {
        "fractions": [0.0, *fractions],
        **{key: [entries[f"{key} {place}"] for place in range(len(fractions) + 1)] for key in curves},
        "gap": entries["gap"],
        "n_slides": len(tested),
    }


def confounded(cohort: Path) -> dict[str, Any] | None:
    """Give how labels spread over sites by the cohort table; None where fewer than two sites or classes are named."""
    rows = store.read_rows(cohort, delimiter="\t")
    labels = {row["slide_id"]: Label(row["label"], row["patient_id"], row.get("site") or "") for row in rows}
    found = confounding.measure(labels)
    if found is None:
        return None
    n_patients = len({label.patient_id for label in labels.values() if label.site and label.label})
    return {**asdict(found), "n_patients": n_patients, "warning": found.warning}
