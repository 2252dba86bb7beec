"""What an older version of the program made is made again, or refused in a sentence; never taken for new."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import store, upgrade
from pipeline.errors import ArtefactError
from pipeline.versions import SCHEMA_VERSION, STAGE_VERSIONS
from tests.workflow.conftest import ROOT, Ran, Study

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Newer(Study):
    """A study, run by a copy of the program with other version numbers."""

    program: Path

    def command(self, *arguments: str) -> list[str]:
        ours, theirs = (str(root / "workflow" / "Snakefile") for root in (ROOT, self.program))
        return [theirs if word == ours else word for word in Study.command(self, *arguments)]

    def pipeline(self, *arguments: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=self.folder,
            env={**self.environment, "PYTHONPATH": str(self.program)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        return Ran(done.returncode, done.stdout)


@pytest.fixture
def newer(tmp_path: Path) -> Callable[..., Newer]:
    """Give a function that lets the next version of the program, whose numbers are given, run a study."""

    def of(study: Study, *, schema: int = SCHEMA_VERSION, **stages: int) -> Newer:
        program = tmp_path / f"program {len(list(tmp_path.glob('program *')))}"
        program.mkdir()
        for name in ("pipeline", "asmil", "workflow"):
            shutil.copytree(ROOT / name, program / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "envs", program / "envs")
        shutil.copy(ROOT / "config.yaml", program)
        versions = program / "pipeline" / "versions.py"
        text = re.sub(r"(?m)^SCHEMA_VERSION = \d+$", f"SCHEMA_VERSION = {schema}", versions.read_text())
        for stage, version in stages.items():
            text = re.sub(rf'"{stage}": \d+,', f'"{stage}": {version},', text)
        versions.write_text(text)
        return Newer(study.folder, program)

    return of


LEARNED = {"train": 2, "models": 1, "agreement": 1}
LATER = {"cohort": 1, "report": 1}
WHOLE = {"check": 1, "tile": 7, "embed": 7, "split": 1, **LEARNED, "predict": 7, "heatmap": 7, **LATER}


@pytest.mark.parametrize(
    ("stage", "again"),
    [
        ("tile", {name: count for name, count in WHOLE.items() if name != "check"}),
        ("train", {**LEARNED, "predict": 7, "heatmap": 7, "report": 1}),
        ("heatmap", {"heatmap": 7, "report": 1}),
    ],
)
def test_another_version_of_a_stage_makes_its_files_again(
    finished: Study, newer: Callable[..., Newer], stage: str, again: dict[str, int]
) -> None:
    assert newer(finished, **{stage: STAGE_VERSIONS[stage] + 1}).plan() == again


def test_another_layout_makes_everything_again_and_is_refused_where_it_is_read_by_hand(
    finished: Study, newer: Callable[..., Newer]
) -> None:
    study = newer(finished, schema=SCHEMA_VERSION + 1)
    assert study.plan() == WHOLE
    results = finished.folder / "results"
    by_hand = {
        "bags": "predict-bag|results/bags/slide 0.zarr.zip|--models|results/model|--attention|a.zarr.zip",
        "model": "predict|data/raw/new.ü.svs|--models|results/model|--out|predicted",
    }
    for kind, command in by_hand.items():
        refused = study.pipeline(*command.split("|"))
        assert refused.code == 1, refused.output
        assert f"schema version {SCHEMA_VERSION}" in refused.output, kind
        assert "Traceback" not in refused.output
    ran = study.run("results/bags/slide 0.zarr.zip")
    assert ran.code == 0, ran.output
    assert ran.jobs == {"tile": 1, "embed": 1}
    with pytest.raises(ArtefactError, match=f"schema version {SCHEMA_VERSION + 1}, this one reads"):
        store.read(results / "bags" / "slide 0.zarr.zip")


def test_results_that_were_copied_without_snakemakes_memory_are_refused_if_another_version_made_them(
    finished: Study, newer: Callable[..., Newer]
) -> None:
    shutil.rmtree(finished.folder / ".snakemake")
    assert finished.plan() == {}  # of this version: taken as they are
    study = newer(finished, embed=STAGE_VERSIONS["embed"] + 1)
    refused = study.run("--dry-run")
    assert refused.code == 1
    told = f"another version of asmil-wsi (embed {STAGE_VERSIONS['embed']}, now {STAGE_VERSIONS['embed'] + 1})"
    assert refused.output.rstrip().splitlines()[-1].startswith(f"Error: results was made by {told}")
    assert "--forceall" in refused.output
    found = study.pipeline("verify")
    assert found.code == 1
    assert "and 8 of another version, the first results/bags/new.ü.zarr.zip" in found.output
    assert study.pipeline("verify", "--repair").code == 0
    assert study.plan()["embed"] == 7


def test_every_kind_of_file_tells_by_which_version_of_its_stage_it_was_made(finished: Study) -> None:
    results, reports = finished.folder / "results", finished.folder / "reports"
    by_stage = {
        "tile": (results / "tissue" / "slide 0.jpg", results / "tissue" / "slide 0.geojson"),
        "train": (results / "model" / "fold-0" / "model.json",),
        "heatmap": (
            reports / "heatmaps" / "slide 0.png",
            results / "attention" / "slide 0.geojson",
            results / "views" / "slide 0.json",
        ),
        "report": (reports / "metrics.json", results / "model" / "metrics.json"),
    }
    for stage, paths in by_stage.items():
        for path in paths:
            found = upgrade.MADE_BY.search(path.read_bytes())
            assert found is not None, path
            assert (found[1].decode(), int(found[2])) == (stage, STAGE_VERSIONS[stage])
    for stage, kind in (("tile", "tiles"), ("embed", "bags"), ("predict", "attention")):
        attributes = store.read_attributes(results / kind / "slide 0.zarr.zip")
        assert (attributes["stage"], attributes["stage_version"]) == (stage, STAGE_VERSIONS[stage])
        assert attributes["fingerprint"]
