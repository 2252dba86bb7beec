"""Predict slides from anywhere with a folder of trained models, without the workflow.

The folder says how its bags were made; the slides go through the same stages with the same settings.
"""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import checksums, embed, encoders, heatmap, predict, store, tile
from pipeline.decision import DecisionOptions
from pipeline.discovery import is_utf_8, shown
from pipeline.embed import EncoderOptions
from pipeline.errors import ArtefactError, ConfigError
from pipeline.evaluation import SlideResult, result_of
from pipeline.fingerprint import fingerprint
from pipeline.flags import FLAGS
from pipeline.model_folder import read_description
from pipeline.model_index import PARTS, folds_of
from pipeline.quality import QualityOptions
from pipeline.report import predictions_table
from pipeline.tissue import TissueOptions

log = logging.getLogger(__name__)

PAGE = {"colormap": "viridis", "opacity": 0.5, "top_patches": 6, "width_px": 2480}
"""How a page looks: as config.yaml has it."""


@dataclass(frozen=True)
class Scale:
    """The um per pixel of slides, as `slide.open_slide` takes it; what is None here is as the models' slides had it."""

    mpp: float | None = None
    default_mpp: float | None = None


def slide_ids(slides: Sequence[Path]) -> dict[str, Path]:
    """Name slides by their files.

    Raises
    ------
    ConfigError
        If a file is missing, two have one name, or a name is not UTF-8, as tables are.
    """
    named: dict[str, Path] = {}
    for path in slides:
        if not path.exists():
            raise ConfigError(f"{path}: no such file; name slides that are there")
        name = unicodedata.normalize("NFC", path.stem)
        if not is_utf_8(name):
            raise ConfigError(f"'{shown(path)}': the name is not UTF-8; rename it")
        if name in named:
            raise ConfigError(f"{named[name]} and {path} are both called '{name}'; predict them into different folders")
        named[name] = path
    return named


def run(
    slides: Sequence[Path],
    *,
    models: Path,
    out: Path,
    weights: str | None,
    weights_folder: Path,
    device: str,
    threads: int,
    scale: Scale,
    options: DecisionOptions,
) -> list[SlideResult]:
    """Tile, embed and predict slides, draw their pages, and write `predictions.csv`.

    Parameters
    ----------
    slides
        Files; each is called by its name without the extension.
    models
        Folder with a `fold-{k}` a model, as a run leaves it in `results/model`.
    out
        Where to write: `predictions.csv`, `heatmaps/{slide}.png`, and the stages' artefacts.
    weights, weights_folder
        The encoder's weights, as `encoders.load` takes them.
    device, threads
        Where and with how many threads patches are encoded.
    scale
        What is known better than the slides and the models say.
    options
        When to decide, and how.

    Returns
    -------
    A result a slide, in their order; one that cannot be used says why.

    Raises
    ------
    ArtefactError
        If the folder is incomplete or damaged, or its models were trained with other weights of the encoder.
    ConfigError
        If a slide or the encoder's weights are missing.
    """
    named = slide_ids(slides)
    check_whole(models)
    description = read_description(models / f"fold-{predict.folds_in(models)[0]}")
    made = description["preparation"]
    if not made:
        raise ArtefactError(f"{models} does not say how its bags were made; train again, by the workflow")
    check_weights(description["bags"], weights=weights, folder=weights_folder, models=models)
    results = [
        _one(
            slide_id,
            path,
            made=made,
            models=models,
            out=out,
            encoder=EncoderOptions(
                made["embed"]["encoder"],
                weights=weights,
                folder=weights_folder,
                precision=made["embed"]["precision"],
                stain=made["embed"]["stain"],
                device=device,
            ),
            threads=threads,
            scale=scale,
            options=options,
        )
        for slide_id, path in named.items()
    ]
    store.write_text(out / "predictions.csv", predictions_table(results, description["classes"]))
    return results


def check_whole(models: Path) -> None:
    """Refuse a folder whose files are not those that were written: no run is here that would make them anew."""
    for path in (models / f"fold-{fold}" / name for fold in folds_of(models) for name in PARTS):
        if checksums.is_changed(path):
            raise ArtefactError(
                f"{path}: damaged (its bytes changed after it was written); copy the folder of models again from where"
                " they were trained"
            )


def check_weights(bags: dict[str, Any], *, weights: str | None, folder: Path, models: Path) -> None:
    """Refuse encoder weights other than those the models' bags were made with, before any slide is read.

    Parameters
    ----------
    bags
        What the models' bags have in common.
    """
    found = encoders.check_weights(bags["encoder"], folder=folder, weights=weights)
    if found != bags["weights_sha256"]:
        raise ArtefactError(
            f"{models} was trained with weights of {bags['encoder']} whose sha256 is"
            f" {bags['weights_sha256'] or 'none'}, those here have {found or 'none'}; give the same file with --weights"
        )


def _one(
    slide_id: str,
    path: Path,
    *,
    made: dict[str, Any],
    models: Path,
    out: Path,
    encoder: EncoderOptions,
    threads: int,
    scale: Scale,
    options: DecisionOptions,
) -> SlideResult:
    tiling = dict(made["tile"])
    opened: dict[str, Any] = {
        "mpp": scale.mpp,
        "default_mpp": scale.default_mpp or tiling.pop("default_mpp"),
        "mpp_from_objective": tiling.pop("mpp_from_objective"),
    }
    tiling.pop("default_mpp", None)
    tissue = {key.removeprefix("tissue_"): tiling.pop(key) for key in list(tiling) if key.startswith("tissue_")}
    quality = {key: tiling.pop(key) for key in (f"max_{flag}" for flag in FLAGS)}
    artefacts = {stage: out / stage / f"{slide_id}.zarr.zip" for stage in ("tiles", "bags", "attention")}
    tile.run(
        path,
        slide_id=slide_id,
        fingerprint=fingerprint(path),
        tiles=artefacts["tiles"],
        tissue=out / "tissue" / f"{slide_id}.geojson",
        preview=out / "tissue" / f"{slide_id}.jpg",
        tissue_options=TissueOptions(**tissue),
        quality=QualityOptions(**quality),
        **tiling,
        **opened,
    )
    embed.run(
        path,
        slide_id=slide_id,
        tiles=artefacts["tiles"],
        bag=artefacts["bags"],
        options=encoder,
        max_unreadable=made["embed"]["max_unreadable"],
        threads=threads,
        parameters=made["embed"],
        **opened,
    )
    predict.run(
        artefacts["bags"], splits=None, models=models, attention=artefacts["attention"], device="cpu", options=options
    )
    heatmap.run(
        path,
        attention=artefacts["attention"],
        png=out / "heatmaps" / f"{slide_id}.png",
        geojson=out / "attention" / f"{slide_id}.geojson",
        **PAGE,  # type: ignore[arg-type]
        **opened,
    )
    row = dict.fromkeys(("patient_id", "label", "reason", "remedy"), "")
    return result_of({**row, "slide_id": slide_id, "status": store.OK}, out)


def lines(results: Sequence[SlideResult], out: Path) -> list[str]:
    """Say what came out, a line a slide."""
    said = []
    for slide in results:
        found = slide.prediction
        if found is None:
            said.append(f"{slide.slide_id}: not predicted: {slide.reason}; {slide.remedy}.")
            continue
        numbers = ", ".join(
            f"{name} {value:.2f}"
            for name, value in zip(found.classes, found.calibrated or found.probabilities, strict=True)
        )
        why = f" ({found.decision_reason})" if found.decision_reason else ""
        held = " (not held out: the models were trained on this slide)" if found.source == "seen" else ""
        said.append(f"{slide.slide_id}: {found.decision or found.predicted}{why}; {numbers or found.predicted}{held}")
    return [*said, f"Pages: {out / 'heatmaps'}, table: {out / 'predictions.csv'}"]
