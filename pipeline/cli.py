"""The command line: one command a stage, `python -m pipeline STAGE --help` is its manual.

A command owns the paths and gives its options, unchanged, to the stage's function. Each stage is imported only by its
own command, so that a job pays for nothing it does not use.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from pipeline import bucket, check_command, isolation, running
from pipeline.cli_encoders import add_encoder_commands
from pipeline.cli_models import add_model_commands
from pipeline.cli_predict import add_predict_commands
from pipeline.cli_slides import add_slide_commands
from pipeline.endings import exit_code
from pipeline.errors import PipelineError, SlideError
from pipeline.options import (
    STALLED_AFTER_S,
    DefaultMpp,
    IntervalMethod,
    Mpp,
    MppFromObjective,
    Private,
    Seed,
    SlideFile,
    StalledAfter,
)

app = typer.Typer(
    name="python -m pipeline",
    help="From whole-slide images to slide-level predictions and attention heatmaps, one command a stage."
    " The workflow (snakemake) calls them; each also works alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(check_command.check)
app.command()(check_command.cohort)
add_slide_commands(app)
add_model_commands(app)
add_predict_commands(app)
add_encoder_commands(app)


@app.command()
def heatmap(
    slide: SlideFile,
    *,
    attention: Annotated[Path, Option(help="Attention artefact.")],
    png: Annotated[Path, Option(help="Picture to write.")],
    geojson: Annotated[Path, Option(help="Squares for QuPath to write.")],
    view: Annotated[Path | None, Option(help="Pictures for the report's viewer to write.")] = None,
    tiles: Annotated[Path | None, Option(help="The slide's tiles, to show those that were left out.")] = None,
    colormap: Annotated[str, Option(help="A matplotlib colour map.")],
    opacity: Annotated[float, Option(min=0, max=1, help="Share of the colour on analysed tissue.")],
    top_patches: Annotated[int, Option(min=1, max=24, help="Most, and least, attended patches to show.")],
    width_px: Annotated[int, Option(min=800, help="Width of the page.")],
    mpp: Mpp = None,
    default_mpp: DefaultMpp = None,
    mpp_from_objective: MppFromObjective = False,
    private: Private = None,
    stalled_after_s: StalledAfter = STALLED_AFTER_S,
) -> None:
    """Draw the attention of one slide."""

    def work(unreadable: SlideError | None = None) -> None:
        from pipeline import heatmap as stage
        from pipeline import store
        from pipeline.fingerprint import UNREADABLE, require

        known = store.read_attributes(attention)["fingerprint"]
        if unreadable is None and known != UNREADABLE:  # else the picture would show another slide's pixels
            require(path, known)
        stage.run(
            path,
            attention=attention,
            png=png,
            geojson=geojson,
            view=view,
            tiles=tiles,
            colormap=colormap,
            opacity=opacity,
            top_patches=top_patches,
            width_px=width_px,
            mpp=mpp,
            default_mpp=default_mpp,
            mpp_from_objective=mpp_from_objective,
            private=private,
            unreadable=unreadable,
        )

    with bucket.local(slide) as path:
        isolation.run(work, stalled_after_s=stalled_after_s, quarantine=work)


@app.command()
def report(
    *,
    cohort: Annotated[Path, Option(help="Cohort table.")],
    splits: Annotated[Path, Option(help="Splits file.")],
    results: Annotated[Path, Option(help="Folder of the results.")],
    reports: Annotated[Path, Option(help="Folder of the reports to write.")],
    resamples: Annotated[int, Option(min=100, help="Resamples of patients for the intervals.")],
    method: Annotated[IntervalMethod, Option(help="How intervals are made of them.")] = IntervalMethod.bca,
    seed: Seed,
    title: Annotated[str, Option(help="Heading of the report.")] = "Slide report",
    models: Annotated[str, Option(help="Models, separated by commas, first the predictions'.")] = "",
    private: Private = None,
) -> None:
    """Write predictions, metrics, quarantine and the report page."""
    from pipeline import report as stage
    from pipeline.figures import Interval

    stage.run(
        cohort=cohort,
        splits=splits,
        results=results,
        reports=reports,
        interval=Interval(resamples, seed, method.value),
        title=title,
        models=models.split(",") if models else (),
        private=private,
    )


@app.command()
def status(
    *,
    results: Annotated[Path, Option(help="Folder of the results.")] = Path("results"),
    reports: Annotated[Path, Option(help="Folder of the reports.")] = Path("reports"),
) -> None:
    """Say how far a run is: what is done, what is left, and when it should end."""
    from datetime import datetime

    from pipeline import progress

    typer.echo(progress.text(progress.look(results, reports), now=datetime.now().astimezone()))


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
def verify(
    *,
    results: Annotated[Path, Option(help="Folder of the results.")] = Path("results"),
    reports: Annotated[Path, Option(help="Folder of the reports.")] = Path("reports"),
    repair: Annotated[bool, Option("--repair", help="Rename damaged files; the next run makes them anew.")] = False,
) -> None:
    """Read every artefact again and name those that a failing disk changed."""
    from pipeline import verify as stage

    stage.run(results, reports, repair=repair)


@app.command()
def same(
    first: Annotated[Path, Argument(help="Folder of a study that was run.", show_default=False)],
    second: Annotated[Path, Argument(help="Folder of the other.", show_default=False)],
) -> None:
    """Tell whether two runs gave the same results and reports, but for speeds and logs."""
    from pipeline import same_runs
    from pipeline.discovery import shown

    different = same_runs.differences(first, second)
    for line in different:
        typer.echo(shown(line))
    if different:
        raise PipelineError(f"the runs in {first} and {second} differ in {len(different)} file(s), named above")
    typer.echo("the same")


@app.command()
def demo(
    folder: Annotated[Path, Argument(help="Folder to write into.")] = Path("demo"),
    *,
    slides: Annotated[int, Option(min=4, help="Labelled slides to draw.")] = 16,
    seed: Seed = 7,
    workers: Annotated[int, Option(min=1, help="Slides drawn at a time.")] = 1,
    remove: Annotated[bool, Option("--remove", help="Remove the demo and what runs on it made.")] = False,
) -> None:
    """Write small synthetic slides with labels, to try the workflow on."""
    from pipeline.demo import remove_demo, write_demo

    if remove:
        remove_demo(folder)
    else:
        write_demo(folder, slides=slides, seed=seed, workers=workers)


@app.command()
def clean(
    folder: Annotated[Path, Argument(help="Folder of the study.")] = Path(),
    *,
    results: Annotated[Path, Option(help="Its folder of results.")] = Path("results"),
    reports: Annotated[Path, Option(help="Its folder of reports.")] = Path("reports"),
) -> None:
    """Remove what runs made in a study, results and reports; what somebody else put there stays and is named."""
    from pipeline import cleaning

    kept = cleaning.clean(folder, results=results, reports=reports)
    cleaning.tell(kept, why="no run wrote them, or somebody changed them since")


def main() -> None:
    """Run a command; an error in the input ends it with one sentence and exit code 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    running.join()
    isolation.enable()
    sys.exit(exit_code(lambda: app(check_command.completed(sys.argv[1:]))))
