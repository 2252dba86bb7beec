"""Divide the labelled slides into folds: patients stay together, classes stay balanced, nothing leaks."""

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline import store
from pipeline.cohort import Label
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

Role = Literal["train", "validation", "test"]
COLUMNS = ("slide_id", "patient_id", "label", "repeat", "fold", "role")
CANDIDATES = 20
"""Shuffles tried for each division; the best balanced is kept. They differ in labels and patients only, so choosing
among them sees no feature and no prediction."""
BALANCED = 0.02
"""An imbalance (of sizes and class shares) at which no further shuffle is tried; large cohorts meet it soon."""


@dataclass(frozen=True)
class Assignment:
    """The role of one slide in one fold. `fold` counts through all repeats: repeat 1 of 5 folds is folds 5 to 9."""

    slide_id: str
    patient_id: str
    label: str
    repeat: int
    fold: int
    role: Role


def assign(
    labels: Mapping[str, Label], *, folds: int, repeats: int, validation: float, seed: int, group_by: str = "patient"
) -> list[Assignment]:
    """Assign every labelled slide a role in every fold.

    Outer folds are disjoint, stratified by class and grouped by patient (or site); within each training part a share of
    about `validation` is set aside, divided in the same way, for the choice of the epoch.

    Parameters
    ----------
    labels
        Labels by slide id.
    folds, repeats
        Outer folds, and how many times the division is repeated with another shuffle.
    validation
        Share of the training part, in (0, 0.5].
    seed
        The same labels and seed give the same assignment.
    group_by
        `patient` or `site`: what is never divided between roles.

    Returns
    -------
    One row a slide and fold, in the order of repeat, fold, slide.

    Raises
    ------
    ConfigError
        If there are fewer groups than folds, or no division leaves every class in every training part.
    """
    names = sorted(labels)
    classes = np.array([labels[name].label for name in names])
    groups = _groups([labels[name] for name in names], names, group_by)
    if len(set(groups)) < folds:
        raise ConfigError(
            f"{len(set(groups))} {group_by}s with usable labelled slides are fewer than the {folds} folds;"
            " label more, mend slides that the logs of tile and embed name, or lower evaluation.folds"
        )
    if np.unique(classes, return_counts=True)[1].max() < folds:
        raise ConfigError(
            f"no class has as many usable labelled slides as there are folds ({folds}); label more,"
            " or lower evaluation.folds"
        )
    parts = max(2, round(1 / validation))
    rows: list[Assignment] = []
    for repeat in range(repeats):
        outer = _divide(classes, groups, parts=folds, seed=seed + 1000 * repeat)
        for fold in range(folds):
            inside = np.flatnonzero(outer != fold)
            inner = _inner_validation(classes[inside], groups[inside], parts=parts, seed=seed + 1000 * repeat + fold)
            held_out = set(inside[inner])
            for index, name in enumerate(names):
                role: Role = "test" if outer[index] == fold else "validation" if index in held_out else "train"
                label = labels[name]
                rows.append(Assignment(name, label.patient_id, label.label, repeat, repeat * folds + fold, role))
    return rows


def _groups(labels: Sequence[Label], names: Sequence[str], group_by: str) -> NDArray[np.str_]:
    """Give each slide its group, named by the group's first patient.

    Grouping by site keeps patients together too: sites that share a patient are one group.
    """
    if group_by == "patient":
        return np.array([label.patient_id for label in labels])
    first: dict[str, str] = {}  # of each patient and site: another one of its group, in the end the group's name

    def root(key: str) -> str:
        while first.setdefault(key, key) != key:
            key = first[key]
        return key

    for name, label in zip(names, labels, strict=True):
        if not label.site:
            raise ConfigError(
                f"evaluation.group_by is site but slide '{name}' has none; fill in the labels' site column"
            )
        first[root(f"site {label.site}")] = root(f"patient {label.patient_id}")
    return np.array([root(f"patient {label.patient_id}") for label in labels])


def _divide(classes: NDArray[np.str_], groups: NDArray[np.str_], *, parts: int, seed: int) -> NDArray[np.intp]:
    """Give each slide a part in 0..parts-1; of `CANDIDATES` shuffles the one that balances the classes best."""
    best: tuple[float, NDArray[np.intp]] | None = None
    for part in _candidates(classes, groups, parts=parts, seed=seed):
        if all(set(classes[part != k]) == set(classes) for k in range(parts)):
            imbalance = _imbalance(classes, part, parts)
            if best is None or imbalance < best[0]:
                best = imbalance, part
            if imbalance < BALANCED:
                break
    if best is None:
        raise ConfigError(
            f"no division into {parts} folds keeps every class in every training part; label more patients of the"
            " rarest class, or lower evaluation.folds"
        )
    return best[1]


def _inner_validation(
    classes: NDArray[np.str_], groups: NDArray[np.str_], *, parts: int, seed: int
) -> NDArray[np.intp]:
    """Choose the indices set aside for validation, keeping every class in what is left to train on."""
    # scikit-learn refuses more parts than slides in the largest class
    parts = min(parts, len(set(groups)), int(np.unique(classes, return_counts=True)[1].max()))
    best: tuple[float, NDArray[np.intp]] | None = None
    for part in _candidates(classes, groups, parts=parts, seed=seed) if parts > 1 else ():
        for k in range(parts):
            kept, held_out = classes[part != k], classes[part == k]
            if set(kept) != set(classes) or not held_out.size:
                continue
            missing = len(set(classes) - set(held_out))
            cost = missing + abs(held_out.size / classes.size - 1 / parts) + _share_distance(classes, held_out)
            if best is None or cost < best[0]:
                best = cost, np.flatnonzero(part == k)
        if best is not None and best[0] < BALANCED:
            break
    if best is None:
        raise ConfigError(
            "too few patients to set some aside for validation in every fold; label more patients of the rarest class"
        )
    return best[1]


def _candidates(
    classes: NDArray[np.str_], groups: NDArray[np.str_], *, parts: int, seed: int
) -> Iterator[NDArray[np.intp]]:
    from sklearn.model_selection import StratifiedGroupKFold

    for attempt in range(CANDIDATES):
        splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=(seed * CANDIDATES + attempt) % 2**32)
        part = np.full(classes.size, -1, np.intp)
        for k, (_, chosen) in enumerate(_quiet_split(splitter, classes, groups)):
            part[chosen] = k
        yield part


def _quiet_split(
    splitter: object, classes: NDArray[np.str_], groups: NDArray[np.str_]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Split without scikit-learn's warning that a class has fewer members than parts: `_divide` judges the result."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        yield from splitter.split(np.zeros(classes.size), classes, groups)  # type: ignore[attr-defined]


def _imbalance(classes: NDArray[np.str_], part: NDArray[np.intp], parts: int) -> float:
    sizes = np.bincount(part, minlength=parts) / classes.size
    distances = [_share_distance(classes, classes[part == k]) for k in range(parts)]
    return float(np.abs(sizes - 1 / parts).max() + max(distances))


def _share_distance(whole: NDArray[np.str_], some: NDArray[np.str_]) -> float:
    """Give the largest difference of a class's share between `some` and the whole."""
    names = sorted(set(whole))
    return max(
        abs(float(np.mean(some == name)) - float(np.mean(whole == name))) if some.size else 1.0 for name in names
    )


def check_roles(rows: Sequence[Assignment], fingerprints: Mapping[str, str]) -> None:
    """Refuse an assignment in which a patient, or a file under two ids, has two roles in one fold.

    The last gate before anything is trained: it looks at what was assigned, not at how.

    Raises
    ------
    ConfigError
        Naming the two slides.
    """
    seen: dict[tuple[int, str, str], Assignment] = {}
    for row in rows:
        for kind, key in (("patient", row.patient_id), ("file", fingerprints[row.slide_id])):
            other = seen.setdefault((row.fold, kind, key), row)
            if other.role != row.role:
                raise ConfigError(
                    f"slides '{other.slide_id}' ({other.role}) and '{row.slide_id}' ({row.role}) of fold {row.fold}"
                    f" have the same {kind}; correct the labels file"
                )


def check_leaks(labels: Mapping[str, Label], fingerprints: Mapping[str, str]) -> None:
    """Refuse one file under two patients: it would be trained on and tested on.

    Parameters
    ----------
    labels, fingerprints
        Labels, and fingerprints of the files, by slide id.

    Raises
    ------
    ConfigError
        Naming the two slides.
    """
    first: dict[str, str] = {}
    for name in sorted(labels):
        other = first.setdefault(fingerprints[name], name)
        if labels[other].patient_id != labels[name].patient_id:
            raise ConfigError(
                f"slides '{other}' and '{name}' are the same file but belong to patients"
                f" '{labels[other].patient_id}' and '{labels[name].patient_id}'; remove one or correct the patient_id"
            )
        if labels[other].label != labels[name].label:
            raise ConfigError(
                f"slides '{other}' and '{name}' are the same file but are labelled '{labels[other].label}' and"
                f" '{labels[name].label}'; correct one label"
            )


def run(
    labels: Mapping[str, Label],
    *,
    bags: Path,
    splits: Path,
    folds: int,
    repeats: int,
    validation: float,
    seed: int,
    group_by: str,
) -> None:
    """Write `splits.csv` for the labelled slides whose bags are usable.

    Parameters
    ----------
    labels
        Labels of the slides that are present.
    bags
        Folder of the bags, a `{slide}.zarr.zip` for every slide of `labels`.
    splits
        The file to write.
    """
    attributes = {name: store.read_attributes(bags / f"{name}.zarr.zip") for name in labels}
    usable = {name: label for name, label in labels.items() if attributes[name]["status"] == store.OK}
    if len({label.label for label in usable.values()}) < 2:
        raise ConfigError(
            f"{len(usable)} of {len(labels)} labelled slides are usable, which is too few classes to learn"
            f" ({_left_out(attributes)}); mend slides or label more"
        )
    check_leaks(usable, {name: str(attributes[name]["fingerprint"]) for name in usable})
    rows = assign(usable, folds=folds, repeats=repeats, validation=validation, seed=seed, group_by=group_by)
    check_roles(rows, {name: str(attributes[name]["fingerprint"]) for name in usable})
    write_splits(splits, rows)
    log.info("%d of %d labelled slides in %d x %d folds", len(usable), len(labels), repeats, folds)


def rehearse(
    labels: Mapping[str, Label],
    fingerprints: Mapping[str, str],
    *,
    folds: int,
    repeats: int,
    validation: float,
    seed: int,
    group_by: str,
) -> None:
    """Divide all labelled slides as if all were usable, to learn before any work whether they can be divided.

    Raises
    ------
    ConfigError
        As `check_leaks`, `assign` and `check_roles` do.
    """
    check_leaks(labels, fingerprints)
    rows = assign(labels, folds=folds, repeats=repeats, validation=validation, seed=seed, group_by=group_by)
    check_roles(rows, fingerprints)


def _left_out(attributes: Mapping[str, Mapping[str, Any]], *, most: int = 3) -> str:
    """Name the first slides that are not usable, with their reasons."""
    bad = {name: found["reason"] for name, found in attributes.items() if found["status"] != store.OK}
    named = "; ".join(f"'{name}': {reason}" for name, reason in list(bad.items())[:most])
    return f"{named}; and {len(bad) - most} more" if len(bad) > most else named


def write_splits(path: Path, rows: list[Assignment]) -> None:
    """Write the assignments as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([tuple(getattr(row, column) for column in COLUMNS) for row in rows])
    store.write_text(path, buffer.getvalue())


def read_splits(path: Path) -> list[Assignment]:
    """Read what `write_splits` wrote."""
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ConfigError(f"{path}: its columns are not {', '.join(COLUMNS)}; delete it and run the workflow again")
    for row in rows:
        if row["role"] not in get_args(Role):
            raise ConfigError(f"{path}: role '{row['role']}' of slide '{row['slide_id']}' is none of {get_args(Role)}")
    return [
        Assignment(
            slide_id=row["slide_id"],
            patient_id=row["patient_id"],
            label=row["label"],
            repeat=int(row["repeat"]),
            fold=int(row["fold"]),
            role=cast(Role, row["role"]),
        )
        for row in rows
    ]
