import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tables
from pipeline.assignment import Assignment, read_splits, write_splits
from pipeline.cohort_table import CohortRow, read_cohort, write_cohort


@pytest.mark.parametrize(
    ("cell", "guarded"),
    [
        ("=1+1", "'=1+1"),
        (" @x", "' @x"),
        ("-slide 3", "'-slide 3"),
        ("+", "'+"),
        ("-2+cmd|' /C calc'!A0", "'-2+cmd|' /C calc'!A0"),
        ("\t=1", "'\t'=1"),
        ("\r=1", "'\r'=1"),
        (" \t=1", "' \t'=1"),
        ("x;=cmd|' /C calc'!A0", "x;'=cmd|' /C calc'!A0"),
        ("x; @y", "x;' @y"),
        ("x;'=y", "x;''=y"),
        ("x,+y", "x,'+y"),
        ("x\t-y;=z", "x\t'-y;'=z"),
        ("x\n=y", "x\n'=y"),
        ("-x;-y", "'-x;'-y"),
        ("x;-2, +0.5", "x;-2, +0.5"),
        ("x; y, z", "x; y, z"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("'=1", "''=1"),
        ("-2", "-2"),
        ("+0.5", "+0.5"),
        ("-1.5e-07", "-1.5e-07"),
        ("-inf", "-inf"),
        ("0.5", "0.5"),
        ("34.2+", "34.2+"),
        ("'quoted'", "'quoted'"),
        ("a-b", "a-b"),
        ("", ""),
    ],
)
def test_what_a_spreadsheet_would_run_is_guarded_and_read_back_as_it_was(cell: str, guarded: str) -> None:
    assert tables.guard(cell) == guarded
    assert tables.plain(guarded) == cell


@given(st.text("a2 '=-;,\t\n\r", max_size=12))
def test_every_text_is_read_back_as_it_was_and_begins_no_formula_anywhere(cell: str) -> None:
    guarded = tables.guard(cell)
    assert tables.plain(guarded) == cell
    for part in re.split("[;,\t\r\n]", guarded):
        assert not re.match(r"\s*[=-]", part) or tables.NUMBER.fullmatch(part)


def test_tables_that_stages_hand_on_keep_names_that_begin_with_a_sign(tmp_path: Path) -> None:
    assigned = [Assignment("-slide 3", "@p", "=label", 0, 1, "test")]
    write_splits(tmp_path / "splits.csv", assigned)
    assert read_splits(tmp_path / "splits.csv") == assigned
    empty = dict.fromkeys(("label", "patient_id", "site", "status", "reason", "remedy", "warnings"), "")
    listed = [CohortRow("-slide 3", "+raw/-slide 3.svs", **empty, note="=HYPERLINK(1)", mpp="-0.5")]
    write_cohort(tmp_path / "cohort.tsv", listed)
    assert read_cohort(tmp_path / "cohort.tsv") == listed
    with (tmp_path / "cohort.tsv").open(encoding="utf-8", newline="") as handle:
        [row] = csv.DictReader(handle, delimiter="\t")
    assert (row["slide_id"], row["note"], row["mpp"]) == ("'-slide 3", "'=HYPERLINK(1)", "-0.5")
