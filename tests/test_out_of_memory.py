"""Jobs under a real limit of memory end in one sentence, blame neither slide nor files, and run well without it."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import store
from pipeline.endings import killed, sentence
from tests.slides import slide_with_tissue, write_svs
from tests.test_isolation import embed, run, tile
from tests.test_train import ROOT, Fold

LIMIT = """
import importlib, resource
for name in {modules!r}:
    importlib.import_module(name)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {headroom_mb} * 2**20,) * 2)
"""
"""Run before a command: what it needs at once is loaded, and then there is little more to be had."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def limit(headroom_mb: int, *modules: str) -> str:
    return LIMIT.format(modules=modules, headroom_mb=headroom_mb)


def sentence_of(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr.partition("Error: ")[0]  # zarr's threads may fall at the very end
    said = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, ran.stderr
    return said[0]


@pytest.mark.parametrize("headroom_mb", [4, 56])
def test_embed_without_memory_says_what_to_lower_and_blames_neither_slide_nor_tiles(
    tmp_path: Path, headroom_mb: int
) -> None:
    slide = write_svs(tmp_path / "a.svs", slide_with_tissue(1024, 1024, box=(100, 100, 800, 800)))
    assert run(tile(slide)).returncode == 0
    modules = ("cv2", "openslide", "zarr", "pipeline.embed", "pipeline.encoders.texture")
    ran = run(embed(slide, before=limit(headroom_mb, *modules)))
    said = sentence_of(ran)
    assert said.startswith("Error: the job ran out of memory (")
    assert "encoder.batch_size" in said
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        *("a.geojson", "a.jpg", "a.svs", "a.zarr.zip")
    ]
    assert run(embed(slide)).returncode == 0
    assert store.read(tmp_path / "bag.zarr.zip").ok


def test_train_without_memory_says_what_to_lower_and_leaves_no_model(tmp_path: Path) -> None:
    fold = Fold(tmp_path)
    fold.write(0, np.zeros((400_000, 12), np.float16))
    command = ["train", "--fold", "0", "--splits", "splits.csv", "--bags", "bags", "--folder", "model"]
    command += ["--model", "abmil", "--options", "{}", "--anchor", '{"mode": "none"}', "--seed", "0"]
    command += ["--training", '{"epochs": 1, "learning_rate": 0.001}']

    def train(before: str) -> subprocess.CompletedProcess[str]:
        program = f"{before}\nfrom pipeline.cli import main\nmain()"
        environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-c", program, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    bags = sorted((tmp_path / "bags").iterdir())
    said = sentence_of(train(limit(16, "torch._dynamo", "pipeline.train")))
    assert said.startswith("Error: the job ran out of memory (")
    assert "training.cache_gb" in said
    assert not [path for path in (tmp_path / "model").rglob("*") if path.name[0] != "."]
    assert sorted((tmp_path / "bags").iterdir()) == bags
    again = train("")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "model" / "weights.safetensors").exists()


def test_each_death_has_the_sentence_of_its_signal() -> None:
    assert "for want of memory" in killed(signal.SIGKILL)
    assert "GLib does when it gets no memory" in killed(signal.SIGTRAP)
    assert "CPU time" in killed(signal.SIGXCPU)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        assert killed(number).startswith(f"the job was told to end ({number.name})")
        assert "memory" not in killed(number)


def test_a_library_that_cannot_be_loaded_for_want_of_memory_is_no_bug() -> None:
    found = sentence(ImportError("x.so: failed to map segment from shared object"))
    assert found is not None
    assert found.startswith("the job ran out of memory")
    assert sentence(ImportError("No module named 'x'")) is None
