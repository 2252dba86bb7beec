"""Write docs/configuration.md from the schema and the defaults: python docs/generate_configuration.py."""

import math
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.config_schema import expected  # noqa: E402 - the packages need not be installed for this

INTRODUCTION = """\
# Configuration

`config.yaml` in the repository's root holds every key with its default. Change it there, or keep a study in a folder of
its own with a `config.yaml` that holds only what differs, and run `snakemake --directory STUDY`. One value can be tried
with `--config`, as in `snakemake --cores 8 --config 'training={epochs: 20}'`. An unknown key, a wrong type or a value
out of range ends the run with one sentence before any work. A change re-runs only what depends on it.

This page is made from `workflow/schemas/config.schema.yaml` and `config.yaml` by `docs/generate_configuration.py`.
"""


def page() -> str:
    """Give the page."""
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text(encoding="utf-8"))
    defaults = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    parts = [INTRODUCTION, "## General\n", *_table(_leaves(schema["properties"]), defaults)]
    for name, section in schema["properties"].items():
        if "properties" in section:
            parts += _section(name, section, defaults[name], level=2)
    return "\n".join(parts) + "\n"


def _section(name: str, section: dict[str, Any], defaults: dict[str, Any], *, level: int) -> list[str]:
    """Give a heading, the table of a section's own keys, and the sections within it."""
    lines = [f"\n{'#' * level} `{name}`\n", section["description"]]
    own = _leaves(section["properties"])
    lines += ["", *_table(own, defaults)] if own else []
    for inner, found in section["properties"].items():
        if "properties" in found:
            lines += _section(f"{name}.{inner}", found, defaults[inner], level=level + 1)
    return lines


def _leaves(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: found for name, found in properties.items() if "properties" not in found}


def _table(properties: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    rows = ["| key | default | values | meaning |", "|---|---|---|---|"]
    for name, found in properties.items():
        default = yaml.safe_dump(defaults[name], default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
        values = expected(found).replace("|", "\\|")
        rows.append(f"| `{name}` | `{default}` | {values} | {found['description']} |")
    return rows


if __name__ == "__main__":
    (ROOT / "docs" / "configuration.md").write_text(page(), encoding="utf-8")
