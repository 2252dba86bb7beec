"""Linear probes on patches with labels: what `texture` tells apart, beside networks with untrained weights.

    python benchmarks/encoders.py --patches tissue.zip [--quick]

The archive has a folder a class with pictures of one size. Each encoder's features are standardised, a logistic
regression is fitted on four fifths of the patches and judged on the fifth that is left, five times; the AUROC is that
of all patches together. Patches of one slide may be on both sides, as nothing says which are: read the numbers as a
comparison of encoders, not as what a new hospital would see. A second probe does the same with the colours of every
patch brought to one reference, which takes away what is told by stain alone.
"""

import argparse
import io
import json
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline import encoders  # noqa: E402

NAMES = ("texture", "timm:mobilenetv4_conv_small", "timm:resnet18", "timm:vit_tiny_patch16_224")
QUICK_PATCHES = 200


def read_patches(path: Path, *, largest: int | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read pictures uint8 [N, p, p, 3] and the number of their folder [N], or an even share of `largest` of them."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg", ".png")))
        names = names[:: max(1, len(names) // largest)] if largest else names
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    folders = [PurePosixPath(name).parent.name for name in names]
    classes = sorted(set(folders))
    return np.stack(pictures), np.array([classes.index(folder) for folder in folders])


def probe(features: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Give the AUROC of a linear probe by fivefold cross-validation."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    chance = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels, chance))


def encode(name: str, patches: NDArray[np.uint8], *, stain: str) -> tuple[NDArray[np.float32], float]:
    """Give features, and patches per second."""
    encoder = encoders.load(name, weights="random", threads=1, stain=stain, patch_px=patches.shape[1])
    start = time.perf_counter()
    features = np.concatenate([encoder(patches[first : first + 64]) for first in range(0, len(patches), 64)])
    return features, len(patches) / (time.perf_counter() - start)


def main() -> None:
    """Print a table, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=Path, help="Archive with a folder a class; without it nothing is measured.")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.patches is None:
        print("no --patches given: this benchmark needs pictures with labels, and none are part of the project")
        return
    patches, labels = read_patches(args.patches, largest=QUICK_PATCHES if args.quick else None)
    found: dict[str, dict[str, float]] = {}
    for name in NAMES[:2] if args.quick else NAMES:
        plain, rate = encode(name, patches, stain="none")
        stained, _ = encode(name, patches, stain="reinhard")
        found[name] = {"auroc": round(probe(plain, labels), 4), "auroc_one_stain": round(probe(stained, labels), 4)}
        print(f"{name:32} {plain.shape[1]:5} features  {rate:5.0f} patches/s  {found[name]}")
    best = max(values["auroc"] for name, values in found.items() if name != "texture")
    result = {
        "benchmark": "encoders",
        "patches": len(patches),
        "ratio": round(found["texture"]["auroc"] / best, 4),
        "auroc": found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
