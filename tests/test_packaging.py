import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def names(lines: list[str]) -> dict[str, str]:
    """Give requirement by normalised name."""
    return {re.split(r"[=<>]", line)[0].lower().replace("_", "-"): line for line in lines}


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return names([line for line in lines if line and not line.startswith("#")])


def direct() -> dict[str, str]:
    return names(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])


def test_every_direct_dependency_is_locked_to_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = names(
        [
            re.sub(r"\[.*?\]", "", line)
            for name in ("slurm", "s3", "cloud", "dev")
            for line in project["optional-dependencies"][name]
        ]
    )
    assert set(direct()) | set(extras) <= set(locked())
    assert all("==" in line for line in locked().values())


def test_the_conda_environment_has_the_locked_versions() -> None:
    environment = yaml.safe_load((ROOT / "envs" / "asmil-wsi.yaml").read_text())
    pinned = names(next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)))
    assert pinned == {name: locked()[name] for name in {*direct(), *needed_by("boto3")}}


def needed_by(name: str) -> set[str]:
    """Give a distribution and what it needs, by normalised names."""
    wanted = {name}
    for line in metadata.requires(name) or ():
        if "extra ==" not in line:
            wanted |= needed_by(next(iter(names([re.split(r"[ ;!~(\[]", line)[0]]))))
    return wanted


def test_every_package_is_installed_with_the_project() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("asmil", "pipeline")
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert set(packages) == found


def test_no_text_installs_the_project_from_an_index_that_does_not_have_it() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "pipeline").rglob("*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    assert "asmil-wsi[" not in text
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = set(re.findall(r"pip install '\.\[(\w+)\]'", text))
    assert {"slurm", "s3", "cloud", "fuzz"} <= named <= extras


@pytest.mark.parametrize("recipe", ["Dockerfile", "asmil-wsi.def"])
def test_a_container_holds_what_the_lock_names_and_no_other_version(recipe: str) -> None:
    text = (ROOT / "envs" / recipe).read_text()
    installs = re.findall(r"pip install .*", text)
    assert len(installs) == 2
    assert "--requirement /opt/asmil-wsi/requirements.lock" in installs[0]
    assert "--no-deps" in installs[1]
    python = next(
        entry
        for entry in yaml.safe_load((ROOT / "envs" / "asmil-wsi.yaml").read_text())["dependencies"]
        if str(entry).startswith("python=")
    )
    assert f"python:{python.removeprefix('python=')}-" in text


def test_a_user_whom_the_image_does_not_know_has_a_name_and_a_home() -> None:
    # without them Snakemake ends with KeyError (getpwuid) or PermissionError (/.cache)
    variables = re.findall(r"^ENV (.*)$", (ROOT / "envs" / "Dockerfile").read_text(), re.MULTILINE)
    given = dict(entry.split("=") for line in variables for entry in line.split())
    assert given.keys() >= {"USER", "HOME"}
    assert given["HOME"] == "/tmp"


def test_both_containers_hold_the_same_files_and_none_of_the_study() -> None:
    files = re.search(r"%files\n(.*?)\n\n", (ROOT / "envs" / "asmil-wsi.def").read_text(), re.DOTALL)
    assert files is not None
    copied = {line.split()[0] for line in files[1].splitlines()}
    assert {"requirements.lock", "workflow", "pipeline", "asmil", "envs"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    comment, all_but, *named, caches = (ROOT / ".dockerignore").read_text().splitlines()
    assert (comment[0], all_but, caches) == ("#", "*", "**/__pycache__")
    assert {name.removeprefix("!") for name in named} == copied
    assert all(name.startswith("!") for name in named)


def test_every_rule_with_a_command_names_the_conda_environment() -> None:
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"(?m)^(?:use )?rule ", path.read_text())[1:]:
            if "shell:" in rule:
                assert '"../../envs/asmil-wsi.yaml"' in rule, rule.splitlines()[0]


def test_what_the_workflow_catalogue_asks_for_is_there() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage == {"software-stack-deployment": {"conda": True, "apptainer": False}, "report": True}
    assert all((ROOT / name).is_file() for name in ("workflow/Snakefile", "config/README.md", "README.md", "LICENSE"))
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    assert "conda:" in rules  # what `conda: true` promises
    assert "report(" in rules  # what `report: true` promises
    assert 'report: "report/workflow.rst"' in (ROOT / "workflow" / "Snakefile").read_text()
    assert "min_version(" in (ROOT / "workflow" / "Snakefile").read_text()
    for caption in re.findall(r'caption="\.\./(report/\w+\.rst)"', rules):
        assert (ROOT / "workflow" / caption).is_file()
