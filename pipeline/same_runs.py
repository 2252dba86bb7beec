"""Tell whether two runs gave the same: every file of both is compared, but for what a run measures of its machine.

What may differ is listed here and nowhere else; everything else has to agree, tables, pages and pictures byte by byte.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.errors import PipelineError
from pipeline.run_record import NAME as RUN_RECORD

MEASURED_OF_SUMMARY = (r" looked at in [\d.]+ s\b", r"(?m)^  .* of one CPU core \(.*$")
"""What `results/check.txt` says of the speed of this machine."""

MEASURED_OF_RECORD = frozenset({"environment"})
"""What `results/run.json` says of the machine."""

NOT_COMPARED = frozenset({"logs", "private"})
"""Folders below results: what the jobs said, and the secret key of the hashes."""

ASIDE = frozenset({".damaged", ".outdated"})
"""Endings of files that were set aside, and made again."""


def differences(first: Path, second: Path) -> list[str]:
    """Give what differs between two runs, a sentence a file; empty if they gave the same.

    Parameters
    ----------
    first, second
        Folders of a study, each with the `results` and `reports` of a finished run.

    Raises
    ------
    PipelineError
        If one of them holds no file of a run.
    """
    found = {folder: dict(_files(folder)) for folder in (first, second)}
    for folder, files in found.items():
        if not files:
            raise PipelineError(f"{folder} holds no results of a run; name the folder in which its `results` lie")
    names = sorted(found[first].keys() | found[second].keys())
    said = ((name, _difference(found[first].get(name), found[second].get(name))) for name in names)
    return [f"{name}: {difference}" for name, difference in said if difference]


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Give every finished file of a run by its name below the study's folder."""
    for below in ("results", "reports"):
        for path in (folder / below).rglob("*"):
            inside = path.relative_to(folder / below).parts
            hidden = any(part.startswith(".") for part in inside)
            if path.is_file() and not hidden and path.suffix not in ASIDE and inside[0] not in NOT_COMPARED:
                yield path.relative_to(folder).as_posix(), path


def _difference(first: Path | None, second: Path | None) -> str:
    if first is None or second is None:
        return f"only the {'second' if first is None else 'first'} run has it"
    if first.name.endswith(".zarr.zip"):
        return _artefact_difference(store.load(first), store.load(second))
    if _comparable(first) != _comparable(second):
        return "its content differs"
    return ""


def _artefact_difference(first: store.Artefact, second: store.Artefact) -> str:
    one, other = (_attributes(artefact) for artefact in (first, second))
    differing = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    for name in sorted(first.arrays.keys() | second.arrays.keys()):
        a, b = first.arrays.get(name), second.arrays.get(name)
        if a is None or b is None or (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
            differing.append(name)
    return f"{', '.join(differing)} differ" if differing else ""


def _attributes(artefact: store.Artefact) -> dict[str, str]:
    # as text: a number that is none (NaN) is like itself there
    kept = {name: value for name, value in artefact.attributes.items() if name not in store.MEASURED}
    return {name: json.dumps(value, sort_keys=True) for name, value in kept.items()}


def _comparable(path: Path) -> Any:
    """Give a file's content without what was measured."""
    content = path.read_bytes()
    if path.name == "check.txt":
        text = content.decode()
        for pattern in MEASURED_OF_SUMMARY:
            text = re.sub(pattern, "", text)
        return text
    if path.name == RUN_RECORD:
        record = json.loads(content)
        return {name: value for name, value in record.items() if name not in MEASURED_OF_RECORD}
    return content
