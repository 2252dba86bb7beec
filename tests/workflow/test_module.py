"""The workflow as a module of a study's own Snakefile, as snakedeploy and the workflow catalogue use it."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.workflow.conftest import ROOT, Study

pytestmark = pytest.mark.slow

LOCAL = f'"{ROOT / "workflow" / "Snakefile"}"'
HOSTED = 'github("someone/asmil-wsi", path="workflow/Snakefile", tag="v0")'
MARK = "this is the module's package"


@dataclass(frozen=True)
class Deployment(Study):
    """A study with a Snakefile of its own."""

    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.variables}

    def command(self, *arguments: str) -> list[str]:
        snakemake, *_ = super().command()
        return [snakemake, "--cores", "2", *arguments]


def deploy(study: Study, snakefile: str, variables: dict[str, str]) -> Deployment:
    """Write what snakedeploy writes."""
    folder = study.folder
    (folder / "config").mkdir()
    (folder / "config.yaml").rename(folder / "config" / "config.yaml")
    (folder / "workflow").mkdir()
    (folder / "workflow" / "Snakefile").write_text(
        f"""configfile: "config/config.yaml"
module asmil_wsi:
    snakefile: {snakefile}
    config: config
use rule * from asmil_wsi
onsuccess:
    asmil_wsi.onsuccess()
"""
    )
    return Deployment(folder, variables)


def host(folder: Path) -> dict[str, str]:
    """Make a repository of this checkout, and give the variables by which git finds it where GitHub would be."""
    repository = folder / "repository"
    for name in ("asmil", "pipeline", "workflow", "envs", "config.yaml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        repository.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, repository / name)
    with (repository / "pipeline" / "__init__.py").open("a") as package:
        package.write(f'import sys\n\nsys.stderr.write("{MARK}\\n")\n')
    settings = folder / "gitconfig"
    settings.write_text(
        f'[url "file://{repository}"]\n\tinsteadOf = https://github.com/someone/asmil-wsi\n'
        "[user]\n\tname = test\n\temail = test@localhost\n[safe]\n\tdirectory = *\n"
    )
    variables = {"GIT_CONFIG_GLOBAL": str(settings), "XDG_CACHE_HOME": str(folder / "cache")}
    for words in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "all"), ("tag", "v0")):
        subprocess.run(["git", *words], cwd=repository, env={**os.environ, **variables}, check=True)
    return variables


def test_a_module_of_a_checkout_plans_the_whole_workflow(fresh: Study) -> None:
    planned = deploy(fresh, LOCAL, {}).plan()
    assert (planned["tile"], planned["train"], planned["report"]) == (7, 2, 1)


def test_a_module_from_a_git_host_brings_its_packages_and_its_defaults(fresh: Study, tmp_path: Path) -> None:
    study = deploy(fresh, HOSTED, host(tmp_path / "host"))
    ran = study.run("results/tiles/slide 0.zarr.zip")
    assert ran.code == 0, ran.output
    assert ran.jobs == {"tile": 1}
    assert MARK in (study.folder / "results" / "logs" / "tile" / "slide 0.log").read_text()
    assert len(list((study.folder / ".snakemake" / "asmil-wsi").iterdir())) == 1


def test_a_module_says_that_its_archive_needs_a_line(fresh: Study) -> None:
    study = deploy(fresh, LOCAL, {})
    path = study.folder / "config" / "config.yaml"
    path.write_text(f"{path.read_text()}paths:\n  archive: s3://hospital/study\n")
    assert "onsuccess: NAME.onsuccess()" in study.run("--dry-run").output
