"""Which command lines of Snakemake only look."""

import pytest
from snakemake.cli import get_argument_parser

from pipeline.running import VALUED, only_looks


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
