import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from snakemake import cli as snakemake_cli

from pipeline.check_command import completed
from pipeline.cli import app
from pipeline.versions import __version__
from tests.documented import Documented, documented

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "config" / "README.md"])
COMMANDS = [(page, command) for page in PAGES for command in documented(page)]


def test_the_configuration_page_is_that_of_the_schema() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate_configuration.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == module.page(), (
        "run python docs/generate_configuration.py"
    )


def test_the_configuration_page_has_a_whole_row_for_every_key() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    tables = [block.splitlines() for block in re.findall(r"(?m)(?:^.*\|.*\n)+", text.partition("## General")[2])]
    assert all(line.startswith(("| ", "|---")) for table in tables for line in table)
    assert all(line.endswith("|") for table in tables for line in table)
    counts = {len(re.findall(r"(?<!\\)\|", line)) for table in tables for line in table}
    assert counts == {5}
    rows = [line for table in tables for line in table[2:]]

    def keys(defaults: dict[str, Any]) -> list[str]:
        """Give the names of all keys that hold a value."""
        found = [keys(value) if isinstance(value, dict) else [name] for name, value in defaults.items()]
        return [name for names in found for name in names]

    defaults = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    assert Counter(row.split("`")[1] for row in rows) == Counter(keys(defaults))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?[^)]*\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        there = page.parent / target if target else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings, as GitHub makes them."""
    found: Counter[str] = Counter()
    made = set()
    text = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text(encoding="utf-8"))
    for heading in re.findall(r"(?m)^#+ (.+?)\s*$", text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        made.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return made


def test_every_page_of_the_documentation_is_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        todo += [page.parent / target for target in targets if "://" not in target and (page.parent / target).exists()]
    assert {page.name for page in (ROOT / "docs").rglob("*.md") if page.resolve() not in reached} == set()


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: str(getattr(value, "name", value)))
def test_commands_in_the_documentation_are_understood(page: Path, command: Documented) -> None:
    program, *words = command.words
    if program == "snakemake":
        _, parsed = snakemake_cli.parse_args(words)
        assert "--" not in " ".join(map(str, parsed.targets)), parsed.targets
        return
    if words == ["STAGE"]:
        return
    command_or_group: Any = typer.main.get_command(app)
    context, words = command_or_group.make_context("pipeline", ["check"]), completed(words)
    while hasattr(command_or_group, "resolve_command"):
        name, command_or_group, words = command_or_group.resolve_command(context, words)
    try:
        command_or_group.make_context(name, list(words), parent=context)
    except Exception as error:
        # within a sentence a command may be named without what it needs
        if command.fenced or type(error).__name__ != "MissingParameter":
            raise


def test_the_version_is_the_same_everywhere() -> None:
    found = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_version_is_written_in_one_place() -> None:
    files = [path for folder in ("pipeline", "asmil", "workflow") for path in (ROOT / folder).rglob("*.*")]
    files += [ROOT / "pyproject.toml", *(ROOT / "envs").iterdir()]
    naming = [
        path for path in files if path.suffix != ".pyc" and f'"{__version__}"' in path.read_text(errors="replace")
    ]
    assert naming == [ROOT / "pipeline" / "versions.py"]


def test_the_citation_is_complete_and_of_this_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "type", "version", "license", "authors", "references"} <= set(citation)
    assert citation["license"] in (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()[0]
    paper = next(found["identifiers"][0]["value"] for found in citation["references"])
    assert paper.removeprefix("arXiv:") in (ROOT / "README.md").read_text(encoding="utf-8")
