"""Read every artefact of a run again, and find those that a failing disk changed or another version made."""

import logging
from collections.abc import Iterator
from pathlib import Path

from pipeline import checksums, store, upgrade
from pipeline.errors import ArtefactError, PipelineError

log = logging.getLogger(__name__)

LAST_S = 120.0
"""How long before the last file of a run that was killed others are looked at: Linux keeps bytes back for 30 s."""


def run(results: Path, reports: Path, *, repair: bool) -> None:
    """Check all artefacts by their checksums and versions, and name those that are damaged or outdated.

    Parameters
    ----------
    results, reports
        The folders of a run.
    repair
        Whether these files are renamed, so that the next run makes them anew.

    Raises
    ------
    PipelineError
        If there are some and they were left where they are.
    """
    checked, damaged, outdated = 0, 0, 0
    first: Path | None = None
    for path in artefacts(results, reports):
        checked += 1
        why = fault(path)
        older = "" if why else age(path)
        if not (why or older):
            continue
        log.warning("%s: %s", path, why or older)
        first, damaged, outdated = first or path, damaged + bool(why), outdated + bool(older)
        if repair:
            path.replace(path.with_name(f"{path.name}.{'damaged' if why else 'outdated'}"))
    log.info("%d files checked, %d damaged, %d of another version", checked, damaged, outdated)
    if first is None:
        return
    if not repair:
        raise PipelineError(
            f"{damaged} of {checked} files are damaged and {outdated} of another version, the first {first}; run this"
            " with --repair and then the workflow, which makes them anew"
        )
    log.warning("they were renamed to *.damaged or *.outdated; run the workflow again, which makes them anew")


def after_kill(results: Path, reports: Path) -> None:
    """Set aside what is torn of the files that a killed run wrote last: the machine may have lost its power, too.

    Its own files reach the disk before their names, but not every disk keeps its word.
    """
    written = {path: path.stat().st_mtime for path in artefacts(results, reports)}
    since = max(written.values(), default=0.0) - LAST_S
    for path in (path for path, moment in written.items() if moment >= since):
        why = fault(path)
        if why:
            log.warning("%s", checksums.damaged(path, why))


def artefacts(results: Path, reports: Path) -> Iterator[Path]:
    """Give the files that the pipeline keeps checksums of, sorted; hidden ones are work in progress."""
    for folder in (results, reports):
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            known = path.name.endswith(".zarr.zip") or path.suffix in checksums.KINDS
            if known and path.is_file() and not any(part.startswith(".") for part in inside):
                yield path


def fault(path: Path) -> str:
    """Say how an artefact's bytes are not those that were written; empty if they are."""
    if not path.name.endswith(".zarr.zip"):
        return "its bytes changed after it was written" if checksums.is_changed(path) else ""
    try:
        store.load(path)
    except store.DamagedError as error:
        return str(error).removeprefix(f"{path}: ")
    except ArtefactError:
        return ""  # of another version, see `age`
    return ""


def age(path: Path) -> str:
    """Say by which other version of this program an artefact was made; empty if by this one, or if it does not say."""
    if not path.name.endswith(".zarr.zip"):
        return upgrade.other_version_of(path)
    try:
        return upgrade.other_version(store.load(path, ()).attributes)
    except ArtefactError as error:
        return str(error).removeprefix(f"{path}: ")
