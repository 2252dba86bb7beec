"""What the documentation says to type does what it says."""

import subprocess
import sys

import pytest

from tests.documented import Documented
from tests.test_docs import COMMANDS
from tests.workflow.conftest import ROOT, Ran, Study

pytestmark = pytest.mark.slow

LOOKS = {"--report", "--lint", "--sdm", "--workflow-profile"}
"""Of these the words are checked (tests/test_docs.py); they need a finished run, packages or a cluster."""
CHEAP = ("status", "verify", "encoders", "weights list", "same STUDY REPEATED", "clean")


def distinct(program: str) -> list[Documented]:
    found = {str(command): command for _, command in COMMANDS if command.words[0] == program}
    return list(found.values())


@pytest.mark.parametrize("command", [found for found in distinct("snakemake") if not LOOKS & set(found.words)], ids=str)
def test_a_documented_run_can_be_planned(fresh: Study, command: Documented) -> None:
    words = [str(fresh.folder) if word == "STUDY" else word for word in command.words[1:]]
    words = [str(ROOT / word) if word.startswith("workflow/") else word for word in words]  # as typed in a clone
    planned = fresh.run(*words, "--dry-run")
    assert planned.code == 0, planned.output
    assert planned.jobs["tile"] == 7


def test_documented_commands_that_are_cheap_run(finished: Study) -> None:
    named = {str(command).removeprefix("pipeline ") for command in distinct("pipeline")}
    assert set(CHEAP) <= named
    for command in CHEAP:  # clean is the last
        words = [str(finished.folder) if word in ("STUDY", "REPEATED") else word for word in command.split()]
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            cwd=finished.folder,
            env={**finished.environment, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        ran = Ran(done.returncode, done.stdout)
        assert ran.code == 0, (command, ran.output)
    left = {path.relative_to(finished.folder).parts[0] for path in finished.folder.rglob("*") if path.is_file()}
    assert left - {".cache", ".config"} == {"data", "config.yaml"}  # the home folder of these runs is the study's
