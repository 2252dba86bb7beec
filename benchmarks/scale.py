"""What it costs to plan a cohort of thousands of slides: a dry run from nothing, and a run that finds all done.

    python benchmarks/scale.py            # 100, 1,000 and 5,000 slides
    python benchmarks/scale.py --quick    # 100 and 300
    python benchmarks/scale.py --slides 20000 --cold

The slides hold a few bytes: planning reads fingerprints of files and opens none. A real slide's fingerprint reads
192 KiB more, which is not in these figures. The finished state is made by `snakemake --touch` of empty files:
Snakemake's records are as after a real run, and it does not look at what the files hold. Ends with one JSON line;
`ratio` is processor seconds a slide of the largest cohort over those of the one before it: 1 means linear growth.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

sys.path.insert(0, str(ROOT))

from pipeline import run_record  # noqa: E402

SNAKEMAKE = (str(Path(sys.executable).parent / "snakemake"),)
PROMPT = (
    "from snakemake.executors.touch import Executor; Executor.SLEEPING_TIME = 0; from snakemake.cli import main; main()"
)
"""Snakemake without the 0.1 s for which it sleeps at each job it touches: half an hour for 5,000 slides."""


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


def finish(folder: Path, slides: int) -> int:
    """Write an empty file for everything that a run would have written, and let Snakemake take it as made; count it."""
    names = [f"slide-{index:05d}" for index in range(slides)]
    each = [
        *(
            "results/tiles/{}.zarr.zip",
            "results/tissue/{}.geojson",
            "results/tissue/{}.jpg",
            "results/bags/{}.zarr.zip",
        ),
        *("results/attention/{}.zarr.zip", "results/attention/{}.geojson"),
        "results/views/{}.json",
        "reports/heatmaps/{}.png",
    ]
    parts = ("weights.safetensors", "anchor.safetensors", "model.json", "history.csv", "stability.csv")
    models = ["splits.csv", "bags.json", "models.json", "model_card.md", "metrics.json"]
    models += [f"fold-{fold}/{part}" for fold in range(5) for part in parts]
    reports = ("index.html", "predictions.csv", "metrics.json", "quarantine.tsv", "quality.tsv")
    files = [pattern.format(name) for pattern in each for name in names]
    files += [f"results/{name}" for name in ("check.tsv", "check.txt", "cohort.tsv")]
    files += [f"results/model/{name}" for name in models] + [f"reports/{name}" for name in reports]
    files += [f"results/agreement/asmil.{kind}" for kind in ("csv", "json")]
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    # the closing words of a run read these two
    metrics = {"n_predicted": slides, "n_cohort": slides, "pooled": {}}
    (folder / "reports" / "metrics.json").write_text(json.dumps(metrics))
    (folder / "reports" / "quarantine.tsv").write_text("slide_id\treason\tremedy\n")
    # --forceall: files that lie there already would get no record. All at a time: with two cores, Snakemake chooses
    # anew among thousands of jobs for every pair.
    snakemake(folder, "--touch", "--forceall", "--cores", str(5 * slides), program=[sys.executable, "-c", PROMPT])
    written = run_record.outputs(results=folder / "results", reports=folder / "reports")
    run_record.write(folder / "results" / run_record.NAME, {"outputs": written})
    return len(files)


def snakemake(folder: Path, *options: str, program: Sequence[str] = SNAKEMAKE) -> tuple[dict[str, float], str]:
    """Run Snakemake; give its wall and processor seconds and peak memory in MB, and what it said."""
    command = [
        *program,
        *("--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "2", "--quiet", "rules", *options),
    ]
    started = time.perf_counter()
    with (folder / "plan.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        log.seek(0)
        output = log.read()
    if status:
        raise SystemExit(f"snakemake {' '.join(options)} failed:\n{output[-2000:]}")
    spent = {
        "seconds": round(seconds, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "memory_mb": round(usage.ru_maxrss / 1024),
    }
    return spent, output


def measure(slides: int, *, warm: bool) -> dict[str, Any]:
    """Plan a cohort from nothing, and again where all is done."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, slides)
        cold, output = snakemake(folder, "--dry-run")
        total = next(line for line in output.splitlines() if line.startswith("total"))
        row: dict[str, Any] = {"slides": slides, "jobs": int(total.split()[1]), "cold": cold}
        if warm:
            row["files"] = finish(folder, slides)
            row["warm"], output = snakemake(folder)
            if "Nothing to be done" not in output:
                raise SystemExit(f"the finished cohort is not taken as finished:\n{output[-2000:]}")
    return row


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cohorts only")
    parser.add_argument("--slides", type=int, nargs="+", help="sizes of the cohorts")
    parser.add_argument("--cold", action="store_true", help="do not measure a run that finds all done")
    given = parser.parse_args()
    sizes = given.slides or ([100, 300] if given.quick else [100, 1000, 5000])
    rows = []
    for slides in sizes:
        row = measure(slides, warm=not given.cold)
        rows.append(row)
        print(f"{row}, load {os.getloadavg()[0]:.1f}", flush=True)
    per_slide = [row["cold"]["cpu_s"] / row["slides"] for row in rows]
    ratio = per_slide[-1] / per_slide[max(0, len(rows) - 2)]
    print(json.dumps({"benchmark": "scale", "ratio": round(ratio, 2), "planned": rows}))


if __name__ == "__main__":
    main()
