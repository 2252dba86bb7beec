"""Read every artefact of a run again, and find those that a failing disk changed."""

import logging
from collections.abc import Iterator
from pathlib import Path

from pipeline import checksums, store
from pipeline.errors import ArtefactError, PipelineError

log = logging.getLogger(__name__)


def run(results: Path, reports: Path, *, repair: bool) -> None:
    """Check all artefacts by their checksums and name the damaged ones.

    Parameters
    ----------
    results, reports
        The folders of a run.
    repair
        Whether damaged files are renamed, so that the next run makes them anew.

    Raises
    ------
    PipelineError
        If some are damaged and were left where they are.
    """
    checked, damaged = 0, []
    for path in artefacts(results, reports):
        checked += 1
        why = fault(path)
        if why:
            damaged.append(path)
            log.warning("%s: %s", path, why)
            if repair:
                checksums.damaged(path, why)
    log.info("%d files checked, %d damaged", checked, len(damaged))
    if not damaged:
        return
    if not repair:
        raise PipelineError(
            f"{len(damaged)} of {checked} files are damaged, the first {damaged[0]}; run this with --repair and then"
            " the workflow, which makes them anew"
        )
    log.warning("they were renamed to *.damaged; run the workflow again, which makes them anew")


def artefacts(results: Path, reports: Path) -> Iterator[Path]:
    """Give the files that the pipeline keeps checksums of, sorted; hidden ones are work in progress."""
    for folder in (results, reports):
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder).parts
            known = path.name.endswith(".zarr.zip") or path.suffix in checksums.KINDS
            if known and path.is_file() and not any(part.startswith(".") for part in inside):
                yield path


def fault(path: Path) -> str:
    """Say what is wrong with an artefact; empty if nothing is."""
    if not path.name.endswith(".zarr.zip"):
        return "its bytes changed after it was written" if checksums.is_changed(path) else ""
    try:
        store.load(path)
    except ArtefactError as error:
        return str(error).removeprefix(f"{path}: ")
    return ""
