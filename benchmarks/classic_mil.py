"""Accuracy on the classic multiple-instance sets, by an honest protocol and by the one that flatters.

    python benchmarks/classic_mil.py --data DIR [--quick] [--sets musk1 ...] [--models asmil ...] [--seeds 5]
        [--uniform] [--results FILE.jsonl]

DIR holds `{musk1,musk2,elephant,fox,tiger}.npz`: `X` (instances x d), `bag_index`, `bag_label`. Ten stratified folds a
seed; features standardised on the training part; one recipe for all models, fixed before any run. Two figures come from
the same trained models: "fixed" judges the last epoch, "selected" the epoch of best accuracy on the test fold itself.
The second is not an estimate of anything: it shows how much is gained by looking. Accuracy and AUROC are pooled over
the folds of a seed; mean and sd are over seeds. Folds and seeds that are run at once train in lockstep, and go through
the bags in one common order. ASMIL's authors report 97.1 % on MUSK1 and 96.8 % on MUSK2.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from done import Done  # type: ignore[import-not-found]
from lockstep import Lockstep  # type: ignore[import-not-found]
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from asmil.anchor import AnchorConfig
from asmil.options import FitConfig
from asmil.registry import MODELS, build
from asmil.seeding import seeded

SETS = ("musk1", "musk2", "elephant", "fox", "tiger")
REPORTED = {"musk1": 97.1, "musk2": 96.8}

Floats = NDArray[np.float64]


LEARNING_RATE = 1e-3
"""Ten times the paper's: some 90 bags give 1,700 steps in 20 epochs. Fixed before any run; not tuned."""

FIGURES = ("accuracy_fixed", "auroc_fixed", "accuracy_selected", "auroc_selected")


@dataclass(frozen=True)
class Run:
    """One seed of one model: how it is divided and how long it is trained."""

    seed: int
    folds: int
    epochs: int


def read_set(path: Path) -> list[NDArray[np.float32]]:
    """Read the bags of one set, each (instances, d), in the order of their index."""
    with np.load(path) as found:
        features, place = found["X"].astype(np.float32), found["bag_index"]
    return [features[place == index] for index in range(int(place.max()) + 1)]


def read_labels(path: Path) -> NDArray[np.int64]:
    """Read the label, 0 or 1, of every bag."""
    with np.load(path) as found:
        return np.asarray(found["bag_label"] > 0, dtype=np.int64)


def standardised(bags: Sequence[NDArray[np.float32]], train: NDArray[np.intp]) -> list[NDArray[np.float32]]:
    """Scale all bags by the mean and sd of the training bags' instances."""
    rows = np.concatenate([bags[index] for index in train])
    sd = rows.std(0)
    return [(bag - rows.mean(0)) / np.where(sd > 1e-6, sd, 1) for bag in bags]


def folds_of(labels: NDArray[np.int64], *, seed: int, folds: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Give the training and test bags of each fold."""
    return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels))


def follow(
    name: str,
    anchor: AnchorConfig | None,
    bags: Sequence[NDArray[np.float32]],
    labels: NDArray[np.int64],
    runs: Sequence[Run],
) -> list[Floats]:
    """Train the folds of some seeds, all of as many folds and epochs.

    Returns
    -------
    For each seed the probability of class 1 of each bag, by the fold that tests it: (epochs, bags).
    """
    folds, epochs, config = runs[0].folds, runs[0].epochs, FitConfig(epochs=runs[0].epochs, learning_rate=LEARNING_RATE)
    division = [part for run in runs for part in folds_of(labels, seed=run.seed, folds=folds)]
    scaled = [standardised(bags, train) for train, _ in division]
    models = []
    for run in runs:
        for fold in range(folds):
            with seeded(run.seed, fold, device=torch.device("cpu")):
                models.append(build(name, bags[0].shape[1], 2))
    trains = np.array([np.isin(np.arange(len(bags)), train) for train, _ in division])
    stacked = [torch.from_numpy(np.stack([each[place] for each in scaled])) for place in range(len(bags))]
    trainer = Lockstep(models, stacked, labels.tolist(), trains, anchor=anchor, config=config, seed=runs[0].seed)
    rows = np.zeros((len(runs), epochs, len(bags)))
    for epoch in range(epochs):
        trainer.run_epoch()
        for place in range(len(bags)):
            # one fold a seed tests the bag, and they come in the order of the seeds
            rows[:, epoch, place] = trainer.look(place, np.flatnonzero(~trains[:, place]))[0][:, 1]
    return list(rows)


def judge(rows: Floats, labels: NDArray[np.int64], args: Run) -> dict[str, float]:
    """Give accuracy and AUROC of the last epoch, and of the epoch selected on each test fold, in per cent."""
    selected = np.zeros(len(labels))
    for _, test in folds_of(labels, seed=args.seed, folds=args.folds):
        right = ((rows[:, test] > 0.5) == labels[test]).mean(axis=1)
        selected[test] = rows[int(right.argmax()), test]
    found = {}
    for kind, probabilities in (("fixed", rows[-1]), ("selected", selected)):
        found[f"accuracy_{kind}"] = 100 * float(((probabilities > 0.5) == labels).mean())
        found[f"auroc_{kind}"] = 100 * float(roc_auc_score(labels, probabilities))
    return found


def variants(models: Sequence[str], *, uniform: bool = False) -> list[tuple[str, str, AnchorConfig | None]]:
    """Give model, what the anchor is called, and the anchor: every model that attends with and without it.

    With `uniform` also the control that pulls attention to uniform without an anchor: what it gains, no anchor did.
    """
    found: list[tuple[str, str, AnchorConfig | None]] = []
    for name in models:
        kinds: list[tuple[str, AnchorConfig | None]] = [("none", None)]
        if MODELS[name].attends:
            kinds += [("uniform", AnchorConfig(mode="uniform"))] if uniform else []
            kinds.append(("ema nsf", AnchorConfig()))
        found += [(name, kind, anchor) for kind, anchor in kinds]
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Give the markdown table of what was run: mean (sd over seeds)."""
    lines = [
        "| set | model | anchor | seeds | accuracy, fixed | AUROC, fixed | accuracy, selected on test | "
        "AUROC, selected | reported |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((row["set"], row["model"], row["anchor"]) for row in rows):
        mine = [row for row in rows if (row["set"], row["model"], row["anchor"]) == key]
        cells = [*key, str(len(mine))]
        for name in FIGURES:
            values = [row[name] for row in mine]
            cells.append(f"{np.mean(values):.1f} ({np.std(values):.1f})")
        cells.append(f"{REPORTED[key[0]]:.1f}" if key[1:] == ("asmil", "ema nsf") and key[0] in REPORTED else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the markdown table of all that was run, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the sets")
    parser.add_argument("--quick", action="store_true", help="one set, two models, three folds: does it run")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--uniform", action="store_true", help="also with a uniform target: the control of the anchor")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--results", type=Path, help="file of JSON lines; what it holds is not run again")
    args = parser.parse_args()
    if args.data is None:
        print(json.dumps({"benchmark": "classic_mil", "ratio": None, "skipped": "give --data, a folder of the sets"}))
        return
    if args.quick:
        args.sets, args.models, args.seeds, args.folds, args.epochs = ["musk1"], ["asmil", "abmil"], 1, 3, 2
    torch.set_num_threads(1)
    done = Done(args.results)
    wanted: list[dict[str, Any]] = []
    for name in args.sets:
        bags, labels = read_set(args.data / f"{name}.npz"), read_labels(args.data / f"{name}.npz")
        for model, kind, anchor in variants(args.models, uniform=args.uniform):
            runs = [Run(seed=seed, folds=args.folds, epochs=args.epochs) for seed in range(args.seeds)]
            keys = {run: {"set": name, "model": model, "anchor": kind, **asdict(run)} for run in runs}
            wanted += keys.values()
            missing = [run for run in runs if done.find(keys[run]) is None]
            together = follow(model, anchor, bags, labels, missing) if missing else ()
            for run, found in zip(missing, together, strict=True):
                done.add(keys[run], judge(found, labels, run))
    rows = [row for row in map(done.find, wanted) if row is not None]
    print(table(rows))
    ratio = float(np.mean([row["accuracy_selected"] / row["accuracy_fixed"] for row in rows]))
    print(json.dumps({"benchmark": "classic_mil", "ratio": round(ratio, 4), "rows": rows}))


if __name__ == "__main__":
    main()
