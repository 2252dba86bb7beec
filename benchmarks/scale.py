"""What it costs to plan a cohort of thousands of slides: time and memory of a dry run.

    python benchmarks/scale.py            # 100, 1,000 and 5,000 slides
    python benchmarks/scale.py --quick    # 100 and 300
    python benchmarks/scale.py --slides 20000

The slides hold a few bytes: planning reads fingerprints of files and opens none. A real slide's fingerprint reads
192 KiB more, which is not in these figures. Ends with one JSON line; `ratio` is seconds a slide of the largest cohort
over those of the one before it: 1 means linear growth.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def write_cohort(folder: Path, slides: int) -> None:
    """Write slides that differ in a few bytes, all labelled, one a patient."""
    raw = folder / "data" / "raw"
    raw.mkdir(parents=True)
    rows = ["slide_id,label,patient_id"]
    for index in range(slides):
        (raw / f"slide-{index:05d}.svs").write_bytes(index.to_bytes(8, "little"))
        rows.append(f"slide-{index:05d},{('normal', 'tumour')[index % 2]},patient-{index:05d}")
    (folder / "data" / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "config.yaml").write_text("encoder: {name: texture}\n")


def plan(folder: Path) -> tuple[float, float, int]:
    """Run a dry run; give its seconds, its peak memory in MB, and the jobs it planned."""
    command = [
        str(Path(sys.executable).parent / "snakemake"),
        *("--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2", "--dry-run", "--quiet", "rules"),
    ]
    started = time.perf_counter()
    with (folder / "plan.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        log.seek(0)
        output = log.read()
    if status:
        raise SystemExit(f"the dry run failed:\n{output[-2000:]}")
    total = next(line for line in output.splitlines() if line.startswith("total"))
    return seconds, usage.ru_maxrss / 1024, int(total.split()[1])


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cohorts only")
    parser.add_argument("--slides", type=int, nargs="+", help="sizes of the cohorts")
    given = parser.parse_args()
    sizes = given.slides or ([100, 300] if given.quick else [100, 1000, 5000])
    rows = []
    for slides in sizes:
        with tempfile.TemporaryDirectory() as name:
            write_cohort(Path(name), slides)
            seconds, memory_mb, jobs = plan(Path(name))
        rows.append({"slides": slides, "seconds": round(seconds, 1), "memory_mb": round(memory_mb), "jobs": jobs})
        print(
            f"{slides} slides: {seconds:.1f} s, {memory_mb:.0f} MB, {jobs} jobs, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    first = rows[-2] if len(rows) > 1 else rows[0]
    ratio = (rows[-1]["seconds"] / rows[-1]["slides"]) / (first["seconds"] / first["slides"])
    print(json.dumps({"benchmark": "scale", "ratio": round(ratio, 2), "cold_dry_runs": rows}))


if __name__ == "__main__":
    main()
