"""Patches a second read by LazySlide and by us, from the same slide at the same places, one thread each.

    python benchmarks/peer_lazyslide.py [--quick] [--venv FOLDER]

LazySlide comes from the package registry, into a virtual environment of its own in a temporary folder: 3 to 6 GB, as
it brings PyTorch. `--venv` names one to make, or to use again. With `--quick`, and where the registry is out of reach,
the peer is left out unless that environment is there.

Each side reads what it gives to an encoder: LazySlide the `wsi.ds.tile_images` of a grid of 224 px tiles at 0.5 um per
pixel, we `Slide.patches`. They take turns; the best of each counts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.slide import open_slide

READING = Path(__file__).with_name("reading.py")
PACKAGE = "lazyslide==0.13.0"
EDGE_PX, PATCH_PX, MPP = 16384, 224, 0.5

PEER = """
import json, sys, time
import lazyslide
from wsidata import open_wsi

slide, limit = sys.argv[1], int(sys.argv[2])
wsi = open_wsi(slide, store=None)
lazyslide.pp.tile_tissues(wsi, 224, mpp=0.5, background_filter=False, tissue_key=None)
tiles = wsi.ds.tile_images("tiles")
first = max(0, (len(tiles) - limit) // 2)
places = []
tiles[first]
start, cpu = time.perf_counter(), time.process_time()
for index in range(first, min(first + limit, len(tiles))):
    tile = tiles[index]
    assert tile["image"].shape == (224, 224, 3), tile["image"].shape
    places.append((int(tile["x"]), int(tile["y"])))
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "cpu_seconds": time.process_time() - cpu,
    "places": places,
    "reader": type(wsi.reader).__name__,
}))
"""
"""What runs in the peer's environment."""


def install(venv: Path) -> Path | None:
    """Make the peer's environment where it is not there yet; give its Python, or None if that failed."""
    python = venv / "bin" / "python"
    if python.exists() and subprocess.run([python, "-c", "import lazyslide"], capture_output=True).returncode == 0:
        return python
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    if subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], capture_output=True).returncode:
        return None
    return python


def read_theirs(python: Path, slide: Path, patches: int) -> dict[str, object]:
    """Read patches with LazySlide in its own process; give its seconds and places."""
    done = subprocess.run([python, "-c", PEER, slide, str(patches)], check=True, capture_output=True, text=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def read_ours(path: Path, coords: NDArray[np.int32]) -> tuple[float, float]:
    """Read patches with one thread; give wall and CPU seconds."""
    with open_slide(path) as slide:
        wall, cpu = time.perf_counter(), time.process_time()
        count = sum(len(found) for found, _ in slide.patches(coords, patch_px=PATCH_PX, mpp=MPP, threads=1))
        assert count == len(coords)
        return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Print a table, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few patches, and nothing is installed")
    parser.add_argument("--venv", type=Path, help="environment of the peer, made if it is not there")
    args = parser.parse_args()
    if args.quick and (args.venv is None or not args.venv.exists()):
        print("LazySlide is left out: --quick installs nothing; name its environment with --venv")
        print(json.dumps({"benchmark": "peer_lazyslide", "ratio": None}))
        return
    patches, turns = (300, 1) if args.quick else (3000, 3)
    with tempfile.TemporaryDirectory() as folder:
        python = install(args.venv or Path(folder) / "venv")
        if python is None:
            print(f"{PACKAGE} cannot be installed: is there a network, and 6 GB of room?")
            print(json.dumps({"benchmark": "peer_lazyslide", "ratio": None}))
            return
        slide = Path(folder) / "a.svs"
        subprocess.run([sys.executable, READING, "--write", slide, "--edge", str(EDGE_PX)], check=True)
        theirs, ours = [], []
        for _ in range(turns):
            found = read_theirs(python, slide, patches)
            coords = np.array(found["places"], np.int32)
            theirs.append((found["seconds"], found["cpu_seconds"]))
            ours.append(read_ours(slide, coords))
    rates = {
        name: tuple(len(coords) / min(column) for column in zip(*times, strict=True))
        for name, times in (("LazySlide", theirs), ("ours", ours))
    }
    for name, (wall, cpu) in rates.items():
        print(f"{name:10} {wall:6.0f} patches/s, {cpu:6.0f} patches/CPU s")
    result = {
        "benchmark": "peer_lazyslide",
        "ratio": round(rates["ours"][0] / rates["LazySlide"][0], 2),
        "cpu_ratio": round(rates["ours"][1] / rates["LazySlide"][1], 2),
        "peer": PACKAGE,
        "peer_reader": found["reader"],
        "patches": len(coords),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
