import os
from pathlib import Path

import pytest

from pipeline.fingerprint import PIECE, WHOLE, fingerprint


def test_a_copy_with_another_name_and_time_keeps_the_fingerprint(tmp_path: Path) -> None:
    first, second = tmp_path / "a.svs", tmp_path / "b.svs"
    first.write_bytes(b"slide")
    second.write_bytes(b"slide")
    os.utime(second, (0, 0))
    assert fingerprint(first) == fingerprint(second)


@pytest.mark.parametrize("position", [0, (WHOLE + 10 * PIECE) // 2, WHOLE + 10 * PIECE - 1])
def test_a_changed_byte_in_head_middle_or_tail_of_a_large_file_changes_it(tmp_path: Path, position: int) -> None:
    path = tmp_path / "a.svs"
    content = bytearray(WHOLE + 10 * PIECE)
    path.write_bytes(content)
    before = fingerprint(path)
    content[position] = 1
    path.write_bytes(content)
    assert fingerprint(path) != before


def test_a_changed_byte_anywhere_in_a_small_file_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    content = bytearray(20 * PIECE)
    path.write_bytes(content)
    before = fingerprint(path)
    content[3 * PIECE] = 1
    path.write_bytes(content)
    assert fingerprint(path) != before


def test_a_longer_file_of_the_same_pieces_changes_it(tmp_path: Path) -> None:
    first, second = tmp_path / "a.svs", tmp_path / "b.svs"
    first.write_bytes(bytes(WHOLE + PIECE))
    second.write_bytes(bytes(WHOLE + 2 * PIECE))
    assert fingerprint(first) != fingerprint(second)


def test_the_folder_beside_an_mrxs_file_counts(tmp_path: Path) -> None:
    path, folder = tmp_path / "a.mrxs", tmp_path / "a"
    path.write_bytes(b"index")
    alone = fingerprint(path)
    folder.mkdir()
    (folder / "Data0001.dat").write_bytes(b"pixels")
    complete = fingerprint(path)
    (folder / "Data0001.dat").write_bytes(b"pix")
    assert len({alone, complete, fingerprint(path)}) == 3


def test_a_dicom_folder_counts_with_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "1.dcm").write_bytes(b"one")
    first = fingerprint(tmp_path)
    (tmp_path / "2.dcm").write_bytes(b"two")
    second = fingerprint(tmp_path)
    (tmp_path / "2.dcm").write_bytes(b"TWO")
    assert len({first, second, fingerprint(tmp_path)}) == 3


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "a.svs")


def test_a_folder_of_the_same_name_beside_a_slide_of_one_file_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(b"slide")
    before = fingerprint(path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "other.svs").write_bytes(b"slide")
    assert fingerprint(path) == before
