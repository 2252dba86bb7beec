"""GPUs are claimed by lock files: here with real processes, and names in place of GPUs."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import device

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys, time
from pathlib import Path
from pipeline.device import claim
print(claim(sys.argv[2:], folder=Path(sys.argv[1])), flush=True)
time.sleep(60)
"""


class Job:
    """A process that claims one of some GPUs and keeps it."""

    def __init__(self, folder: Path, *names: str) -> None:
        command = [sys.executable, "-c", PROGRAM, str(folder), *names]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def claimed(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def test_jobs_beside_each_other_take_different_gpus(tmp_path: Path) -> None:
    jobs = [Job(tmp_path, "0", "1", "GPU-af/2") for _ in range(3)]
    try:
        assert sorted(job.claimed() for job in jobs) == [0, 1, 2]
    finally:
        for job in jobs:
            job.kill()


def test_a_killed_jobs_gpu_is_free_again_for_one_that_waits(tmp_path: Path) -> None:
    first = Job(tmp_path, "0")
    assert first.claimed() == 0
    second = Job(tmp_path, "0")
    try:
        time.sleep(0.5)
        assert second.process.poll() is None
        first.kill()
        assert second.claimed() == 0
    finally:
        first.kill()
        second.kill()


def test_jobs_that_see_different_gpus_agree_on_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path, "2", "3")
    try:
        assert job.claimed() == 0
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
        names = device.visible_names(2)
        assert names == ["2", "5"]
        assert device.claim(names, folder=tmp_path) == 1
    finally:
        job.kill()


def test_without_a_scheduler_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device.visible_names(3) == ["0", "1", "2"]


def test_a_job_that_may_use_no_gpu_computes_on_the_cpu() -> None:
    assert device.choose_device(gpus=0) == "cpu"


def test_the_locks_are_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert device.lock_folder() == tmp_path / "asmil-wsi"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    assert device.lock_folder().name.startswith("asmil-wsi-")
