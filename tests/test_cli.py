import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import store
from pipeline.split import Assignment, write_splits

ROOT = Path(__file__).parents[1]


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_folders_without_a_run_are_not_the_same(tmp_path: Path) -> None:
    (tmp_path / "b" / "results").mkdir(parents=True)
    ran = command("same", str(tmp_path / "a"), str(tmp_path / "b"))
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert f"{tmp_path / 'a'} holds no results of a run; name the folder in which its `results` lie" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_file_of_one_run_whose_name_is_not_utf_8_is_named(tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run / "results").mkdir(parents=True)
        (tmp_path / run / "results" / "check.tsv").write_text("slide_id\n")
    (tmp_path / "a" / "results" / os.fsdecode(b"\xe4.txt")).write_bytes(b"x")
    ran = command("same", str(tmp_path / "a"), str(tmp_path / "b"))
    assert ran.returncode == 1
    assert "results/\\xe4.txt: only the first run has it" in ran.stdout


STAGES = ("check", "tile", "embed", "split", "train", "predict", "heatmap", "report", "demo", "weights")


def test_the_manual_names_every_stage() -> None:
    ran = command("--help")
    assert ran.returncode == 0
    assert all(stage in ran.stdout for stage in STAGES)


def test_every_stage_has_a_manual_without_importing_torch() -> None:
    code = (
        "import sys; from pipeline.cli import app; from typer.main import get_command; get_command(app);"
        "print(sorted({'torch', 'timm', 'sklearn', 'matplotlib', 'scipy', 'cv2', 'zarr'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_planning_imports_nothing_that_only_jobs_need() -> None:
    code = (
        "import sys; from pipeline import bucket, cohort, settings, split, stage_flags, upgrade;"
        "print(sorted({'torch', 'timm', 'sklearn', 'matplotlib', 'scipy', 'cv2', 'zarr', 'boto3'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def bag(folder: Path, slide_id: str, features: NDArray[np.float64]) -> None:
    attributes = store.stage_attributes(
        "embed",
        slide_id=slide_id,
        fingerprint=slide_id,
        encoder="texture",
        weights_sha256="",
        dim=features.shape[1],
        patch_px=224,
        target_mpp=0.5,
        standardise=True,
    )
    coords = np.zeros((len(features), 2), np.int32)
    store.write(
        folder / f"{slide_id}.zarr.zip", {"features": features.astype(np.float16), "coords": coords}, attributes
    )


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    roles = ("train", "train", "validation", "validation")
    rows = [
        Assignment(f"s{index}", f"p{index}", "ab"[index % 2], 0, 0, role)  # type: ignore[arg-type]
        for index, role in enumerate(roles)
    ]
    write_splits(folder / "splits.csv", rows)
    paths = ("--splits", f"{folder}/splits.csv", "--bags", f"{folder}/bags", "--folder", f"{folder}/model")
    options = ("--model", "asmil", "--options", "{}", "--anchor", "{}", "--training", '{"epochs": 1}', "--seed", "0")
    return command("train", "--fold", "0", *paths, *options, *arguments)  # of a flag given twice the last counts


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (np.full((4, 8), np.nan), "s1: 4 of 4 patches have features that are not finite"),
        (np.zeros((0, 8)), "s1: the bag has no patches"),
        (np.zeros((4, 9)), "bags of 's0' and 's1' differ in dim"),
    ],
    ids=["nan", "empty", "another width"],
)
def test_a_bag_that_cannot_be_trained_on_is_named_in_one_sentence(
    tmp_path: Path, broken: NDArray[np.float64], words: str
) -> None:
    generator = np.random.default_rng(0)
    for index in range(4):
        bag(tmp_path / "bags", f"s{index}", generator.normal(size=(4, 8)))
    bag(tmp_path / "bags", "s1", broken)
    ran = train(tmp_path)
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert words in last
    assert not (tmp_path / "model" / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("flag", "given", "words"),
    [
        ("--training", '{"epochs": 0}', "Error: epochs is 0, which is out of its range; "),
        ("--training", '{"epochs": "many"}', "Error: epochs is 'many'; give a whole number; "),
        ("--anchor", '{"beta": "x"}', "Error: anchor beta is 'x'; give a number; "),
    ],
)
def test_a_wrong_training_option_is_one_sentence(tmp_path: Path, flag: str, given: str, words: str) -> None:
    ran = train(tmp_path, flag, given)
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines()[-1].startswith(words)


def test_a_missing_artefact_is_one_sentence(tmp_path: Path) -> None:
    slide = tmp_path / "a.svs"
    slide.write_bytes(b"")
    options = ("--colormap", "viridis", "--opacity", "0.5", "--top-patches", "2", "--width-px", "800")
    files = (
        "--attention",
        f"{tmp_path}/no.zarr.zip",
        "--png",
        f"{tmp_path}/a.png",
        "--geojson",
        f"{tmp_path}/a.geojson",
    )
    ran = command("heatmap", str(slide), *files, *options)
    assert ran.returncode == 1
    assert ran.stderr.strip().splitlines()[-1].endswith("no.zarr.zip: no such file; run the workflow to make it")
