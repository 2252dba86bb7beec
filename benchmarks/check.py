"""How many slides a second `check` looks at: headers, scale, pixel layout, fingerprint; no forecast.

The slides are copies of one small pyramidal slide (1.3 MB) in one folder, read from the page cache; the ratio is to the
50 slides a second that are promised for small local files.

    python benchmarks/check.py [--slides 400] [--threads 8] [--quick]
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

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
        slides, _ = discover(Path(folder))
        speed = {}
        for threads in (1, arguments.threads):
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                rows = look(Cohort(slides, {}), default_mpp=None, mpp_from_objective=False, threads=threads)
                seconds.append(time.perf_counter() - start)
            assert all(row.status == "ok" for row in rows)
            speed[threads] = count / float(np.median(seconds))
            print(f"{threads} threads: {speed[threads]:.0f} slides/s ({first.stat().st_size / 1e6:.1f} MB each)")
    found = speed[arguments.threads]
    print(json.dumps({"benchmark": "check", "ratio": round(found / PROMISED_PER_S, 2), "slides_per_s": round(found)}))


if __name__ == "__main__":
    main()
