"""What the user gave: the slides, and the tables and drawings beside them.

Nothing heavy is imported here, because the workflow reads the cohort each time it plans.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path

from pipeline import tasks
from pipeline.bucket import Location, is_url
from pipeline.discovery import discover, discover_in_bucket, shown
from pipeline.errors import ConfigError
from pipeline.user_tables import read_csv

_COLUMNS = ("slide_id", "patient_id", "site", "label")


@dataclass(frozen=True)
class Label:
    """One row of the labels file: what is learned, the slide's patient (the slide itself if not given), its site.

    `pipeline.tasks` says how what is learned is written.
    """

    label: str
    patient_id: str
    site: str = ""


@dataclass(frozen=True)
class Override:
    """What the user says of one slide: its mpp in um per pixel, and whether to leave it out."""

    mpp: float | None = None
    skip: bool = False
    note: str = ""


@dataclass(frozen=True)
class Drawn:
    """GeoJSON files that the user drew for one slide: its tissue, and the regions to keep to."""

    tissue: Path | None = None
    roi: Path | None = None


@dataclass(frozen=True)
class Cohort:
    """The slides that are present, what is known of them, and sentences about what looks odd.

    Parameters
    ----------
    slides
        Where each slide is, by slide id, sorted by id.
    labels
        Labels of the slides that are present.
    known
        Rows of the labels file of the slides that are present, also those with an empty label.
    overrides
        Overrides of the slides that are present.
    skipped
        Overrides of the slides that are there and were left out at the user's word.
    drawn
        Drawn tissue and regions of the slides that have any.
    classes
        The labels that occur, sorted; the order of every probability column.
    warnings
        One sentence each: files that were ignored, labels without a slide.
    problem
        Why the labels cannot be cross-validated; empty if they can.
    """

    slides: Mapping[str, Location]
    labels: dict[str, Label]
    known: dict[str, Label] = field(default_factory=dict)
    overrides: dict[str, Override] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    skipped: dict[str, Override] = field(default_factory=dict)
    drawn: dict[str, Drawn] = field(default_factory=dict)
    problem: str = ""


def read_labels(path: Path, *, target: str, task: str = tasks.CLASSIFICATION, event: str = "event") -> dict[str, Label]:
    """Read the labels file.

    Parameters
    ----------
    path
        CSV with the columns `slide_id` and `target`, and optionally `patient_id`, `site`, and other labels
        (`label` and `label_<name>`). A slide with an empty label is left unlabelled.
    target
        The column to learn.
    task, event
        What is learned of it; for survival, the column that says whether the event was seen.

    Raises
    ------
    ConfigError
        If the file is missing or malformed; the sentence names the line.
    """
    needed = ("slide_id", target, event) if task == "survival" else ("slide_id", target)
    rows = read_csv(path, required=needed, known=(*_COLUMNS, *needed[1:]), prefix="label_")
    labels: dict[str, Label] = {}
    for line, row in rows:
        slide_id = row["slide_id"]
        if not slide_id:
            raise ConfigError(f"{path}, line {line}: slide_id is empty; fill it in or remove the line")
        if slide_id in labels:
            raise ConfigError(f"{path}, line {line}: slide '{slide_id}' is listed twice; keep one line")
        if "patient_id" in row and not row["patient_id"]:
            raise ConfigError(f"{path}, line {line}: patient_id is empty; fill it in or remove the column")
        text = tasks.label_text(row, task=task, target=target, event=event, place=f"{path}, line {line}")
        labels[slide_id] = Label(text, row.get("patient_id", slide_id), row.get("site", ""))
    return labels


def read_overrides(path: Path) -> dict[str, Override]:
    """Read the overrides file (columns `slide_id`, `mpp`, `skip`, `note`; all but the first optional).

    Returns an empty dict where the file does not exist.

    Raises
    ------
    ConfigError
        If it is malformed, or an mpp is not between 0.05 and 10 um per pixel.
    """
    if not path.exists():
        return {}
    overrides: dict[str, Override] = {}
    for line, row in read_csv(path, required=("slide_id",), known=("slide_id", "mpp", "skip", "note")):
        slide_id = row["slide_id"]
        if slide_id in overrides:
            raise ConfigError(f"{path}, line {line}: slide '{slide_id}' is listed twice; keep one line")
        skip = row.get("skip", "").lower()
        if skip not in {"", "true", "false", "yes", "no", "1", "0"}:
            raise ConfigError(f"{path}, line {line}: skip is '{row['skip']}'; write true or false")
        mpp = _override_mpp(path, line, row.get("mpp", ""))
        overrides[slide_id] = Override(mpp, skip in {"true", "yes", "1"}, row.get("note", ""))
    return overrides


def _override_mpp(path: Path, line: int, text: str) -> float | None:
    if not text:
        return None
    try:
        mpp = float(text)
    except ValueError:
        mpp = float("nan")
    if not 0.05 <= mpp <= 10:
        raise ConfigError(f"{path}, line {line}: mpp is '{text}'; give um per pixel between 0.05 and 10, as in 0.2525")
    return mpp


def load(
    folder: Path | str,
    *,
    labels: Path,
    overrides: Path,
    target: str,
    folds: int,
    tissue: Path | None = None,
    roi: Path | None = None,
    task: str = tasks.CLASSIFICATION,
    event: str = "event",
    must_train: bool = True,
) -> Cohort:
    """Read what the user gave, and refuse what no run can start with.

    Parameters
    ----------
    folder
        The slides: a folder, or an address in a bucket (`s3://bucket/folder`).
    labels, overrides
        The tables; the second may be missing.
    target, folds
        The column to learn, and the outer folds that the labels must allow.
    tissue, roi
        Folders of drawn tissue and regions; they may be missing.
    task, event
        As for `read_labels`.
    must_train
        Whether labels that cannot be cross-validated are an error, and not only a `problem`.

    Raises
    ------
    ConfigError
        See `discover`, `read_labels`, `read_overrides` and `check_labels`.
    """
    found: Mapping[str, Location]
    found, warnings = discover_in_bucket(str(folder)) if is_url(folder) else discover(Path(folder))
    given = read_labels(labels, target=target, task=task, event=event)
    known = read_overrides(overrides)
    slides = {name: path for name, path in found.items() if not known.get(name, Override()).skip}
    if not slides:
        raise ConfigError(f"{overrides} skips every slide of {folder}; keep some")
    present = {name: given[name] for name in slides if name in given and given[name].label}
    problem = ""
    try:
        check_labels(present, given, slides=slides, path=labels, folds=folds, task=task)
    except ConfigError as error:
        if must_train:
            raise
        problem = str(error)
    drawn = {kind: _find_drawn(place, found, warnings) for kind, place in (("tissue", tissue), ("roi", roi))}
    for table, names in ((labels, given), (overrides, known)):
        absent = [name for name in names if name not in found]
        if absent:
            warnings.append(f"{table} names {len(absent)} slide(s) that are not in {folder}, first '{absent[0]}'.")
    return Cohort(
        slides=slides,
        labels=present,
        known={name: given[name] for name in slides if name in given},
        overrides={name: known[name] for name in slides if name in known},
        skipped={name: known[name] for name in found if name not in slides},
        drawn={
            name: Drawn(**{kind: files.get(name) for kind, files in drawn.items()})
            for name in slides
            if any(name in files for files in drawn.values())
        },
        classes=tuple(sorted({label.label for label in present.values()})) if task == tasks.CLASSIFICATION else (),
        warnings=tuple(warnings),
        problem=problem,
    )


def _find_drawn(folder: Path | None, slides: Iterable[str], warnings: list[str]) -> dict[str, Path]:
    """Find `{slide}.geojson` in a folder that may be missing; name what belongs to no slide."""
    files = sorted(folder.glob("*.geojson")) if folder is not None else []
    found = {unicodedata.normalize("NFC", file.name.removesuffix(".geojson")): file for file in files}
    warnings += [
        f"{shown(file)} is ignored: no slide is called '{shown(name)}'."
        for name, file in found.items()
        if name not in slides
    ]
    return {name: file for name, file in found.items() if name in slides}


def check_labels(
    present: Mapping[str, Label],
    given: Mapping[str, Label],
    *,
    slides: Mapping[str, Location],
    path: Path,
    folds: int,
    task: str = tasks.CLASSIFICATION,
) -> None:
    """Refuse labels that cannot be cross-validated.

    Parameters
    ----------
    present, given
        Labels of the slides that are there, and all rows of the file.
    slides
        The slides that are there.
    path
        The labels file, for the messages.
    folds
        Number of outer folds.
    task
        What the labels are.

    Raises
    ------
    ConfigError
        If no label belongs to a slide, all are of one class, there are fewer patients than folds, or a class has one
        patient only; for other tasks see `pipeline.tasks.check_outcomes`.
    """
    if not present:
        example = next(iter(given), "")
        raise ConfigError(
            f"{path} labels none of the {len(slides)} slides"
            + (f" (it names '{example}', a slide here is '{next(iter(slides), '')}')" if example else "")
            + "; a slide id is the file's path without its extension"
        )
    patients = {label.patient_id for label in present.values()}
    _refuse_near_twins(path, "patients", patients)
    if task != tasks.CLASSIFICATION:
        _refuse_few_patients(path, patients, folds)
        tasks.check_outcomes(present, task=task, path=path, folds=folds)
        return
    _refuse_near_twins(path, "classes", {label.label for label in present.values()})
    by_class = Counter(label for label, _ in {(label.label, label.patient_id) for label in present.values()})
    if len(by_class) < 2:
        raise ConfigError(
            f"{path}: all {len(present)} labelled slides are '{next(iter(by_class))}'; label a second class"
        )
    _refuse_few_patients(path, patients, folds)
    if max(Counter(label.label for label in present.values()).values()) < folds:
        raise ConfigError(
            f"{path}: no class has as many labelled slides as there are folds ({folds}); label more, or lower"
            " evaluation.folds"
        )
    scarce = sorted(name for name, count in by_class.items() if count < 2)
    if scarce:
        raise ConfigError(
            f"{path}: class '{scarce[0]}' has one patient only, so no model could be tested on it; label more"
        )


def _refuse_few_patients(path: Path, patients: set[str], folds: int) -> None:
    if len(patients) < folds:
        raise ConfigError(
            f"{path}: {len(patients)} labelled patients are fewer than the {folds} folds; label more, or lower"
            " evaluation.folds"
        )


def digest(values: object) -> str:
    """Give a short hash of a JSON value, for parameters that are too long to store with every job."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _refuse_near_twins(path: Path, what: str, names: Iterable[str]) -> None:
    """Refuse names that differ only in case or spacing: most likely one class, or one patient, spelt twice."""
    first: dict[str, str] = {}
    for name in sorted(names):
        other = first.setdefault("".join(name.casefold().split()), name)
        if other != name:
            raise ConfigError(
                f"{path}: the {what} '{other}' and '{name}' differ only in case or spacing; spell them alike"
            )


def cohort_digest(cohort: Cohort, fingerprints: Mapping[str, str]) -> str:
    """Give a digest of everything the check shows: slides, their content, labels, overrides, drawings."""
    rows = [
        (
            *(slide, str(path), fingerprints[slide]),
            *(_plain(cohort.known.get(slide)), _plain(cohort.overrides.get(slide))),
            *map(str, _plain(cohort.drawn.get(slide))),
        )
        for slide, path in cohort.slides.items()
    ]
    # warnings do not count: a label for a slide that is not there yet must not run anything
    return digest([rows, {slide: _plain(override) for slide, override in cohort.skipped.items()}])


def given_digest(cohort: Cohort) -> str:
    """Give a digest of what the user said of the slides, without their content."""
    return cohort_digest(cohort, dict.fromkeys(cohort.slides, ""))


def drawn_digest(drawn: Drawn | None) -> str:
    """Give a digest of the content of what was drawn for a slide; empty where nothing was."""
    files = [] if drawn is None else [drawn.tissue, drawn.roi]
    content = [None if file is None else hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return digest(content) if any(content) else ""


def labels_digest(labels: Mapping[str, Label]) -> str:
    """Give a digest of labels, for the workflow to see a change and for a job to see that there was none."""
    return digest({slide: _plain(label) for slide, label in labels.items()})


def _plain(record: Label | Override | Drawn | None) -> tuple[object, ...]:
    return () if record is None else astuple(record)
