"""The commands that divide the labelled slides, and train and compare models on them."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from pipeline.errors import ConfigError
from pipeline.options import (
    EventColumn,
    Folds,
    Gpus,
    LabelsFile,
    OverridesFile,
    Seed,
    SlidesFolder,
    Target,
    TaskKind,
    TaskName,
    Threads,
)


class RecipeKind(StrEnum):
    """How a model is trained."""

    shared = "shared"
    source = "source"


class SchemeName(StrEnum):
    """How folds are made."""

    kfold = "kfold"
    monte_carlo = "monte_carlo"
    leave_one_site_out = "leave_one_site_out"
    file = "file"


class GroupBy(StrEnum):
    """What is never divided between training, validation and test."""

    patient = "patient"
    site = "site"


def add_model_commands(app: typer.Typer) -> None:
    """Add `split`, `train`, `models`, `compare` and `agreement` to the command line."""
    for command in (split, train, models, compare, agreement):
        app.command()(command)


def split(
    *,
    slides: SlidesFolder,
    labels: LabelsFile,
    overrides: OverridesFile,
    target: Target,
    task: TaskName = TaskKind.classification,
    event: EventColumn = "event",
    digest: Annotated[str | None, Option(help="Digest of the labels when the run was planned.")] = None,
    bags: Annotated[Path, Option(help="Folder of the bags.")],
    splits: Annotated[Path, Option(help="Splits file to write.")],
    index: Annotated[Path | None, Option(help="Index of the bags to write.")] = None,
    scheme: Annotated[SchemeName, Option(help="How folds are made.")] = SchemeName.kfold,
    given: Annotated[Path | None, Option(help="Your own splits file, for the scheme file.")] = None,
    folds: Folds,
    repeats: Annotated[int, Option(min=1, help="Divisions, each with another shuffle.")],
    validation: Annotated[float, Option(min=0.05, max=0.5, help="Share of a training part set aside.")],
    group_by: Annotated[GroupBy, Option(help="What is never divided between roles.")],
    seed: Seed,
) -> None:
    """Divide the labelled slides into folds."""
    from pipeline import cohort as cohorts
    from pipeline import split as stage

    found = cohorts.load(
        slides, labels=labels, overrides=overrides, target=target, folds=folds, task=task.value, event=event
    ).labels
    if digest is not None and cohorts.labels_digest(found) != digest:
        raise ConfigError(f"{labels} or the slides changed after the run was planned; run the workflow again")
    stage.run(
        found,
        bags=bags,
        splits=splits,
        index=index,
        plan=stage.Plan(
            scheme=scheme.value,
            folds=folds,
            repeats=repeats,
            validation=validation,
            group_by=group_by.value,
            seed=seed,
            given=given,
            task=task.value,
        ),
    )


def train(
    *,
    fold: Annotated[int, Option(min=0, help="Fold to train.")],
    splits: Annotated[Path, Option(help="Splits file.")],
    bags: Annotated[Path, Option(help="Folder of the bags.")],
    folder: Annotated[Path, Option(help="Model folder to write.")],
    model: Annotated[str, Option(help="The multiple-instance model.")],
    options: Annotated[str, Option(help="Its options, as JSON.")],
    anchor: Annotated[str, Option(help="Options of the anchor (asmil.AnchorConfig), as JSON.")],
    training: Annotated[str, Option(help="Options of the training (asmil.FitConfig), as JSON.")],
    task: TaskName = TaskKind.classification,
    risk_set: Annotated[int, Option(min=2, help="Slides compared in an optimizer step; for survival.")] = 16,
    recipe: Annotated[
        RecipeKind, Option(help="Train by the options here, or as the model's source.")
    ] = RecipeKind.shared,
    stability_slides: Annotated[int, Option(min=0, help="Validation slides that attention is followed on.")] = 8,
    preparation: Annotated[str, Option(help="How the bags were made, as JSON; kept with the model.")] = "{}",
    cache_mb: Annotated[int, Option(min=0, help="Memory for features, MiB.")] = 4096,
    seed: Seed,
    threads: Threads = 1,
    gpus: Gpus = 0,
) -> None:
    """Train the model of one fold."""
    import torch

    from asmil import AnchorConfig, FitConfig
    from pipeline import train as stage
    from pipeline.device import choose_device

    torch.set_num_threads(threads)
    stage.run(
        fold=fold,
        splits=splits,
        bags=bags,
        folder=folder,
        model=model,
        model_options=_json_options(options, "--options"),
        anchor=_built(AnchorConfig, _json_options(anchor, "--anchor")),
        training=_built(FitConfig, _json_options(training, "--training")),
        task=task.value,
        risk_set=risk_set,
        recipe=recipe.value,
        stability_slides=stability_slides,
        preparation=_json_options(preparation, "--preparation"),
        cache_gb=cache_mb / 1024,
        seed=seed,
        device=choose_device(gpus=gpus),
    )


def models(
    folder: Annotated[Path, Argument(help="Folder with a fold-{k} for each fold.", show_default=False)],
    *,
    folds: Annotated[int, Option(min=1, help="Number of folds, through all repeats.")],
    splits: Annotated[Path, Option(help="Splits file.")],
    index: Annotated[Path, Option(help="Index to write.")],
) -> None:
    """List the trained models of all folds, with their checksums."""
    from pipeline import model_index

    model_index.write(folder, folds=folds, splits=splits, index=index)


def compare(
    *,
    splits: Annotated[Path, Option(help="Splits file.")],
    bags: Annotated[Path, Option(help="Folder of the bags.")],
    models: Annotated[Path, Option(help="Folder with a fold-{k} for each fold.")],
    predictions: Annotated[Path, Option(help="Table to write.")],
) -> None:
    """Predict every labelled slide by the folds of a further model that held it out."""
    import torch

    from pipeline import compare as stage

    torch.set_num_threads(1)
    stage.run(splits=splits, bags=bags, models=models, predictions=predictions, device="cpu")


def agreement(
    *,
    splits: Annotated[Path, Option(help="Splits file.")],
    index: Annotated[Path, Option(help="Index of the bags.")],
    bags: Annotated[Path, Option(help="Folder of the bags.")],
    models: Annotated[Path, Option(help="Folder with a fold-{k} for each fold.")],
    table: Annotated[Path, Option(help="Table to write.")],
    maps: Annotated[Path, Option(help="JSON of pictures to write.")],
    slides: Annotated[int, Option(min=0, help="Labelled slides that are drawn by all models; 0: none.")],
    task: TaskName = TaskKind.classification,
    colormap: Annotated[str, Option(help="A matplotlib colour map.")] = "viridis",
) -> None:
    """Compare the maps that the models of all folds draw of the same slides."""
    import torch

    from pipeline import agreement as stage

    torch.set_num_threads(1)
    stage.run(
        splits=splits,
        index=index,
        bags=bags,
        models=models,
        table=table,
        maps=maps,
        slides=slides,
        task=task.value,
        colormap=colormap,
        device="cpu",
    )


def _json_options(text: str, flag: str) -> dict[str, Any]:
    from pipeline import json_text

    try:
        return json_text.parse_object(text)
    except json_text.JsonError as error:
        raise ConfigError(f"{flag} {error}; give an object as in '{{}}'") from error


def _built(kind: type[Any], options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{error}; see python -m pipeline train --help") from error
