import re
import tomllib
from pathlib import Path

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
    assert set(direct()) <= set(locked())
    assert all("==" in line for line in locked().values())


def test_the_conda_environment_has_the_locked_versions() -> None:
    environment = yaml.safe_load((ROOT / "envs" / "asmil-wsi.yaml").read_text())
    pinned = names(next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)))
    assert pinned == {name: locked()[name] for name in direct()}


def test_every_package_is_installed_with_the_project() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for name in ("asmil", "pipeline")
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert set(packages) == found
