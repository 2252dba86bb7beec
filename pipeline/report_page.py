"""The HTML report: one file that needs nothing but, where they are many, the pictures beside it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline import (
    agreement_page,
    charts,
    gallery,
    outcome_figures,
    outcomes,
    report_charts,
    stability_page,
    store,
    viewer,
)
from pipeline.evaluation import SlideResult
from pipeline.flags import FLAGS
from pipeline.json_text import parse_object
from pipeline.report_charts import Chart
from pipeline.tasks import CLASSIFICATION
from pipeline.versions import __version__

METRIC_NAMES = {
    "auroc": ("AUROC", "chance that a slide of a class ranks above one of another; 0.5 is chance"),
    "auprc": ("AUPRC", "average precision; chance is the share of the class"),
    "balanced_accuracy": ("Balanced accuracy", "mean over the classes of the share recognised"),
    "accuracy": ("Accuracy", "share of slides predicted as labelled"),
    "macro_f1": ("Macro F1", "mean over the classes of the balance of precision and recall"),
    "sensitivity_at_90_specificity": (
        "Sensitivity at 90 % specificity",
        "cases found when one in ten of the others is called, too",
    ),
    "specificity_at_90_sensitivity": (
        "Specificity at 90 % sensitivity",
        "others left alone when nine in ten cases are found",
    ),
    "sensitivity": ("Sensitivity", "share of the cases that is found"),
    "specificity": ("Specificity", "share of the others that is left alone"),
    "brier": ("Brier score", "squared error of the probabilities; lower is better"),
    "ece": ("Calibration error", "gap between stated and observed confidence; lower is better"),
    "log_loss": ("Log loss", "mean negative log probability of the label, nats; lower is better"),
    **outcome_figures.METRIC_NAMES,
}
"""Name and one clause of explanation, in the order of the tables."""

COMPARED_METRICS = ("auroc", "balanced_accuracy", "macro_f1", "brier", "c_index", "mae", "r2", "spearman")
"""Columns of the table that compares models."""

FOLD_METRICS = ("auroc", "balanced_accuracy", "macro_f1", "temperature", "threshold", "c_index", "mae", "spearman")
OPTIONAL = ("models", "differences", "patients", "calibrated", "uncalibrated", "decisions", "abstention", "deletion")
"""Parts of the metrics that a run may lack; the page leaves them out then."""


def render(
    slides: Sequence[SlideResult],
    metrics: Mapping[str, Any],
    *,
    title: str,
    reports: Path,
    models: Path,
    folds: Sequence[int],
    views: Path,
    compared: Mapping[str, Path] | None = None,
    agreement: Mapping[str, Path] | None = None,
    show: Callable[[str], str] = str,
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
    reports
        Folder of the page, with `heatmaps/{slide}.png`; a slide without one is shown without a link to it. Pictures are
        put beside the page where they are many (`gallery.pictures`).
    models
        Folder with a `fold-{k}` for each model, whose stability records are shown where there are some.
    folds
        Numbers of the models; others in the folder stayed from an earlier division.
    compared
        The same folder of every model that is compared, by name.
    agreement
        Where the folds' maps are compared (`pipeline.agreement`), by model, first the one that predicts.
    views
        Folder with the viewer's `{slide}.json`.
    show
        Gives the name that the page shows for a slide that is named beside the results.

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
    environment.filters |= {"figure": figure, "signed": signed, "inside_script": inside_script}
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # Bokeh reads its models in their order
    known = {"task": CLASSIFICATION, "confounding": None, **dict.fromkeys(OPTIONAL), **metrics}
    used = [slide for slide in slides if slide.counts]
    cards = [gallery.card(slide, reports / "heatmaps") for slide in slides]
    of_others = {name: stability_page.read(folder, folds) for name, folder in (compared or {}).items()}
    stability = stability_page.render(stability_page.read(models, folds), of_others)
    drawn = {
        "performance": _performance_charts(used, known) if used else [],
        "abstention": report_charts.abstention(known["abstention"]) if known["abstention"] else [],
        "deletion": report_charts.deletion(known["deletion"]) if known["deletion"] else [],
        "stability": stability["charts"] if stability else [],
    }
    return environment.get_template("index.html.jinja").render(
        title=title,
        version=__version__,
        metrics=known,
        metric_names=METRIC_NAMES,
        metric_rows=metric_rows(known["pooled"]),
        calibrated_rows=metric_rows(known["calibrated"] or {}),
        patient_rows=metric_rows((known["patients"] or {}).get("pooled", {})),
        decision_rows=metric_rows((known["decisions"] or {}).get("pooled", {})),
        decided_shares=report_charts.confusion_shares((known["decisions"] or {}).get("confusion", [])),
        compared_metrics=[name for name in COMPARED_METRICS if name in known["pooled"]],
        fold_columns=[name for name in FOLD_METRICS if any(fold.get(name) is not None for fold in known["folds"])],
        shares=report_charts.confusion_shares(known["confusion"]),
        charts=place(drawn),
        plots=[charts.item(chart["figure"], target) for target, chart in targets(drawn)],
        viewer=charts.item(viewer.plot(), "viewer-plot"),
        script=Markup(charts.script()),  # noqa: S704 - the installed package's own script
        cards=cards,
        all_flags=[flag for flag in gallery.FLAGS if any(flag in card["flags"] for card in cards)],
        pictures=gallery.pictures(views, [slide.slide_id for slide in slides], reports=reports),
        left_out=[slide for slide in slides if slide.status != store.OK],
        warned=[slide for slide in slides if slide.status == store.OK and slide.warnings],
        spoilt=spoilt(slides),
        label_counts=label_counts(slides, task=known["task"]),
        stability=stability,
        anchors=anchor_modes(compared or {}),
        agreement=agreement_page.render(agreement or {}, show=show),
        level=f"{known['interval']['level']:.0%}",
    )


def anchor_modes(folders: Mapping[str, Path]) -> dict[str, str]:
    """Say what the anchor did in the training of the models in some folders; a dash where nothing is known of one."""
    found = {}
    for name, folder in folders.items():
        first = next(iter(sorted(folder.glob("fold-*/model.json"))), None)
        found[name] = "\N{EN DASH}" if first is None else parse_object(first.read_bytes())["training"]["anchor"]["mode"]
    return found


def _performance_charts(used: Sequence[SlideResult], metrics: Mapping[str, Any]) -> list[Chart]:
    if metrics["task"] == CLASSIFICATION:
        return report_charts.performance(used, metrics)
    return outcome_figures.charts(used, metrics["task"])


def targets(drawn: Mapping[str, Sequence[Chart]]) -> list[tuple[str, Chart]]:
    """Give every chart with the id of the element it is drawn in."""
    return [(f"chart-{part}-{index}", chart) for part, found in drawn.items() for index, chart in enumerate(found)]


def place(drawn: Mapping[str, Sequence[Chart]]) -> dict[str, list[dict[str, Any]]]:
    """Give what the template shows of the charts, by part of the page."""
    return {
        part: [
            {
                "id": f"chart-{part}-{index}",
                "title": chart["title"],
                "words": chart["figure"].name,
                "height": chart["figure"].height,
                "note": chart["note"],
            }
            for index, chart in enumerate(found)
        ]
        for part, found in drawn.items()
    }


def figure(value: float | None) -> str:
    """Write a figure of merit with three decimals, or a dash where it is not defined."""
    return "\N{EN DASH}" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Write a difference with its sign."""
    return "\N{EN DASH}" if value is None else f"{value:+.3f}"


def inside_script(json_text: str) -> Markup:
    """Make JSON text safe inside a script element: no tag can begin in it, and it means the same."""
    return Markup(json_text.replace("<", "\\u003c"))  # noqa: S704 - nothing else ends a script element


def metric_rows(pooled: Mapping[str, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """Give the rows of the performance table, with the interval's place on a scale from 0 to 1 in per cent."""
    rows = []
    for name in [*METRIC_NAMES, *sorted(set(pooled) - set(METRIC_NAMES))]:
        if name not in pooled:
            continue
        label, meaning = METRIC_NAMES.get(name, (name, ""))
        entry = pooled[name]
        row: dict[str, Any] = {"name": label, "meaning": meaning, "bar": None, **entry}
        on_scale = name in outcome_figures.ON_UNIT_SCALE or name not in (*outcome_figures.METRIC_NAMES, "log_loss")
        if (
            on_scale
            and (entry["high"] or 0.0) <= 1.0
            and entry["value"] is not None
            and entry["low"] is not None
            and entry["high"] is not None
        ):
            low, high, value = (min(max(float(entry[key] or 0.0), 0.0), 1.0) for key in ("low", "high", "value"))
            row["bar"] = {"left": f"{100 * low:.1f}", "width": f"{100 * (high - low):.1f}", "dot": f"{100 * value:.1f}"}
        rows.append(row)
    return rows


def spoilt(slides: Sequence[SlideResult]) -> list[dict[str, Any]]:
    """Give the slides of which tiles were left out for their quality, the largest share first."""
    rows = [
        {
            "slide_id": slide.slide_id,
            "used": slide.patches,
            **{flag: slide.excluded.get(flag, 0) for flag in FLAGS},
            "share": sum(slide.excluded.values()) / (slide.patches + sum(slide.excluded.values())),
        }
        for slide in slides
        if sum(slide.excluded.values())
    ]
    return sorted(rows, key=lambda row: -row["share"])


def label_counts(slides: Sequence[SlideResult], *, task: str = CLASSIFICATION) -> list[tuple[str, int, int]]:
    """Give slides and patients by label, sorted by label; unlabelled slides last, under an empty name."""
    groups = {slide.slide_id: outcomes.label_group(slide, task=task) for slide in slides}
    names = sorted(set(groups.values()), key=lambda name: (not name, name))
    counts = []
    for name in names:
        of_label = [slide for slide in slides if groups[slide.slide_id] == name]
        counts.append((name, len(of_label), len({slide.patient_id or slide.slide_id for slide in of_label})))
    return counts
