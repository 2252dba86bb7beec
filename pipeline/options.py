"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


class TaskKind(StrEnum):
    """What is learned of a slide's label."""

    classification = "classification"
    survival = "survival"
    regression = "regression"


class IntervalMethod(StrEnum):
    """How intervals are made of resamples."""

    bca = "bca"
    percentile = "percentile"


SlidesFolder = Annotated[str, Option(help="Folder of the slides, or s3://bucket/folder.")]
LabelsFile = Annotated[Path, Option(help="Labels file.")]
OverridesFile = Annotated[Path, Option(help="Overrides file; may be missing.")]
Target = Annotated[str, Option(help="Column of the labels file to learn.")]
TaskName = Annotated[TaskKind, Option(help="What is learned of it: a class, a time to an event, a number.")]
EventColumn = Annotated[str, Option(help="Column that says whether the event was seen; for survival.")]
Folds = Annotated[int, Option(min=2, help="Outer folds, which the labels must allow.")]
SlideFile = Annotated[str, Argument(help="The slide: a path, or s3://bucket/key.", show_default=False)]
SlideId = Annotated[str, Option(help="Its id.", show_default=False)]
Threads = Annotated[int, Option(min=1, help="Threads to use.")]
Gpus = Annotated[int, Option(min=0, help="GPUs that may be used; 0 computes on the CPU.")]
Seed = Annotated[int, Option(min=0, help="The same seed gives the same result.")]
Weights = Annotated[str | None, Option(help="File of the encoder's weights, or random; none: by its name.")]
WeightsFolder = Annotated[Path, Option(help="Folder that has the encoders' weights by name.")]
Mpp = Annotated[float | None, Option(min=0.05, max=10, help="um per pixel of level 0, instead of what the slide says.")]
DefaultMpp = Annotated[float | None, Option(min=0.05, max=10, help="um per pixel if the slide does not say it.")]
MppFromObjective = Annotated[bool, Option(help="Take 10 um / objective power if nothing better is known.")]
PatchPx = Annotated[int, Option(min=1, help="Edge of a patch, pixels.")]
TargetMpp = Annotated[float, Option(min=0.05, max=10, help="um per pixel that patches are read at.")]
Overlap = Annotated[float, Option(min=0, max=0.9, help="Of neighbouring tiles, as a share of their edge.")]
STALLED_AFTER_S = 1800.0
"""Default of a command run alone; the workflow gives slide.stalled_after_s."""
StalledAfter = Annotated[float, Option(min=1, help="Seconds without progress after which reading is taken to hang.")]
Private = Annotated[Path | None, Option(help="Folder of the key by which ids are hashed; none: they are shown.")]
