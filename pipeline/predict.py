"""Predict one slide: by the models that never saw it if it is labelled, by all of them if it is new."""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asmil.inference import Prediction, evidence, predict
from asmil.stability import agreement
from pipeline import outcomes, store
from pipeline.calibration import softmax
from pipeline.checksums import sha256_of
from pipeline.decision import DecisionOptions, decide
from pipeline.errors import ArtefactError
from pipeline.faithfulness import deletion
from pipeline.look_alikes import alike
from pipeline.model_folder import ModelFolder, load_model, read_description
from pipeline.model_index import folds_of
from pipeline.outliers import summary_vector
from pipeline.split import Assignment, read_splits
from pipeline.tasks import CLASSIFICATION

log = logging.getLogger(__name__)


def folds_for(slide_id: str, rows: Sequence[Assignment]) -> tuple[list[int], str]:
    """Choose the models that may judge a slide.

    Returns
    -------
    The folds, and where the prediction comes from: `out_of_fold` if the slide was in a test part, `seen` if it is
    labelled and never was (all models, some of which were trained on it), else `ensemble` (all models).
    """
    roles = {row.role for row in rows if row.slide_id == slide_id}
    if "test" in roles:
        return sorted({row.fold for row in rows if row.slide_id == slide_id and row.role == "test"}), "out_of_fold"
    return sorted({row.fold for row in rows}), "seen" if roles else "ensemble"


def folds_in(models: Path) -> list[int]:
    """Give the numbers of the models in a folder, as `model_index.folds_of`.

    Raises
    ------
    ArtefactError
        If there are none.
    """
    folds = folds_of(models)
    if not folds:
        raise ArtefactError(f"{models} has no trained model (fold-0/model.json); name the folder that a run wrote")
    return folds


def unseen(folds: Sequence[int], *, models: Path, attributes: Mapping[str, Any]) -> list[int]:
    """Leave out the models that were trained on this very file, or its picture, under another id.

    Parameters
    ----------
    attributes
        Of the slide's bag.

    Returns
    -------
    The other folds.
    """
    picture = attributes.get("overview_hash")
    kept = []
    for fold in folds:
        known = read_description(models / f"fold-{fold}")
        copied = picture and any(alike(picture, other) for other in known["seen_overviews"])
        if attributes["fingerprint"] not in known["seen"] and not copied:
            kept.append(fold)
    return kept


def read_bag(path: Path) -> store.Artefact:
    """Read a slide's bag, and see that it is one: `predict-bag` may be given any file.

    Raises
    ------
    ArtefactError
        If another stage wrote it, or its arrays are not those of a bag.
    """
    stored = store.read(path)
    stage, picture = stored.attributes["stage"], stored.attributes.get("overview_hash", "")
    if stage != "embed":
        raise ArtefactError(f"{path}: is no bag but a file that {stage} wrote; give one of results/bags")
    if not stored.ok:
        return stored
    features, coords = (stored.arrays.get(name, np.empty(0)) for name in ("features", "coords"))
    fitting = features.ndim == 2 and np.issubdtype(features.dtype, np.floating)
    if not fitting or coords.shape != (len(features), 2) or not np.issubdtype(coords.dtype, np.integer):
        raise ArtefactError(
            f"{path}: features are {features.dtype} {features.shape} and coords {coords.dtype} {coords.shape}, not"
            " numbers [N, d] and whole ones [N, 2]; embed the slide again"
        )
    if not isinstance(picture, str) or not re.fullmatch("[0-9a-f]*", picture):
        raise ArtefactError(f"{path}: its overview_hash is {picture!r}, no hash; embed the slide again")
    return stored


def run(
    bag: Path,
    *,
    splits: Path | None,
    models: Path,
    attention: Path,
    device: str,
    options: DecisionOptions | None = None,
) -> None:
    """Write the prediction and the attention of one slide.

    Parameters
    ----------
    bag
        The slide's bag; an empty one (of a quarantined slide) gives an empty result that says why.
    splits, models
        The splits file, and the folder with a `fold-{k}` for each fold; without splits the slide is new to all of
        them.
    attention
        The artefact to write.
    device
        `cpu` or `cuda`.
    options
        When to decide, and how.
    """
    options = options or DecisionOptions()
    stored = read_bag(bag)
    slide_id = stored.attributes["slide_id"]
    found = store.carried_over(stored.attributes)
    arrays: dict[str, NDArray[Any]] = {}
    rows = [] if splits is None else read_splits(splits)
    own = next((row for row in rows if row.slide_id == slide_id), None)
    if stored.ok:
        folds, source = folds_for(slide_id, rows) if splits else (folds_in(models), "ensemble")
        if source == "ensemble" and not (others := unseen(folds, models=models, attributes=stored.attributes)):
            source = "seen"
        elif source == "ensemble":
            folds = others
        folders = [models / f"fold-{fold}" for fold in folds]
        found |= {"task": read_description(folders[0])["task"], "folds": folds, "source": source}
        found["models_sha256"] = [sha256_of(folder / "weights.safetensors") for folder in folders]
    if stored.ok and found["task"] != CLASSIFICATION:
        arrays, attributes = outcomes.predict(stored, folders, device=device)
        found |= attributes
        log.info("%s: %.4g by folds %s", slide_id, attributes["value"], folds)
    elif stored.ok:
        verdict = judge(
            stored,
            folders,
            device=device,
            options=options,
            delete=found["source"] == "out_of_fold",
        )
        arrays = {
            "score": verdict.scores.mean(0),
            "fold_scores": verdict.scores,
            "coords": stored.arrays["coords"],
            "probability": verdict.probability,
        }
        if verdict.evidence is not None:
            arrays["evidence"] = verdict.evidence
        found |= described(verdict, options)
        log.info("%s: %s by folds %s, decision %s", slide_id, found["predicted"], folds, found["decision"])
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


@dataclass(frozen=True)
class Verdict:
    """What F models say of one bag of N patches.

    Parameters
    ----------
    probability, calibrated
        Class probabilities, (F, C) each, as the models give them, and by their temperatures.
    scores
        float32 (F, N), each row a patch's share of the attention, sums to 1.
    classes
        Names of the classes.
    thresholds
        Of each model, by rule; empty for other than two classes.
    ood_score
        Distance to the training slides over its limit, mean over the models that know it; NaN where none does.
    deletion
        As `faithfulness.deletion` gives it, of the first model; None where it was not asked for.
    evidence
        float32 (N, C), see `asmil.inference.evidence`, mean over the models; None of two classes, which one map tells,
        and of models that give none.
    """

    probability: NDArray[np.float32]
    calibrated: NDArray[np.float64]
    scores: NDArray[np.float32]
    classes: list[str]
    thresholds: list[dict[str, float]]
    ood_score: float
    deletion: dict[str, Any] | None
    evidence: NDArray[np.float32] | None


def judge(
    stored: store.Artefact, folders: Sequence[Path], *, device: str, options: DecisionOptions, delete: bool
) -> Verdict:
    """Apply each model to one bag.

    Parameters
    ----------
    options
        What thresholds reach, and how many slides may be called outliers.
    delete
        Whether to run the deletion test.

    Raises
    ------
    ArtefactError
        If a model was trained on bags made otherwise, or two models have other classes.
    """
    found: list[Prediction] = []
    known: list[ModelFolder] = []
    ood: list[float] = []
    curve: dict[str, Any] | None = None
    spoken: list[NDArray[np.float32]] = []
    slide_id = str(stored.attributes["slide_id"])
    for folder in folders:
        model, description = load_model(folder)
        description.check_bag(stored.attributes, folder=folder)
        known.append(description)
        if description.classes != known[0].classes:
            raise ArtefactError(
                f"{folder} has the classes {description.classes}, others {known[0].classes}; train again"
            )
        features = description.standardised(stored.arrays["features"])
        found.append(predict(model, features, device=device, name=slide_id))
        if len(description.classes) > 2:
            spoken.append(evidence(model, features, device=device, name=slide_id))
        if description.outliers is not None:  # models that cannot tell are left out of the mean
            distance = description.outliers.distance(summary_vector(features))
            ood.append(distance / description.outliers.limit(options.outlier_rate))
        if delete and len(found) == 1:
            curve = deletion(model, features, found[0].score, device=device)
    return Verdict(
        probability=np.stack([each.probabilities for each in found]).astype(np.float32),
        calibrated=np.stack(
            [softmax(each.logits, model.temperature) for each, model in zip(found, known, strict=True)]
        ),
        scores=np.stack([each.score for each in found]).astype(np.float32),
        classes=known[0].classes,
        thresholds=[model.thresholds_for(options.at_least) for model in known],
        ood_score=float(np.mean(ood)) if ood else math.nan,
        deletion=curve,
        evidence=np.mean(spoken, axis=0) if np.any(spoken) else None,
    )


def described(verdict: Verdict, options: DecisionOptions) -> dict[str, Any]:
    """Give what the attention artefact says of a verdict, as attributes."""
    mean = verdict.probability.mean(0)
    winner = int(mean.argmax())
    likeness = agreement(verdict.scores)
    several = len(verdict.probability) > 1
    binary = len(verdict.classes) == 2 and options.threshold != "most_probable"
    decision = decide(
        verdict.calibrated,
        verdict.classes,
        thresholds=[each[options.threshold] for each in verdict.thresholds] if binary else None,
        ood_score=verdict.ood_score,
        options=options,
    )
    return {
        "classes": verdict.classes,
        "predicted": verdict.classes[winner],
        "probabilities": [float(value) for value in mean],
        "fold_spread": float(verdict.probability[:, winner].std()),
        "fold_low": float(verdict.probability[:, winner].min()) if several else None,
        "fold_high": float(verdict.probability[:, winner].max()) if several else None,
        "map_agreement": None if math.isnan(likeness) else likeness,
        "calibrated": [float(value) for value in verdict.calibrated.mean(0)],
        "calibrated_by_fold": verdict.calibrated.tolist(),
        "decision": decision.decision,
        "decision_reason": decision.reason,
        "threshold": decision.threshold,
        "agreement": decision.agreement,
        "ood_score": None if math.isnan(verdict.ood_score) else verdict.ood_score,
        "deletion": verdict.deletion,
    }
