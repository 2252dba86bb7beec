"""Labels of survival and regression: how they are read, refused, and balanced over folds."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline import cohort, tasks
from pipeline.cohort import Label
from pipeline.errors import ConfigError
from pipeline.schemes import Plan, assign


def written(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def read(folder: Path, text: str, task: str) -> dict[str, str]:
    target = "months" if task == "survival" else "score"
    found = cohort.read_labels(written(folder, text), target=target, task=task, event="died")
    return {slide: label.label for slide, label in found.items()}


def test_follow_ups_are_written_as_in_r(tmp_path: Path) -> None:
    text = "slide_id,months,died\na,34.20,1\nb,12,0\nc,,\nd,3e1,Yes \ne,7,False\nf,8,1.0\n"
    found = {"a": "34.2", "b": "12+", "c": "", "d": "30", "e": "7+", "f": "8"}
    assert read(tmp_path, text, "survival") == found
    assert tasks.follow_up("34.2") == (34.2, True)
    assert tasks.follow_up("12+") == (12.0, False)


def test_numbers_are_written_alike(tmp_path: Path) -> None:
    text = "slide_id,score\na,1.50\nb,-2e-3\nc,\nd,12345678901.0\n"
    assert read(tmp_path, text, "regression") == {"a": "1.5", "b": "-0.002", "c": "", "d": "12345678901"}


@pytest.mark.parametrize(
    ("text", "task", "said"),
    [
        ("slide_id,months\na,3\n", "survival", "there is no column 'died'"),
        ("slide_id,months,died\na,0,1\n", "survival", "line 2: months is 0; a time to an event or to the last"),
        ("slide_id,months,died\na,3,\n", "survival", "line 2: died is ''; write 1 where the event was seen and 0"),
        ("slide_id,months,died\na,3,2\n", "survival", "line 2: died is '2'"),
        ("slide_id,months,died\na,soon,1\n", "survival", "line 2: months is 'soon'; write a number"),
        ('slide_id,score\na,"1,5"\n', "regression", "line 2: score is '1,5'; write a number, as in 12.5"),
        ("slide_id,score\na,nan\n", "regression", "line 2: score is 'nan'"),
        ("slide_id,score\na,1_000\n", "regression", "line 2: score is '1_000'; write a number"),
        ("slide_id,score\na,\u0661\u0662\n", "regression", "line 2: score is '\u0661\u0662'; write a number"),
        ("slide_id,score\na,inf\n", "regression", "line 2: score is 'inf'"),
    ],
)
def test_cells_that_are_no_label_of_the_task_name_their_line(tmp_path: Path, text: str, task: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, text, task)


def check(labels: dict[str, Label], task: str, folds: int = 2) -> None:
    slides = {name: Path(name) for name in labels}
    cohort.check_labels(labels, labels, slides=slides, path=Path("labels.csv"), folds=folds, task=task)


def test_labels_that_cannot_be_cross_validated_are_refused() -> None:
    with pytest.raises(ConfigError, match="every labelled slide has the number 3"):
        check({"a": Label("3", "p"), "b": Label("3", "q")}, "regression")
    with pytest.raises(ConfigError, match="1 labelled patients are fewer than the 2 folds"):
        check({"a": Label("3", "p"), "b": Label("4", "p")}, "regression")
    with pytest.raises(ConfigError, match=r"'a' and 'b' are of patient 'p' but have the follow-ups 3 and 3\+"):
        check({"a": Label("3", "p"), "b": Label("3+", "p"), "c": Label("4", "q")}, "survival")
    with pytest.raises(ConfigError, match="1 of 3 labelled patients had the event, fewer than the 2 folds"):
        check({"a": Label("3", "p"), "b": Label("3+", "q"), "c": Label("4+", "r")}, "survival")
    check({"a": Label("3", "p"), "b": Label("5", "q"), "c": Label("4+", "r")}, "survival")


def test_folds_share_events_and_parts_of_the_range_evenly() -> None:
    follow_ups = {f"s{n:02}": Label(f"{n + 1}" + "+" * (n % 3 > 0), f"p{n}") for n in range(30)}
    rows = assign(follow_ups, Plan(folds=5, task="survival"))
    tested = Counter((row.fold, row.label.endswith("+")) for row in rows if row.role == "test")
    assert set(tested.values()) == {2, 4}
    for fold in range(5):
        for role in ("train", "validation"):
            assert any(not row.label.endswith("+") for row in rows if row.fold == fold and row.role == role)
    numbers = {f"s{n:02}": Label(f"{n * n}", f"p{n}") for n in range(30)}
    parts = tasks.strata(numbers, task="regression", folds=5)
    assert Counter(parts.values()) == {f"part {part}": 10 for part in range(1, 4)}
    rows = assign(numbers, Plan(folds=5, task="regression"))
    for fold in range(5):
        held_out = [float(row.label) for row in rows if row.fold == fold and row.role == "test"]
        assert len(held_out) == 6
        assert min(held_out) < 100
        assert max(held_out) >= 400


def test_few_censored_patients_do_not_forbid_the_folds() -> None:
    labels = {f"s{n}": Label(f"{n + 1}" + "+" * (n == 2), f"p{n}") for n in range(6)}
    rows = assign(labels, Plan(folds=2, task="survival"))
    assert all(any(not r.label.endswith("+") for r in rows if (r.fold, r.role) == (f, "train")) for f in range(2))


def test_six_numbers_can_be_divided_into_two_folds() -> None:
    labels = {f"s{n}": Label(f"{n * 1.5:g}", f"p{n}") for n in range(6)}
    rows = assign(labels, Plan(folds=2, task="regression"))
    assert {(row.fold, row.role) for row in rows} == {(f, r) for f in range(2) for r in ("train", "validation", "test")}


def test_equal_numbers_are_in_one_part() -> None:
    labels = {f"s{n}": Label("0" if n < 20 else str(n), f"p{n}") for n in range(25)}
    parts = tasks.strata(labels, task="regression", folds=5)
    assert len({parts[f"s{n}"] for n in range(20)}) == 1


def test_models_with_a_loss_on_classes_are_refused_while_planning() -> None:
    with pytest.raises(ConfigError, match="clam_sb has a loss of its own on classes and cannot learn survival"):
        tasks.check_models(["asmil", "clam_sb"], task="survival")
    tasks.check_models(["clam_sb"], task="classification")


def test_list_of_models_with_a_loss_on_classes_is_the_models_own() -> None:
    from asmil.registry import MODELS, build

    needing = [name for name in MODELS if getattr(build(name, 16, 2), "needs_classes", False)]
    assert tuple(needing) == tasks.CLASS_ONLY_MODELS
