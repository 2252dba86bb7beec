"""The whole workflow on a cohort: seconds a slide, seconds a stage, and what the workflow itself costs.

    python benchmarks/end_to_end.py                                   # 12 synthetic slides
    python benchmarks/end_to_end.py --quick                           # 6 small ones
    python benchmarks/end_to_end.py --slides RAW --labels labels.csv  # your own, as data/raw and data/labels.csv

The cohort runs with the embedded encoder on the CPU. Then every job's command is run once more, in one process in which
everything is imported: that is the work. Overhead is the rest of the processor time of the run: starts of interpreters,
imports, and Snakemake. Processor time is the measure because it hardly depends on what else runs; wall time is shown
beside it. Ends with one JSON line; `ratio` is the overhead's share of the run.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@dataclass
class Stage:
    """The jobs of a rule: their commands, wall seconds in the run, and processor seconds of the work alone."""

    commands: list[list[str]] = field(default_factory=list)
    wall_s: float = 0.0
    work_s: float = 0.0


def write_study(folder: Path, *, slides: Path | None, labels: Path | None, count: int, side_px: int) -> None:
    """Write the study's folder: slides, labels and settings."""
    raw, table = folder / "data" / "raw", folder / "data" / "labels.csv"
    if slides is not None and labels is not None:
        raw.parent.mkdir(parents=True)
        raw.symlink_to(slides.resolve(), target_is_directory=True)
        shutil.copy(labels, table)
    else:
        from pipeline.demo import write_demo

        write_demo(folder, slides=count, side_px=side_px, workers=os.cpu_count() or 1)
    labelled = len(table.read_text().splitlines()) - 1
    settings = {"encoder": {"name": "texture"}, "evaluation": {"folds": 5 if labelled >= 20 else 2}}
    (folder / "config.yaml").write_text(json.dumps(settings))


def run_workflow(folder: Path, cores: int) -> dict[str, float]:
    """Run the workflow; give its wall seconds, and processor seconds of Snakemake itself and of its jobs."""
    command = [
        str(Path(sys.executable).parent / "snakemake"),
        *("--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", str(cores), "--quiet", "rules"),
    ]
    started = time.perf_counter()
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall_s = time.perf_counter() - started
        # the ended process is still listed, with its own time and that of the children it waited for
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        own, jobs = (sum(map(int, fields[at : at + 2])) / os.sysconf("SC_CLK_TCK") for at in (11, 13))
        if process.wait():
            raise SystemExit(f"the run failed:\n{(folder / 'run.log').read_text()[-2000:]}")
    return {"wall_s": wall_s, "snakemake_s": own, "jobs_s": jobs}


def read_jobs(folder: Path) -> dict[str, Stage]:
    """Read from Snakemake's records which commands ran, and how long each took."""
    stages: dict[str, Stage] = defaultdict(Stage)
    seen: set[str] = set()
    for path in sorted((folder / ".snakemake" / "metadata").rglob("*")):
        if not path.is_file():
            continue
        record: dict[str, Any] = json.loads(path.read_text())
        command = record.get("shellcmd")
        if command and command not in seen:
            seen.add(command)
            stage = stages[record["rule"]]
            words = shlex.split(command.partition(" 2> ")[0])
            stage.commands.append(words[words.index("pipeline") + 1 :])
            stage.wall_s += record["endtime"] - record["starttime"]
    return stages


def measure_work(folder: Path, stages: dict[str, Stage], *, most: int) -> None:
    """Run each command again in this process; the first of a stage twice, so that its imports do not count.

    Of a stage with more than `most` jobs, as many are run again, evenly spread, and stand for the others.
    """
    from pipeline.cli import app

    os.chdir(folder)
    for stage in stages.values():
        count = len(stage.commands)
        again = [stage.commands[index * count // most] for index in range(most)] if count > most else stage.commands
        for number, arguments in enumerate([again[0], *again]):
            before = processor_s()
            app(arguments, standalone_mode=False)
            if number:
                stage.work_s += (processor_s() - before) * count / len(again)


def processor_s() -> float:
    """Give the processor seconds of this process and the children it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def count_patches(folder: Path) -> int:
    """Count the patches of all slides; a quarantined one has none."""
    from pipeline import store

    bags = (folder / "results" / "bags").glob("*.zarr.zip")
    return sum(len(store.read(bag).arrays.get("coords", ())) for bag in bags)


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="6 small slides")
    parser.add_argument("--slides", type=Path, help="folder of slides")
    parser.add_argument("--labels", type=Path, help="their labels")
    parser.add_argument("--count", type=int, default=12, help="labelled synthetic slides, where none are given")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--again", type=int, default=1000, help="most jobs of a stage that are run again")
    given = parser.parse_args()
    if (given.slides is None) != (given.labels is None):
        parser.error("give --slides and --labels together")
    count, side_px = (6, 1024) if given.quick else (given.count, 2752)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder, slides=given.slides, labels=given.labels, count=count, side_px=side_px)
        spent = run_workflow(folder, given.cores)
        stages = read_jobs(folder)
        measure_work(folder, stages, most=given.again)
        patches = count_patches(folder)
        os.chdir(ROOT)
    slides = len(stages["tile"].commands)
    work_s = sum(stage.work_s for stage in stages.values())
    processor = spent["snakemake_s"] + spent["jobs_s"]
    print(f"{slides} slides, {patches / slides:.0f} patches a slide, load {os.getloadavg()[0]:.1f}")
    print(f"{'stage':10} {'jobs':>5} {'wall s/job':>11} {'work CPU s/job':>15}")
    for name, stage in sorted(stages.items(), key=lambda item: -item[1].work_s):
        jobs = len(stage.commands)
        print(f"{name:10} {jobs:5} {stage.wall_s / jobs:11.2f} {stage.work_s / jobs:15.3f}")
    print(f"run: {spent['wall_s']:.1f} s on {given.cores} cores, {spent['wall_s'] / slides:.2f} s a slide")
    print(f"CPU: {processor:.1f} s = work {work_s:.1f}, starts and imports {spent['jobs_s'] - work_s:.1f}, ", end="")
    print(f"Snakemake {spent['snakemake_s']:.1f}")
    share = 1 - work_s / processor
    result = {
        "slides": slides,
        "patches_a_slide": round(patches / slides),
        "wall_s_a_slide": round(spent["wall_s"] / slides, 2),
        "cpu_s_a_slide": round(processor / slides, 2),
        "work_s_a_slide": round(work_s / slides, 2),
        "snakemake_s_a_slide": round(spent["snakemake_s"] / slides, 3),
        "overhead_of_wall_and_cores": round(1 - work_s / (spent["wall_s"] * given.cores), 3),
    }
    print(json.dumps({"benchmark": "end_to_end", "ratio": round(share, 3), **result}))


if __name__ == "__main__":
    main()
