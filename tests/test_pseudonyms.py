import csv
import stat
from pathlib import Path

import pytest

from pipeline import pseudonyms
from pipeline.errors import ConfigError
from pipeline.pseudonyms import PSEUDONYM, Mask, Pseudonyms

HASHED = Pseudonyms(bytes(range(32)))


def test_a_pseudonym_depends_on_the_name_the_kind_and_the_key() -> None:
    names = [HASHED.slide("a"), HASHED.slide("b"), HASHED.patient("a"), Pseudonyms(b"another").slide("a")]
    assert len(set(names)) == 4
    assert all(PSEUDONYM.fullmatch(name) for name in names)
    assert HASHED.slide("a") == Pseudonyms(bytes(range(32))).slide("a")
    assert HASHED.patient("") == ""


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "private"
    looked = pseudonyms.make(folder, keep=False)
    assert not folder.exists()
    made = pseudonyms.make(folder, keep=True)
    assert pseudonyms.load(folder) == pseudonyms.make(folder, keep=True) == made != looked
    pseudonyms.write_table(folder, made, slides=["s 1"], patients=["b", "a", "b", ""])
    with (folder / "ids.tsv").open(encoding="utf-8", newline="") as handle:
        rows = [tuple(row.values()) for row in csv.DictReader(handle, delimiter="\t")]
    assert rows == [("slide", "s 1", made.slide("s 1")), *(("patient", name, made.patient(name)) for name in "ab")]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("content", ["", "abcd\n", "no key\n"])
def test_a_damaged_key_is_an_error_and_not_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match="put your copy back"):
        pseudonyms.make(tmp_path, keep=True)
    assert (tmp_path / "key").read_text() == content


def test_a_job_without_a_key_fails_instead_of_naming_slides_anew(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        pseudonyms.load(tmp_path)


def test_names_and_paths_in_sentences_are_masked() -> None:
    files = {"a__Doe 1": "data/raw/a/Doe 1.svs", "a__Doe 10": "/mnt/pacs/a/Doe 10.svs", "12": "data/raw/12.svs"}
    mask = Mask(HASHED, files, ["Doe, Jane", "7"])
    one, ten, twelve = (HASHED.slide(slide) for slide in files)
    jane = HASHED.patient("Doe, Jane")
    for sentence, masked in {
        "data/raw/a/Doe 1.svs cannot be read": f"{one}.svs cannot be read",
        "Doe 10.svs: damaged": f"{ten}.svs: damaged",
        "/mnt/pacs/a/Doe 10.svs is empty": f"{ten}.svs is empty",
        "see a__Doe 1.log, of Doe, Jane": f"see {one}.log, of {jane}",
        "data/tissue/a__Doe 10.geojson: no polygon": f"data/tissue/{ten}.geojson: no polygon",
        "12 tiles of 12.svs in 7 regions": f"12 tiles of {twelve}.svs in 7 regions",
        "written to /home/jane/other.csv, at 3.5/4.0": "written to [path], at 3.5/4.0",
        "Doe 100 stays": "Doe 100 stays",
    }.items():
        assert mask.text(sentence) == masked


def test_pictures_under_names_are_removed_and_those_under_pseudonyms_kept(tmp_path: Path) -> None:
    kept = f"{HASHED.slide('a')}.png"
    for name in (kept, "a.png", "s-1.png", "b.png.damaged"):
        (tmp_path / name).write_bytes(b"")
    pseudonyms.remove_named(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [kept]
