"""Time and memory of the tile stage on large slides, with the default settings.

    python benchmarks/tiling.py [--quick]

Each slide (see reading.py) goes through the `tile` command in a process of its own, three times; the best counts. The
time is that of the command after the interpreter has started and imported what it needs; the memory is the process's.
"""

import argparse
import cProfile
import importlib
import io
import json
import pstats
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from pipeline import settings, stage_flags
from pipeline.cli import app

ROOT, SCRIPT, SCHEMA = Path(__file__).parents[1], Path(__file__), "workflow/schemas/config.schema.yaml"
READING = SCRIPT.with_name("reading.py")
PROFILED = 25
"""Functions to list, the slowest first."""


def tile_once(slide: Path, folder: Path, *, profile: bool) -> None:
    """Tile a slide as the workflow does; print seconds and peak memory as JSON, or what took the time."""
    checked = settings.check(yaml.safe_load((ROOT / "config.yaml").read_text()), ROOT / SCHEMA)
    outputs = [("--tiles", "tiles.zarr.zip"), ("--tissue", "tissue.geojson"), ("--preview", "preview.jpg")]
    arguments = ["tile", str(slide), "--slide-id", "big"]
    for name, file in outputs:
        arguments += [name, str(folder / file)]
    arguments += shlex.split(stage_flags.flags(checked, "tile"))
    for module in ("pipeline.tile", "pipeline.quality"):  # the interpreter's start is not what is measured
        importlib.import_module(module)
    profiler = cProfile.Profile()
    wall, cpu = time.perf_counter(), time.process_time()
    if profile:
        profiler.runcall(app, arguments, standalone_mode=False)
        text = io.StringIO()
        pstats.Stats(profiler, stream=text).sort_stats("cumulative").print_stats("pipeline", PROFILED)
        print("\n".join(line for line in text.getvalue().splitlines() if "pipeline/" in line))
        return
    app(arguments, standalone_mode=False)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    status = Path("/proc/self/status").read_text()
    peak_mb = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_mb}))


def measure(edge_px: int, folder: Path, repeats: int) -> dict[str, float]:
    """Write a slide and tile it; give the best time and the largest peak."""
    slide = folder / f"{edge_px}.svs"
    subprocess.run([sys.executable, READING, "--write", slide, "--edge", str(edge_px)], check=True)
    command = [sys.executable, str(SCRIPT), "--slide", str(slide), "--folder", str(folder)]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for _ in range(repeats)
    ]
    found = {key: min(run[key] for run in runs) for key in ("seconds", "cpu_seconds")}
    found["peak_mb"] = max(run["peak_mb"] for run in runs)
    print(
        f"{edge_px} x {edge_px} px: {found['seconds']:.2f} s ({found['cpu_seconds']:.2f} s of CPU), "
        f"peak {found['peak_mb']:.0f} MB, best of {repeats}",
        flush=True,
    )
    subprocess.run([*command, "--profile"], check=True)
    return found


def main() -> None:
    """Print a table, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small slides, one turn")
    parser.add_argument("--slide", type=Path, help="tile this slide and stop")
    parser.add_argument("--folder", type=Path, help="where to write its artefacts")
    parser.add_argument("--profile", action="store_true", help="print what took the time")
    args = parser.parse_args()
    if args.slide:
        tile_once(args.slide, args.folder, profile=args.profile)
        return
    edges = [4096, 8192] if args.quick else [16384, 61440]
    with tempfile.TemporaryDirectory() as folder:
        found = {edge: measure(edge, Path(folder), 1 if args.quick else 3) for edge in edges}
    small, large = (found[edge] for edge in edges)
    result = {
        "benchmark": "tiling",
        "ratio": round(large["seconds"] / small["seconds"], 2),
        "pixels_ratio": round((edges[1] / edges[0]) ** 2, 1),
        "seconds": round(large["seconds"], 2),
        "cpu_seconds": round(large["cpu_seconds"], 2),
        "peak_mb": round(large["peak_mb"]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
