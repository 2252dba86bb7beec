import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from pipeline import cohort
from pipeline.discovery import discover
from pipeline.errors import ConfigError
from pipeline.fingerprint import fingerprint

ROOT = Path(__file__).parents[1]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def labels_file(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_id_is_the_path_below_the_folder_without_its_extension(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "site a/x.1.tiff", "ünï (1).NDPI")
    slides, warnings = discover(tmp_path)
    assert list(slides) == ["b", "site a__x.1", "ünï (1)"]
    assert slides["site a__x.1"] == tmp_path / "site a" / "x.1.tiff"
    assert warnings == []


def test_decomposed_letters_in_a_file_name_give_the_composed_id(tmp_path: Path) -> None:
    touch(tmp_path, unicodedata.normalize("NFD", "ü.svs"))
    assert list(discover(tmp_path)[0]) == ["ü"]


def test_ignored_files_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", ".b.svs", "c.jpg", "d.svs.part", "notes.txt", ".gitkeep")
    _, warnings = discover(tmp_path)
    assert len(warnings) == 3
    assert ".b.svs is ignored: hidden." in warnings[0]


def test_a_mirax_folder_and_a_dicom_folder_are_one_slide_each(tmp_path: Path) -> None:
    touch(tmp_path, "m.mrxs", "m/Data0000.dat", "m/thumb.tif", "d/1.dcm", "d/2.dcm")
    slides, warnings = discover(tmp_path)
    assert slides == {"d": tmp_path / "d", "m": tmp_path / "m.mrxs"}
    assert warnings == []


@pytest.mark.parametrize("suffix", [".vms", ".VMU"])
def test_the_files_that_a_hamamatsu_index_names_belong_to_it(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "a-0.jpg", "a-1.jpg", "a-map.jpg", "a.opt", "other.jpg")
    index = tmp_path / f"a{suffix}"
    index.write_text(
        "[Virtual Microscope Specimen]\r\nImageFile=a-0.jpg\r\nImageFile(1,0)=a-1.jpg\r\n"
        "MapFile=a-map.jpg\r\nOptimisationFile=a.opt\r\nNoLayers=1\r\n"
    )
    slides, warnings = discover(tmp_path)
    assert slides == {"a": index}
    assert [warning for warning in warnings if "other.jpg" not in warning] == []
    before = fingerprint(index)
    (tmp_path / "a-1.jpg").write_bytes(b"xx")
    changed = fingerprint(index)
    (tmp_path / "other.jpg").write_bytes(b"xx")
    assert before != changed == fingerprint(index)


def test_what_lies_beside_a_trestle_slide_is_not_worth_a_word(tmp_path: Path) -> None:
    slides, warnings = discover(touch(tmp_path, "a.tif", "a.tif-b", "a.Full"))
    assert list(slides) == ["a"]
    assert warnings == []


def test_a_dicom_series_needs_a_folder_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"itself holds \.dcm files; put each DICOM series into a folder"):
        discover(touch(tmp_path, "1.dcm"))


@pytest.mark.parametrize("names", [("a.svs", "a.tif"), ("x/y.svs", "x__y.svs")])
def test_two_slides_of_one_id_are_both_named(tmp_path: Path, names: tuple[str, str]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(ConfigError, match="have the same slide id") as caught:
        discover(tmp_path)
    assert all(name in str(caught.value) for name in names)


def test_an_empty_folder_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no slides in .*put whole-slide images"):
        discover(tmp_path / "raw")


def test_a_link_to_nothing_is_ignored_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "b.svs").symlink_to(tmp_path / "gone.svs")
    slides, warnings = discover(tmp_path)
    assert list(slides) == ["a"]
    assert "b.svs is ignored: it is a link to a file that is not there." in warnings[0]


def test_a_brace_in_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot hold braces"):
        discover(touch(tmp_path, "a{b}.svs"))


def test_labels_are_read_with_their_patients(tmp_path: Path) -> None:
    path = labels_file(tmp_path, "\ufeffslide_id,label,patient_id,site\n a ,x,p1,s\nb,,p1,s\n\n")
    found = cohort.read_labels(path, target="label")
    assert found["a"] == cohort.Label("x", "p1", "s")
    assert found["b"].label == ""


def test_without_patients_every_slide_is_its_own(tmp_path: Path) -> None:
    path = labels_file(tmp_path, "slide_id,label,label_grade\na,x,1\n")
    assert cohort.read_labels(path, target="label_grade")["a"] == cohort.Label("1", "a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slide_id,label,colour\na,x,red\n", "unknown column 'colour'"),
        ("slide,label\na,x\n", "no column 'slide_id'"),
        ("slide_id,label\na,x\na,y\n", "line 3: slide 'a' is listed twice"),
        ("slide_id;label\na;x\n", "not separated by commas"),
        ("slide_id,label\na,x,y\n", "line 2: 3 cells where the header has 2"),
        ("slide_id,label,patient_id\na,x,\n", "line 2: patient_id is empty"),
        ("slide_id,label\n,x\n", "line 2: slide_id is empty"),
        ('slide_id,label\n"a,x\n', "not a CSV file"),
        ("slide_id,label,label\na,x,x\n", "'label' occurs twice"),
        ("", "no column 'slide_id'"),
    ],
)
def test_a_malformed_labels_file_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        cohort.read_labels(labels_file(tmp_path, text), target="label")
    assert "labels.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_labels_file_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"labels\.csv is missing; make it, a CSV with the columns slide_id, label"):
        cohort.read_labels(tmp_path / "labels.csv", target="label")


def test_latin_1_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("slide_id,label\nü,x\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        cohort.read_labels(tmp_path / "labels.csv", target="label")


def loaded(folder: Path, labels: str, *, folds: int = 2, overrides: str = "") -> cohort.Cohort:
    touch(folder / "raw", *(f"{name}.svs" for name in "abcdef"))
    if overrides:
        (folder / "overrides.csv").write_text(overrides)
    return cohort.load(
        folder / "raw",
        labels=labels_file(folder, labels),
        overrides=folder / "overrides.csv",
        target="label",
        folds=folds,
    )


GOOD = "slide_id,label\na,x\nb,x\nc,y\nd,y\n"


def test_a_cohort_keeps_labels_of_present_slides_only(tmp_path: Path) -> None:
    found = loaded(tmp_path, GOOD + "absent,x\n")
    assert set(found.labels) == set("abcd")
    assert found.classes == ("x", "y")
    assert "1 slide(s) that are not in" in found.warnings[0]


@pytest.mark.parametrize(
    ("labels", "folds", "words"),
    [
        ("slide_id,label\na,x\nb,x\n", 2, "all 2 labelled slides are 'x'"),
        (GOOD, 5, "4 labelled patients are fewer than the 5 folds"),
        ("slide_id,label\na.svs,x\n", 2, "labels none of the 6 slides .*'a.svs', a slide here is 'a'"),
        ("slide_id,label,patient_id\na,x,p\nb,x,q\nc,y,r\nd,y,r\n", 2, "class 'y' has one patient only"),
    ],
)
def test_labels_that_cannot_be_validated_are_refused(tmp_path: Path, labels: str, folds: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, labels, folds=folds)


def test_a_skipped_slide_is_left_out(tmp_path: Path) -> None:
    found = loaded(tmp_path, GOOD, overrides="slide_id,mpp,skip,note\ne,,true,smeared\nf,0.25,,\n")
    assert "e" not in found.slides
    assert found.overrides["f"].mpp == 0.25


@pytest.mark.parametrize(("row", "words"), [("e,40,", "mpp is '40'"), ("e,0,25", "skip is '25'"), ("e,,maybe", "skip")])
def test_a_bad_override_is_named(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, GOOD, overrides=f"slide_id,mpp,skip\n{row}\n")


def test_drawings_are_found_by_slide_and_strangers_are_named(tmp_path: Path) -> None:
    touch(tmp_path / "raw", *(f"{name}.svs" for name in "abcd"))
    touch(tmp_path / "tissue", "a.geojson", "gone.geojson", "a.txt")
    touch(tmp_path / "roi", "a.geojson", "b.geojson")
    found = cohort.load(
        tmp_path / "raw",
        labels=labels_file(tmp_path, GOOD),
        overrides=tmp_path / "overrides.csv",
        target="label",
        folds=2,
        tissue=tmp_path / "tissue",
        roi=tmp_path / "roi",
    )
    assert found.drawn == {
        "a": cohort.Drawn(tmp_path / "tissue" / "a.geojson", tmp_path / "roi" / "a.geojson"),
        "b": cohort.Drawn(None, tmp_path / "roi" / "b.geojson"),
    }
    assert [warning for warning in found.warnings if "no slide is called 'gone'" in warning]
    before = cohort.drawn_digest(found.drawn["a"])
    (tmp_path / "roi" / "a.geojson").write_bytes(b"y")
    assert cohort.drawn_digest(found.drawn["a"]) != before
    assert cohort.drawn_digest(None) == ""


def test_a_skipped_slide_keeps_its_note(tmp_path: Path) -> None:
    found = loaded(tmp_path, GOOD, overrides="slide_id,skip,note\ne,true,smeared\nabsent,true,\n")
    assert found.skipped["e"].note == "smeared"
    assert [warning for warning in found.warnings if "overrides.csv names 1 slide(s) that are not in" in warning]


def test_one_spelling_of_accented_letters_makes_one_patient_and_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    text = f"slide_id,label,patient_id\na,{composed},{composed}\nb,{decomposed},{decomposed}\n"
    found = cohort.read_labels(labels_file(tmp_path, text), target="label")
    assert found["a"] == found["b"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a,Tumour,1\nb,tumour,2\nc,y,3\nd,y,4\n", "classes 'Tumour' and 'tumour' differ only in case"),
        ("a,x,P 1\nb,x,p1\nc,y,3\nd,y,4\n", "patients 'P 1' and 'p1' differ only in case"),
    ],
)
def test_names_that_differ_only_in_case_or_spacing_are_refused(tmp_path: Path, rows: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loaded(tmp_path, f"slide_id,label,patient_id\n{rows}")


def test_a_slide_without_a_label_keeps_its_patient(tmp_path: Path) -> None:
    found = loaded(tmp_path, "slide_id,label,patient_id\na,x,1\nb,x,2\nc,y,3\nd,y,4\ne,,3\n")
    assert "e" not in found.labels
    assert found.known["e"].patient_id == "3"


def test_overrides_that_skip_everything_are_refused(tmp_path: Path) -> None:
    skipped = "".join(f"{name},true\n" for name in "abcdef")
    with pytest.raises(ConfigError, match="skips every slide"):
        loaded(tmp_path, GOOD, overrides=f"slide_id,skip\n{skipped}")


def test_a_folder_in_the_labels_file_s_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").mkdir()
    with pytest.raises(ConfigError, match=r"labels\.csv cannot be read"):
        cohort.read_labels(tmp_path / "labels.csv", target="label")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a<b>.svs", "cannot hold braces, < or >"),
        ("a" * 221 + ".svs", "has 221 bytes"),
        ("ab" * 25 + ".svs", "is repeated"),
    ],
    ids=["angle brackets", "long", "repeating"],
)
def test_a_name_that_the_workflow_would_stumble_over_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        discover(touch(tmp_path, name))


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.svs")).write_bytes(b"x")
    with pytest.raises(ConfigError, match="not UTF-8"):
        discover(tmp_path)


def test_an_ignored_file_whose_name_is_not_utf_8_is_named_in_utf_8(tmp_path: Path) -> None:
    touch(tmp_path, "raw/a.svs", "drawn/a.geojson")
    for file in (b"raw/Pr\xe4parat.jpg", b"raw/hidden.\xe4", b"raw/line\nbreak.jpg", b"drawn/\xe4.geojson"):
        (tmp_path / os.fsdecode(file)).write_bytes(b"x")
    (tmp_path / os.fsdecode(b"raw/link\xe4.svs")).symlink_to(tmp_path / "gone.svs")
    found = cohort.load(
        tmp_path / "raw",
        labels=labels_file(tmp_path, "slide_id,label\n"),
        overrides=tmp_path / "overrides.csv",
        target="label",
        folds=2,
        tissue=tmp_path / "drawn",
        must_train=False,
    )
    said = "\n".join(found.warnings)
    assert len(said.encode().splitlines()) == 5
    for name in ("Pr\\xe4parat.jpg", "'.\\xe4'", "line\\x0abreak.jpg", "\\xe4.geojson", "link\\xe4.svs"):
        assert name in said


def test_a_link_to_a_folder_above_is_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "below/b.svs")
    (tmp_path / "below" / "loop").symlink_to(tmp_path)
    slides, warnings = discover(tmp_path)
    assert list(slides) == ["a", "below__b"]
    assert "link to a folder above" in warnings[0]


def discovered_by_nobody(folder: Path) -> str:
    """Discover slides as a user who owns nothing, also where the tests are the superuser's; give what is printed."""
    code = (
        "import os, sys; from pathlib import Path; from pipeline.discovery import discover\n"
        "from pipeline.errors import ConfigError\n"
        "if os.geteuid() == 0: os.setgroups([]); os.setegid(65534); os.seteuid(65534)\n"
        "try: slides, warnings = discover(Path())\n"
        "except ConfigError as error: sys.exit(f'refused: {error}')\n"
        "print(*slides, *warnings, sep='\\n')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr


@pytest.mark.parametrize("mode", [0o000, 0o444], ids=["unreadable", "not to be entered"])
def test_a_folder_that_may_not_be_read_is_ignored_and_named(tmp_path: Path, mode: int) -> None:
    touch(tmp_path, "a.svs", "lost+found/b.svs", "lost+found/below/c.svs")
    (tmp_path / "link.svs").symlink_to("lost+found/below/c.svs")
    tmp_path.chmod(0o755)
    (tmp_path / "lost+found").chmod(mode)
    try:
        said = discovered_by_nobody(tmp_path).splitlines()
    finally:
        (tmp_path / "lost+found").chmod(0o755)
    assert said == [
        "a",
        "link.svs is ignored: it is a link to a file that is not there.",
        "lost+found is ignored: the user of this run may not read it.",
    ]


def test_a_folder_of_slides_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    tmp_path.chmod(0o111)
    try:
        said = discovered_by_nobody(tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert "may not be read; give the user of this run leave to" in said
    assert "Traceback" not in said
