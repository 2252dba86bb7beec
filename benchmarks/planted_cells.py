"""How well attention finds planted tumour cells: instance AUROC on the positive slides of a composed cohort.

    python benchmarks/planted_cells.py --results STUDY/results --truth COHORT/truth.csv

`truth.csv` has a row a cell: slide_id, x, y, size (level-0 pixels), label (`tumour` or another). A patch counts as
positive by the share of its area that lies on tumour cells; a patch of which less than half does is negative, one that
only touches them is left out.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pipeline import store


def read_truth(path: Path) -> dict[str, NDArray[np.int64]]:
    """Read the tumour cells of each slide: shape (M, 3), columns x, y, size in level-0 pixels."""
    cells: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    with path.open(newline="") as handle:
        for row in csv.DictReader(handle):
            if row["label"] == "tumour":
                cells[row["slide_id"]].append((int(row["x"]), int(row["y"]), int(row["size"])))
    return {slide: np.array(found) for slide, found in cells.items()}


def tumour_share(coords: NDArray[np.int32], edge_px: float, cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give the share of each patch that tumour cells cover, shape (N,)."""
    low = np.maximum(coords[:, None, :], cells[None, :, :2])
    high = np.minimum(coords[:, None, :] + edge_px, cells[None, :, :2] + cells[None, :, 2:])
    return np.asarray(np.clip(high - low, 0, None).prod(-1).sum(1) / edge_px**2)


def main() -> None:
    """Print a table, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--quick", action="store_true", help="changes nothing: a study is needed either way")
    args = parser.parse_args()
    if (args.results is None) != (args.truth is None):
        parser.error("give both --results and --truth")
    if None in (args.results, args.truth):
        print(json.dumps({"benchmark": "planted_cells", "ratio": None, "skipped": "give --results and --truth"}))
        return
    aurocs = {}
    for slide, cells in sorted(read_truth(args.truth).items()):
        artefact = store.read(args.results / "attention" / f"{slide}.zarr.zip")
        if not artefact.ok:
            print(f"{slide}: left out ({artefact.attributes['reason']})")
            continue
        share = tumour_share(artefact.arrays["coords"], artefact.attributes["patch_level0_px"], cells)
        clear = (share >= 0.5) | (share <= 0.01)
        if len(set(share[clear] >= 0.5)) < 2:
            print(f"{slide}: left out (no patch of each kind)")
            continue
        aurocs[slide] = float(roc_auc_score(share[clear] >= 0.5, artefact.arrays["score"][clear]))
        attributes = artefact.attributes
        print(
            f"{slide}  instance AUROC {aurocs[slide]:.3f}  {int((share >= 0.5).sum())} of {share.size} patches  "
            f"{attributes['source']}  {attributes['predicted']} {max(attributes['probabilities']):.2f}"
        )
    values = np.array(list(aurocs.values()))
    result = {
        "benchmark": "planted_cells",
        "slides": len(values),
        "instance_auroc_mean": round(float(values.mean()), 4),
        "instance_auroc_median": round(float(np.median(values)), 4),
        "instance_auroc_min": round(float(values.min()), 4),
        "ratio": round(float(values.mean()), 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
