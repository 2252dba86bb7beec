"""Time and memory of the heatmap stage on a slide of 25,000 patches, against the limits of 2 s and 400 MB.

    python benchmarks/heatmap.py [--quick]

The slide (see reading.py) is new, so five folds' maps and their disagreement are drawn. It runs three times in a
process of its own, the interpreter's start included; the best time and the largest peak count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline import store  # noqa: E402
from pipeline.fingerprint import fingerprint  # noqa: E402

READING = Path(__file__).with_name("reading.py")
PATCH_PX, FOLDS = 224, 5
LIMIT_S, LIMIT_MB = 2.0, 400.0


def write_attention(path: Path, slide: Path, *, edge_px: int) -> int:
    """Write an attention artefact with a tile on every place of a slide; give their number."""
    steps = np.arange(edge_px // PATCH_PX)
    x, y = np.meshgrid(steps, steps)
    coords = (np.stack([x.ravel(), y.ravel()], axis=1) * PATCH_PX).astype(np.int32)
    scores = np.random.default_rng(0).dirichlet(np.ones(len(coords)), FOLDS).astype(np.float32)
    known: dict[str, Any] = {
        "width": edge_px,
        "height": edge_px,
        "mpp_x": 0.5,
        "mpp_y": 0.5,
        "mpp_source": "properties",
        "target_mpp": 0.5,
        "realised_mpp": 0.5,
        "patch_px": PATCH_PX,
        "patch_level0_px": float(PATCH_PX),
        "bounds": [0, 0, edge_px, edge_px],
        "tissue_area_mm2": len(coords) * (PATCH_PX * 0.5e-3) ** 2,
        "classes": ["normal", "tumour"],
        "folds": list(range(FOLDS)),
        "source": "ensemble",
        "label": None,
        "patient_id": "",
        "predicted": "tumour",
        "probabilities": [0.1, 0.9],
        "fold_spread": 0.01,
    }
    arrays = {
        "score": scores.mean(0),
        "fold_scores": scores,
        "coords": coords,
        "probability": np.tile(np.array([[0.1, 0.9]], np.float32), (FOLDS, 1)),
    }
    store.write(
        path, arrays, store.stage_attributes("predict", slide_id="big", fingerprint=fingerprint(slide), **known)
    )
    return len(coords)


def draw(slide: Path, folder: Path) -> tuple[float, float, float]:
    """Draw once; give seconds, peak memory in MB, and seconds of computing (CPU)."""
    outputs = {"--png": "big.png", "--geojson": "big.geojson", "--view": "big.json"}
    settings = {"--colormap": "viridis", "--opacity": "0.5", "--top-patches": "6", "--width-px": "2480", "--mpp": "0.5"}
    command = [sys.executable, "-m", "pipeline", "heatmap", str(slide), "--attention", str(folder / "a.zarr.zip")]
    command += [part for flag, name in outputs.items() for part in (flag, str(folder / name))]
    command += [part for pair in settings.items() for part in pair]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the command ended with {process.returncode}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e6, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure, and end with a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small slide, once")
    quick = parser.parse_args().quick
    edge_px = PATCH_PX * (40 if quick else 159)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = folder / "big.svs"
        subprocess.run([sys.executable, READING, "--write", slide, "--edge", str(edge_px)], check=True)
        patches = write_attention(folder / "a.zarr.zip", slide, edge_px=edge_px)
        runs = [draw(slide, folder) for _ in range(1 if quick else 3)]
        sizes = {path.suffix: round(path.stat().st_size / 1e6, 2) for path in folder.glob("big.*") if path != slide}
    seconds, peak_mb = min(run[0] for run in runs), max(run[1] for run in runs)
    ratio = max(seconds / LIMIT_S, peak_mb / LIMIT_MB)
    found = {
        "patches": patches,
        "seconds": seconds,
        "cpu_seconds": min(run[2] for run in runs),
        "peak_mb": peak_mb,
        "files_mb": sizes,
    }
    print(json.dumps({"benchmark": "heatmap", "ratio": ratio, **found}))


if __name__ == "__main__":
    main()
