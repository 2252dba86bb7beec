"""The sentences on a slide's page."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decision import ABSTAINED
from pipeline.drawing import TIMES
from pipeline.tasks import CLASSIFICATION, follow_up, task_of

MPP_SOURCES = {
    "properties": "from the slide's properties",
    "override": "from the overrides file",
    "default": "the configured default",
    "objective": "derived from the objective's power",
}


EVEN = 1.05
"""Highest score over the mean below which a page says that attention is even: colours show ranks, which hide it."""


def times_text(times: float) -> str:
    """Write a ratio with two digits that count, and no more than a reader needs."""
    if 0.0 < times < 0.01:
        return "<0.01"
    return f"{times:.0f}" if times >= 9.95 else f"{times:.1f}" if times >= 1.95 else f"{times:.2f}"


def probability_text(probability: float) -> str:
    """Write a probability with two decimals, and never as a certainty."""
    return "> 0.99" if probability > 0.995 else "< 0.01" if probability < 0.005 else f"{probability:.2f}"


def headline(attributes: Mapping[str, Any]) -> tuple[str, str]:
    """Give a prediction in two words: the class and its probability; the risk and its hazard ratio; the number."""
    if task_of(attributes) == CLASSIFICATION:
        chosen = list(attributes["classes"]).index(attributes["predicted"])
        return attributes["predicted"], probability_text(attributes["probabilities"][chosen])
    if task_of(attributes) == "survival":
        return attributes["predicted"], f"{times_text(math.exp(attributes['value']))}{TIMES}"
    return attributes["predicted"], ""


def meaning_text(attributes: Mapping[str, Any]) -> str:
    """Say what a predicted risk or number is relative to; empty for a class."""
    if task_of(attributes) == CLASSIFICATION:
        return ""
    if task_of(attributes) == "survival":
        return (
            f"Hazard {times_text(math.exp(attributes['value']))} times that of the median slide the models were trained"
            f" on (log hazard {attributes['value']:+.2f}); above 1 is high risk. Not a probability or a time."
        )
    return "Predicted number, in the unit of the labels."


def spread_text(attributes: Mapping[str, Any], values: NDArray[np.floating]) -> str:
    """Say how far the models of the folds agree: class probabilities [F, C], log hazards or numbers [F, 1]."""
    if task_of(attributes) != CLASSIFICATION:
        return _outcome_spread(attributes, values[:, 0])
    probability = values
    chosen = list(attributes["classes"]).index(attributes["predicted"])
    models = probability.shape[0]
    if models < 2:
        return "Spread over the folds: none (one model)."
    one = probability[:, chosen]
    votes = int((probability.argmax(axis=1) == chosen).sum())
    return (
        f"Spread over the folds: sd {attributes['fold_spread']:.2f}, range {one.min():.2f} to {one.max():.2f}; "
        f"{votes} of {models} models favour {attributes['predicted']}."
    )


def _outcome_spread(attributes: Mapping[str, Any], values: NDArray[np.floating]) -> str:
    if len(values) < 2:
        return "Spread over the folds: none (one model)."
    of = "log hazard " if task_of(attributes) == "survival" else ""
    spread = f"{of}sd {attributes['fold_spread']:.3g}, range {values.min():.3g} to {values.max():.3g}"
    if task_of(attributes) == "regression":
        return f"Spread over the folds: {spread}."
    alike = int(((values > 0) == (attributes["value"] > 0)).sum())
    return f"Spread over the folds: {spread}; {alike} of {len(values)} models say {attributes['predicted']}."


def label_text(attributes: Mapping[str, Any]) -> str:
    """Say what the label is, and whether the prediction agrees."""
    label = attributes.get("label")
    if label is None:
        return "Label: none."
    if task_of(attributes) == "survival":
        time, event = follow_up(label)
        return f"Label: event at {time:g}." if event else f"Label: no event until {time:g}, when last seen."
    if attributes.get("source") == "seen":
        return f"Label: {label}."
    if task_of(attributes) == "regression":
        return f"Label: {label} (prediction {attributes['value'] - float(label):+.3g})."
    return f"Label: {label} ({'prediction agrees' if label == attributes['predicted'] else 'PREDICTION DIFFERS'})."


def decision_text(attributes: Mapping[str, Any]) -> str:
    """Say what was decided, where that is more than the most probable class; empty otherwise."""
    decision, reason = attributes.get("decision", ""), attributes.get("decision_reason", "")
    if decision == ABSTAINED:
        return f"ABSTAINED, left to a person: {reason}."
    if decision and decision != attributes["predicted"]:
        return f"Decided by the threshold: {decision}."
    return ""


def source_text(attributes: Mapping[str, Any]) -> str:
    """Say which models predicted and drew."""
    folds = list(attributes["folds"])
    if attributes["source"] == "ensemble":
        return f"Drawn by the ensemble of {len(folds)} models; none of them ever saw this slide."
    if attributes["source"] == "seen":
        return "NOT HELD OUT: models that drew this were trained on this slide; that they know its label shows nothing."
    named = f"fold {folds[0]}" if len(folds) == 1 else f"folds {', '.join(map(str, folds))}"
    return f"Out-of-fold: drawn by models that never saw this slide ({named})."


def quality_notes(attributes: Mapping[str, Any], tiles: int) -> list[str]:
    """Say what was analysed, at which scale, and what looked odd; one sentence each, warnings first."""
    patch_um = attributes["patch_px"] * attributes["realised_mpp"]
    unreadable = int(attributes.get("unreadable", 0))
    left_out = (
        "no unreadable tiles" if unreadable == 0 else f"{unreadable:,} unreadable tile{'' if unreadable == 1 else 's'}"
    )
    source = MPP_SOURCES.get(attributes["mpp_source"], attributes["mpp_source"])
    return [
        *(f"Warning: {sentence}" for sentence in attributes.get("warnings", ())),
        f"{tiles:,} patch{'' if tiles == 1 else 'es'} of {attributes['patch_px']} px "
        f"at {attributes['realised_mpp']:.3f} µm/px "
        f"({patch_um:.0f} µm), {left_out} left out.",
        f"Slide {attributes['width']:,} {TIMES} {attributes['height']:,} px at {attributes['mpp_x']:.4g} µm/px, "
        f"{source}; tissue {attributes['tissue_area_mm2']:.3g} mm².",
    ]


def reading_note(score: NDArray[np.floating], *, evidence: bool = False) -> str:
    """Say how attention was normalised, and how widely the scores [N] are spread."""
    effective = 1.0 / float(np.square(score).sum())
    even = (
        " No patch weighs 5 % more than the mean: the prediction rests on all of them."
        if score.max() < EVEN * score.mean()
        else ""
    )
    of_classes = " Evidence: how far a patch moves the score of a class (gradient times input)." if evidence else ""
    return (
        "Normalisation: rank of each patch's attention within this slide, from 0 (least) to 100 (most); colours do not "
        "compare between slides. Where tiles overlap, ranks are averaged; untinted pixels were not analysed. "
        f"Attention is spread as over {effective:,.0f} of {score.size:,} patches (1 / Σ a²).{even} "
        f"It shows what the model weighed, not what is diseased.{of_classes}"
    )
