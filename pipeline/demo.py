"""Write a demo cohort: small synthetic Aperio slides, their labels, and the truth about their tumours.

The slides are drawn (`pipeline.synthetic`), so that the demo needs no download and no patient's data, and are true
Aperio files: a tiled JPEG pyramid with a stripped thumbnail, which OpenSlide opens as `aperio`. Besides the labelled
slides there is one without a label, with a tumour for its heatmap to find, and one cut short as by a broken transfer,
which OpenSlide refuses; neither is in labels.csv.
"""

import csv
import hashlib
import io
import json
import logging
import multiprocessing
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from pipeline import cleaning, json_text
from pipeline.checksums import sha256_of
from pipeline.errors import ConfigError
from pipeline.store import replacing, write_text
from pipeline.synthetic import MPP, draw_slide
from pipeline.synthetic_stain import Stain

logger = logging.getLogger(__name__)

DEMO_VERSION = 1
"""Raise it when the same parameters would draw another cohort: an older demo is then written anew."""

OBJECTIVE = 20
TILE_PX, JPEG_QUALITY, THUMBNAIL_PX = 256, 80, 768
DOWNSAMPLES = (4, 16)
"""Of the levels below level 0, as an Aperio scanner writes them."""

SMALLEST_LEVEL_PX = 96
"""A level whose shorter side would be below this is not written; OpenSlide would serve it, nobody would use it."""

SIZE_STEP_PX = 64
"""Widths and heights are multiples of it, so that every level's downsample is a whole number."""

PATIENT_STAIN = 0.08
"""How much the stain differs between patients, a share. Chosen so that so few patients suffice to learn from: on 16
slides ASMIL's out-of-fold AUROC was 0.66 to 0.77 at 0.13 and 0.80 to 0.97 at 0.07 (one drawing, two splits)."""

KEPT_OF_BROKEN = 0.6
"""Share of the broken slide's bytes that is kept: the directories of its lower levels lie behind the cut."""


@dataclass(frozen=True)
class DemoCohort:
    """A demo on disk.

    Parameters
    ----------
    folder
        Everything lies below it.
    labels
        `data/labels.csv`: slide_id, label ("tumour" or "normal"), patient_id.
    truth
        `truth.csv`: slide_id, tumour_share (of the tissue), tumour_mm2, tissue_mm2; every slide but the broken one.
    slides
        The slides, labelled or not, the broken one among them, by slide id.
    unlabelled, broken
        Slide ids of the slide without a label and of the one that was cut short.
    written
        False if a complete demo of the same parameters was there already and was left alone.
    """

    folder: Path
    labels: Path
    truth: Path
    slides: dict[str, Path]
    unlabelled: str
    broken: str
    written: bool


@dataclass(frozen=True)
class PlannedSlide:
    """What a slide of the demo will be.

    Parameters
    ----------
    slide_id, patient_id
        Names; the slide's begins with the patient's.
    tumour
        Whether it is drawn with a tumour.
    labelled
        Whether it is in labels.csv.
    broken
        Whether the file is cut short.
    """

    slide_id: str
    patient_id: str
    tumour: bool
    labelled: bool = True
    broken: bool = False

    @property
    def label(self) -> str:
        """The class that labels.csv would give it."""
        return "tumour" if self.tumour else "normal"


def plan_cohort(slides: int, *, seed: int) -> list[PlannedSlide]:
    """Decide which patients have which slides.

    The classes are balanced; a patient's slides share the class, and every fourth slide of a class is a patient's
    second one. Twenty slides are of sixteen patients, eight a class, enough for four folds grouped by patient with an
    inner validation split each.

    Parameters
    ----------
    slides
        Labelled slides; the one without a label and the broken one come on top, at the end of the list.
    seed
        Of the order of the classes over the patients' numbers.

    Raises
    ------
    ConfigError
        If there are fewer than 4 slides, too few for two slides a class.
    """
    if slides < 4:
        raise ConfigError(f"a demo of {slides} labelled slides cannot be split into folds; ask for 4 or more")
    counts: list[tuple[bool, int]] = []
    for tumour, of_class in ((True, slides // 2), (False, slides - slides // 2)):
        pairs = of_class // 4
        counts += [(tumour, 2)] * pairs + [(tumour, 1)] * (of_class - 2 * pairs)
    order = np.random.default_rng([seed, 0]).permutation(len(counts))
    planned = []
    for number, index in enumerate(order.tolist(), start=1):
        tumour, count = counts[index]
        patient = f"patient-{number:02d}"
        planned += [PlannedSlide(f"{patient}-{letter}", patient, tumour) for letter in "ab"[:count]]
    new, torn = (f"patient-{len(counts) + more:02d}" for more in (1, 2))
    planned.append(PlannedSlide(f"{new}-a", new, tumour=True, labelled=False))
    planned.append(PlannedSlide(f"{torn}-a", torn, tumour=False, labelled=False, broken=True))
    return planned


def write_demo(folder: Path, *, slides: int = 16, seed: int = 7, workers: int = 1, side_px: int = 2752) -> DemoCohort:
    """Write the demo cohort, unless a complete one of the same parameters is there.

    Below `folder`: `data/raw/*.svs`, `data/labels.csv`, `truth.csv`, `truth/*.geojson` (tumour outlines, level-0 px)
    and `demo.json`, which is written last and says what the cohort was made from. A complete demo is left as it is,
    also where a user has changed a slide or a label to see what happens.

    Parameters
    ----------
    folder
        Made if need be.
    slides
        Labelled slides, half of them with a tumour; two more files come on top (see `plan_cohort`).
    seed
        The same seed gives the same bytes.
    workers
        Processes that draw; about 400 MB each at the default size.
    side_px
        About the width and height of a slide, level-0 px; at least 640.

    Raises
    ------
    ConfigError
        If `slides` is below 4 or `side_px` below 640, or the folder has labels that are not a demo's.
    """
    if side_px < 640:
        raise ConfigError(f"demo slides of {side_px} px have no room for tissue; ask for 640 px or more")
    planned = plan_cohort(slides, seed=seed)
    cohort = _locate(folder, planned)
    files = [
        *cohort.slides.values(),
        *(_truth_path(folder, plan.slide_id) for plan in planned if not plan.broken),
        cohort.labels,
        cohort.truth,
    ]
    names = [path.relative_to(folder).as_posix() for path in files]
    parameters = {"version": DEMO_VERSION, "slides": slides, "seed": seed, "side_px": side_px}
    digest = hashlib.sha256(json.dumps([parameters, names]).encode()).hexdigest()
    before = _read_manifest(folder / "demo.json")
    if before.get("digest") == digest and all(path.is_file() for path in files):
        logger.info("%s: the demo is complete (%d slides), nothing to draw", folder, len(planned))
        return cohort
    labels = _table(
        ("slide_id", "label", "patient_id"),
        ((plan.slide_id, plan.label, plan.patient_id) for plan in planned if plan.labelled),
    )
    if cohort.labels.exists() and not before and cohort.labels.read_bytes() != labels.encode():
        raise ConfigError(f"{cohort.labels} is not a demo's and would be overwritten; give the demo its own folder")
    _require_unchanged(files, _written(before), folder=folder)
    started = time.perf_counter()
    (folder / "demo.json").unlink(missing_ok=True)
    _remove_written(folder, {name: known for name, known in _written(before).items() if name not in names})
    rows = _write_slides(planned, folder, seed=seed, side_px=side_px, workers=workers)
    write_text(cohort.truth, _table(("slide_id", "tumour_share", "tumour_mm2", "tissue_mm2"), rows))
    write_text(cohort.labels, labels)
    manifest = {**parameters, "digest": digest, "files": {name: sha256_of(folder / name) for name in names}}
    write_text(folder / "demo.json", json.dumps(manifest, indent=1) + "\n")
    logger.info("%s: %d slides drawn in %.1f s", folder, len(planned), time.perf_counter() - started)
    return replace(cohort, written=True)


def remove_demo(folder: Path) -> None:
    """Remove a demo's slides, labels and truth, and what runs on them made; say what else was left in the folder.

    A file goes if its bytes are those that were written (`demo.json` has their checksums).

    Raises
    ------
    ConfigError
        If a run works there.
    """
    kept = cleaning.clean(folder)
    manifest = folder / "demo.json"
    kept += _remove_written(folder, _written(_read_manifest(manifest)))
    manifest.unlink(missing_ok=True)
    for place in (folder / "data", folder / "truth"):  # folders that are empty go
        kept += [path for path in cleaning.remove(place, lambda _: False) if path not in kept]
    cleaning.tell(kept, why="the demo and its runs did not write them, or somebody changed them since")


def _require_unchanged(files: Iterable[Path], written: Mapping[str, str], *, folder: Path) -> None:
    """Raise where a file of an earlier demo, about to be drawn anew, was changed by its user since."""
    for path in files:
        known = written.get(path.relative_to(folder).as_posix())
        if known is not None and path.is_file() and sha256_of(path) != known:
            raise ConfigError(
                f"{path} was changed since the demo was drawn, and this one, of another version or of other settings or"
                " with a file missing, would overwrite it; move it away, or draw this demo in a folder of its own"
            )


def _remove_written(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Remove files that are as they were written; give those that are not."""
    changed = []
    for name, known in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            continue
        if sha256_of(path) == known:
            path.unlink()
        else:
            changed.append(path)
    return changed


def write_svs(path: Path, pixels: NDArray[np.uint8], *, mpp: float, objective: float) -> None:
    """Write a picture as an Aperio slide: level 0, a stripped thumbnail, the lower levels; JPEG, 256 px tiles.

    The same pixels give the same bytes. The file appears under its name only when it is complete.

    Parameters
    ----------
    path
        Ends in `.svs`; replaced if it exists.
    pixels
        uint8 RGB, shape (H, W, 3).
    mpp, objective
        Resolution of level 0, um per pixel, and the objective's magnification, as the description states them.
    """
    height, width = pixels.shape[:2]
    levels = [
        cv2.resize(pixels, (width // downsample, height // downsample), interpolation=cv2.INTER_AREA)
        for downsample in DOWNSAMPLES
        if min(height, width) // downsample >= SMALLEST_LEVEL_PX
    ]
    shrink = min(1.0, THUMBNAIL_PX / max(height, width))
    thumbnail = cv2.resize(pixels, (round(width * shrink), round(height * shrink)), interpolation=cv2.INTER_AREA)
    jpeg: dict[str, Any] = {
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": JPEG_QUALITY},
        "metadata": None,
        "software": False,
        "maxworkers": 1,
    }
    tail = f"|AppMag = {objective:g}|MPP = {mpp:.4f}"
    size = f"Aperio Image Library v11.2.1, drawn by asmil-wsi \r\n{width}x{height} [0,0 {width}x{height}]"
    with replacing(path) as part, tifffile.TiffWriter(part) as svs:
        tiled = {**jpeg, "tile": (TILE_PX, TILE_PX)}
        svs.write(pixels, description=f"{size} (256x256) JPEG/RGB Q={JPEG_QUALITY}{tail}", **tiled)
        # OpenSlide takes the second directory for the thumbnail when it is in strips
        small = f"{thumbnail.shape[1]}x{thumbnail.shape[0]}"
        svs.write(thumbnail, description=f"{size} -> {small} - {tail}", rowsperstrip=16, **jpeg)
        for level in levels:
            small = f"{level.shape[1]}x{level.shape[0]}"
            svs.write(level, description=f"{size} (256x256) -> {small} JPEG/RGB Q={JPEG_QUALITY}{tail}", **tiled)


def _locate(folder: Path, planned: list[PlannedSlide]) -> DemoCohort:
    raw = folder / "data" / "raw"
    return DemoCohort(
        folder=folder,
        labels=folder / "data" / "labels.csv",
        truth=folder / "truth.csv",
        slides={plan.slide_id: raw / f"{plan.slide_id}.svs" for plan in planned},
        unlabelled=next(plan.slide_id for plan in planned if not plan.labelled and not plan.broken),
        broken=next(plan.slide_id for plan in planned if plan.broken),
        written=False,
    )


def _write_slides(
    planned: list[PlannedSlide], folder: Path, *, seed: int, side_px: int, workers: int
) -> list[tuple[str, str, str, str]]:
    """Draw and write every slide; give the rows of truth.csv."""
    jobs = [(plan, folder, [seed, index], side_px) for index, plan in enumerate(planned, start=1)]
    if workers <= 1:
        truths = [_write_slide(job) for job in jobs]
    else:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy OpenCV's threads in an unknown state
        with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            truths = list(pool.map(_write_slide, jobs))
    return [truth for plan, truth in zip(planned, truths, strict=True) if not plan.broken]


def slide_stain(plan: PlannedSlide, *, seed: int) -> Stain:
    """Give a slide's stain: patients differ, as if each came from a laboratory, and a patient's slides a little."""
    patient = int(plan.patient_id.removeprefix("patient-"))
    letter = ord(plan.slide_id[-1])
    of_patient = Stain().varied(np.random.default_rng([seed, 2, patient]), PATIENT_STAIN)
    return of_patient.varied(np.random.default_rng([seed, 2, patient, letter]), 0.03)


def _write_slide(job: tuple[PlannedSlide, Path, list[int], int]) -> tuple[str, str, str, str]:
    """Draw one slide and write it and its truth; give its row of truth.csv."""
    plan, folder, seed, side_px = job
    rng = np.random.default_rng([*seed, 1])
    width, height = (int(side_px * share / SIZE_STEP_PX) * SIZE_STEP_PX for share in rng.uniform(0.94, 1.09, 2))
    stain = slide_stain(plan, seed=seed[0])
    drawing = draw_slide([*seed, 3], width_px=width, height_px=height, tumour=plan.tumour, stain=stain)
    with replacing(folder / "data" / "raw" / f"{plan.slide_id}.svs") as part:
        write_svs(part, drawing.pixels, mpp=MPP, objective=OBJECTIVE)
        if plan.broken:
            with part.open("r+b") as file:
                file.truncate(int(part.stat().st_size * KEPT_OF_BROKEN))
    if not plan.broken:
        write_text(_truth_path(folder, plan.slide_id), _geojson(plan.slide_id, drawing.outlines))
    square_mm = MPP**2 / 1e6
    tumour_mm2, tissue_mm2 = (f"{area_px * square_mm:.4f}" for area_px in (drawing.tumour_px, drawing.tissue_px))
    return plan.slide_id, f"{drawing.tumour_share:.4f}", tumour_mm2, tissue_mm2


def _geojson(slide_id: str, outlines: list[NDArray[np.int32]]) -> str:
    """Give tumour outlines as GeoJSON (RFC 7946 in structure, coordinates in level-0 px), as QuPath imports them."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*outline.tolist(), outline[0].tolist()]]},
            "properties": {
                "slide_id": slide_id,
                "objectType": "annotation",
                "classification": {"name": "Tumor", "color": [200, 0, 0]},
                "area_mm2": round(cv2.contourArea(outline) * MPP**2 / 1e6, 4),
            },
        }
        for outline in outlines
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}) + "\n"


def _truth_path(folder: Path, slide_id: str) -> Path:
    return folder / "truth" / f"{slide_id}.geojson"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _written(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Give the SHA-256 of each file that an earlier demo wrote."""
    files = manifest.get("files")
    return {str(name): str(known) for name, known in files.items()} if isinstance(files, dict) else {}


def _read_manifest(path: Path) -> dict[str, Any]:
    """Give what an earlier demo was made from; nothing where there is none, or its file is damaged."""
    try:
        return json_text.parse_object(path.read_bytes())
    except (FileNotFoundError, json_text.JsonError):
        return {}
