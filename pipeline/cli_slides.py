"""The commands that make a slide's tiles and its bag."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from pipeline import bucket, isolation
from pipeline.cli_encoders import Stain
from pipeline.errors import SlideError
from pipeline.options import (
    STALLED_AFTER_S,
    DefaultMpp,
    Gpus,
    Mpp,
    MppFromObjective,
    Overlap,
    PatchPx,
    SlideFile,
    SlideId,
    StalledAfter,
    TargetMpp,
    Threads,
    Weights,
    WeightsFolder,
)


class TissueMethod(StrEnum):
    """How the threshold between glass and tissue is found."""

    otsu = "otsu"
    fixed = "fixed"


def add_slide_commands(app: typer.Typer) -> None:
    """Add `tile` and `embed` to the command line."""
    app.command()(tile)
    app.command()(embed)


def tile(
    context: typer.Context,
    slide: SlideFile,
    *,
    slide_id: SlideId,
    planned: Annotated[str | None, Option(help="The slide's fingerprint when the run was planned.")] = None,
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
    max_bubble: Annotated[float, Option(min=0, max=1, help="Largest share of a tile that may lie under a bubble.")],
    max_blur: Annotated[float, Option(min=0, max=1, help="Largest share of a tile that may be out of focus.")],
    max_fold: Annotated[float, Option(min=0, max=1, help="Largest share of a tile that may be a fold.")],
    max_tiles: Annotated[int | None, Option(min=1, help="Most tiles to keep, drawn at random; none keeps all.")] = None,
    drawn_tissue: Annotated[Path | None, Option(help="GeoJSON that replaces the tissue found.")] = None,
    roi: Annotated[Path | None, Option(help="GeoJSON of the regions to keep to.")] = None,
    mpp: Mpp = None,
    default_mpp: DefaultMpp = None,
    mpp_from_objective: MppFromObjective = False,
    stalled_after_s: StalledAfter = STALLED_AFTER_S,
) -> None:
    """Find the tissue of one slide and place tiles on it."""

    def work() -> None:
        from pipeline import tile as stage
        from pipeline.cohort import Drawn
        from pipeline.fingerprint import fingerprint, require
        from pipeline.quality import QualityOptions
        from pipeline.tissue import TissueOptions

        if planned is not None and not bucket.is_url(slide):
            require(path, planned)
        stage.run(
            path,
            slide_id=slide_id,
            fingerprint=fingerprint(path),
            tiles=tiles,
            tissue=tissue,
            preview=preview,
            patch_px=patch_px,
            target_mpp=target_mpp,
            overlap=overlap,
            min_tissue=min_tissue,
            max_tiles=max_tiles,
            tissue_options=TissueOptions(
                method=tissue_method.value,
                threshold=tissue_threshold,
                mpp=tissue_mpp,
                min_area_mm2=tissue_min_area_mm2,
                min_hole_mm2=tissue_min_hole_mm2,
                exclude_pen=tissue_exclude_pen,
            ),
            quality=QualityOptions(max_pen=max_pen, max_bubble=max_bubble, max_blur=max_blur, max_fold=max_fold),
            drawn=Drawn(tissue=drawn_tissue, roi=roi),
            mpp=mpp,
            default_mpp=default_mpp,
            mpp_from_objective=mpp_from_objective,
            parameters=_recorded(context),
        )

    def quarantine(error: SlideError) -> None:
        from pipeline import tile as stage
        from pipeline.fingerprint import UNREADABLE

        attributes = {"parameters": _recorded(context), "target_mpp": target_mpp, "patch_px": patch_px}
        stage.write_quarantined(
            error,
            slide_id=slide_id,
            fingerprint=UNREADABLE,
            tiles=tiles,
            tissue=tissue,
            preview=preview,
            attributes=attributes,
        )

    with bucket.local(slide, planned=planned) as path:
        isolation.run(work, stalled_after_s=stalled_after_s, quarantine=quarantine)


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
    stalled_after_s: StalledAfter = STALLED_AFTER_S,
) -> None:
    """Encode the patches of one slide into a bag of features."""

    def work() -> None:
        from pipeline import embed as stage
        from pipeline import encoders
        from pipeline.device import claim_gpu, kind_of_device

        device = kind_of_device(gpus=gpus) if encoders.spec(encoder, weights_folder).uses_gpu else "cpu"
        stage.run(
            path,
            slide_id=slide_id,
            tiles=tiles,
            bag=bag,
            options=stage.EncoderOptions(
                encoder,
                weights=weights,
                folder=weights_folder,
                precision=precision,
                batch_size=batch_size,
                device=device,
                claim=claim_gpu if device == "cuda" else None,
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

    def read_again() -> None:
        from pipeline import embed as stage

        stage.read_only(
            path,
            tiles=tiles,
            threads=threads,
            mpp=mpp,
            default_mpp=default_mpp,
            mpp_from_objective=mpp_from_objective,
        )

    def quarantine(error: SlideError) -> None:
        from pipeline import embed as stage

        stage.write_quarantined(error, slide_id=slide_id, tiles=tiles, bag=bag, parameters=_recorded(context))

    with bucket.local(slide) as path:
        isolation.run(work, stalled_after_s=stalled_after_s, quarantine=quarantine, read_again=read_again)


def _recorded(context: typer.Context) -> dict[str, Any]:
    """Give a command's options as the artefact records them: without paths and limits, which differ by machine."""
    of_machine = {"slide", "stalled_after_s", "planned", "threads", "gpus"}
    options = {
        name: value for name, value in context.params.items() if not isinstance(value, Path) and name not in of_machine
    }
    return {name: str(value) if isinstance(value, StrEnum) else value for name, value in options.items()} | {
        name: Path(value).name for name, value in options.items() if name == "weights" and value
    }
