"""The command line: one command a stage, `python -m pipeline STAGE --help` is its manual.

A command owns the paths and gives its options, unchanged, to the stage's function. Each stage is imported only by its
own command, so that a job pays for nothing it does not use.
"""

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from asmil.errors import BagError, TrainingError
from pipeline import check_command
from pipeline.cli_encoders import Stain, add_encoder_commands
from pipeline.errors import ConfigError, PipelineError
from pipeline.options import (
    DefaultMpp,
    Folds,
    Gpus,
    LabelsFile,
    Mpp,
    MppFromObjective,
    Overlap,
    OverridesFile,
    PatchPx,
    Seed,
    SlideFile,
    SlideId,
    SlidesFolder,
    Target,
    TargetMpp,
    Threads,
    Weights,
    WeightsFolder,
)

app = typer.Typer(
    name="python -m pipeline",
    help="From whole-slide images to slide-level predictions and attention heatmaps, one command a stage."
    " The workflow (snakemake) calls them; each also works alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
add_encoder_commands(app)
app.command()(check_command.check)


class TissueMethod(StrEnum):
    """How the threshold between glass and tissue is found."""

    otsu = "otsu"
    fixed = "fixed"


class GroupBy(StrEnum):
    """What is never divided between training, validation and test."""

    patient = "patient"
    site = "site"


@app.command()
def tile(
    context: typer.Context,
    slide: SlideFile,
    *,
    slide_id: SlideId,
    tiles: Annotated[Path, Option(help="Tiles artefact to write.")],
    tissue: Annotated[Path, Option(help="GeoJSON of the tissue to write.")],
    preview: Annotated[Path, Option(help="JPEG of tissue and tiles to write.")],
    patch_px: PatchPx,
    target_mpp: TargetMpp,
    overlap: Overlap,
    min_tissue: Annotated[float, Option(min=0, max=1, help="Smallest tissue share of a tile.")],
    tissue_method: Annotated[TissueMethod, Option(help="How the threshold between glass and tissue is found.")],
    tissue_threshold: Annotated[float, Option(help="Smallest colour, as optical density, of tissue; for fixed.")],
    tissue_mpp: Annotated[float, Option(help="um per pixel of the overview.")],
    tissue_min_area_mm2: Annotated[float, Option(min=0, help="Smaller pieces are dropped.")],
    tissue_min_hole_mm2: Annotated[float, Option(min=0, help="Smaller holes are filled.")],
    tissue_exclude_pen: Annotated[bool, Option(help="Take out marks of pens.")],
    max_pen: Annotated[float, Option(min=0, max=1, help="Largest share of a tile that may be pen.")],
    max_blur: Annotated[float, Option(min=0, max=1, help="Largest share of a tile that may be out of focus.")],
    max_fold: Annotated[float, Option(min=0, max=1, help="Largest share of a tile that may be a fold.")],
    drawn_tissue: Annotated[Path | None, Option(help="GeoJSON that replaces the tissue found.")] = None,
    roi: Annotated[Path | None, Option(help="GeoJSON of the regions to keep to.")] = None,
    mpp: Mpp = None,
    default_mpp: DefaultMpp = None,
    mpp_from_objective: MppFromObjective = False,
) -> None:
    """Find the tissue of one slide and place tiles on it."""
    from pipeline import tile as stage
    from pipeline.cohort import Drawn
    from pipeline.fingerprint import fingerprint
    from pipeline.quality import QualityOptions
    from pipeline.tissue import TissueOptions

    stage.run(
        slide,
        slide_id=slide_id,
        fingerprint=fingerprint(slide),
        tiles=tiles,
        tissue=tissue,
        preview=preview,
        patch_px=patch_px,
        target_mpp=target_mpp,
        overlap=overlap,
        min_tissue=min_tissue,
        tissue_options=TissueOptions(
            method=tissue_method.value,
            threshold=tissue_threshold,
            mpp=tissue_mpp,
            min_area_mm2=tissue_min_area_mm2,
            min_hole_mm2=tissue_min_hole_mm2,
            exclude_pen=tissue_exclude_pen,
        ),
        quality=QualityOptions(max_pen=max_pen, max_blur=max_blur, max_fold=max_fold),
        drawn=Drawn(tissue=drawn_tissue, roi=roi),
        mpp=mpp,
        default_mpp=default_mpp,
        mpp_from_objective=mpp_from_objective,
        parameters=_recorded(context),
    )


@app.command()
def embed(
    context: typer.Context,
    slide: SlideFile,
    *,
    slide_id: SlideId,
    tiles: Annotated[Path, Option(help="Tiles artefact to read.")],
    bag: Annotated[Path, Option(help="Bag to write.")],
    encoder: Annotated[str, Option(help="One of `python -m pipeline encoders`, timm:<model>, hf-hub:<id>.")],
    weights: Weights = None,
    weights_folder: WeightsFolder = Path("weights"),
    precision: Annotated[str, Option(help="auto, fp32, bf16, fp16.")] = "auto",
    stain: Annotated[Stain, Option(help="Stain normalisation before the encoder.")] = Stain.none,
    batch_size: Annotated[int | None, Option(min=1, help="Patches encoded at once.")] = None,
    compiled: Annotated[bool, Option("--compile/--no-compile", help="Let torch compile the encoder.")] = False,
    max_unreadable: Annotated[float, Option(min=0, max=1, help="Share of tiles that may be unreadable.")],
    mpp: Mpp = None,
    default_mpp: DefaultMpp = None,
    mpp_from_objective: MppFromObjective = False,
    threads: Threads = 1,
    gpus: Gpus = 0,
) -> None:
    """Encode the patches of one slide into a bag of features."""
    from pipeline import embed as stage
    from pipeline import encoders
    from pipeline.device import choose_device

    stage.run(
        slide,
        slide_id=slide_id,
        tiles=tiles,
        bag=bag,
        options=stage.EncoderOptions(
            encoder,
            weights=weights,
            folder=weights_folder,
            precision=precision,
            batch_size=batch_size,
            device=choose_device(gpus=gpus) if encoders.spec(encoder, weights_folder).uses_gpu else "cpu",
            compiled=compiled,
            stain=stain.value,
        ),
        max_unreadable=max_unreadable,
        threads=threads,
        mpp=mpp,
        default_mpp=default_mpp,
        mpp_from_objective=mpp_from_objective,
        parameters=_recorded(context),
    )


@app.command()
def split(
    *,
    slides: SlidesFolder,
    labels: LabelsFile,
    overrides: OverridesFile,
    target: Target,
    digest: Annotated[str | None, Option(help="Digest of the labels when the run was planned.")] = None,
    bags: Annotated[Path, Option(help="Folder of the bags.")],
    splits: Annotated[Path, Option(help="Splits file to write.")],
    folds: Folds,
    repeats: Annotated[int, Option(min=1, help="Divisions, each with another shuffle.")],
    validation: Annotated[float, Option(min=0.05, max=0.5, help="Share of a training part set aside.")],
    group_by: Annotated[GroupBy, Option(help="What is never divided between roles.")],
    seed: Seed,
) -> None:
    """Divide the labelled slides into folds."""
    from pipeline import cohort as cohorts
    from pipeline import split as stage

    found = cohorts.load(slides, labels=labels, overrides=overrides, target=target, folds=folds).labels
    if digest is not None and cohorts.labels_digest(found) != digest:
        raise ConfigError(f"{labels} or the slides changed after the run was planned; run the workflow again")
    stage.run(
        found,
        bags=bags,
        splits=splits,
        folds=folds,
        repeats=repeats,
        validation=validation,
        seed=seed,
        group_by=group_by.value,
    )


@app.command()
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
    stability_slides: Annotated[int, Option(min=0, help="Validation slides that attention is followed on.")] = 8,
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
        stability_slides=stability_slides,
        cache_gb=cache_mb / 1024,
        seed=seed,
        device=choose_device(gpus=gpus),
    )


@app.command()
def predict(
    bag: Annotated[Path, Argument(help="Bag of the slide.", show_default=False)],
    *,
    splits: Annotated[Path, Option(help="Splits file.")],
    models: Annotated[Path, Option(help="Folder with a fold-{k} for each fold.")],
    attention: Annotated[Path, Option(help="Attention artefact to write.")],
) -> None:
    """Predict one slide and score its patches."""
    import torch

    from pipeline import predict as stage

    torch.set_num_threads(1)
    stage.run(bag, splits=splits, models=models, attention=attention, device="cpu")


@app.command()
def heatmap(
    slide: SlideFile,
    *,
    attention: Annotated[Path, Option(help="Attention artefact.")],
    png: Annotated[Path, Option(help="Picture to write.")],
    geojson: Annotated[Path, Option(help="Squares for QuPath to write.")],
    colormap: Annotated[str, Option(help="A matplotlib colour map.")],
    opacity: Annotated[float, Option(min=0, max=1, help="Share of the colour on analysed tissue.")],
    top_patches: Annotated[int, Option(min=1, max=24, help="Most, and least, attended patches to show.")],
    width_px: Annotated[int, Option(min=800, help="Width of the page.")],
    mpp: Mpp = None,
    default_mpp: DefaultMpp = None,
    mpp_from_objective: MppFromObjective = False,
) -> None:
    """Draw the attention of one slide."""
    from pipeline import heatmap as stage

    stage.run(
        slide,
        attention=attention,
        png=png,
        geojson=geojson,
        colormap=colormap,
        opacity=opacity,
        top_patches=top_patches,
        width_px=width_px,
        mpp=mpp,
        default_mpp=default_mpp,
        mpp_from_objective=mpp_from_objective,
    )


@app.command()
def report(
    *,
    cohort: Annotated[Path, Option(help="Cohort table.")],
    splits: Annotated[Path, Option(help="Splits file.")],
    results: Annotated[Path, Option(help="Folder of the results.")],
    reports: Annotated[Path, Option(help="Folder of the reports to write.")],
    resamples: Annotated[int, Option(min=100, help="Resamples of patients for the intervals.")],
    seed: Seed,
    title: Annotated[str, Option(help="Heading of the report.")] = "Slide report",
    models: Annotated[str, Option(help="Models that are compared, separated by commas, first the predictions'.")] = "",
) -> None:
    """Write predictions, metrics, quarantine and the report page."""
    from pipeline import report as stage

    stage.run(
        cohort=cohort,
        splits=splits,
        results=results,
        reports=reports,
        resamples=resamples,
        seed=seed,
        title=title,
        models=models.split(",") if models else (),
    )


@app.command()
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


@app.command()
def strict(
    quarantine: Annotated[Path, Argument(help="Table of quarantined slides.", show_default=False)],
    *,
    passed: Annotated[Path, Option(help="Empty file to write if there are none.")],
) -> None:
    """End with exit code 1 if a slide was quarantined."""
    from pipeline import report as stage
    from pipeline.store import write_text

    stage.check_none_quarantined(quarantine)
    write_text(passed, "")


@app.command()
def demo(
    folder: Annotated[Path, Argument(help="Folder to write into.")] = Path("demo"),
    *,
    slides: Annotated[int, Option(min=4, help="Labelled slides to draw.")] = 16,
    seed: Seed = 7,
    workers: Annotated[int, Option(min=1, help="Slides drawn at a time.")] = 1,
) -> None:
    """Write small synthetic slides with labels, to try the workflow on."""
    from pipeline.demo import write_demo

    write_demo(folder, slides=slides, seed=seed, workers=workers)


def _recorded(context: typer.Context) -> dict[str, Any]:
    """Give a command's options as the artefact records them: all but paths, which differ between machines."""
    options = {name: value for name, value in context.params.items() if not isinstance(value, Path)}
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in options.items()} | {
        name: Path(value).name for name, value in options.items() if name == "weights" and value
    }


def _json_options(text: str, flag: str) -> dict[str, Any]:
    import json

    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{flag} is not JSON ({error}); give an object as in '{{}}'") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{flag} is {found!r}; give a JSON object as in '{{}}'")
    return found


def _built(kind: type[Any], options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{error}; see python -m pipeline train --help") from error


def main() -> None:
    """Run a command; an error in the input ends it with one sentence and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        app(check_command.completed(sys.argv[1:]))
    except (PipelineError, BagError, TrainingError) as error:
        sys.exit(f"Error: {error}")
