"""Files from strangers: whatever bytes they hold, the loaders raise our errors and nothing else.

`python -m tests.fuzz --minutes 10` looks longer than CI does.
"""

import csv
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from pipeline import cohort, store, tables, weights_bundle
from pipeline.discovery import discover
from pipeline.encoders.checkpoint import read_state
from pipeline.errors import PipelineError, SlideError
from pipeline.geojson import read_geojson
from pipeline.isolation import Outcome, attempt
from pipeline.weights import MANIFEST
from tests.fuzz.__main__ import FINDINGS
from tests.fuzz.making import Target, ours
from tests.fuzz.targets import TARGETS, read_slide

ROOT = Path(__file__).parents[1]
EXAMPLES = 25

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", TARGETS)
def test_made_up_and_damaged_files(name: str) -> None:
    # a configuration costs 0.3 s, most of it the reading of the schema
    @settings(fuzz, max_examples=6 if name == "config" else EXAMPLES)
    @given(content=TARGETS[name].strategy)
    def read(content: bytes) -> None:
        ours(TARGETS[name], content)

    read()


@pytest.mark.parametrize("found", sorted(FINDINGS.rglob("*.bin")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_the_fuzzer_found_once(found: Path) -> None:
    outcome = read_in_little_memory(TARGETS[found.parent.name.replace("-", " ")], found.read_bytes())
    assert (outcome.code, outcome.killed_by, outcome.stalled) == (0, 0, False)


def read_in_little_memory(target: Target, content: bytes) -> Outcome:
    """Let a target read bytes in a child process that may take 1 GiB more than this one has."""

    def look() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + 2**30, used + 2**30))
        ours(target, content)

    return attempt(look, stalled_after_s=20)


BROKEN = """
from tests.fuzz.making import ANYTHING, Target
TARGETS = {"json": Target(lambda content, folder: 1 / (len(content) < 4), ANYTHING, lambda: [b"a"])}
"""


def test_the_fuzzer_finds_what_is_not_our_error_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", "2", "--target", "json"]
    done = subprocess.run(
        [*command, "--targets", "broken", "--findings", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    kept = list(tmp_path.rglob("*.bin"))
    assert kept
    assert all(len(path.read_bytes()) > 3 for path in kept)
    assert f"kept as {kept[0]}" in done.stdout
    assert "ZeroDivisionError" in done.stdout


def test_json_nested_too_deep_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text("[" * 100_000)
    with pytest.raises(SlideError, match="nested"):
        read_geojson(path, shape=(40, 40), downsample=4.0, bounds=(0, 0, 0, 0))


class Evil:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch remarks on a pickle of an unusual protocol
def test_a_pickle_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    for name, content in (("a.pth", pickle.dumps(Evil(tmp_path / "owned"))), ("b.bin", b"\x80\x04garbage")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PipelineError, match="fetch the"):
            read_state(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["../out.pth", "/tmp/out.pth", "a/../../out.pth", "a/b/c.pth", "..\\out.pth"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_bundle_that_reaches_outside_its_folder_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    archive = tmp_path / "bundle.tar"
    with tarfile.open(archive, "w") as tar:
        manifest = json.dumps({name: {"sha256": "0" * 64}}).encode()
        for member, content in ((MANIFEST, manifest), (name, b"x")):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            if kind == "link" and member == name:
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(entry, io.BytesIO(content))
    inside = tmp_path / "weights"
    inside.mkdir()
    with pytest.raises(PipelineError, match="do not trust this archive"):
        weights_bundle.unpack(archive, inside)
    assert not list(inside.iterdir())
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("bomb", [MANIFEST, "a.pth"])
def test_a_bundle_with_a_file_of_holes_is_refused(tmp_path: Path, bomb: str) -> None:
    archive = tmp_path / "bundle.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in ((MANIFEST, b'{"a.pth": {"sha256": "00"}}'), ("a.pth", b"x")):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            if member == bomb:  # 100 TiB, of which one byte is there
                entry.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(100 << 40)}
                entry.size, content = 1, b"x"
            tar.addfile(entry, io.BytesIO(content))
    with tarfile.open(archive) as tar:
        assert max(member.size for member in tar) == 100 << 40
    with pytest.raises(PipelineError, match=r"is no bundle of weights|do not trust this archive"):
        weights_bundle.unpack(archive, tmp_path / "weights")
    assert not list(tmp_path.glob("weights/*"))


@fuzz
@given(cell=some.text(max_size=12).map(lambda text: "=" + text) | some.text(max_size=12))
def test_no_cell_of_a_table_is_a_formula(cell: str) -> None:
    written = tables.guard(cell)
    assert not written.lstrip().startswith(("=", "@"))
    assert not written.startswith(("\t", "\r", "\n"))
    assert tables.plain(written) == cell
    [read] = csv.reader([tables.text([[tables.flat(cell)]], delimiter="\t")], delimiter="\t")
    assert [tables.plain(found) for found in read] == [tables.flat(cell)]


def tiff(entries: list[tuple[int, int, int, int]], *, following: int = 0) -> bytes:
    """Give a TIFF of one directory: tag, type, count, value of each entry, and where the next directory is."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following) + bytes(64)


TILED = [(258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6), (277, 3, 1, 3), (322, 4, 1, 256), (323, 4, 1, 256)]
CRAFTED = {
    "huge": [(256, 4, 1, 2**31 - 1), (257, 4, 1, 2**31 - 1), *TILED, (324, 4, 1, 8), (325, 4, 1, 8)],
    "huge tiles": [(256, 4, 1, 2**17), (257, 4, 1, 2**17), *TILED[:4], (322, 4, 1, 2**17), (323, 4, 1, 2**17)],
    "overlapping": [(256, 4, 1, 512), (257, 4, 1, 256), *TILED, (324, 4, 2, 8), (325, 4, 2, 8)],
    "endless count": [(256, 4, 1, 512), (257, 4, 1, 512), *TILED, (324, 4, 2**32 - 1, 8), (325, 4, 2**32 - 1, 8)],
}


@pytest.mark.parametrize("following", [0, 8, 9, 2**32 - 1])
@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_tiff_is_refused_quickly_in_little_memory(case: str, following: int) -> None:
    target = Target(read_slide, some.nothing(), list)
    outcome = read_in_little_memory(target, tiff(CRAFTED[case], following=following))
    assert (outcome.code, outcome.killed_by, outcome.stalled) == (0, 0, False)


BOMB_PX = 8256


def bomb(compression: int, content: bytes) -> bytes:
    """Give a TIFF of one tile, larger than a slide's ever is, of few bytes."""
    size = [(256, 4, 1, BOMB_PX), (257, 4, 1, BOMB_PX), (322, 4, 1, BOMB_PX), (323, 4, 1, BOMB_PX)]
    photometric = 6 if compression == 7 else 2
    entries = [*size[:2], (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, photometric), (277, 3, 1, 3), *size[2:]]
    head = tiff([*entries, (324, 4, 1, 1024), (325, 4, 1, len(content))])
    return head.ljust(1024, b"\0") + content


def bombs() -> dict[str, bytes]:
    """Give files that unpack to a thousand times their size."""
    packer = zlib.compressobj(1)
    rows = bytes(BOMB_PX * 3 * 64)
    deflated = b"".join(packer.compress(rows) for _ in range(BOMB_PX // 64)) + packer.flush()
    side = struct.pack(">HH", 65500, 65500)
    frame = b"\xff\xc0\x00\x11\x08" + side + b"\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    return {"deflate": bomb(8, deflated), "jpeg": bomb(7, b"\xff\xd8" + frame + b"\xff\xd9")}


@pytest.mark.parametrize("kind", ["deflate", "jpeg"])
def test_a_decompression_bomb_costs_its_slide_and_no_memory(kind: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.tif").write_bytes(bombs()[kind])
    done = subprocess.run(
        [sys.executable, "-c", TILE_IN_LITTLE_MEMORY, str(tmp_path / "bomb.tif"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    artefact = store.read(tmp_path / "tiles.zarr.zip")
    assert not artefact.ok
    assert "its tiles have 8256 x 8256 px" in artefact.attributes["reason"]


TILE_IN_LITTLE_MEMORY = """
import resource, sys
from pipeline import cli, isolation
used = int(open("/proc/self/statm").read().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**30, used + 2**30))
slide, folder = sys.argv[1:]
settings = "--patch-px 224 --target-mpp 0.5 --overlap 0 --min-tissue 0.5 --tissue-method otsu --tissue-threshold 0.04"
settings += " --tissue-mpp 8 --tissue-min-area-mm2 0.02 --tissue-min-hole-mm2 0.05 --tissue-exclude-pen --max-pen 0.1"
settings += " --max-bubble 0.5 --max-blur 0.5 --max-fold 0.4 --default-mpp 0.5 --stalled-after-s 60"
outputs = ["--tiles", f"{folder}/tiles.zarr.zip", "--tissue", f"{folder}/a.geojson", "--preview", f"{folder}/a.jpg"]
sys.argv = ["pipeline", "tile", slide, "--slide-id", "bomb", *outputs, *settings.split()]
cli.main()
"""


@pytest.mark.parametrize(
    "name", ["a..svs", "x__..__y.svs", "x..\\..\\up.svs", "C:\\up.svs", "-rf.svs", "$(reboot).svs"]
)
def test_no_name_of_a_slide_leads_out_of_the_results(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    found, _ = discover(tmp_path)
    for slide in found:
        place = tmp_path / "results" / "tiles" / f"{slide}.zarr.zip"
        assert place.resolve().parent == tmp_path / "results" / "tiles"


def test_an_id_in_the_users_tables_is_no_path(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.svs").touch()
    outside = tmp_path / "secret.svs"
    outside.touch()
    for name, header in (("labels.csv", "slide_id,label"), ("overrides.csv", "slide_id,note")):
        (tmp_path / name).write_text(f"{header}\n../secret,x\na,y\n{outside.with_suffix('')},x\n")
    found = cohort.load(
        raw,
        labels=tmp_path / "labels.csv",
        overrides=tmp_path / "overrides.csv",
        target="label",
        folds=2,
        must_train=False,
    )
    assert list(found.slides) == ["a"]
    assert list(found.labels) == ["a"]
    assert list(found.overrides) == ["a"]
