"""Predict one slide: by the models that never saw it if it is labelled, by all of them if it is new."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asmil.inference import predict
from asmil.stability import agreement
from pipeline import outcomes, store
from pipeline.errors import ArtefactError
from pipeline.model_folder import load_model, read_description
from pipeline.split import Assignment, read_splits
from pipeline.tasks import CLASSIFICATION

log = logging.getLogger(__name__)


def folds_for(slide_id: str, rows: Sequence[Assignment]) -> tuple[list[int], str]:
    """Choose the models that may judge a slide.

    Returns
    -------
    The folds, and where the prediction comes from: `out_of_fold` if the slide is labelled, else `ensemble`.
    """
    tested = sorted({row.fold for row in rows if row.slide_id == slide_id and row.role == "test"})
    if tested:
        return tested, "out_of_fold"
    return sorted({row.fold for row in rows}), "ensemble"


def unseen(folds: Sequence[int], *, models: Path, fingerprint: str) -> list[int]:
    """Leave out the models that were trained on this very file under another id; all are kept if all were."""
    kept = [fold for fold in folds if fingerprint not in read_description(models / f"fold-{fold}")["seen"]]
    return kept or list(folds)


def run(bag: Path, *, splits: Path, models: Path, attention: Path, device: str) -> None:
    """Write the prediction and the attention of one slide.

    Parameters
    ----------
    bag
        The slide's bag; an empty one (of a quarantined slide) gives an empty result that says why.
    splits, models
        The splits file, and the folder with a `fold-{k}` for each fold.
    attention
        The artefact to write.
    device
        `cpu` or `cuda`.
    """
    stored = store.read(bag)
    slide_id = stored.attributes["slide_id"]
    found = store.carried_over(stored.attributes)
    arrays: dict[str, NDArray[Any]] = {}
    rows = read_splits(splits)
    own = next((row for row in rows if row.slide_id == slide_id), None)
    if stored.ok:
        folds, source = folds_for(slide_id, rows)
        folds = unseen(folds, models=models, fingerprint=stored.attributes["fingerprint"])
        folders = [models / f"fold-{fold}" for fold in folds]
        found |= {"task": read_description(folders[0])["task"], "folds": folds, "source": source}
    if stored.ok and found["task"] != CLASSIFICATION:
        arrays, attributes = outcomes.predict(stored, folders, device=device)
        found |= attributes
        log.info("%s: %.4g by folds %s", slide_id, attributes["value"], folds)
    elif stored.ok:
        probability, fold_scores, classes = judge(stored, folders, device=device)
        mean = probability.mean(0)
        winner = int(mean.argmax())
        alike = agreement(fold_scores)
        arrays = {
            "score": fold_scores.mean(0),
            "fold_scores": fold_scores,
            "coords": stored.arrays["coords"],
            "probability": probability,
        }
        found |= {
            "classes": classes,
            "predicted": classes[winner],
            "probabilities": [float(value) for value in mean],
            "fold_spread": float(probability[:, winner].std()),
            "map_agreement": None if math.isnan(alike) else alike,
        }
        log.info("%s: %s (%.3f) by folds %s", slide_id, classes[winner], mean[winner], folds)
    found |= {"label": own.label if own else None, "patient_id": own.patient_id if own else ""}
    store.write(
        attention,
        arrays,
        store.stage_attributes(
            "predict",
            slide_id=slide_id,
            fingerprint=stored.attributes["fingerprint"],
            error=store.inherited_error(stored.attributes),
            **found,
        ),
    )


def judge(
    stored: store.Artefact, folders: Sequence[Path], *, device: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
    """Apply each model to one bag.

    Returns
    -------
    probability
        Shape (F, C), rows sum to 1.
    scores
        Shape (F, N), each row a patch's share of the attention, sums to 1.
    classes
        Names of the classes.

    Raises
    ------
    ArtefactError
        If a model was trained on bags made otherwise, or two models have other classes.
    """
    probabilities, scores, classes = [], [], None
    for folder in folders:
        model, description = load_model(folder)
        description.check_bag(stored.attributes, folder=folder)
        if classes is None:
            classes = description.classes
        elif classes != description.classes:
            raise ArtefactError(f"{folder} has the classes {description.classes}, others {classes}; train again")
        prediction = predict(model, description.standardised(stored.arrays["features"]), device=device)
        probabilities.append(prediction.probabilities)
        scores.append(prediction.score)
    return np.stack(probabilities).astype(np.float32), np.stack(scores).astype(np.float32), classes or []
