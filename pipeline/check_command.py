"""The command that looks at a cohort before any work is done; alone, it takes its options from config.yaml."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from typer import Option

from pipeline.errors import ConfigError
from pipeline.options import (
    STALLED_AFTER_S,
    DefaultMpp,
    EventColumn,
    Folds,
    LabelsFile,
    MppFromObjective,
    Overlap,
    OverridesFile,
    PatchPx,
    SlidesFolder,
    StalledAfter,
    Target,
    TargetMpp,
    TaskKind,
    TaskName,
    Threads,
    Weights,
    WeightsFolder,
)

ROOT = Path(__file__).parents[1]
THREADS = 8


def check(
    *,
    slides: SlidesFolder,
    labels: LabelsFile,
    overrides: OverridesFile,
    target: Target,
    task: TaskName = TaskKind.classification,
    event: EventColumn = "event",
    folds: Folds,
    encoder: Annotated[str, Option(help="Encoder whose weights must be there.")],
    weights: Weights = None,
    weights_folder: WeightsFolder = Path("weights"),
    cohort: Annotated[Path, Option(help="Table to write.")],
    summary: Annotated[Path, Option(help="Summary to write.")],
    tissue: Annotated[Path | None, Option(help="Folder of drawn tissue; may be missing.")] = None,
    roi: Annotated[Path | None, Option(help="Folder of drawn regions; may be missing.")] = None,
    patch_px: PatchPx,
    target_mpp: TargetMpp,
    overlap: Overlap,
    max_tiles: Annotated[int | None, Option(min=1, help="Most tiles of a slide.")] = None,
    default_mpp: DefaultMpp = None,
    mpp_from_objective: MppFromObjective = False,
    tiles: Annotated[Path | None, Option(help="Folder of tiles whose quality completes the table.")] = None,
    given: Annotated[str | None, Option(help="Digest of labels and overrides when the run was planned.")] = None,
    threads: Threads = 1,
    stalled_after_s: StalledAfter = STALLED_AFTER_S,
) -> None:
    """Open every slide's header, write the cohort table and say what to mend; without options, by config.yaml."""
    from pipeline import check as stage
    from pipeline import cohort as cohorts
    from pipeline import encoders
    from pipeline.forecast import Work

    found = cohorts.load(
        slides,
        labels=labels,
        overrides=overrides,
        target=target,
        folds=folds,
        tissue=tissue,
        roi=roi,
        task=task.value,
        event=event,
        must_train=False,
    )
    if given is not None and cohorts.given_digest(found) != given:
        raise ConfigError(
            f"{labels}, {overrides} or the slides in {slides} changed after the run was planned; run the same command"
            " again"
        )
    stage.run(
        found,
        output=cohort,
        summary=summary,
        default_mpp=default_mpp,
        mpp_from_objective=mpp_from_objective,
        threads=threads,
        tiles=tiles,
        stalled_after_s=stalled_after_s,
        work=Work(patch_px=patch_px, mpp=target_mpp, overlap=overlap, encoder=encoder, max_tiles=max_tiles),
    )
    # last, so that the table and the summary are there whatever else must be mended
    if found.problem:
        raise ConfigError(found.problem)
    encoders.check_weights(encoder, folder=weights_folder, weights=weights)


def cohort(
    *,
    checked: Annotated[Path, Option(help="Table that check wrote.")],
    tiles: Annotated[Path, Option(help="Folder of the tiles.")],
    cohort: Annotated[Path, Option(help="Table to write.")],
) -> None:
    """Complete the table that check wrote with the quality of each slide's tiles."""
    from pipeline.cohort_table import complete, read_cohort, write_cohort

    write_cohort(cohort, complete(read_cohort(checked), tiles))


def completed(arguments: Sequence[str]) -> list[str]:
    """Give a command's arguments; those of `check` alone are completed from the configuration.

    The configuration is the checkout's `config.yaml`, and over it the one of the folder the command runs in.

    Raises
    ------
    ConfigError
        If the configuration is not valid.
    """
    if list(arguments) != ["check"]:
        return list(arguments)
    from pipeline import settings, stage_flags

    config = settings.read(
        path for path in dict.fromkeys((ROOT / "config.yaml", Path.cwd() / "config.yaml")) if path.is_file()
    )
    checked = settings.check(config, ROOT / "workflow" / "schemas" / "config.schema.yaml")
    results = Path(checked["paths"]["results"])
    files = {"--cohort": results / "cohort.tsv", "--summary": results / "check.txt", "--tiles": results / "tiles"}
    stalled = str(checked["slide"]["stalled_after_s"])
    written = ["--threads", str(THREADS), "--stalled-after-s", stalled]
    written += [str(part) for pair in files.items() for part in pair]
    return ["check", *shlex.split(stage_flags.flags(checked, "check")), *written]
