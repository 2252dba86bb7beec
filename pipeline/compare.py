"""Further models on the same splits: their out-of-fold predictions, and all models' figures of merit side by side."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import outcomes, store, tables
from pipeline.errors import ArtefactError
from pipeline.evaluation import SlideResult
from pipeline.figures import Interval, differences_of, figures_of, judged
from pipeline.split import read_splits

log = logging.getLogger(__name__)


def run(*, splits: Path, bags: Path, models: Path, predictions: Path, device: str) -> None:
    """Predict every labelled slide by the models of the folds that held it out.

    Parameters
    ----------
    splits, bags
        The splits file, and the folder of the bags.
    models
        The folder with a `fold-{k}` for each fold.
    predictions
        CSV to write: slide_id, folds (which models, separated by spaces), probability_<class> (their mean); where no
        class was learned, `values` (each model's risk or number, separated by spaces) instead.
    device
        `cpu` or `cuda`.

    Raises
    ------
    ArtefactError
        If a model was trained on bags made otherwise, or two models have other classes.
    """
    from asmil.inference import predict
    from pipeline.model_folder import load_model

    rows = read_splits(splits)
    found: dict[str, dict[int, NDArray[np.float32]]] = defaultdict(dict)
    classes: list[str] = []
    for fold in sorted({row.fold for row in rows}):
        folder = models / f"fold-{fold}"
        model, description = load_model(folder)
        classes = classes or description.classes
        if classes != description.classes:
            raise ArtefactError(f"{folder} has the classes {description.classes}, others {classes}; train again")
        for row in rows:
            if row.fold == fold and row.role == "test":
                bag = store.read(bags / f"{row.slide_id}.zarr.zip", ["features"])
                description.check_bag(bag.attributes, folder=folder)
                features = description.standardised(bag.arrays["features"])
                one = predict(model, features, device=device, name=row.slide_id)
                centre, spread = description.scale
                found[row.slide_id][fold] = one.probabilities if classes else centre + spread * one.logits
    table: list[list[object]] = [["slide_id", "folds", *([f"probability_{name}" for name in classes] or ["values"])]]
    for slide_id, by_fold in sorted(found.items()):
        rows_of = np.stack(list(by_fold.values())).astype(np.float64)
        mean: list[Any] = rows_of.mean(axis=0).tolist() if classes else [" ".join(map(repr, rows_of[:, 0].tolist()))]
        table.append([slide_id, " ".join(map(str, by_fold)), *mean])
    store.write_text(predictions, tables.text(table, delimiter=","))
    log.info("%s: %d slides predicted", predictions, len(found))


def read_predictions(path: Path, *, slides: Sequence[str], classes: Sequence[str]) -> NDArray[np.float64]:
    """Give the probabilities of some slides, float64 [n, C], from what `run` wrote.

    Raises
    ------
    ArtefactError
        If the file has other classes, or lacks a slide.
    """
    rows = {row["slide_id"]: row for row in store.read_rows(path, delimiter=",")}
    columns = [f"probability_{name}" for name in classes]
    missing = [slide for slide in slides if slide not in rows or any(column not in rows[slide] for column in columns)]
    if missing:
        raise ArtefactError(
            f"{path} has no prediction of {missing[0]} for the classes {', '.join(classes)};"
            " delete it and run the workflow again"
        )
    return np.array([[float(rows[slide][column]) for column in columns] for slide in slides], dtype=np.float64)


def figures(
    slides: Sequence[SlideResult],
    metrics: Mapping[str, Any],
    *,
    models: Sequence[str],
    folder: Path,
    interval: Interval,
) -> dict[str, Any]:
    """Give the pooled figures of merit of every model, and how the further ones differ from the first.

    All are judged on the same slides and with the same draws of patients, so that differences are paired.

    Parameters
    ----------
    slides
        All results of the first model.
    metrics
        As `pipeline.evaluation.evaluate` gives them, of the first model.
    models
        Names; the first is the model of `slides`.
    folder
        Where a folder of each further model has its `predictions.csv`.
    interval
        How intervals are made.

    Returns
    -------
    `models`: value, low and high by metric, by model; `differences`: the same and p, by further model, of it minus the
    first. Both empty where no slide counts.
    """
    used = [slide for slide in slides if slide.counts]
    if not used:
        return {"models": {}, "differences": {}}
    kind: dict[str, Any] = {"task": metrics["task"], "classes": metrics["classes"]}
    first, patients = judged(used, **kind)
    found, differences = {models[0]: metrics["pooled"]}, {}
    for name in models[1:]:
        own, rows = judged(judged_by(used, folder / name / "predictions.csv", classes=metrics["classes"]), **kind)
        if rows != patients:
            raise ArtefactError(
                f"{folder / name} judged slides by other folds than {models[0]}; delete it and run the workflow again"
            )
        found[name] = figures_of(own, patients, interval)
        differences[name] = differences_of(first, own, patients, interval)
    return {"models": found, "differences": differences}


def judged_by(used: Sequence[SlideResult], path: Path, *, classes: Sequence[str]) -> list[SlideResult]:
    """Give slides with another model's predictions, of what `run` wrote; raises as `read_predictions` does."""
    if classes:
        rows = read_predictions(path, slides=[slide.slide_id for slide in used], classes=classes)
        return [
            replace(slide, prediction=replace(slide.prediction, probabilities=tuple(row.tolist())))
            for slide, row in zip(used, rows, strict=True)
            if slide.prediction is not None
        ]
    values = {row["slide_id"]: row for row in store.read_rows(path, delimiter=",")}
    if missing := [slide.slide_id for slide in used if "values" not in values.get(slide.slide_id, {})]:
        raise ArtefactError(f"{path} has no prediction of {missing[0]}; delete it and run the workflow again")
    return [outcomes.judged_by(slide, values[slide.slide_id]) for slide in used]
