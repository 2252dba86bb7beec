"""A disk that is full or read-only: one sentence from every stage, nothing half-written; with room a run goes on."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.weights import MANIFEST
from tests.workflow.conftest import ROOT, Ran, Study, results_of

pytestmark = pytest.mark.slow

SIZE_MB = 64
STAGES = {
    *("check", "cohort", "tile", "embed", "split", "train", "models", "agreement"),
    *("predict-bag", "heatmap", "report"),
}


@pytest.fixture
def on_small_disk(finished: Study, tmp_path: Path) -> Iterator[Study]:
    """Give a finished study on a file system of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip("a small file system cannot be mounted here; that takes the superuser")
    try:
        yield Study(Path(shutil.copytree(finished.folder, disk, dirs_exist_ok=True)))
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(folder: Path, *, but_kb: int = 0) -> Path:
    """Fill the disk to its last page, or leave some room."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as handle, contextlib.suppress(OSError):
        while handle.write(bytes(4096)):
            pass
    os.truncate(ballast, ballast.stat().st_size - but_kb * 1024)
    return ballast


def content(study: Study) -> dict[str, bytes]:
    files = [path for name in ("results", "reports") for path in (study.folder / name).rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files if "logs" not in path.parts}


def commands_of(study: Study) -> dict[str, str]:
    """Give one command of each stage, as the workflow runs it, without its log."""
    planned = study.run("--dry-run", "--forceall", "--printshellcmds")
    commands = re.findall(r"python -m pipeline (\S+) (.*) 2> ", planned.output)
    return {stage: f"{sys.executable} -m pipeline {stage} {options}" for stage, options in reversed(commands)}


def run(study: Study, command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        shell=True,
        cwd=study.folder,
        env={**study.environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def complaint(ran: "subprocess.CompletedProcess[str]") -> str:
    """Give the one sentence that a failed command ends with."""
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    said = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
    assert said == ran.stderr.splitlines()[-1:]
    return said[0]


def test_every_stage_names_a_full_disk_and_leaves_what_was_there(on_small_disk: Study) -> None:
    commands = commands_of(on_small_disk)
    assert set(commands) == STAGES
    before = content(on_small_disk)
    ballast = fill(on_small_disk.folder)
    for stage, command in commands.items():
        said = complaint(run(on_small_disk, command))
        assert re.match(r"Error: (results|reports)/.*: the disk is full; free some space", said), (stage, said)
        assert content(on_small_disk) == before
    ballast.unlink()
    assert not list(on_small_disk.folder.rglob("*.part"))


def test_a_stage_names_a_read_only_disk(on_small_disk: Study) -> None:
    commands = commands_of(on_small_disk)
    disk = str(on_small_disk.folder)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for stage in ("check", "tile", "train", "report"):
        said = complaint(run(on_small_disk, commands[stage]))
        assert re.match(r"Error: (results|reports)/.*: the file system is read-only; write elsewhere", said), said
    ran = on_small_disk.run()
    assert ran.code == 1
    assert re.search(r"^Error: .*: the file system is read-only; write elsewhere", ran.output, re.MULTILINE), ran.output
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert on_small_disk.plan() == {}


@pytest.fixture
def by_hand(tmp_path: Path) -> dict[str, list[str]]:
    """Give commands that users run without the workflow, and write what they take."""
    features, bundle = tmp_path / "features", tmp_path / "weights.tar"
    features.mkdir()
    with h5py.File(features / "slide 0.h5", "w") as file:
        file["features"] = np.ones((2, 1024), np.float32)
        file["coords"] = np.array([[0, 0], [224, 0]])
        file["coords"].attrs.update({"patch_size": 224, "patch_size_level0": 224})
    weights = bytes(10**6)
    with tarfile.open(bundle, "w") as tar:
        manifest = json.dumps({"a.pth": {"sha256": hashlib.sha256(weights).hexdigest()}}).encode()
        for name, content in ((MANIFEST, manifest), ("a.pth", weights)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    parts = ["--splits", "results/model/splits.csv", "--bags", "results/bags", "--models", "results/model"]
    return {
        "predicted": ["predict", "data/raw/slide 0.svs", "--models", "results/model", "--out", "predicted"],
        "results/compare": ["compare", *parts, "--predictions", "results/compare/x/predictions.csv"],
        "my demo": ["demo", "my demo", "--slides", "4"],
        "imported": ["import", str(features), "--encoder", "uni", "--results", "imported"],
        "weights": ["weights", "import", str(bundle)],
        "results/cohort.tsv": ["check"],
    }


def files_of(study: Study) -> set[Path]:
    return {path for path in study.folder.rglob("*") if path.is_file()}


def test_commands_outside_the_workflow_name_a_full_disk_and_leave_nothing_half_made(
    on_small_disk: Study, by_hand: dict[str, list[str]]
) -> None:
    ballast = fill(on_small_disk.folder)
    before = files_of(on_small_disk)
    for place, command in by_hand.items():
        said = complaint(on_small_disk.command_line(*command))
        assert re.match(rf"Error: {place}.*: the disk is full; free some space", said), said
        assert ".part" not in said
        assert files_of(on_small_disk) == before
    cleaned = on_small_disk.command_line("clean")
    assert cleaned.returncode == 0, cleaned.stderr
    assert not list(on_small_disk.folder.glob("re*/*"))
    ballast.unlink()


def test_commands_outside_the_workflow_name_a_read_only_disk(
    on_small_disk: Study, by_hand: dict[str, list[str]]
) -> None:
    damaged = on_small_disk.folder / "results" / "attention" / "slide 1.zarr.zip"
    damaged.write_bytes(b"no zip")
    disk = str(on_small_disk.folder)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    repairing = {str(damaged.relative_to(on_small_disk.folder)): ["verify", "--repair"]}
    for place, command in (by_hand | repairing | {".snakemake": ["clean"]}).items():
        said = complaint(on_small_disk.command_line(*command))
        assert re.match(rf"Error: {place}.*: the file system is read-only; write elsewhere", said), said
    for looking in (["status"], ["same", ".", "."]):
        assert "read-only" not in on_small_disk.command_line(*looking).stderr
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


def test_a_run_on_a_full_disk_says_so_on_the_screen_and_goes_on_with_room(
    on_small_disk: Study, finished_run: tuple[Study, Ran]
) -> None:
    for name in ("results/attention", "results/views", "reports/heatmaps"):
        shutil.rmtree(on_small_disk.folder / name)
    ballast = fill(on_small_disk.folder)
    ran = on_small_disk.run()
    assert ran.code == 1
    assert re.search(r"^Error: .*: the disk is full; free some space", ran.output, re.MULTILINE), ran.output
    ballast.unlink()
    ballast = fill(on_small_disk.folder, but_kb=1500)  # room for the predictions, and for a picture or two
    ran = on_small_disk.run()
    assert ran.code == 1
    assert re.search(r"Error: reports/heatmaps/.*: the disk is full; free some space", ran.output), ran.output
    assert not list(on_small_disk.folder.rglob("*.part"))
    ballast.unlink()
    ran = on_small_disk.run()
    assert ran.code == 0, ran.output
    assert results_of(on_small_disk) == results_of(finished_run[0])
    assert not list(on_small_disk.folder.rglob("*.part"))
