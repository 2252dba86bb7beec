"""The HTML report: one file that needs nothing but the pictures beside it."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from pipeline import stability_page, store
from pipeline.charts import Line, line_chart
from pipeline.evaluation import SlideResult, pooled_arrays, precision_recall, roc
from pipeline.versions import __version__

METRIC_NAMES = {
    "auroc": ("AUROC", "chance that a slide of a class ranks above one of another; 0.5 is chance"),
    "auprc": ("AUPRC", "average precision; chance is the share of the class"),
    "balanced_accuracy": ("Balanced accuracy", "mean over the classes of the share recognised"),
    "accuracy": ("Accuracy", "share of slides predicted as labelled"),
    "macro_f1": ("Macro F1", "mean over the classes of the balance of precision and recall"),
    "brier": ("Brier score", "squared error of the probabilities; lower is better"),
    "ece": ("Calibration error", "gap between stated and observed confidence; lower is better"),
}
"""Name and one clause of explanation, in the order of the table."""

COMPARED_METRICS = ("auroc", "balanced_accuracy", "macro_f1", "brier")
"""Columns of the table that compares models."""

CALIBRATION_GROUPS = 5
"""Groups of equal size on the calibration chart: enough for a shape, few enough for a cohort of 50 slides."""


def render(
    slides: Sequence[SlideResult], metrics: Mapping[str, Any], *, title: str, heatmaps: Path, models: Path
) -> str:
    """Make the report.

    Parameters
    ----------
    slides
        All results.
    metrics
        As `evaluation.evaluate` gives them.
    title
        Heading of the page.
    heatmaps
        Folder with a PNG a slide, beside the report; a slide without one is shown without a picture.

    models
        Folder with a `fold-{k}` for each model, whose stability records are shown where there are some.

    Returns
    -------
    HTML; every text that comes from a file or a user is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    used = [slide for slide in slides if slide.counts]
    return environment.get_template("index.html.jinja").render(
        title=title,
        version=__version__,
        metrics={"models": {}, **metrics},
        compared_metrics=[name for name in COMPARED_METRICS if name in metrics["pooled"]],
        metric_rows=metric_rows(metrics["pooled"]),
        fold_columns=[name for name in METRIC_NAMES if any(name in fold for fold in metrics["folds"])],
        metric_names=METRIC_NAMES,
        charts=charts(used, metrics["classes"]) if used else [],
        cards=[card(slide, heatmaps) for slide in slides],
        left_out=[slide for slide in slides if slide.status != store.OK],
        warned=[slide for slide in slides if slide.status == store.OK and slide.warnings],
        spoilt=spoilt(slides),
        label_counts=label_counts(slides),
        stability=stability_page.render(stability_page.read(models)),
        level=f"{metrics['interval']['level']:.0%}",
    )


def figure(value: float | None) -> str:
    """Write a figure of merit with three decimals, or a dash where it is not defined."""
    return "\N{EN DASH}" if value is None else f"{value:.3f}"


def metric_rows(pooled: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """Give the rows of the performance table, with the interval's place on a scale from 0 to 1 in per cent."""
    rows = []
    for name in [*METRIC_NAMES, *sorted(set(pooled) - set(METRIC_NAMES))]:
        if name not in pooled:
            continue
        label, meaning = METRIC_NAMES.get(name, (name, ""))
        entry = pooled[name]
        row: dict[str, Any] = {"name": label, "meaning": meaning, "bar": None, **entry}
        if entry["value"] is not None and entry["low"] is not None and entry["high"] is not None:
            low, high, value = (min(max(float(entry[key] or 0.0), 0.0), 1.0) for key in ("low", "high", "value"))
            row["bar"] = {"left": f"{100 * low:.1f}", "width": f"{100 * (high - low):.1f}", "dot": f"{100 * value:.1f}"}
        rows.append(row)
    return rows


def charts(used: Sequence[SlideResult], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Draw ROC, precision-recall and calibration of the out-of-fold predictions."""
    labels, probabilities = pooled_arrays(used, classes)
    curves = []
    for index in [1] if len(classes) == 2 else range(len(classes)):
        positive = labels == index
        if positive.any() and not positive.all():
            curves.append((classes[index], positive, probabilities[:, index]))
    drawn = []
    of_class = f" of {curves[0][0]}" if len(curves) == 1 else ""
    if curves:
        drawn = [
            {
                "title": f"ROC curve{of_class}",
                "svg": Markup(  # noqa: S704 - the chart escapes every text in it
                    line_chart(
                        [Line(name, *roc(positive, score)) for name, positive, score in curves],
                        title=f"ROC curve of {', '.join(name for name, *_ in curves)}, out-of-fold",
                        x_label="False positive rate",
                        y_label="True positive rate",
                        diagonal=True,
                    )
                ),
                "note": "The nearer to the upper left corner the better; the dotted diagonal is chance.",
            },
            {
                "title": f"Precision and recall{of_class}",
                "svg": Markup(  # noqa: S704
                    line_chart(
                        [Line(name, *precision_recall(positive, score)) for name, positive, score in curves],
                        title=f"Precision against recall of {', '.join(name for name, *_ in curves)}, out-of-fold",
                        x_label="Recall",
                        y_label="Precision",
                    )
                ),
                "note": "How many calls are right, against how many cases are found.",
            },
        ]
    confidence, hit = probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels).astype(np.float64)
    groups = np.array_split(np.argsort(confidence, kind="stable"), min(CALIBRATION_GROUPS, len(used)))
    drawn.append(
        {
            "title": "Calibration",
            "svg": Markup(  # noqa: S704
                line_chart(
                    [
                        Line(
                            "",
                            [confidence[group].mean() for group in groups],
                            [hit[group].mean() for group in groups],
                            markers=True,
                        )
                    ],
                    title="Share of right predictions against stated confidence",
                    x_label="Probability of the predicted class",
                    y_label="Share that is right",
                    diagonal=True,
                )
            ),
            "note": f"{len(groups)} groups of slides of equal size; "
            "on the dotted diagonal, probabilities mean what they say.",
        }
    )
    return drawn


def spoilt(slides: Sequence[SlideResult]) -> list[dict[str, Any]]:
    """Give the slides of which tiles were left out for their quality, the largest share first."""
    rows = [
        {
            "slide_id": slide.slide_id,
            "used": slide.patches,
            **{flag: slide.excluded.get(flag, 0) for flag in ("pen", "blur", "fold")},
            "share": sum(slide.excluded.values()) / (slide.patches + sum(slide.excluded.values())),
        }
        for slide in slides
        if sum(slide.excluded.values())
    ]
    return sorted(rows, key=lambda row: -row["share"])


def label_counts(slides: Sequence[SlideResult]) -> list[tuple[str, int, int]]:
    """Give slides and patients by label, sorted by label; unlabelled slides last, under an empty name."""
    names = sorted({slide.label for slide in slides}, key=lambda name: (not name, name))
    counts = []
    for name in names:
        of_label = [slide for slide in slides if slide.label == name]
        counts.append((name, len(of_label), len({slide.patient_id or slide.slide_id for slide in of_label})))
    return counts


def card(slide: SlideResult, heatmaps: Path) -> dict[str, Any]:
    """Give what the gallery shows of one slide."""
    found = slide.prediction
    has_picture = (heatmaps / f"{slide.slide_id}.png").is_file()
    verdict = "left-out" if found is None else "unlabelled" if not slide.label else "right" if slide.agrees else "wrong"
    return {
        "slide": slide,
        "verdict": verdict,
        "picture": f"{quote(heatmaps.name)}/{quote(slide.slide_id, safe='')}.png" if has_picture else None,
        "probability": max(found.probabilities) if found else 0.0,
        "spread": found.fold_spread if found else 0.0,
        "models": len(found.folds) if found else 0,
        "agreement": None if found is None or math.isnan(found.map_agreement) else found.map_agreement,
        "order": natural_key(slide.slide_id),
    }


def natural_key(slide_id: str) -> str:
    """Give a text that sorts slide-2 before slide-10."""
    return re.sub(r"\d+", lambda digits: digits.group().zfill(12), slide_id.casefold())
