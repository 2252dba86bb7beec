"""The charts of the report: how good the predictions are, what abstaining buys, what the maps are worth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.charts import Line, line_chart
from pipeline.curves import precision_recall, roc
from pipeline.evaluation import SlideResult
from pipeline.figures import pooled_arrays

Chart = dict[str, Any]
"""`title`, `figure` (a Bokeh plot), `note` (one or two sentences below it)."""

CURVE_NAMES = {"confidence": "by probability", "folds": "by agreement of the folds", "ood": "by likeness to training"}


def performance(used: Sequence[SlideResult], metrics: Mapping[str, Any]) -> list[Chart]:
    """Draw ROC, precision-recall and calibration of the out-of-fold predictions."""
    classes = metrics["classes"]
    labels, probabilities = pooled_arrays(used, classes)
    curves = []
    for index in [1] if len(classes) == 2 else range(len(classes)):
        positive = labels == index
        if positive.any() and not positive.all():
            curves.append((classes[index], positive, probabilities[:, index]))
    of_class = f" of {curves[0][0]}" if len(curves) == 1 else ""
    names = ", ".join(name for name, *_ in curves)
    drawn: list[Chart] = []
    if curves:
        drawn = [
            {
                "title": f"ROC curve{of_class}",
                "figure": line_chart(
                    [Line(name, *roc(positive, score)) for name, positive, score in curves],
                    title=f"ROC curve of {names}, out-of-fold",
                    x_label="False positive rate",
                    y_label="True positive rate",
                    diagonal=True,
                ),
                "note": "The nearer to the upper left corner the better; the dotted diagonal is chance.",
            },
            {
                "title": f"Precision and recall{of_class}",
                "figure": line_chart(
                    [Line(name, *precision_recall(positive, score)) for name, positive, score in curves],
                    title=f"Precision against recall of {names}, out-of-fold",
                    x_label="Recall",
                    y_label="Precision",
                ),
                "note": "How many calls are right, against how many cases are found.",
            },
        ]
    reliability = metrics.get("reliability")
    return [*drawn, calibration(reliability)] if reliability else drawn


def calibration(reliability: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart:
    """Draw how often predictions of a stated confidence are right, before and after temperature scaling."""
    names = {"uncalibrated": "as the models state it", "calibrated": "after temperature scaling"}
    lines = [
        Line(
            name,
            [group["confidence"] for group in reliability[kind]],
            [group["accuracy"] for group in reliability[kind]],
            markers=True,
            line=False,
            # whiskers of one: two of them would hide each other
            low=[group["low"] for group in reliability[kind]] if kind == "calibrated" else None,
            high=[group["high"] for group in reliability[kind]] if kind == "calibrated" else None,
        )
        for kind, name in names.items()
        if reliability.get(kind)
    ]
    # no prediction of two classes is less sure than 0.5: the empty half of the chart would squeeze the other
    least = min((group["confidence"] for kind in names for group in reliability.get(kind) or ()), default=0.0)
    return {
        "title": "Calibration",
        "figure": line_chart(
            lines,
            title="Share of right predictions against stated confidence",
            x_label="Probability of the predicted class",
            y_label="Share that is right",
            x_range=(float(np.floor(least * 10) / 10), 1.0),
            diagonal=True,
        ),
        "note": "Groups of slides of equal size, after scaling with 95 % intervals; on the dotted diagonal, "
        "probabilities mean what they say.",
    }


def abstention(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Chart]:
    """Draw how accuracy rises as the least certain slides are left to a person."""
    lines = [
        Line(name, [p["coverage"] for p in curves[kind]], [p["accuracy"] for p in curves[kind]])
        for kind, name in CURVE_NAMES.items()
        if curves.get(kind)
    ]
    if not lines:
        return []
    low = min(float(np.min(np.asarray(line.y, dtype=np.float64))) for line in lines)
    return [
        {
            "title": "Accuracy against slides decided",
            "figure": line_chart(
                lines,
                title="Accuracy on the most certain share of the slides, against that share",
                x_label="Share of slides decided, most certain first",
                y_label="Accuracy on them",
                y_range=(np.floor(low * 10) / 10, 1.0),
            ),
            "note": "Read from right to left: how accuracy moves as the least certain slides are left to a person. At "
            "the left few slides remain and the curve scatters.",
        }
    ]


def deletion(found: Mapping[str, Any]) -> list[Chart]:
    """Draw how the prediction falls as patches are taken away, most attended first and at random."""
    names = {"attended": "most attended first", "random": "at random"}
    lines = [
        Line(
            name,
            found["fractions"],
            [point["value"] for point in found[kind]],
            low=[point["low"] for point in found[kind]],
            high=[point["high"] for point in found[kind]],
        )
        for kind, name in names.items()
    ]
    return [
        {
            "title": "Deletion curve",
            "figure": line_chart(
                lines,
                title="Mean probability of the predicted class against the share of patches taken away",
                x_label="Share of patches taken away",
                y_label="Probability of the class first predicted",
                x_range=(0.0, float(max(found["fractions"]))),
            ),
            "note": "If attention marks what the prediction rests on, taking the most attended patches away lowers it "
            "sooner than taking patches at random. Bands: 95 % intervals over patients.",
        }
    ]


def confusion_shares(confusion: Sequence[Sequence[int]]) -> list[list[float]]:
    """Give each cell's share of its row; 0 in empty rows."""
    counts: NDArray[np.float64] = np.asarray(confusion, dtype=np.float64)
    if not counts.size:
        return []
    found: list[list[float]] = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).tolist()
    return found
