"""How many slides a second `check` looks at: headers, scale, pixel layout, fingerprint; no forecast.

The slides are copies of one small pyramidal slide (1.5 MB) in one folder, read from the page cache: in this process,
and in a child as `python -m pipeline check` reads them. The ratio is the child's, to the 50 slides a second that are
promised for small local files.

    python benchmarks/check.py [--slides 400] [--threads 8] [--quick]
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline import isolation  # noqa: E402
from pipeline.check import look  # noqa: E402
from pipeline.cohort import Cohort  # noqa: E402
from pipeline.discovery import discover  # noqa: E402
from tests.slides import slide_with_tissue, write_svs  # noqa: E402

PROMISED_PER_S = 50.0


def main() -> None:
    """Write the slides, look at them, print slides a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=400)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="100 slides")
    arguments = parser.parse_args()
    count = 100 if arguments.quick else arguments.slides
    with tempfile.TemporaryDirectory() as folder:
        first = write_svs(Path(folder) / "0.svs", slide_with_tissue(2048, 2048, box=(0, 0, 2048, 2048)), quality=95)
        for index in range(1, count):
            shutil.copyfile(first, Path(folder) / f"{index}.svs")
        size_mb = first.stat().st_size / 1e6
        slides, _ = discover(Path(folder))
        cohort, found = Cohort(slides, {}), 0.0
        for isolated in (False, True):
            if isolated:
                isolation.enable()
            for threads in (1, arguments.threads):
                wall_s, cpu_s = measure(cohort, threads=threads)
                found = count / wall_s
                print(
                    f"{'in a child' if isolated else 'in this process'}, {threads} threads: {found:.0f} slides/s,"
                    f" {1000 * cpu_s / count:.1f} CPU ms a slide ({size_mb:.1f} MB each, load {os.getloadavg()[0]:.1f})"
                )
    print(json.dumps({"benchmark": "check", "ratio": round(found / PROMISED_PER_S, 2), "slides_per_s": round(found)}))


def measure(cohort: Cohort, *, threads: int) -> tuple[float, float]:
    """Give the wall and processor seconds of a look at the cohort, each the median of three."""
    spent = []
    for _ in range(3):
        wall, processor = time.perf_counter(), processor_s()
        rows = look(cohort, default_mpp=None, mpp_from_objective=False, threads=threads)
        spent.append((time.perf_counter() - wall, processor_s() - processor))
        assert all(row.status == "ok" for row in rows)
    wall_s, cpu_s = np.median(spent, axis=0).tolist()
    return wall_s, cpu_s


def processor_s() -> float:
    """Give the processor seconds of this process and the children it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
