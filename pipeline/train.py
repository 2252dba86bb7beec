"""Train the model of one fold on stored bags, and write a folder that predicts."""

import csv
import io
import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import FollowUp, Label
from asmil.inference import attention, predict
from asmil.protocol import AttentionMIL
from asmil.recipes import build_optimizer, source_config
from asmil.registry import MODELS
from asmil.stability import StabilityTracker
from asmil.tasks import Classification, Regression, SurvivalTask, Task
from asmil.training import FitConfig, FitResult, Trainer
from pipeline import calibration, checkpoint, outliers, store
from pipeline.errors import ConfigError
from pipeline.model_folder import ModelFolder, build_model
from pipeline.split import Assignment, read_splits
from pipeline.stored_bags import Cache, StoredBags, common_attributes, standardisation
from pipeline.tasks import CLASSIFICATION

log = logging.getLogger(__name__)

PANEL_PATCHES = 100_000
"""Patches of the slides that attention is followed on: with 64 branches and five epochs kept, 128 MB of float32."""

ANCHOR_SEED = 1_000_000
"""Added to the seed for an anchor that starts at random, or it would draw the weights that the model has drawn."""

STABILITY_COLUMNS = (
    "epoch",
    "slides",
    "jsd_lag1",
    "jsd_lag5",
    "branch_jsd_lag1",
    "branch_jsd_lag5",
    "spearman_lag1",
    "top1_jaccard_lag1",
    "entropy",
    "branch_entropy",
    "effective_patches",
    "top10_mass",
    "learning_rate",
)
"""Then come the task's loss and that on the validation slides, as `cross_entropy`."""


@dataclass(frozen=True)
class FoldData:
    """The bags of one fold and what they have in common; `classes` is empty where no class is learned."""

    classes: list[str]
    shared: dict[str, Any]
    train: StoredBags
    validation: StoredBags


def load_fold(rows: Sequence[Assignment], *, folder: Path, cache_gb: float, task: str = CLASSIFICATION) -> FoldData:
    """Open the bags of one fold, standardised by those of its training part if their encoder wishes it.

    Raises
    ------
    BagError
        If two bags were not made alike, or one of the training part spoils the standardisation.
    """
    classes = sorted({row.label for row in rows}) if task == CLASSIFICATION else []
    shared = common_attributes([row.slide_id for row in rows], folder)
    cache = Cache(int(cache_gb * 2**30))
    train, validation = (
        StoredBags([row for row in rows if row.role == role], folder=folder, classes=classes, cache=cache, task=task)
        for role in ("train", "validation")
    )
    if task == CLASSIFICATION and (missing := sorted(set(classes) - {row.label for row in train.rows})):
        log.warning("no training slide of class %s; this fold's model cannot learn it", ", ".join(missing))
    if shared["standardise"]:
        train.mean, train.sd = validation.mean, validation.sd = standardisation(train)
    return FoldData(classes, shared, train, validation)


def choose_panel(bags: StoredBags, *, slides: int) -> list[int]:
    """Choose the bags that attention is followed on: of every kind in turn, as far as `PANEL_PATCHES` go, at least one.

    Kinds are classes; of other outcomes, those above and below the median, with and without the event.
    """
    chosen: list[int] = []
    patches = 0
    for index in _in_turn(bags.labels):
        patches += len(bags.raw(index))
        if len(chosen) == slides or (chosen and patches > PANEL_PATCHES):
            break
        chosen.append(index)
    return chosen


def _in_turn(labels: Sequence[Label]) -> list[int]:
    """Order slides so that the first ones differ in what is learned of them."""
    values = [label.time if isinstance(label, FollowUp) else float(label) for label in labels]
    middle = float(np.median(values))
    kinds: dict[object, list[int]] = defaultdict(list)
    for index, (label, value) in enumerate(zip(labels, values, strict=True)):
        kind = label if isinstance(label, int) else (value > middle, isinstance(label, FollowUp) and label.event)
        kinds[kind].append(index)
    return [index for group in zip_longest(*kinds.values()) for index in group if index is not None]


class FoldRun:
    """A fold's training with its stability record: both continue from a checkpoint, or neither does."""

    def __init__(self, trainer: Trainer, bags: StoredBags, *, panel: Sequence[int], folder: Path, digest: str) -> None:
        self.trainer, self.bags, self.panel = trainer, bags, panel
        self.folder, self.digest = folder, digest
        self.stability = StabilityTracker()

    def run(self) -> FitResult:
        """Train to the end, from the checkpoint where there is one; the checkpoint stays until `checkpoint.remove`."""
        self._resume()
        while not self.trainer.finished:
            row = self.trainer.run_epoch()
            model = self.trainer.model
            if self.panel:
                self.stability.add(int(row["epoch"]), [self._attention(model, index) for index in self.panel])
            checkpoint.save(self.folder, self._state(), digest=self.digest)
        return self.trainer.finish()

    def _attention(self, model: AttentionMIL, index: int) -> NDArray[np.float32]:
        bag = self.bags[index]
        return attention(model, bag.features, device=self.trainer.device, name=bag.name)

    def _state(self) -> dict[str, Any]:
        stability = self.stability.state_dict()
        past = {epoch: [torch.from_numpy(each) for each in kept] for epoch, kept in stability["past"].items()}
        return {"trainer": self.trainer.state_dict(), "past": past, "rows": stability["rows"]}

    def _resume(self) -> None:
        state = checkpoint.load(self.folder, digest=self.digest)
        if state is None:
            return
        self.trainer.load_state_dict(state["trainer"])
        past = {epoch: [each.numpy() for each in kept] for epoch, kept in state["past"].items()}
        self.stability.load_state_dict({"past": past, "rows": state["rows"]})
        log.info("continuing after epoch %d", self.trainer.epoch)


def run(
    *,
    fold: int,
    splits: Path,
    bags: Path,
    folder: Path,
    model: str,
    model_options: dict[str, Any],
    anchor: AnchorConfig,
    training: FitConfig,
    task: str = CLASSIFICATION,
    risk_set: int = 16,
    recipe: Literal["shared", "source"] = "shared",
    stability_slides: int = 8,
    cache_gb: float = 4.0,
    preparation: dict[str, Any] | None = None,
    seed: int,
    device: str,
) -> None:
    """Train the model of one fold and write its folder, continuing where a killed run of the same inputs stopped.

    Parameters
    ----------
    fold
        The fold of the splits file.
    splits, bags
        The splits file, and the folder of the bags.
    folder
        The model folder to write.
    model, model_options
        Name of the model, and its own options.
    anchor, training
        Options of the anchor and of the training.
    task, risk_set
        What is learned of the labels, and for `survival` the slides that are compared in an optimizer step.
    recipe
        `shared` trains by `training`; `source` as the model's source does (`asmil.registry.MODELS`): its optimizer,
        learning rate, weight decay, schedule, epochs, patience, choice of the epoch, draw of the slides, slides a step
        and model options take the place of those given.
    stability_slides
        Validation slides on which attention is followed from epoch to epoch; 0 follows none.
    cache_gb
        Memory for features, in GiB; it changes the time, not the result.
    preparation
        How the bags were made, by stage, for the model folder: what a new slide must go through.
    seed
        Seed of the run; every fold derives its own.
    device
        `cpu` or `cuda`.

    Raises
    ------
    BagError
        If a bag is empty, not finite, or not made as the others; names the slide.
    ConfigError
        If the splits have no such fold, or the model cannot be built.
    """
    rows = [row for row in read_splits(splits) if row.fold == fold]
    if not rows:
        raise ConfigError(f"{splits} has no fold {fold}; run the workflow again")
    if recipe == "source" and model in MODELS:
        keys = {"gradient_clip", "class_weights", "entropy_weight", "precision"}
        if MODELS[model].recipe.balanced:  # it draws rare classes more often instead
            keys -= {"class_weights"}
        kept = {key: getattr(training, key) for key in keys}
        training, model_options = source_config(model, **kept), {**model_options, **MODELS[model].source_options}
    options = {"seed": seed, "anchor": asdict(anchor), "recipe": recipe, **asdict(training)}
    if task == "survival":
        options["risk_set"] = risk_set
    digest = checkpoint.run_digest(
        {
            "model": [model, model_options],
            "options": options,
            "device": torch.device(device).type,  # whichever GPU is free may continue
            "task": task,
            "rows": [asdict(row) for row in rows],
            "stability_slides": stability_slides,
        },
        [bags / f"{row.slide_id}.zarr.zip" for row in rows],
    )
    data = load_fold(rows, folder=bags, cache_gb=cache_gb, task=task)
    start = time.perf_counter()
    network = build_model(
        model, d_in=data.shared["dim"], classes=len(data.classes) or 1, options=model_options, seed=seed + fold
    )
    regularizer = None if anchor.mode == "none" else AnchorRegularizer(network, anchor, seed=seed + fold + ANCHOR_SEED)
    trainer = Trainer(
        network,
        data.train,
        data.validation,
        anchor=regularizer,
        config=training,
        task=_task(task, risk_set=risk_set),
        seed=seed + fold,
        device=device,
    )
    if recipe == "source":
        trainer.optimizer = build_optimizer(network, MODELS[model].recipe)
    panel = choose_panel(data.validation, slides=stability_slides)
    fold_run = FoldRun(trainer, data.validation, panel=panel, folder=folder, digest=digest)
    result = fold_run.run()
    log.info(
        "fold %d: %d training and %d validation slides, best epoch %d of %d, %.1f s",
        fold,
        len(data.train),
        len(data.validation),
        result.best_epoch,
        len(result.history),
        time.perf_counter() - start,
    )
    decided = _calibrate(data, network, device=device) if task == CLASSIFICATION else {}
    attributes = [store.read_attributes(bags / f"{row.slide_id}.zarr.zip") for row in rows if row.role != "test"]
    ModelFolder(
        **decided,
        preparation=preparation or {},
        name=model,
        options=dict(network.options),
        classes=data.classes,
        bags=data.shared,
        fold=fold,
        best_epoch=result.best_epoch,
        training=options,
        seen=sorted(str(found["fingerprint"]) for found in attributes),
        seen_overviews=sorted(found["overview_hash"] for found in attributes if found.get("overview_hash")),
        mean=data.train.mean,
        sd=data.train.sd,
        task=task,
        scale=result.scale,
    ).write(folder, result)
    store.write_text(folder / "history.csv", history_table(result.history))
    store.write_text(
        folder / "stability.csv", stability_table(fold_run.stability.rows, result.history, loss=trainer.task.loss_name)
    )
    checkpoint.remove(folder)


def _calibrate(data: FoldData, network: AttentionMIL, *, device: str) -> dict[str, Any]:
    """Give what the validation slides decide of a trained model, as arguments of `ModelFolder`."""
    # one at a time, as a cohort's features need not fit in memory
    bags = (data.validation[index] for index in range(len(data.validation)))
    logits = np.stack([predict(network, bag.features, device=device, name=bag.name).logits for bag in bags])
    labels = np.array(data.validation.labels, np.int64)
    temperature = calibration.fit_temperature(logits, labels)
    thresholds = {}
    if len(data.classes) == 2:
        thresholds = calibration.choose_thresholds(labels == 1, calibration.softmax(logits, temperature)[:, 1])
    vectors = {
        role: np.stack([outliers.summary_vector(np.asarray(bags[index].features)) for index in range(len(bags))])
        for role, bags in (("train", data.train), ("validation", data.validation))
    }
    patients = [row.patient_id for row in data.train.rows]
    log.info("temperature %.3f, thresholds %s", temperature, thresholds)
    return {
        "temperature": temperature,
        "thresholds": thresholds,
        "validation": {"labels": labels.tolist(), "logits": logits.astype(np.float64).tolist()},
        "outliers": outliers.fit(vectors["train"], patients, vectors["validation"]),
    }


def _task(name: str, *, risk_set: int) -> Task:
    if name == "survival":
        return SurvivalTask(risk_set=risk_set)
    return Regression() if name == "regression" else Classification()


def history_table(history: Sequence[Mapping[str, float]]) -> str:
    """Give the history as CSV, a row an epoch."""
    columns = list(dict.fromkeys(key for entry in history for key in entry))
    return _table(columns, history)


def stability_table(rows: Sequence[Mapping[str, float]], history: Sequence[Mapping[str, float]], *, loss: str) -> str:
    """Give the attention's movement as CSV, a row an epoch, beside its learning rate and its losses, named `loss`.

    A cell is empty where there is no epoch so long ago, or a measure is not defined.
    """
    of_epoch = {entry["epoch"]: entry for entry in history}
    return _table([*STABILITY_COLUMNS, loss, f"validation_{loss}"], [{**of_epoch[row["epoch"]], **row} for row in rows])


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, float]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(column)) for column in columns] for row in rows])
    return buffer.getvalue()


def _cell(value: float | None) -> float | str:
    return "" if value is None or math.isnan(value) else value
