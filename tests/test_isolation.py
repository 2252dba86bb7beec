"""A crash or a hang inside a slide's file costs that slide; a kill costs the job and nothing else."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipeline import store
from pipeline.endings import killed
from pipeline.fingerprint import UNREADABLE, fingerprint
from tests.slides import slide_with_tissue, write_svs

TILE = "--patch-px 224 --target-mpp 0.5 --overlap 0 --min-tissue 0.2 --tissue-method otsu --tissue-threshold 0.04"
TILE += " --tissue-mpp 8 --tissue-min-area-mm2 0.001 --tissue-min-hole-mm2 0.001"
TILE += " --max-pen 1 --max-bubble 1 --max-blur 1 --max-fold 1"
TILE += " --no-tissue-exclude-pen"


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_svs(tmp_path / "a.svs", slide_with_tissue(1024, 1024, box=(100, 100, 800, 800)))


def command(*arguments: str, before: str = "") -> list[str]:
    """Give a command whose process first runs `before`: a stand-in for a reader with a fault."""
    program = f"{textwrap.dedent(before)}\nimport sys\nfrom pipeline.cli import main\nmain()"
    return [sys.executable, "-c", program, *arguments]


def tile(slide: Path, *more: str, before: str = "") -> list[str]:
    folder = slide.parent
    outputs = ("--tiles", str(folder / "a.zarr.zip"), "--tissue", str(folder / "a.geojson"))
    preview = ("--preview", str(folder / "a.jpg"))
    return command("tile", str(slide), "--slide-id", "a", *outputs, *preview, *TILE.split(), *more, before=before)


def embed(slide: Path, *more: str, before: str = "") -> list[str]:
    folder = slide.parent
    paths = ("--tiles", str(folder / "a.zarr.zip"), "--bag", str(folder / "bag.zarr.zip"))
    return command(
        *("embed", str(slide), "--slide-id", "a", *paths, "--encoder", "texture", "--max-unreadable", "0.1", *more),
        before=before,
    )


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


def reader_that(act: str, *, times: int | None = None, folder: Path | None = None) -> str:
    """Give code that makes every read of a region act up, or the first ones of all processes together."""
    counted = ""
    if times is not None:
        counted = f"open({str(folder / 'count')!r}, 'a').write('x')\n    "  # type: ignore[operator]
        act = f"if len(open({str(folder / 'count')!r}).read()) <= {times}: {act}"  # type: ignore[operator]
    return (
        "import openslide, time, ctypes\nread = openslide.OpenSlide.read_region\n"
        f"def faulty(*arguments):\n    {counted}{act}\n    return read(*arguments)\n"
        "openslide.OpenSlide.read_region = faulty\n"
    )


def test_a_reader_that_crashes_quarantines_its_slide(slide: Path) -> None:
    ran = run(tile(slide, before=reader_that("ctypes.string_at(0)")))
    assert ran.returncode == 0, ran.stderr
    attributes = store.read_attributes(slide.parent / "a.zarr.zip")
    assert attributes["status"] == store.QUARANTINED
    assert attributes["reason"] == "the reader crashed (SIGSEGV) on it, twice"
    assert "copy it again" in attributes["remedy"]
    assert attributes["fingerprint"] == UNREADABLE
    assert (slide.parent / "a.jpg").stat().st_size > 1000
    assert (slide.parent / "a.geojson").exists()
    assert "Segmentation fault" in ran.stderr  # where it crashed is in the log
    bag = run(embed(slide))
    assert bag.returncode == 0, bag.stderr
    assert store.read_attributes(slide.parent / "bag.zarr.zip")["reason"] == attributes["reason"]


def test_a_crash_that_does_not_come_again_is_no_quarantine(slide: Path) -> None:
    ran = run(tile(slide, before=reader_that("ctypes.string_at(0)", times=1, folder=slide.parent)))
    assert ran.returncode == 0, ran.stderr
    assert store.read(slide.parent / "a.zarr.zip").ok
    assert "tried again" in ran.stderr


def test_a_reader_that_crashes_while_patches_are_embedded_quarantines_its_slide(slide: Path) -> None:
    assert run(tile(slide)).returncode == 0
    before = "import pipeline.reader\nimport ctypes\n"
    before += "pipeline.reader.TileFile.decode = lambda *_: ctypes.string_at(0)\n"
    ran = run(embed(slide, before=before))
    assert ran.returncode == 0, ran.stderr
    assert "crashed (SIGSEGV)" in store.read_attributes(slide.parent / "bag.zarr.zip")["reason"]


def test_an_encoder_that_crashes_fails_the_job_and_not_the_slide(slide: Path) -> None:
    assert run(tile(slide)).returncode == 0
    before = "import pipeline.encoders.texture as t, ctypes\n"
    before += "t.TextureEncoder.__call__ = lambda *_: ctypes.string_at(0)\n"
    ran = run(embed(slide, before=before))
    assert ran.returncode == 1
    assert "Error: the job crashed (SIGSEGV) but the slide can be read" in ran.stderr
    assert not (slide.parent / "bag.zarr.zip").exists()


def test_a_read_that_hangs_is_the_slides_quarantine(slide: Path) -> None:
    ran = run(tile(slide, "--stalled-after-s", "2", before=reader_that("time.sleep(999)")))
    assert ran.returncode == 0, ran.stderr
    attributes = store.read_attributes(slide.parent / "a.zarr.zip")
    assert attributes["reason"] == "reading it stalled: nothing came for 2 s, twice"
    assert "slide.stalled_after_s" in attributes["remedy"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("which", ["command", "child"])
def test_a_kill_is_passed_on_and_leaves_no_artefact_and_no_process(
    slide: Path, number: signal.Signals, which: str
) -> None:
    started = slide.parent / "started"
    process = subprocess.Popen(
        tile(slide, before=reader_that(f"open({str(started)!r}, 'a').write('x'); time.sleep(60)")),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(started.exists)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    os.kill(process.pid if which == "command" else child, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -number
    wait_for(lambda: not Path(f"/proc/{child}").exists())
    assert not (slide.parent / "a.zarr.zip").exists()
    if (which, number) != ("command", signal.SIGKILL):
        assert f"Error: {killed(number)}" in errors
        assert ("memory" in errors) == (number == signal.SIGKILL)


def test_a_pipe_in_the_place_of_a_slide_is_quarantined_at_once(slide: Path) -> None:
    slide.unlink()
    os.mkfifo(slide)
    ran = run(tile(slide))
    assert ran.returncode == 0, ran.stderr
    assert "a pipe or a device" in store.read_attributes(slide.parent / "a.zarr.zip")["reason"]


def wait_for(condition: "object") -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


CHECK = """
import os, sys, ctypes, time, openslide
from pathlib import Path
import pipeline.check, pipeline.isolation
from pipeline.cohort import Cohort
from pipeline.discovery import discover
begin = openslide.OpenSlide.__init__
def faulty(self, path):
    name = Path(path).stem
    if name.startswith("crash"):
        ctypes.string_at(0)
    if name.startswith("hang"):
        time.sleep(999)
    begin(self, path)
openslide.OpenSlide.__init__ = faulty
pipeline.isolation.enable()
rows = pipeline.check.look(
    Cohort(discover(Path(sys.argv[1]))[0], {}), default_mpp=None, mpp_from_objective=False, threads=4, stalled_after_s=2
)
for row in rows:
    print(row.slide_id, row.status, row.reason, sep="|")
"""


def test_a_slide_that_crashes_or_hangs_the_check_costs_its_own_row_alone(slide: Path) -> None:
    for name in ("b", "c", "crash 1", "crash 2", "hang", "z"):
        (slide.parent / f"{name}.svs").write_bytes(slide.read_bytes())
    (slide.parent / "damaged.svs").write_bytes(slide.read_bytes()[:5000])
    ran = run([sys.executable, "-c", CHECK, str(slide.parent)])
    assert ran.returncode == 0, ran.stderr
    rows = {row.split("|")[0]: row.split("|")[1:] for row in ran.stdout.splitlines()}
    assert [name for name, (status, _) in rows.items() if status == store.OK] == ["a", "b", "c", "z"]
    assert rows["crash 1"] == rows["crash 2"] == [store.QUARANTINED, "the reader crashed (SIGSEGV) on it, twice"]
    assert "stalled: nothing came for 2 s" in rows["hang"][1]
    assert "cut short" in rows["damaged"][1]


def test_a_slide_that_disappears_before_it_is_tiled_fails_its_job_and_is_no_quarantine(slide: Path) -> None:
    planned = fingerprint(slide)
    slide.rename(slide.with_suffix(".away"))
    ran = run(tile(slide, "--planned", planned))
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(f"Error: {slide} disappeared after the run was planned; put it back")
    slide.write_bytes(slide.with_suffix(".away").read_bytes()[:5000])
    ran = run(tile(slide, "--planned", planned))
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(f"Error: {slide} changed after the run was planned")
    assert not list(slide.parent.glob("a.zarr.zip*"))


def test_a_slide_that_disappears_before_it_is_embedded_fails_its_job_and_is_no_quarantine(slide: Path) -> None:
    assert run(tile(slide)).returncode == 0
    slide.unlink()
    ran = run(embed(slide))
    assert ran.returncode == 1
    assert "disappeared after the run was planned" in ran.stderr.splitlines()[-1]
    assert not (slide.parent / "bag.zarr.zip").exists()
