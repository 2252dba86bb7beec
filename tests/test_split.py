import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from pipeline import split
from pipeline.cohort import Label
from pipeline.errors import ConfigError
from pipeline.schemes import is_plainly_divisible


def cohort(patients: int, *, slides_per_patient: int = 2, classes: int = 2) -> dict[str, Label]:
    return {
        f"slide-{p:03d}-{s}": Label("abc"[p % classes], f"patient-{p:03d}", f"site-{p % 3}")
        for p in range(patients)
        for s in range(slides_per_patient)
    }


def assigned(labels: dict[str, Label], **options: object) -> list[split.Assignment]:
    return split.assign(labels, split.Plan(**{"folds": 4, **options}))  # type: ignore[arg-type]


def roles(rows: list[split.Assignment], fold: int) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.fold == fold:
            found[row.role].add(row.slide_id)
    return found


def test_every_slide_is_tested_once_a_repeat() -> None:
    labels = cohort(12)
    rows = assigned(labels, repeats=3)
    for repeat in range(3):
        tested = [row.slide_id for row in rows if row.repeat == repeat and row.role == "test"]
        assert sorted(tested) == sorted(labels)
    assert {row.fold for row in rows} == set(range(12))


@pytest.mark.parametrize("group_by", ["patient", "site"])
def test_no_group_has_two_roles_in_a_fold(group_by: str) -> None:
    labels = cohort(18)
    rows = assigned(labels, folds=3, group_by=group_by, validation=0.4)
    for fold in range(3):
        seen: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row.fold == fold:
                label = labels[row.slide_id]
                seen[label.patient_id if group_by == "patient" else label.site].add(row.role)
        assert all(len(found) == 1 for found in seen.values())


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_classes_are_balanced_in_every_role(classes: int, seed: int) -> None:
    labels = cohort(30, classes=classes)
    rows = assigned(labels, seed=seed)
    for fold in range(4):
        for slides in roles(rows, fold).values():
            shares = np.unique([labels[name].label for name in slides], return_counts=True)[1] / len(slides)
            assert len(shares) == classes
            assert np.abs(shares - 1 / classes).max() < 0.2


def test_validation_is_near_its_share_of_the_training_part() -> None:
    rows = assigned(cohort(40), validation=0.25)
    for fold in range(4):
        found = roles(rows, fold)
        assert 0.15 < len(found["validation"]) / (len(found["validation"]) + len(found["train"])) < 0.35


def test_grouping_by_site_keeps_patients_of_two_sites_together() -> None:
    labels = {
        f"slide-{p:02d}-{s}": Label("ab"[p % 2], f"patient-{p:02d}", f"site-{(p + s) if p % 4 == 0 else p}")
        for p in range(16)
        for s in range(2)
    }
    rows = assigned(labels, folds=3, group_by="site")
    split.check_roles(rows, {name: name for name in labels})


def test_a_patient_or_a_file_with_two_roles_is_named() -> None:
    rows = [
        split.Assignment("a", "p", "x", 0, 0, "train"),
        split.Assignment("b", "p", "x", 0, 0, "test"),
        split.Assignment("c", "q", "x", 0, 0, "train"),
    ]
    with pytest.raises(ConfigError, match=r"'a' \(train\) and 'b' \(test\) of fold 0 have the same patient"):
        split.check_roles(rows, {"a": "1", "b": "2", "c": "3"})
    with pytest.raises(ConfigError, match="have the same file"):
        split.check_roles([rows[1], rows[2]], {"b": "1", "c": "1"})


def test_the_same_seed_gives_the_same_folds_and_another_seed_others() -> None:
    assert assigned(cohort(12), seed=3) == assigned(cohort(12), seed=3)
    assert assigned(cohort(12), seed=3) != assigned(cohort(12), seed=4)


def test_the_order_of_the_labels_does_not_matter() -> None:
    labels = cohort(12)
    assert assigned(labels) == assigned(dict(reversed(labels.items())))


def test_fewer_patients_than_folds_is_an_error() -> None:
    with pytest.raises(ConfigError, match="3 patients with usable labelled slides are fewer than the 4 folds"):
        assigned(cohort(3))


def test_a_class_of_two_patients_stays_in_every_training_part() -> None:
    labels = cohort(10) | {"rare-1": Label("z", "rare-1"), "rare-2": Label("z", "rare-2")}
    rows = assigned(labels)
    for fold in range(4):
        assert "z" in {labels[name].label for name in roles(rows, fold)["train"]}


def test_one_file_under_two_patients_is_named() -> None:
    labels = {"a": Label("x", "p1"), "b": Label("x", "p2")}
    with pytest.raises(ConfigError, match="'a' and 'b' are the same file but belong to patients 'p1' and 'p2'"):
        split.check_leaks(labels, {"a": "f", "b": "f"})
    split.check_leaks(labels, {"a": "f", "b": "g"})


def test_one_file_with_two_labels_is_named() -> None:
    labels = {"a": Label("x", "p1"), "b": Label("y", "p1")}
    with pytest.raises(ConfigError, match="labelled 'x' and 'y'"):
        split.check_leaks(labels, {"a": "f", "b": "f"})


def test_splits_come_back_as_written(tmp_path: Path) -> None:
    labels = cohort(8) | {'odd, "name" ünï': Label("a", "p,1"), "other": Label("b", "p,2")}
    rows = assigned(labels)
    split.write_splits(tmp_path / "splits.csv", rows)
    assert split.read_splits(tmp_path / "splits.csv") == rows


def test_slides_that_show_the_same_picture_in_two_roles_are_named() -> None:
    labels = cohort(8, slides_per_patient=1)
    rows = assigned(labels)
    names = {name: name for name in labels}
    split.check_roles(rows, names)
    with pytest.raises(ConfigError, match=r"'slide-000-0' .* and 'slide-005-0' .* show the same picture"):
        split.check_roles(rows, names, look_alikes=[("slide-000-0", "slide-005-0")])


def test_monte_carlo_tests_about_a_part_anew_each_repeat() -> None:
    labels = cohort(20)
    rows = assigned(labels, scheme="monte_carlo", folds=5, repeats=6)
    assert {row.fold for row in rows} == set(range(6))
    tested = [roles(rows, fold)["test"] for fold in range(6)]
    assert all(6 <= len(part) <= 10 for part in tested)
    assert len({frozenset(part) for part in tested}) > 1
    split.check_roles(rows, {name: name for name in labels})


def test_leaving_a_site_out_tests_it_alone_and_trains_on_none_of_its_patients() -> None:
    labels = cohort(18)
    labels["travelled"] = Label("a", "patient-000", "site-1")
    rows = assigned(labels, scheme="leave_one_site_out")
    for fold in range(3):
        found = roles(rows, fold)
        tested = {name for name, label in labels.items() if label.site == f"site-{fold}"}
        assert found["test"] == tested
        patients = {labels[name].patient_id for name in tested}
        assert not patients & {labels[name].patient_id for name in found["train"] | found["validation"]}
    assert "travelled" not in roles(rows, 0)["train"] | roles(rows, 0)["validation"] | roles(rows, 0)["test"]


def test_a_site_without_a_usable_slide_keeps_its_fold() -> None:
    labels = cohort(18)
    plan = split.Plan(scheme="leave_one_site_out")
    usable = {name: label for name, label in labels.items() if label.site != "site-1"}
    rows = split.assign(usable, plan, present=labels)
    assert plan.count(labels) == 3
    assert not roles(rows, 1)["test"]
    assert roles(rows, 2)["test"] == {name for name, label in labels.items() if label.site == "site-2"}


def test_a_class_at_one_site_only_cannot_be_learnt_without_it() -> None:
    labels = {f"s{i}": Label("ab"[i // 6], f"p{i}", f"site {i // 6}") for i in range(12)}
    with pytest.raises(ConfigError, match=r"site 'site 0' held out\) leaves nothing of class 'a' to train on"):
        assigned(labels, scheme="leave_one_site_out")


def given(folder: Path, *lines: str) -> Path:
    path = folder / "splits.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_file_of_folds_is_followed_and_validation_is_drawn(tmp_path: Path) -> None:
    labels = cohort(9, slides_per_patient=1)
    lines = [f"{name},{index % 3}" for index, name in enumerate(sorted(labels))]
    rows = assigned(labels, scheme="file", given=given(tmp_path, "slide_id,fold", *lines))
    for fold in range(3):
        assert roles(rows, fold)["test"] == set(sorted(labels)[fold::3])
        assert roles(rows, fold)["validation"]


def test_a_file_of_roles_is_followed_to_the_letter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = cohort(6, slides_per_patient=1)
    names = sorted(labels)
    chosen = ("train", "train", "validation", "validation", "test")
    path = given(
        tmp_path, "slide_id,repeat,fold,role", *(f"{n},3,7,{role}" for n, role in zip(names, chosen, strict=False))
    )
    rows = assigned(labels, scheme="file", given=path)
    assert [(row.slide_id, row.repeat, row.fold, row.role) for row in rows] == [
        (name, 3, 0, role) for name, role in zip(names, chosen, strict=False)
    ]
    assert (
        f"names 5 of 6 labelled slides; the others, the first of them '{names[5]}', count in no figure" in caplog.text
    )
    assert split.Plan(scheme="file", given=path).count(labels) == 1


def test_roles_that_leave_nothing_to_learn_from_are_refused(tmp_path: Path) -> None:
    chosen = ("train", "validation", "validation", "test")
    path = given(tmp_path, "slide_id,fold,role", *(f"s{n},0,{role}" for n, role in enumerate(chosen)))
    present = {f"s{n}": Label("a", f"p{n}") for n in range(4)}
    usable = {name: label for name, label in present.items() if name != "s0"}  # the training slide was quarantined
    with pytest.raises(ConfigError, match="no slide left to train on"):
        split.assign(usable, split.Plan(scheme="file", given=path), present=present)
    followed = {f"s{n}": Label(time, f"p{n}") for n, time in enumerate(("5+", "4", "3", "2"))}
    with pytest.raises(ConfigError, match="no training slide with an event"):
        split.assign(followed, split.Plan(scheme="file", given=path, task="survival"))


def test_the_splits_that_a_run_wrote_can_be_given_to_another(tmp_path: Path) -> None:
    labels = cohort(8)
    rows = assigned(labels)
    split.write_splits(tmp_path / "splits.csv", rows)
    assert assigned(labels, scheme="file", given=tmp_path / "splits.csv") == rows


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["slide_id,fold", "absent,0"], "names 'absent', which is no slide that is there and has a label"),
        (["slide_id,fold,role", "slide-000-0,0,testing"], "line 2: role is 'testing'"),
        (
            ["slide_id,fold", "slide-000-0,0", "slide-000-0,1"],
            "line 3: slide 'slide-000-0' has two folds",
        ),
        (["slide_id,fold,role", "slide-000-0,0,test", "slide-000-0,0,train"], "has two roles in one fold"),
        (["slide_id,fold", "slide-000-0,one"], "fold is 'one'; write a whole number"),
        (["slide_id,fold,role", "slide-000-0,0,test"], "fold 0 of repeat 0 has no slide with the role train"),
        (["slide_id,fold"], "has no rows"),
        (["slide_id,split", "slide-000-0,0"], "there is no column 'fold'"),
    ],
)
def test_a_splits_file_that_cannot_be_meant_is_one_sentence(tmp_path: Path, lines: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        assigned(cohort(6), scheme="file", given=given(tmp_path, *lines))


def test_a_splits_file_that_divides_a_patient_is_refused(tmp_path: Path) -> None:
    labels = cohort(6)
    lines = [f"{name},{index % 2}" for index, name in enumerate(sorted(labels))]
    plan = split.Plan(scheme="file", given=given(tmp_path, "slide_id,fold", *lines))
    with pytest.raises(ConfigError, match="have the same patient"):
        split.rehearse(labels, {name: name for name in labels}, plan)


def test_grouping_by_site_needs_a_site() -> None:
    with pytest.raises(ConfigError, match="slide 's0' has none"):
        assigned({f"s{i}": Label("ab"[i % 2], f"p{i}") for i in range(8)}, group_by="site")


@pytest.mark.parametrize("seed", range(12))
def test_a_cohort_that_counts_as_divisible_is_divided(seed: int) -> None:
    """Patients with one to thirty slides, some of several classes, one class rare: as far from even as cohorts get."""
    rng = np.random.default_rng(seed)
    labels = {}
    for patient in range(int(rng.integers(45, 120))):
        of_patient = rng.choice(["a", "b", "c"], p=(0.5, 0.25, 0.25))
        for index in range(1 + int(rng.pareto(1.0)) % 30):
            label = str(rng.choice(["a", "b", "c"])) if rng.random() < 0.1 else str(of_patient)
            labels[f"s{patient}-{index}"] = Label(label, f"p{patient}", f"site-{patient % 4}")
    options = {"scheme": ("kfold", "monte_carlo", "leave_one_site_out")[seed % 3], "folds": 2 + seed % 4, "seed": seed}
    plan = split.Plan(validation=0.4, **options)  # type: ignore[arg-type]
    assert is_plainly_divisible(labels, plan)
    rows = split.assign(labels, plan)
    split.check_roles(rows, {name: name for name in labels})
    for fold in {row.fold for row in rows}:
        assert {labels[name].label for name in roles(rows, fold)["train"]} == {"a", "b", "c"}


def test_few_patients_of_a_class_are_divided_on_trial() -> None:
    labels = cohort(20)
    assert not is_plainly_divisible(labels, split.Plan())
    with pytest.raises(ConfigError, match="no division into 2 folds"):
        split.rehearse(
            {f"s{i}": Label("ab"[i >= 10], f"p{i if i < 10 else 10}") for i in range(14)},
            {f"s{i}": str(i) for i in range(14)},
            split.Plan(folds=2),
        )


def test_thousands_of_patients_are_planned_without_dividing_them() -> None:
    program = (
        "import sys\n"
        "from pipeline import split\n"
        "from pipeline.cohort import Label\n"
        "labels = {f's{i}': Label('ab'[i % 2], f'p{i}') for i in range(5000)}\n"
        "split.rehearse(labels, {name: name for name in labels}, split.Plan())\n"
        "assert 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
