"""The commands that predict: slides from anywhere, and a bag of the workflow."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pipeline.errors import PipelineError
from pipeline.options import DefaultMpp, Gpus, Mpp, Threads, Weights, WeightsFolder


class Threshold(StrEnum):
    """Which threshold, chosen on validation, decides between two classes."""

    balanced_accuracy = "balanced_accuracy"
    sensitivity = "sensitivity"
    specificity = "specificity"
    most_probable = "most_probable"


ThresholdRule = Annotated[Threshold, Option(help="Threshold between two classes, chosen on validation.")]
MinAgreement = Annotated[float, Option(min=0, max=1, help="Share of the models that must decide alike.")]
OutlierRate = Annotated[
    float, Option(min=0.0001, max=0.5, help="Share of slides like the models' own that may be called outliers.")
]
AtLeast = Annotated[
    float, Option(min=0.5, max=1, help="Sensitivity or specificity that the threshold of that name reaches.")
]
Models = Annotated[Path, Option(help="Folder with a fold-{k} for each model (results/model of a run).")]


def add_predict_commands(app: typer.Typer) -> None:
    """Add `predict` and `predict-bag` to the command line."""
    app.command()(predict)
    app.command()(predict_bag)


def predict(
    slides: Annotated[list[Path], Argument(help="Slides.", show_default=False)],
    *,
    models: Models,
    out: Annotated[Path, Option(help="Folder to write into.")] = Path("predicted"),
    weights: Weights = None,
    weights_folder: WeightsFolder = Path("weights"),
    mpp: Mpp = None,
    default_mpp: DefaultMpp = None,
    threshold: ThresholdRule = Threshold.balanced_accuracy,
    min_agreement: MinAgreement = 0.75,
    outlier_rate: OutlierRate = 0.01,
    at_least: AtLeast = 0.9,
    threads: Threads = 1,
    gpus: Gpus = 0,
) -> None:
    """Predict slides from anywhere with trained models, and draw their pages; no workflow is needed."""
    import torch

    from pipeline import predict_slides
    from pipeline.decision import DecisionOptions
    from pipeline.device import choose_device

    torch.set_num_threads(threads)
    results = predict_slides.run(
        slides,
        models=models,
        out=out,
        weights=weights,
        weights_folder=weights_folder,
        device=choose_device(gpus=gpus),
        threads=threads,
        scale=predict_slides.Scale(mpp, default_mpp),
        options=DecisionOptions(threshold.value, min_agreement, outlier_rate, at_least),
    )
    for line in predict_slides.lines(results, out):
        print(line)  # noqa: T201 - the command's output
    if failed := [slide.slide_id for slide in results if slide.prediction is None]:
        raise PipelineError(f"{len(failed)} of {len(results)} slides could not be predicted: {', '.join(failed)}")


def predict_bag(
    bag: Annotated[Path, Argument(help="Bag of the slide.", show_default=False)],
    *,
    splits: Annotated[Path | None, Option(help="Splits file; without one the slide is new to all models.")] = None,
    models: Models,
    attention: Annotated[Path, Option(help="Attention artefact to write.")],
    threshold: ThresholdRule = Threshold.balanced_accuracy,
    min_agreement: MinAgreement = 0.75,
    outlier_rate: OutlierRate = 0.01,
    at_least: AtLeast = 0.9,
) -> None:
    """Predict one bag and score its patches; what the workflow calls."""
    from pipeline import ahead

    chosen = (threshold.value, min_agreement, outlier_rate, at_least)

    def predicted(task: ahead.Task) -> None:
        import torch

        from pipeline import predict as stage
        from pipeline.decision import DecisionOptions

        torch.set_num_threads(1)
        stage.run(
            task.bag,
            splits=task.splits,
            models=task.models,
            attention=task.attention,
            device="cpu",
            options=DecisionOptions(*chosen),
        )

    ahead.run(ahead.Task(bag, splits, models, chosen, attention), predicted)
