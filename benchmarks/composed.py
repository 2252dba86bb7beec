"""ASMIL beside others on slides composed of real tissue with known tumour: AUROC of slides and patches, stability.

    python benchmarks/composed.py --bags STUDY/results/bags --labels COHORT/labels.csv --truth COHORT/truth.csv

The bags of a cohort whose truth is known per cell (see planted_cells.py for `truth.csv`), embedded once. All models get
the same folds (grouped by patient, stratified), the same seeds and the same recipe: a fixed number of epochs at a
constant learning rate, of which the last is judged, so that nothing is chosen on a test fold and no schedule freezes
attention. AUROC of slides is pooled over folds; AUROC of patches is the mean over tumour slides, by models that never
saw them, without patches that tumour covers by less than half; JSD is that of neighbouring epochs over the last half of
training, on the held-out slides. Where the cohort draws a patch of tissue more than once, the copies lie in training
and in test folds: compare rows, and take no figure for what another cohort would give.
"""

import argparse
import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from classic_mil import variants as with_anchors  # type: ignore[import-not-found]
from done import Done  # type: ignore[import-not-found]
from lockstep import Lockstep  # type: ignore[import-not-found]
from numpy.typing import NDArray
from planted_cells import read_truth, tumour_share  # type: ignore[import-not-found]
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from asmil.anchor import AnchorConfig
from asmil.bags import Bag
from asmil.registry import MODELS, build
from asmil.seeding import seeded
from asmil.stability import StabilityTracker
from asmil.training import FitConfig
from pipeline import store

LEARNING_RATE = 1e-3
"""Ten times the paper's: a cohort of some twenty slides has few steps, and at 1e-4 attention stays where it starts."""


@dataclass(frozen=True)
class Slide:
    """One labelled slide: its features, and which of its patches are clearly tumour or clearly not."""

    name: str
    patient: str
    label: int
    features: NDArray[np.float32]
    clear: NDArray[np.bool_]
    tumour: NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """One model and seed, judged over all folds."""

    slide_auroc: float
    patch_auroc: float
    jsd_lag1: float
    entropy: float


def read_slides(bags: Path, labels: Path, truth: Path, *, positive: str) -> list[Slide]:
    """Read the labelled slides that have a usable bag."""
    cells = read_truth(truth)
    slides = []
    with labels.open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["label"]]
    for row in rows:
        path = bags / f"{row['slide_id']}.zarr.zip"
        if not path.exists() or store.read_attributes(path)["status"] != store.OK:
            continue
        stored = store.read(path)
        found = cells.get(row["slide_id"], np.zeros((0, 3), dtype=np.int64))
        share = tumour_share(stored.arrays["coords"], stored.attributes["patch_level0_px"], found)
        slides.append(
            Slide(
                name=row["slide_id"],
                patient=row.get("patient_id") or row["slide_id"],
                label=int(row["label"] == positive),
                features=stored.arrays["features"].astype(np.float32),
                clear=(share >= 0.5) | (share <= 0.01),
                tumour=share >= 0.5,
            )
        )
    return slides


def digest(slides: Sequence[Slide]) -> str:
    """Name a cohort by what is in it, so that rows of one are not taken for those of another."""
    found = hashlib.sha256()
    for slide in slides:
        found.update(f"{slide.name},{slide.patient},{slide.label};".encode())
        for values in (slide.features, slide.clear, slide.tumour):
            found.update(values.tobytes())
    return found.hexdigest()[:16]


def standardised(slides: Sequence[Slide], train: NDArray[np.intp]) -> list[Bag]:
    """Scale all slides by the training slides' mean and sd; every slide weighs the same."""
    mean = np.mean([slides[index].features.mean(0) for index in train], axis=0)
    variance = np.mean([((slides[index].features - mean) ** 2).mean(0) for index in train], axis=0)
    sd = np.where(variance > 1e-8, np.sqrt(variance), 1)
    return [Bag((slide.features - mean) / sd, slide.label, slide.name) for slide in slides]


def run_seed(
    slides: Sequence[Slide], name: str, anchor: AnchorConfig | None, *, seed: int, folds: int, epochs: int
) -> Found:
    """Cross-validate one model with one seed, all folds in lockstep."""
    labels = np.array([slide.label for slide in slides])
    division = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = list(division.split(labels, labels, [slide.patient for slide in slides]))
    scaled = [standardised(slides, train) for train, _ in parts]
    models = []
    for fold in range(folds):
        with seeded(seed, fold, device=torch.device("cpu")):
            models.append(build(name, slides[0].features.shape[1], 2))
    stacked = [torch.from_numpy(np.stack([bags[place].features for bags in scaled])) for place in range(len(slides))]
    trains = np.array([np.isin(np.arange(len(slides)), train) for train, _ in parts])
    config = FitConfig(epochs=epochs, learning_rate=LEARNING_RATE, schedule="constant")
    trainer = Lockstep(models, stacked, labels.tolist(), trains, anchor=anchor, config=config, seed=seed)
    trackers = [StabilityTracker() for _ in parts]
    for epoch in range(1, epochs + 1):
        trainer.run_epoch()
        for fold, (tracker, (_, test)) in enumerate(zip(trackers, parts, strict=True)):
            tracker.add(epoch, [trainer.look(place, np.array([fold]))[1][0] for place in test])
    probabilities, patch_aurocs = np.zeros(len(slides)), []
    for fold, (_, test) in enumerate(parts):
        for place in test:
            probabilities[place] = trainer.look(place, np.array([fold]))[0][0, 1]
            clear, tumour = slides[place].clear, slides[place].tumour
            if labels[place] and len(set(tumour[clear])) == 2:
                patch_aurocs.append(roc_auc_score(tumour[clear], trainer.scores(place, fold)[clear]))
    return Found(
        slide_auroc=float(roc_auc_score(labels, probabilities)),
        patch_auroc=float(np.mean(patch_aurocs)),
        jsd_lag1=float(np.mean([row["jsd_lag1"] for each in trackers for row in each.rows[epochs // 2 :]])),
        entropy=float(np.mean([each.rows[-1]["entropy"] for each in trackers])),
    )


def main() -> None:
    """Print a markdown table, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bags", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--positive", default="tumour", help="the label of slides that have what the truth marks")
    parser.add_argument("--quick", action="store_true", help="one seed, two models, a few epochs: does it run")
    default = ["asmil", "gated_abmil", "transmil", "clam_sb", "mean_pooling"]
    parser.add_argument("--models", nargs="+", default=default, choices=list(MODELS))
    parser.add_argument("--uniform", action="store_true", help="also with a uniform target: the control of the anchor")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--results", type=Path, help="file of JSON lines; what it holds is not run again")
    args = parser.parse_args()
    if None in (args.bags, args.labels, args.truth):
        print(json.dumps({"benchmark": "composed", "ratio": None, "skipped": "give --bags, --labels and --truth"}))
        return
    if args.quick:
        args.models, args.seeds, args.folds, args.epochs = ["asmil", "gated_abmil"], 1, 2, 4
    torch.set_num_threads(1)
    slides = read_slides(args.bags, args.labels, args.truth, positive=args.positive)
    variants = with_anchors(args.models, uniform=args.uniform)
    if "asmil" in args.models:
        quick = AnchorConfig(half_life_epochs=2, center="quantile")
        variants.append(("asmil", "ema nsf, half-life 2, centred", quick))
    done = Done(args.results)
    cohort = digest(slides)
    figures = list(Found.__annotations__)
    for seed in range(args.seeds):  # a seed of all models before the next, so that a cut run compares all of them
        for name, kind, anchor in variants:
            key = {
                "cohort": cohort,
                "model": name,
                "anchor": kind,
                "seed": seed,
                "folds": args.folds,
                "epochs": args.epochs,
            }
            if done.find(key) is None:
                found = run_seed(slides, name, anchor, seed=seed, folds=args.folds, epochs=args.epochs)
                done.add(key, asdict(found))
    print(f"{len(slides)} slides, {sum(slide.label for slide in slides)} positive")
    print("| model | anchor | slide AUROC (sd) | patch AUROC (sd) | JSD lag 1 | entropy / log N |")
    print("|---|---|---|---|---|---|")
    results = {}
    for name, kind, _ in variants:
        key = {"cohort": cohort, "model": name, "anchor": kind, "folds": args.folds, "epochs": args.epochs}
        rows = [row for seed in range(args.seeds) if (row := done.find({**key, "seed": seed})) is not None]
        means = {figure: float(np.mean([row[figure] for row in rows])) for figure in figures}
        sds = {figure: float(np.std([row[figure] for row in rows])) for figure in figures}
        scores = [f"{means[figure]:.3f} ({sds[figure]:.3f})" for figure in ("slide_auroc", "patch_auroc")]
        attention = [f"{means['jsd_lag1']:.4f}", f"{means['entropy']:.3f}"]
        print("| " + " | ".join([name, kind, *scores, *attention]) + " |")
        results[f"{name}, anchor {kind}"] = {figure: round(value, 4) for figure, value in means.items()}
    plain, anchored = results.get("asmil, anchor none"), results.get("asmil, anchor ema nsf")
    ratio = round(anchored["patch_auroc"] / plain["patch_auroc"], 3) if plain and anchored else None
    facts = {"seeds": args.seeds, "folds": args.folds, "epochs": args.epochs, "slides": len(slides)}
    print(json.dumps({"benchmark": "composed", "ratio": ratio, **facts, "results": results}))


if __name__ == "__main__":
    main()
