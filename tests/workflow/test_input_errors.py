"""What no run can start with ends in one sentence, before any work."""

from collections.abc import Callable

import pytest

from tests.workflow.conftest import Study


def rewrite(old: str, new: str) -> Callable[[Study], object]:
    return lambda study: study.labels.write_text(study.labels.read_text().replace(old, new))


def empty(study: Study) -> None:
    for path in study.raw.iterdir():
        path.unlink()


def foreign_weights(study: Study) -> None:
    study.configure(encoder={"name": "ctranspath"})
    (study.folder / "weights").mkdir(exist_ok=True)
    (study.folder / "weights" / "ctranspath.pth").write_bytes(b"of somebody else")


CASES: dict[str, tuple[Callable[[Study], object], str]] = {
    "no slides": (empty, "no slides in data/raw; put whole-slide images"),
    "no labels file": (lambda study: study.labels.unlink(), "labels.csv is missing; make it, a CSV with the columns"),
    "unknown column": (rewrite("patient_id", "patient"), "unknown column 'patient'"),
    "duplicate slide": (rewrite("slide 1,", "slide 0,"), "line 3: slide 'slide 0' is listed twice"),
    "one class": (rewrite("tumour", "normal"), "all 6 labelled slides are 'normal'"),
    "few patients": (
        lambda study: study.configure(evaluation={"folds": 9}),
        "6 labelled patients are fewer than the 9",
    ),
    "unknown key": (lambda study: study.configure(tilling={"mpp": 1}), "unknown key 'tilling'; did you mean 'tiling'?"),
    "unknown nested key": (
        lambda study: study.configure(training={"epoch": 3}),
        "unknown key 'training.epoch'; did you mean 'epochs'?",
    ),
    "out of range": (lambda study: study.configure(tiling={"min_tissue": 3}), "tiling.min_tissue is 3; it must be"),
    "wrong type": (lambda study: study.configure(seed="x"), "seed is 'x'; it must be a whole number"),
    "wrong choice": (lambda study: study.configure(anchor={"mode": "off"}), "one of ema, frozen, uniform, none"),
    "not a number": (lambda study: study.configure(training={"learning_rate": float("nan")}), "learning_rate is 'nan'"),
    "unknown colour map": (
        lambda study: study.configure(heatmap={"colormap": "viridus"}),
        "matplotlib does not know; did you mean 'viridis'?",
    ),
    "heads that do not divide": (
        lambda study: study.configure(asmil={"d_inner": 100}),
        "asmil.heads is 8, which does not divide d_inner (100)",
    ),
    "heads that do not divide what auto gives": (
        lambda study: study.configure(model="transmil", baselines={"transmil": {"heads": 5}}),
        "baselines.transmil.heads is 5, which does not divide d_inner (auto, ",
    ),
    "weights of classes that there are not": (
        lambda study: study.configure(
            task="regression", target="label", training={"class_weights": "inverse_frequency"}
        ),
        "training.class_weights weighs classes, of which task: regression has none",
    ),
    "a loss of classes that there are not": (
        lambda study: study.configure(task="regression", target="label", asmil={"token_loss": 0.5}),
        "asmil.token_loss learns classes, of which task: regression has none; set it to 0",
    ),
    "every token dropped": (
        lambda study: study.configure(asmil={"token_drop": "fixed:8"}),
        "asmil.token_drop is fixed:8 of 8 tokens",
    ),
    "one file under two patients": (
        lambda study: (study.raw / "slide 2.svs").write_bytes((study.raw / "slide 0.svs").read_bytes()),
        "slides 'slide 0' and 'slide 2' are the same file but belong to patients 'patient 0' and 'patient 2'",
    ),
    "two patients a class": (
        lambda study: study.labels.write_text("slide_id,label\nslide 0,a\nslide 1,b\nslide 2,a\nslide 3,b\n"),
        "too few patients to set some aside for validation",
    ),
    "unknown encoder": (lambda study: study.configure(encoder={"name": "resnot"}), "resnot"),
    "two slides of one id": (lambda study: (study.raw / "slide 0.tif").write_bytes(b""), "the same slide id 'slide 0'"),
    "not the encoder's scale": (
        lambda study: study.configure(encoder={"name": "ctranspath"}, tiling={"mpp": 0.77}),
        "tiling.mpp is 0.77 but ctranspath was trained at",
    ),
    "fp16 on the CPU": (
        lambda study: study.configure(
            encoder={"name": "timm:test_vit", "weights": "random", "precision": "fp16"}, tiling={"mpp": 0.5}
        ),
        "encoder.precision is fp16 and the computation is on the CPU",
    ),
    "not the published weights": (
        foreign_weights,
        "of the published file 7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539; delete the file",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_one_sentence_before_any_work(fresh: Study, case: str) -> None:
    change, words = CASES[case]
    change(fresh)
    ran = fresh.run(*(("--resources", "gpu=0") if "fp16" in case else ()))
    assert ran.code == 1
    last = ran.output.rstrip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert words in last
    assert not (fresh.folder / "results").exists()


def test_missing_weights_are_named_before_any_slide_is_read(fresh: Study) -> None:
    fresh.configure(encoder={"name": "ctranspath"})
    ran = fresh.run()
    assert ran.code == 1
    assert "weights/ctranspath.pth" in ran.output
    assert "python -m pipeline weights fetch ctranspath" in ran.output
    assert "encoder.name" in ran.output
    assert not (fresh.folder / "results" / "tiles").exists()
