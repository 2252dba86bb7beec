"""The model card: what a folder of trained models is for, what it was made of, and how good it is, for who gets it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from pipeline import encoders, store
from pipeline.errors import ConfigError
from pipeline.evaluation import SlideResult
from pipeline.json_text import parse_object
from pipeline.model_index import folds_of
from pipeline.report_page import METRIC_NAMES, label_counts
from pipeline.tasks import CLASSIFICATION, HEADLINE
from pipeline.versions import __version__

FEW_PATIENTS = 50
"""Patients below which a card warns that the numbers are rough: an accuracy of 0.8 of 50 is 0.67 to 0.89 (Wilson)."""
CHANCE = 0.5
MAX_NAMED = 12
"""Sites that a card names; the rest are counted."""


def render(
    slides: Sequence[SlideResult],
    metrics: Mapping[str, Any],
    *,
    cohort: Path,
    splits: Sequence[Mapping[str, str]],
    models: Path,
    name_sites: bool = True,
) -> str:
    """Write the card.

    Parameters
    ----------
    slides, metrics
        All results, and what `metrics.json` holds of them.
    cohort, splits
        The cohort table, and the rows of `splits.csv`.
    models
        Folder with a `fold-{k}` for each model.
    name_sites
        Whether sites are named, and not only counted.

    Returns
    -------
    Markdown; no slide and no patient is named.
    """
    found = [described(models / f"fold-{fold}" / "model.json") for fold in folds_of(models)]
    first = found[0]
    task, classes = metrics["task"], metrics["classes"]
    rows = store.read_rows(cohort, delimiter="\t")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=False,  # noqa: S701 - Markdown, no page
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    by_patient = (metrics["patients"] or {}).get("pooled") or {}
    decisions = metrics.get("decisions")
    return environment.get_template("model_card.md.jinja").render(
        name=name_of(first),
        learned={"classification": " or ".join(map(cell, classes))}.get(task, task),
        output={
            "classification": "a probability of each class of a slide, a calibrated one, and a decision or none",
            "survival": "a log hazard relative to the median training slide, no probability and no time",
        }.get(task, "a number in the unit of the labels"),
        version=__version__,
        classes=classes,
        group="label" if task == CLASSIFICATION else "outcome",
        labels=label_counts(slides, task=task),
        sites=sites(rows, named=name_sites),
        vendors=counted([row["vendor"] for row in rows if row["vendor"]]),
        mpp=spread([row["mpp"] for row in rows if row["mpp"]]),
        n_cohort=metrics["n_cohort"],
        n_left_out=metrics["n_left_out"],
        encoder=first["bags"],
        licence=licence(first["bags"]["encoder"]),
        preparation=prepared(first["preparation"]),
        options=settings_of(first["options"]),
        training=settings_of(first["training"]),
        calibrated=task == CLASSIFICATION,
        models=[model | roles(splits, model["fold"]) for model in found],
        rows=[
            {"name": label, "slides": figure(entry), "patients": figure(by_patient.get(key))}
            for key, (label, _) in METRIC_NAMES.items()
            if (entry := metrics["pooled"].get(key)) is not None
        ],
        by_patient=bool(by_patient),
        scatter=scatter(metrics),
        interval=metrics["interval"],
        n_slides=metrics["n_slides"],
        n_patients=metrics["n_patients"],
        confusion=metrics["confusion"],
        decisions=decisions,
        decided=decided(decisions["pooled"]) if decisions else "",
        limits=limits(metrics, found, sites=len({row["site"] for row in rows if row["site"]})),
        versions=first["versions"],
    )


def decided(pooled: Mapping[str, Mapping[str, float | None]]) -> str:
    """Say how right the decisions were; a figure of no slide is left out, one of 0 is not."""
    return "; ".join(f"{name} {figure(entry)}" for name, entry in pooled.items() if entry["value"] is not None)


def name_of(description: Mapping[str, Any]) -> str:
    """Name a model as the configuration does: with what the anchor did, where that is not what its name says alone."""
    model, mode = description["model"], description["training"]["anchor"]["mode"]
    usual = "ema" if model == "asmil" else "none"
    return str(model) if mode == usual else f"{model}+{mode}"


def described(path: Path) -> dict[str, Any]:
    """Read one model's description."""
    return parse_object(path.read_bytes())


def limits(metrics: Mapping[str, Any], models: Sequence[Mapping[str, Any]], *, sites: int) -> list[str]:
    """Say what a reader must know before trusting the numbers, a sentence each.

    Parameters
    ----------
    metrics
        What `metrics.json` holds.
    models
        The models' descriptions.
    sites
        How many sites the cohort table names.
    """
    times = metrics["repeats"]["n"] if metrics["repeats"] else 1
    judges = f"{times} models, each of another repeat," if times > 1 else "one model"
    said = [
        f"The numbers are those of {judges} on slides held out; the mean of all {len(models)} models, which predicts a"
        " new slide, was measured on none.",
        "Intervals say how the numbers might move with other patients of the same kind, not how they would fare with"
        " another tissue, stain, scanner or population.",
    ]
    said += better_models(metrics)
    auroc = metrics["pooled"].get("auroc", {})
    if auroc.get("low") is not None and auroc["low"] <= CHANCE:
        said.append("The AUROC's interval holds 0.5: by these numbers the models may be no better than chance.")
    if metrics["n_patients"] < FEW_PATIENTS:
        said.append(f"{metrics['n_patients']} labelled patients are few: read the intervals, not the values.")
    if any(entry["value"] is not None and entry["low"] == entry["high"] for entry in metrics["pooled"].values()):
        said.append(
            "Some intervals have no width: the cohort holds no case that would move the value, which does not mean that"
            " none exists."
        )
    if sites == 0:
        said.append("The labels name no sites: whether the models learned the site instead of the label is unknown.")
    elif sites == 1:
        said.append("All slides are of one site: nothing is known about another.")
    if metrics.get("confounding") and metrics["confounding"]["warning"]:
        said.append(metrics["confounding"]["warning"])
    if metrics["task"] == CLASSIFICATION:
        unknown = sum(model["outliers"] is None for model in models)
        said.append(
            f"{unknown} of {len(models)} models cannot tell a slide unlike their training slides, which were too few."
            if unknown
            else "A slide unlike the training slides is abstained from by the distance of its mean features: one whose"
            " mean looks ordinary is not seen."
        )
    gap = (metrics.get("deletion") or {}).get("gap")
    if gap and not (gap["low"] is not None and gap["low"] > 0):
        said.append("The most attended patches matter no more than random ones: do not read the maps as evidence.")
    return said


def scatter(metrics: Mapping[str, Any]) -> str:
    """Say how far the repeats alone scatter; empty with one."""
    metric, name = HEADLINE[metrics["task"]]
    repeats = metrics["repeats"]
    found = repeats["summary"].get(metric) if repeats else None
    if not found or found["mean"] is None or found["sd"] is None:
        return ""
    return f"Each of {repeats['n']} repeats of the division alone: {name} {found['mean']:.3f}, sd {found['sd']:.3f}."


def better_models(metrics: Mapping[str, Any]) -> list[str]:
    """Name the further models of the run that were better than this one, by an interval that does not hold 0."""
    metric, name = HEADLINE[metrics["task"]]
    said = []
    for model, differences in (metrics.get("differences") or {}).items():
        found = differences.get(metric)
        if found is None or found["low"] is None:
            continue
        if found["high"] < 0 if metric == "mae" else found["low"] > 0:
            difference = f"{found['value']:+.3f}, {found['low']:+.3f} to {found['high']:+.3f}"
            said.append(f"Another model of the same run, {model}, was better on the same slides ({name} {difference}).")
    return said


def roles(splits: Sequence[Mapping[str, str]], fold: int) -> dict[str, int]:
    """Count the slides of each role in a fold."""
    counts = Counter(row["role"] for row in splits if int(row["fold"]) == fold)
    return {f"n_{role}": counts[role] for role in ("train", "validation", "test")}


def licence(encoder: str) -> str:
    """Give the licence of an encoder's weights where its registry entry says it."""
    try:
        return encoders.spec(encoder, Path()).licence
    except ConfigError:  # a plug-in, or a snapshot that is not here: the card says nothing of it
        return ""


def sites(rows: Sequence[Mapping[str, str]], *, named: bool) -> str:
    """Say how many slides are of which site."""
    known = [row["site"] for row in rows if row["site"]]
    if not known:
        return "not named in the labels"
    return counted(known) if named else f"{len(set(known))}"


def counted(values: Sequence[str]) -> str:
    """Count equal values in words, the most frequent first."""
    found = Counter(values).most_common()
    more = f", and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return ", ".join(f"{cell(value)} ({count})" for value, count in found[:MAX_NAMED]) + more if found else "not stated"


def spread(numbers: Sequence[str]) -> str:
    """Give the range of numbers in words."""
    values = sorted(map(float, numbers))
    if not values:
        return "not stated"
    return f"{values[0]:.4g}" if values[0] == values[-1] else f"{values[0]:.4g} to {values[-1]:.4g}"


def prepared(preparation: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Give what is set of the preparation beside encoder and scale, which the card names on their own."""
    shown = {**preparation.get("tile", {}), **preparation.get("embed", {})}
    return {k: v for k, v in shown.items() if k not in ("encoder", "patch_px", "target_mpp") and v is not None}


def settings_of(options: Mapping[str, Any]) -> str:
    """Write settings in a line; what has settings of its own (the anchor) in parentheses."""
    return ", ".join(
        f"{name} ({settings_of(value)})" if isinstance(value, Mapping) else f"{name} {value}"
        for name, value in options.items()
        if value is not None
    )


def figure(entry: Mapping[str, float | None] | None) -> str:
    """Write a value with its interval."""
    if entry is None or entry["value"] is None:
        return "not defined"
    if entry["low"] is None or entry["high"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def cell(text: str) -> str:
    """Keep text that a user wrote from ending a table's cell or beginning markup, also that of HTML."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for letter in "\\|`*_[]":
        flat = flat.replace(letter, f"\\{letter}")
    return flat
