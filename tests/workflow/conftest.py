"""A small study on disk, and Snakemake run on it as a user does."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.demo import write_svs
from pipeline.synthetic import draw_slide

ROOT = Path(__file__).parents[2]
SIDE_PX = 896
"""Four patches a side: what a slide costs here is the start of its jobs, not its pixels."""

CONFIG = {
    "encoder": {"name": "texture"},
    "evaluation": {"folds": 2, "bootstrap_resamples": 100},
    "training": {"epochs": 3, "learning_rate": 0.001},
    "tiling": {"min_tissue": 0.2},
    "tissue": {"min_area_mm2": 0.001},
    "heatmap": {"width_px": 800, "top_patches": 2},
    "progress_s": 2,
}


@dataclass(frozen=True)
class Ran:
    """How a run of Snakemake ended, what it printed, and how many jobs of each rule it planned or ran."""

    code: int
    output: str

    @property
    def jobs(self) -> dict[str, int]:
        table = re.search(r"Job stats:\njob +count\n[- ]+\n(.*?)\ntotal", self.output, re.DOTALL)
        if table is None:
            return {}
        counted = {name: int(count) for name, count in (line.split() for line in table[1].splitlines())}
        return {name: count for name, count in counted.items() if name not in ("all", "record")}


@dataclass(frozen=True)
class Study:
    """A study in a folder of its own."""

    folder: Path

    @property
    def raw(self) -> Path:
        return self.folder / "data" / "raw"

    @property
    def labels(self) -> Path:
        return self.folder / "data" / "labels.csv"

    def configure(self, **sections: object) -> None:
        """Change settings of the study's config; those not named stay."""
        path = self.folder / "config.yaml"
        config = yaml.safe_load(path.read_text())
        for name, section in sections.items():
            config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
        path.write_text(yaml.safe_dump(config))

    def add_slide(self, slide_id: str, *, seed: int, tumour: bool = False) -> Path:
        path = self.raw / f"{slide_id}.svs"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw_slide(seed, width_px=SIDE_PX, height_px=SIDE_PX, tumour=tumour).pixels
        write_svs(path, pixels, mpp=0.5, objective=20)
        return path

    def command(self, *arguments: str) -> list[str]:
        snakemake = Path(sys.executable).parent / "snakemake"
        return [str(snakemake), "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Give an environment in which the virtual environment is not activated, as `.venv/bin/snakemake` is run."""
        return {"PATH": os.defpath, "HOME": str(self.folder.parent), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}

    def run(self, *arguments: str, **environment: str) -> Ran:
        """Run Snakemake in the study's folder to its end, with these variables on top."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
            check=False,
        )
        return Ran(done.returncode, done.stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start Snakemake in the study's folder, as the leader of a process group of its own."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # a shell's background jobs, and what they start, ignore Ctrl-C
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def command_line(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of the pipeline's commands in the study's folder."""
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=self.folder,
            env={**self.environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def plan(self, *arguments: str) -> dict[str, int]:
        """Give the jobs that a run would run."""
        planned = self.run("--dry-run", *arguments)
        assert planned.code == 0, planned.output
        return planned.jobs

    def interrupt(self, when: Callable[[], bool]) -> Ran:
        """Run Snakemake, press Ctrl-C once `when` holds, and wait for its end."""
        process = self.start()
        deadline = time.monotonic() + 900
        while not when():
            assert process.poll() is None, "the run ended before it was interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: Snakemake and its jobs
        output, _ = process.communicate(timeout=600)
        return Ran(process.returncode, output)


def jobs_in(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Give process id and arguments, the stage first, of the commands that work in a folder."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if words[1:3] == ["-m", "pipeline"] and (entry / "cwd").resolve() == folder.resolve():
                yield int(entry.name), words[3:]
        except OSError:  # it ended meanwhile
            continue


def write_study(folder: Path) -> Study:
    """Write six labelled slides of six patients and one without a label."""
    study = Study(folder)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    rows = ["slide_id,label,patient_id"]
    for index in range(6):
        label = ("normal", "tumour")[index % 2]
        study.add_slide(f"slide {index}", seed=index, tumour=label == "tumour")
        rows.append(f"slide {index},{label},patient {index}")
    study.add_slide("new.ü", seed=6)
    study.labels.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return study


@pytest.fixture(scope="session")
def untouched_study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Give a study on which nothing ran yet; to be copied, not changed."""
    return write_study(tmp_path_factory.mktemp("untouched") / "my study")


@pytest.fixture(scope="session")
def finished_run(untouched_study: Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Ran]:
    """Give a study on which the whole workflow ran, and what the run printed; to be copied, not changed."""

    def make(folder: Path) -> None:
        ran = copy_of(untouched_study, folder).run()
        (folder / "ran.json").write_text(json.dumps([ran.code, ran.output]))

    folder = made_once(tmp_path_factory, "finished", make)
    return Study(folder / untouched_study.folder.name), Ran(*json.loads((folder / "ran.json").read_text()))


@pytest.fixture
def fresh(untouched_study: Study, tmp_path: Path) -> Study:
    """Give a study of one's own on which nothing ran yet."""
    return copy_of(untouched_study, tmp_path)


@pytest.fixture
def finished(finished_run: tuple[Study, Ran], tmp_path: Path) -> Study:
    """Give a study of one's own on which the whole workflow ran."""
    study, ran = finished_run
    assert ran.code == 0, ran.output
    return copy_of(study, tmp_path)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Give a folder that `make` fills, once for all processes that run tests: a whole run takes both cores as it is."""
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


def copy_of(study: Study, folder: Path) -> Study:
    """Copy a study with its time stamps, which Snakemake goes by."""
    return Study(Path(shutil.copytree(study.folder, folder / study.folder.name)))


def results_of(study: Study) -> dict[str, object]:
    """Give what must not depend on how a run went: tables as text, pictures as bytes, scores as arrays."""
    from pipeline import store

    found: dict[str, object] = {}
    for path in sorted((study.folder / "reports").rglob("*")):
        if path.suffix in {".csv", ".tsv", ".json", ".png"}:
            found[path.name] = path.read_bytes()
    for path in sorted((study.folder / "results").rglob("*.zarr.zip")):
        for name, values in store.read(path).arrays.items():
            found[f"{path.parent.name}/{path.name}/{name}"] = np.asarray(values).tobytes()
    return found


def keeps_checksums(folder: Path) -> bool:
    """Tell whether the file system keeps attributes, in which checksums of tables and pictures are."""
    probe = folder / "probe.json"
    probe.touch()
    try:
        os.setxattr(probe, "user.asmil_wsi.probe", b"x")
    except OSError:
        return False
    finally:
        probe.unlink()
    return True
