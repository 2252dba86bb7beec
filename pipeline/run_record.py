"""What a finished run was made of, so that it can be repeated elsewhere: `results/run.json`.

Nothing in it names the machine, its user or a place on its disks.
"""

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import checksums, json_text, store
from pipeline import cohort as cohorts
from pipeline.checksums import sha256_of
from pipeline.cohort import Cohort
from pipeline.upgrade import RUN_RECORD
from pipeline.versions import SCHEMA_VERSION, STAGE_VERSIONS, __version__

NAME = RUN_RECORD


OUTPUTS = {
    "reports": ("predictions.csv", "metrics.json", "quarantine.tsv", "quality.tsv", "index.html"),
    "results": (
        *("check.tsv", "cohort.tsv"),
        *("model/splits.csv", "model/bags.json", "model/models.json", "model/model_card.md"),
    ),
}
"""Tables and pages of the whole cohort, which cannot all say themselves what made them."""


def outputs(*, results: Path, reports: Path) -> dict[str, str]:
    """Give the SHA-256 of a finished run's tables and pages by name, so that a copy is known to be of this run."""
    folders = {"results": results, "reports": reports}
    files = {f"{of}/{name}": folders[of] / name for of, names in OUTPUTS.items() for name in names}
    return {name: sha256_of(path) for name, path in files.items() if path.exists()}


def is_current(path: Path, *, results: Path, reports: Path) -> bool:
    """Tell whether a record is there, undamaged, and of the tables and pages that lie there now."""
    try:
        record = json_text.parse_object(path.read_bytes())
    except (FileNotFoundError, json_text.JsonError):
        return False
    return not checksums.is_changed(path) and record.get("outputs") == outputs(results=results, reports=reports)


def describe(
    config: Mapping[str, Any],
    cohort: Cohort,
    fingerprints: Mapping[str, str],
    *,
    weights: str,
    splits: str,
    outputs: Mapping[str, str],
) -> dict[str, Any]:
    """Describe a run by its inputs, and what it wrote by checksums.

    Parameters
    ----------
    config
        The configuration with all defaults, as the user gave it.
    cohort
        Slides, labels and what else the user said of them.
    fingerprints
        Of the slides, by slide id.
    weights
        Fingerprint of the encoder's weights; empty where it has none.
    splits
        Digest of the user's own splits file; empty where none is used.
    outputs
        SHA-256 of files that it wrote, by name.

    Returns
    -------
    JSON values. `config` is a whole `config.yaml`; settings that hold a place on this machine's disks are left out of
    it and named in `left_out_of_config`.
    """
    portable, left_out = _portable(config)
    labels = {slide: vars(label) for slide, label in sorted(cohort.labels.items())}
    overrides = {slide: vars(override) for slide, override in sorted({**cohort.overrides, **cohort.skipped}.items())}
    return {
        "schema_version": SCHEMA_VERSION,
        "asmil_wsi": __version__,
        "stages": dict(STAGE_VERSIONS),
        "environment": {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "system": platform.system(),
            "architecture": platform.machine(),
            "packages": _packages(),
        },
        "config": portable,
        "left_out_of_config": left_out,
        "inputs": {
            "slides": {slide: fingerprints[slide] for slide in cohort.slides},
            "labels": cohorts.digest(labels),
            "overrides": cohorts.digest(overrides),
            "drawn": {slide: cohorts.drawn_digest(drawn) for slide, drawn in sorted(cohort.drawn.items())},
            "weights": weights,
            "splits": splits,
        },
        "outputs": dict(outputs),
    }


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record, unless the file says the same already."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    if not path.exists() or path.read_bytes() != text.encode():
        store.write_text(path, text)


def _portable(section: Mapping[str, Any], place: str = "") -> tuple[dict[str, Any], list[str]]:
    """Give a section without absolute paths, and the names of the settings that held one."""
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for name, value in section.items():
        full = f"{place}{name}"
        if isinstance(value, Mapping):
            kept[name], inner = _portable(value, f"{full}.")
            left_out += inner
        elif isinstance(value, str | Path) and str(value).startswith(("/", "~")):
            left_out.append(full)
        else:
            kept[name] = str(value) if isinstance(value, Path) else value
    return kept, left_out


def _packages() -> dict[str, str]:
    """Give the version of each package of the environment, by name."""
    found = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
