"""A disk that is full or read-only: one sentence from every stage, nothing half-written; with room a run goes on."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow.conftest import ROOT, Ran, Study, results_of

pytestmark = pytest.mark.slow

SIZE_MB = 64
STAGES = {"check", "cohort", "tile", "embed", "split", "train", "models", "predict-bag", "heatmap", "report"}


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
