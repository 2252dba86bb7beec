"""Remove what runs made from a study's folder, and nothing that somebody else put there.

A file goes if its place and name are those of an artefact and its bytes are those that were written. What a user added
or changed (an outline edited in QuPath) stays, and so does the secret key of the reports' names, which nothing makes
again. Where the file system keeps no checksums with files (or a copy dropped all of them), place and name decide.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from pipeline import checksums, running

log = logging.getLogger(__name__)

FOLD = r"fold-\d+/(weights\.safetensors|anchor\.safetensors|model\.json|history\.csv|stability\.csv)"
OF_RESULTS = re.compile(
    r"(check\.tsv|check\.txt|cohort\.tsv|run\.json|archive\.json|strict\.ok"
    r"|(tiles|bags|attention)/[^/]+\.zarr\.zip|attention/[^/]+\.geojson|tissue/[^/]+\.(geojson|jpg)|views/[^/]+\.json"
    rf"|model/(splits\.csv|bags\.json|models\.json|model_card\.md|metrics\.json|{FOLD})"
    rf"|compare/[^/]+/(predictions\.csv|{FOLD})|agreement/[^/]+\.(csv|json)"
    # work in progress: chunks, training states, slides that wait for a prediction
    r"|bags/\.[^/]+\.chunks/(digest|\d+\.npz)|(model|compare/[^/]+)/fold-\d+/\.checkpoint\.pt|attention/\.ahead/[^/]+"
    r"|unrecorded|logs/((split|check|cohort|models|report|strict)|(tile|embed|predict|heatmap|compare|agreement)/[^/]+"
    r"|train/([^/]+/)?fold-\d+)\.log)(\.damaged|\.outdated|\.part)?"
)
OF_REPORTS = re.compile(
    r"(index\.html|predictions\.csv|metrics\.json|quarantine\.tsv|quality\.tsv|heatmaps/[^/]+\.png|slides/[^/]+\.(js|jpg))"
    r"(\.damaged|\.outdated|\.part)?"
)
MOST_NAMED = 20


def clean(folder: Path, *, results: Path = Path("results"), reports: Path = Path("reports")) -> list[Path]:
    """Remove what runs made in a study's folder: results, reports, and Snakemake's memory of them.

    Parameters
    ----------
    folder
        The study.
    results, reports
        Its folders of results and reports, below `folder` if relative.

    Returns
    -------
    Files in these folders that were left.

    Raises
    ------
    ConfigError
        If a run works there.
    """
    memory = folder / running.FOLDER
    if memory.is_dir():
        running.claim(memory)
    kept: list[Path] = []
    strict = checksums.are_kept(folder / results)
    for place, made in ((folder / results, OF_RESULTS), (folder / reports, OF_REPORTS)):
        kept += remove(place, partial(_is_made, folder=place, made=made, strict=strict))
    if memory.is_symlink():
        kept.append(memory)
    elif memory.is_dir():
        shutil.rmtree(memory)
    return kept


def remove(folder: Path, is_made: Callable[[Path], bool]) -> list[Path]:
    """Remove the files below a folder that are made, and folders that are then empty; give those that are left."""
    kept = []
    for place, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = Path(place, name)
            if not path.is_symlink() and is_made(path):
                path.unlink()
            else:
                kept.append(path)
        kept += [link for name in folders if (link := Path(place, name)).is_symlink()]
        if not any(Path(place).iterdir()) and not Path(place).is_symlink():
            Path(place).rmdir()
    return sorted(kept)


def tell(kept: Iterable[Path], *, why: str) -> None:
    """Say which files were left, and why."""
    found = list(kept)
    for path in found[:MOST_NAMED]:
        log.warning("left: %s", path)
    if found:
        more = f", {len(found) - MOST_NAMED} of them not named" if len(found) > MOST_NAMED else ""
        log.warning("%d file(s) were left%s: %s", len(found), more, why)


def _is_made(path: Path, *, folder: Path, made: re.Pattern[str], strict: bool) -> bool:
    if not made.fullmatch(path.relative_to(folder).as_posix()):
        return False
    # an editor that writes a file anew drops what is kept with it
    return not (checksums.is_changed(path) or (strict and checksums.is_of_another(path)))
