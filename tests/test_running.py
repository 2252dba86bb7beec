"""Which command lines of Snakemake only look, and that two studies do not write to the same folders."""

import subprocess
import sys
from pathlib import Path

import pytest
from snakemake.cli import get_argument_parser

from pipeline.errors import ConfigError
from pipeline.running import VALUED, claim_outputs, only_looks


@pytest.mark.parametrize(
    ("arguments", "looks"),
    [("-n", True), ("-Fnp", True), ("-S", True), ("--dry-run", True), ("-dmnt/x", False), ("-sn/Snakefile", False)],
)
def test_a_run_that_only_looks_is_told_by_its_options(arguments: str, looks: bool) -> None:
    assert only_looks(arguments.split()) is looks


def test_the_letters_are_snakemakes() -> None:
    actions = get_argument_parser()._actions
    letters = {
        option[1] for action in actions for option in action.option_strings if len(option) == 2 and action.nargs != 0
    }
    assert letters == VALUED


HOLDER = """
import sys
from pathlib import Path
from pipeline.running import claim_outputs
claim_outputs(*map(Path, sys.argv[1:]))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_studies_do_not_write_to_the_same_folder(tmp_path: Path) -> None:
    results, reports, other = (tmp_path / name for name in ("results", "reports", "other"))
    for folder in (results, reports, other):
        folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(results), str(reports), str(results)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"a run of another study writes to .*reports; wait for its end"):
            claim_outputs(other, reports)
        holder.communicate("")
    claim_outputs(results, reports)
