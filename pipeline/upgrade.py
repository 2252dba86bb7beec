"""Results that another version of this program made: recognised, and made anew or refused.

Snakemake makes a file again when its stage's version changed, but only where it remembers how the file was made. Copied
results, whose `.snakemake` stayed behind, would be taken as they are: a run is then held against `results/run.json`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.versions import SCHEMA_VERSION, STAGE_VERSIONS

MADE_BY = re.compile(rb'"stage":\s*"(\w+)",\s*"stage_version":\s*(\d+)')
"""How a file says what made it: in JSON, in a picture's text, in a page."""
RUN_RECORD = "run.json"


def other_version(attributes: Mapping[str, Any]) -> str:
    """Say by which other version of its stage something was made; empty if by this one, or if it does not say."""
    stage, version = attributes.get("stage"), attributes.get("stage_version")
    now = STAGE_VERSIONS.get(str(stage))
    if version is None or now is None or version == now:
        return ""
    return f"made by version {version} of {stage}, now {now}"


def other_version_of(path: Path) -> str:
    """Say the same of a file that is no artefact in Zarr, by what it says of itself."""
    content = path.read_bytes()
    if path.name == RUN_RECORD:
        changed = _changes(path)
        return f"made by another version ({'; '.join(changed)})" if changed else ""
    found = MADE_BY.search(content)
    return other_version({"stage": found[1].decode(), "stage_version": int(found[2])}) if found else ""


def check_remembered(record: Path, *, memory: Path) -> None:
    """Refuse results of another version that Snakemake has no memory of, and so would not make again.

    Parameters
    ----------
    record
        `run.json` of the results.
    memory
        Folder of what Snakemake remembers of each file.

    Raises
    ------
    ConfigError
        Naming what changed, and what to do.
    """
    if not record.exists() or (memory.is_dir() and any(memory.iterdir())):
        return
    changed = _changes(record)
    if changed:
        raise ConfigError(
            f"{record.parent} was made by another version of asmil-wsi ({'; '.join(changed)}) and Snakemake's memory of"
            f" it ({memory.parent}) is not here, so old files would pass as new; run again with --forceall, set the old"
            " files aside with python -m pipeline verify --repair, or begin anew with python -m pipeline clean"
        )


def _changes(record: Path) -> list[str]:
    """Give the versions of a run's record that are not this program's, as `tile 4, now 5`."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        made = {"schema": found["schema_version"], **found["stages"]}
    except (ValueError, LookupError, TypeError):
        return [f"{record} cannot be read"]
    now = {"schema": SCHEMA_VERSION, **STAGE_VERSIONS}
    return [f"{name} {made.get(name, 'none')}, now {now[name]}" for name in now if made.get(name) != now[name]]
