"""Divide the labelled slides into folds: patients stay together, classes stay balanced, nothing leaks."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import bag_index, store
from pipeline.assignment import Assignment, Role, read_splits, write_splits
from pipeline.cohort import Label
from pipeline.errors import ConfigError
from pipeline.schemes import Plan, assign, is_plainly_divisible

__all__ = ["Assignment", "Plan", "Role", "assign", "read_splits", "rehearse", "run", "write_splits"]

log = logging.getLogger(__name__)


def check_roles(
    rows: Sequence[Assignment],
    fingerprints: Mapping[str, str],
    *,
    sites: Mapping[str, str] | None = None,
    look_alikes: Iterable[tuple[str, str]] = (),
) -> None:
    """Refuse an assignment in which something that belongs together has two roles in one fold.

    The last gate before anything is trained: it looks at what was assigned, not at how.

    Parameters
    ----------
    fingerprints
        Of the files, by slide id.
    sites
        Sites by slide id, where they must not be divided either.
    look_alikes
        Pairs of slides that show the same picture (`pipeline.look_alikes.find_pairs`).

    Raises
    ------
    ConfigError
        Naming the two slides.
    """
    seen: dict[tuple[int, str, str], Assignment] = {}
    roles: dict[tuple[str, int], Role] = {}
    for row in rows:
        roles[row.slide_id, row.fold] = row.role
        keys = [("patient", row.patient_id), ("file", fingerprints[row.slide_id])]
        for kind, key in [*keys, ("site", sites[row.slide_id])] if sites else keys:
            other = seen.setdefault((row.fold, kind, key), row)
            if other.role != row.role:
                raise ConfigError(
                    f"slides '{other.slide_id}' ({other.role}) and '{row.slide_id}' ({row.role}) of fold {row.fold}"
                    f" have the same {kind}; correct the labels file"
                )
    folds = sorted({row.fold for row in rows})
    for one, other_one in look_alikes:
        for fold in folds:
            pair = roles.get((one, fold)), roles.get((other_one, fold))
            if None not in pair and pair[0] != pair[1]:
                raise ConfigError(
                    f"slides '{one}' ({pair[0]}) and '{other_one}' ({pair[1]}) of fold {fold} show the same picture"
                    " though their files differ (compare their previews); remove one, or give both the same patient_id"
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


def run(labels: Mapping[str, Label], *, bags: Path, splits: Path, plan: Plan, index: Path | None = None) -> None:
    """Write `splits.csv` for the labelled slides whose bags are usable.

    Parameters
    ----------
    labels
        Labels of the slides that are present.
    bags
        Folder of the bags, a `{slide}.zarr.zip` for every slide of `labels`.
    splits
        The file to write.
    plan
        How to divide.
    index
        The index of the bags to write (`pipeline.bag_index`); None writes none.

    Raises
    ------
    ConfigError
        If the usable slides cannot be divided so, or something leaks.
    """
    from pipeline.look_alikes import find_pairs

    attributes = {name: store.read_attributes(bags / f"{name}.zarr.zip") for name in labels}
    usable = {name: label for name, label in labels.items() if attributes[name]["status"] == store.OK}
    if len({label.label for label in usable.values()}) < 2:
        raise ConfigError(
            f"{len(usable)} of {len(labels)} labelled slides are usable, which is too few classes to learn"
            f" ({_left_out(attributes)}); mend slides or label more"
        )
    fingerprints = {name: str(attributes[name]["fingerprint"]) for name in usable}
    check_leaks(usable, fingerprints)
    rows = assign(usable, plan, present=labels)
    pairs = find_pairs({name: str(attributes[name].get("overview_hash", "")) for name in usable})
    check_roles(rows, fingerprints, sites=_sites(usable, plan), look_alikes=pairs)
    write_splits(splits, rows)
    if index is not None:
        bag_index.write(index, attributes, bags=bags)
    untested = set(usable) - {row.slide_id for row in rows if row.role == "test"}
    log.info(
        "%d of %d labelled slides in %d folds (%s), %d in no test part",
        len(usable),
        len(labels),
        plan.count(labels),
        plan.scheme,
        len(untested),
    )


def rehearse(labels: Mapping[str, Label], fingerprints: Mapping[str, str], plan: Plan) -> None:
    """Learn before any work whether the labelled slides can be divided, were all of them usable.

    Where counting does not tell, they are divided on trial.

    Raises
    ------
    ConfigError
        As `check_leaks`, `assign` and `check_roles` do.
    """
    check_leaks(labels, fingerprints)
    if is_plainly_divisible(labels, plan):
        return
    check_roles(assign(labels, plan), fingerprints, sites=_sites(labels, plan))


def _sites(labels: Mapping[str, Label], plan: Plan) -> dict[str, str] | None:
    """Give the sites where the plan keeps them together."""
    if plan.group_by != "site":
        return None
    return {name: label.site for name, label in labels.items()}


def _left_out(attributes: Mapping[str, Mapping[str, Any]], *, most: int = 3) -> str:
    """Name the first slides that are not usable, with their reasons."""
    bad = {name: found["reason"] for name, found in attributes.items() if found["status"] != store.OK}
    named = "; ".join(f"'{name}': {reason}" for name, reason in list(bad.items())[:most])
    return f"{named}; and {len(bad) - most} more" if len(bad) > most else named
