"""Files that are not Zarr are known again by a checksum that the file system keeps with them."""

import os
from pathlib import Path

import pytest

from pipeline import checksums, store
from pipeline.assignment import COLUMNS, read_splits
from pipeline.errors import ArtefactError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "splits.csv"
    store.write_text(path, ",".join(COLUMNS) + "\na,p,tumour,0,0,test\n")
    try:
        os.getxattr(path, checksums.ATTRIBUTE)
    except OSError:
        pytest.skip("this file system keeps no attributes")
    return path


def test_a_changed_byte_is_found_and_the_file_is_renamed(table: Path) -> None:
    assert read_splits(table)[0].label == "tumour"
    table.write_text(table.read_text().replace("tumour", "normal"))
    with pytest.raises(ArtefactError, match=r"splits\.csv: damaged .* run the same command again"):
        read_splits(table)
    assert not table.exists()
    assert table.with_name("splits.csv.damaged").exists()


def test_a_file_that_an_editor_wrote_anew_is_taken_as_it_is(table: Path) -> None:
    edited = table.with_name("edited")
    edited.write_text(table.read_text().replace("tumour", "normal"))
    edited.replace(table)
    assert read_splits(table)[0].label == "normal"


def test_a_file_without_a_checksum_passes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x")
    checksums.check(path)
