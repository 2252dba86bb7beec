"""How the labelled slides are divided into folds: schemes that draw, and a file of the user's own."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import given_splits, tasks
from pipeline.assignment import Assignment, Role
from pipeline.cohort import Label
from pipeline.errors import ConfigError

Scheme = Literal["kfold", "monte_carlo", "leave_one_site_out", "file"]

CANDIDATES = 20
"""Shuffles tried for each division; the best balanced is kept. They differ in labels and patients only, so choosing
among them sees no feature and no prediction."""
BALANCED = 0.02
"""An imbalance (of sizes and class shares) at which no further shuffle is tried; large cohorts meet it soon."""


@dataclass(frozen=True)
class Plan:
    """How the labelled slides are divided.

    Parameters
    ----------
    scheme
        `kfold`: every slide is tested once a repeat. `monte_carlo`: each repeat tests a random part of 1 / `folds`.
        `leave_one_site_out`: each fold tests one site. `file`: `given` says who is tested when.
    folds, repeats
        Outer folds, and how many times the division is made anew with another shuffle.
    validation
        Share of the training part that is set aside, in (0, 0.5].
    group_by
        `patient` or `site`: what is never divided between roles.
    seed
        The same labels and seed give the same division.
    given
        The user's splits file.
    task
        What the labels are; the folds are balanced in classes, in events or in the parts of a number's range.
    """

    scheme: Scheme = "kfold"
    folds: int = 5
    repeats: int = 1
    validation: float = 0.2
    group_by: str = "patient"
    seed: int = 0
    given: Path | None = None
    task: str = tasks.CLASSIFICATION

    @property
    def needed(self) -> int:
        """Patients, and slides of the largest class, that the division needs at least."""
        return self.folds if self.scheme in ("kfold", "monte_carlo") else 2

    def count(self, labels: Mapping[str, Label]) -> int:
        """Give the number of folds, which is that of models, for the labels of all slides that are present."""
        match self.scheme:
            case "kfold":
                return self.folds * self.repeats
            case "monte_carlo":
                return self.repeats
            case "leave_one_site_out":
                return len(_sites(labels))
            case "file":
                return len({(row.repeat, row.fold) for row in given_splits.read(self.file)})

    @property
    def file(self) -> Path:
        """The user's splits file, which the scheme `file` must have."""
        if self.given is None:
            raise ConfigError("evaluation.scheme is file but no splits file is given; set paths.splits")
        return self.given


@dataclass(frozen=True)
class _Fold:
    """One fold: who is tested, who may be trained on, and (if the user said so) who is validated on; bool [n] each."""

    repeat: int
    test: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    seed: int
    validation: NDArray[np.bool_] | None = None
    name: str = ""


def assign(
    labels: Mapping[str, Label],
    plan: Plan,
    *,
    present: Mapping[str, Label] | None = None,
) -> list[Assignment]:
    """Assign the labelled slides their roles in every fold.

    Test parts are grouped by patient (or site) and, where they are drawn, stratified; within each training part a share
    of about `plan.validation` is set aside, divided in the same way, for the choice of the epoch, the temperature and
    the threshold.

    Parameters
    ----------
    labels
        Labels by slide id.
    plan
        How to divide.
    present
        Labels of all slides that are there, also of those that turned out unusable: they fix which folds there are.

    Returns
    -------
    One row a slide and fold, in the order of repeat, fold, slide. A slide that a fold must not use has no row there.

    Raises
    ------
    ConfigError
        If there are fewer groups than folds, or no division leaves every class in every training part.
    """
    names = sorted(labels)
    strata = tasks.strata(labels, task=plan.task, folds=plan.folds)
    classes = np.array([strata[name] for name in names])
    groups = _groups([labels[name] for name in names], names, plan.group_by)
    match plan.scheme:
        case "kfold":
            folds = _kfold(classes, groups, plan)
        case "monte_carlo":
            folds = _monte_carlo(classes, groups, plan)
        case "leave_one_site_out":
            folds = _by_site(labels, names, sites=_sites(present or labels), seed=plan.seed)
        case "file":
            folds = _from_file(names, present=present or labels, plan=plan)
    parts = max(2, round(1 / plan.validation))
    rows: list[Assignment] = []
    for number, fold in enumerate(folds):
        inside = np.flatnonzero(fold.inside)
        if missing := sorted(set(classes.tolist()) - set(classes[inside].tolist())):
            raise ConfigError(
                f"fold {number}{fold.name} leaves nothing of class '{missing[0]}' to train on; label more, or choose"
                " another evaluation.scheme"
            )
        _check_given(fold, number, [labels[name] for name in names], task=plan.task)
        if fold.validation is None:
            inner = _inner_validation(classes[inside], groups[inside], parts=parts, seed=fold.seed)
            held_out = set(inside[inner].tolist())
        else:
            held_out = set(np.flatnonzero(fold.validation).tolist())
        for index, name in enumerate(names):
            if not (fold.test[index] or fold.inside[index]):
                continue
            role: Role = "test" if fold.test[index] else "validation" if index in held_out else "train"
            label = labels[name]
            rows.append(Assignment(name, label.patient_id, label.label, fold.repeat, number, role))
    return rows


def _check_given(fold: _Fold, number: int, labels: Sequence[Label], *, task: str) -> None:
    """Refuse roles of the user's own that leave a fold nothing to learn from.

    Raises
    ------
    ConfigError
        If no slide is left to train on, or none with an event where times are learned.
    """
    if fold.validation is None:
        return
    training = [
        label for label, inside, out in zip(labels, fold.inside, fold.validation, strict=True) if inside and not out
    ]
    where = f"fold {number}{fold.name}"
    if not training:
        raise ConfigError(f"{where} has no slide left to train on; give it some in paths.splits")
    if task == "survival" and not any(tasks.follow_up(label.label)[1] for label in training):
        raise ConfigError(
            f"{where} has no training slide with an event, without which no risk is learned; give it some in"
            " paths.splits"
        )


def is_plainly_divisible(labels: Mapping[str, Label], plan: Plan) -> bool:
    """Tell by counting whether `assign` will succeed: False where only a trial can tell, and for a file of the user's.

    Every class has two groups or more for each part that it is divided into, so that no shuffle gives all of them to
    one part. Counting takes milliseconds where a trial takes a minute with thousands of slides.

    Raises
    ------
    ConfigError
        If there are fewer groups than folds.
    """
    if plan.scheme == "file":
        return False
    names = sorted(labels)
    strata = tasks.strata(labels, task=plan.task, folds=plan.folds)
    classes = np.array([strata[name] for name in names])
    groups = _groups([labels[name] for name in names], names, plan.group_by)
    parts = max(2, round(1 / plan.validation))
    if plan.scheme == "leave_one_site_out":
        folds = _by_site(labels, names, sites=_sites(labels), seed=plan.seed)
        return all(_is_plain(classes[fold.inside], groups[fold.inside], set(strata.values()), parts) for fold in folds)
    _check_enough(classes, groups, plan)
    # a training part keeps half of a class's groups at least, as two parts or more are made
    return _is_plain(classes, groups, set(strata.values()), max(plan.folds, 2 * parts))


def _is_plain(classes: NDArray[np.str_], groups: NDArray[np.str_], needed: set[str], parts: int) -> bool:
    """Tell whether each of the classes has twice as many groups as there are parts."""
    found = Counter(stratum for stratum, _ in set(zip(classes.tolist(), groups.tolist(), strict=True)))
    return all(found[stratum] >= 2 * parts for stratum in needed)


def _kfold(classes: NDArray[np.str_], groups: NDArray[np.str_], plan: Plan) -> Iterator[_Fold]:
    _check_enough(classes, groups, plan)
    for repeat in range(plan.repeats):
        outer = _divide(classes, groups, parts=plan.folds, seed=plan.seed + 1000 * repeat)
        for fold in range(plan.folds):
            yield _Fold(repeat, outer == fold, outer != fold, plan.seed + 1000 * repeat + fold)


def _monte_carlo(classes: NDArray[np.str_], groups: NDArray[np.str_], plan: Plan) -> Iterator[_Fold]:
    _check_enough(classes, groups, plan)
    for repeat in range(plan.repeats):
        outer = _divide(classes, groups, parts=plan.folds, seed=plan.seed + 1000 * repeat)
        yield _Fold(repeat, outer == 0, outer != 0, plan.seed + 1000 * repeat)


def _by_site(labels: Mapping[str, Label], names: Sequence[str], *, sites: Sequence[str], seed: int) -> Iterator[_Fold]:
    """Test each site once; slides that its patients have elsewhere are left out of that fold."""
    of_slide = np.array([labels[name].site for name in names])
    patients = np.array([labels[name].patient_id for name in names])
    for number, site in enumerate(sites):
        test = of_slide == site
        inside = ~np.isin(patients, patients[test])
        yield _Fold(0, test, inside, seed + number, name=f" (site '{site}' held out)")


def _sites(labels: Mapping[str, Label]) -> list[str]:
    for name, label in labels.items():
        if not label.site:
            raise ConfigError(
                f"evaluation.scheme is leave_one_site_out but slide '{name}' has no site; fill in the labels' column"
                " site"
            )
    found = sorted({label.site for label in labels.values()})
    if len(found) < 2:
        raise ConfigError(
            f"evaluation.scheme is leave_one_site_out but all labelled slides are of site '{found[0]}'; choose kfold"
        )
    return found


def _from_file(names: Sequence[str], *, present: Mapping[str, Label], plan: Plan) -> Iterator[_Fold]:
    rows = given_splits.read(plan.file)
    given_splits.check_slides(rows, present, path=plan.file)
    place = {name: index for index, name in enumerate(names)}
    for number, key in enumerate(sorted({(row.repeat, row.fold) for row in rows})):
        roles = given_splits.roles_of(rows, key)
        masks = {role: np.zeros(len(names), np.bool_) for role in ("train", "validation", "test")}
        for name, role in roles.items():
            if name in place:  # one that turned out unusable is left out
                masks[role][place[name]] = True
        drawn = not masks["validation"].any()
        yield _Fold(
            key[0],
            masks["test"],
            masks["train"] | masks["validation"],
            plan.seed + number,
            validation=None if drawn else masks["validation"],
            name=f" of {plan.file}",
        )


def _check_enough(classes: NDArray[np.str_], groups: NDArray[np.str_], plan: Plan) -> None:
    if len(set(groups.tolist())) < plan.folds:
        raise ConfigError(
            f"{len(set(groups.tolist()))} {plan.group_by}s with usable labelled slides are fewer than the {plan.folds}"
            " folds; label more, mend slides that the logs of tile and embed name, or lower evaluation.folds"
        )
    if np.unique(classes, return_counts=True)[1].max() < plan.folds:
        raise ConfigError(
            f"no class has as many usable labelled slides as there are folds ({plan.folds}); label more,"
            " or lower evaluation.folds"
        )


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
