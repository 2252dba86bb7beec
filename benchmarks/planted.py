"""What anchor, normalised sigmoid and token dropping buy where the truth is known: planted patches in synthetic bags.

    python benchmarks/planted.py [--quick] [--models asmil abmil ...] [--all-anchors] [--betas 0.1 1] [--only TEXT ...]
        [--seeds 3] [--shift 3.0] [--site-sd 0.02] [--results FILE.jsonl]

Few bags, of 500 to 2,000 patches (--most 20000 for more). Background patches are Gaussian around a level that differs
from slide to slide. 2 to 10 % (--least 0.005 for fewer) of a positive bag's patches are shifted along one direction, by
so little that the two kinds overlap (--shift 2 for more overlap, where no model reaches a bag AUROC of 1); every bag
has as many distractors, shifted along another. With the default --site-sd the mean of a bag already tells much of its
class; with --site-sd 0.3 it tells next to nothing, and a model has to find the patches. Every variant is trained for
the same fixed number of epochs at a constant learning rate, and its last epoch is judged: no schedule freezes the
attention. "Epoch by validation" judges the epoch that is best on validation bags, as `asmil.fit` chooses it. Nothing is
chosen on the test bags. Reported: AUROC of test bags (and of training bags), AUROC of patches within positive test
bags, and of the attention on four test bags: JSD between neighbouring epochs (mean of the last half of training) and
entropy / log N, both of the attention averaged over branches (heads and tokens), and of branches one by one.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from done import Done  # type: ignore[import-not-found]
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag
from asmil.inference import attention, predict
from asmil.registry import MODELS, NamedModel, build
from asmil.seeding import seeded
from asmil.stability import StabilityTracker
from asmil.training import FitConfig, Trainer

WIDTH = 32


@dataclass(frozen=True)
class Variant:
    """A model with an anchor (None: without) and its own options."""

    model: str
    name: str
    anchor: AnchorConfig | None = None
    options: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Found:
    """One trained model, judged: by its last epoch, but for `chosen_auroc`."""

    bag_auroc: float
    chosen_auroc: float
    training_auroc: float
    patch_auroc: float
    jsd: float
    entropy: float
    branch_jsd: float
    branch_entropy: float


@dataclass(frozen=True)
class Setting:
    """What bags are drawn and how long models train on them; `shift` and `site_sd` in sd of a patch's noise."""

    train: int
    validation: int
    test: int
    epochs: int
    most: int
    least: float
    shift: float
    site_sd: float


def planted(count: int, setting: Setting, *, seed: int) -> tuple[list[Bag], list[NDArray[np.bool_]]]:
    """Draw bags, half of them positive, and which of their patches are planted."""
    rng = np.random.default_rng(seed)
    bags, truths = [], []
    for number in range(count):
        patches = int(np.exp(rng.uniform(np.log(500), np.log(setting.most))))
        features = rng.standard_normal((patches, WIDTH)).astype(np.float32)
        features += (setting.site_sd * rng.standard_normal(WIDTH)).astype(np.float32)
        share = np.exp(rng.uniform(np.log(setting.least), np.log(0.1)))
        places = rng.permutation(patches)
        few = max(1, int(share * patches))
        features[places[:few], 1] += setting.shift
        truth = np.zeros(patches, dtype=bool)
        if number % 2:
            truth[places[few : 2 * few]] = True
            features[truth, 0] += setting.shift
        bags.append(Bag(features, number % 2, f"bag-{number}"))
        truths.append(truth)
    return bags, truths


BETAS = (0.1, 1.0)


def controls(model: str, betas: Sequence[float] = BETAS) -> list[Variant]:
    """Give a model with every kind of anchor at every weight."""
    found = []
    for beta in betas:
        found += [
            Variant(model, f"uniform, beta {beta}", AnchorConfig(mode="uniform", beta=beta)),
            Variant(model, f"frozen, beta {beta}", AnchorConfig(mode="frozen", beta=beta)),
            Variant(model, f"ema softmax, beta {beta}", AnchorConfig(target="softmax", beta=beta)),
            Variant(model, f"ema nsf, beta {beta}", AnchorConfig(beta=beta)),
        ]
    return found


def variants(models: Sequence[str], *, all_anchors: bool = False, betas: Sequence[float] = BETAS) -> list[Variant]:
    """Give what is compared: every control on the method's own model; on others all of them, or the default anchor."""
    found = []
    if "asmil" in models:
        found.append(Variant("asmil", "no anchor"))
        found.append(Variant("asmil", "no anchor, no token dropping", options=(("token_drop", 0.0),)))
        found += controls("asmil", betas)
        found += [
            Variant("asmil", "ema nsf, beta 0.1, half-life 2 epochs", AnchorConfig(half_life_epochs=2)),
            Variant("asmil", "ema nsf centred, beta 0.1", AnchorConfig(center="quantile")),
            Variant("asmil", "ema nsf, beta 0.1, no token dropping", AnchorConfig(), (("token_drop", 0.0),)),
            Variant(
                "asmil", "uniform, beta 0.1, no token dropping", AnchorConfig(mode="uniform"), (("token_drop", 0.0),)
            ),
        ]
    for model in models:
        if model == "asmil":
            continue
        found.append(Variant(model, "no anchor"))
        if MODELS[model].attends:
            found += controls(model, betas) if all_anchors else [Variant(model, "ema nsf, beta 0.1", AnchorConfig())]
    return found


def built(variant: Variant, *, seed: int) -> NamedModel:
    """Build a variant's model with seeded weights."""
    with seeded(seed, device=torch.device("cpu")):
        return build(variant.model, WIDTH, 2, **dict(variant.options))


def judge(variant: Variant, setting: Setting, *, seed: int) -> Found:
    """Train one variant and judge it on test bags."""
    training, _ = planted(setting.train, setting, seed=2 * seed)
    bags, truths = planted(setting.test, setting, seed=2 * seed + 1)
    validation, _ = planted(setting.validation, setting, seed=10_000 + seed)
    model = built(variant, seed=seed)
    anchor = None if variant.anchor is None else AnchorRegularizer(model, variant.anchor)
    config = FitConfig(epochs=setting.epochs, learning_rate=3e-3, schedule="constant")
    trainer = Trainer(model, training, validation, anchor=anchor, config=config, seed=seed)
    tracker = StabilityTracker()
    while not trainer.finished:
        trainer.run_epoch()
        tracker.add(trainer.epoch, [attention(model, bag.features) for bag in bags[:4]])
    scores = [predict(model, bag.features).score for bag in bags]
    last, later = tracker.rows[-1], tracker.rows[setting.epochs // 2 :]
    bag_auroc, training_auroc = auroc(model, bags), auroc(model, training)
    trainer.finish()
    return Found(
        bag_auroc=bag_auroc,
        chosen_auroc=auroc(model, bags),
        training_auroc=training_auroc,
        patch_auroc=float(np.mean([roc_auc_score(truths[n], scores[n]) for n, bag in enumerate(bags) if bag.label])),
        jsd=float(np.mean([row["jsd_lag1"] for row in later])),
        entropy=float(last["entropy"]),
        branch_jsd=float(np.mean([row["branch_jsd_lag1"] for row in later])),
        branch_entropy=float(last["branch_entropy"]),
    )


def auroc(model: NamedModel, bags: Sequence[Bag]) -> float:
    """Give a model's AUROC of bags."""
    found = [predict(model, bag.features).probabilities[1] for bag in bags]
    return float(roc_auc_score([bag.label for bag in bags], found))


COLUMNS = {
    "bag_auroc": ("bag AUROC", 3),
    "chosen_auroc": ("epoch by validation", 3),
    "training_auroc": ("of training bags", 3),
    "patch_auroc": ("patch AUROC", 3),
    "jsd": ("JSD lag 1", 4),
    "entropy": ("entropy / log N", 3),
    "branch_jsd": ("JSD by branch", 4),
    "branch_entropy": ("entropy by branch", 3),
}


def row_of(variant: Variant, found: Sequence[dict[str, float]]) -> str:
    """Give a variant's line of the markdown table: mean and sd over seeds."""
    cells = [variant.model, variant.name]
    for name, (_, digits) in COLUMNS.items():
        values = [each[name] for each in found]
        cells.append(f"{np.mean(values):.{digits}f} ({np.std(values):.{digits}f})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a table, a line as soon as it is known, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two variants, tiny bags: does it run")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--all-anchors", action="store_true", help="every control also on the models beside ASMIL")
    parser.add_argument("--betas", nargs="+", type=float, default=list(BETAS), help="weights of the controls' anchors")
    parser.add_argument("--only", nargs="+", default=[""], help="variants whose name holds one of these texts")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=40, help="training bags")
    parser.add_argument("--validation", type=int, default=20, help="bags that one of the epochs is chosen by")
    parser.add_argument("--test", type=int, default=40, help="test bags")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--most", type=int, default=2_000, help="patches of the largest bag; the smallest has 500")
    parser.add_argument(
        "--least", type=float, default=0.02, help="smallest share of planted patches; the largest is 0.1"
    )
    parser.add_argument("--shift", type=float, default=3.0, help="of planted patches, in sd of a patch's noise")
    parser.add_argument("--site-sd", type=float, default=0.02, help="of a slide's own level, in sd of a patch's noise")
    parser.add_argument("--results", type=Path, help="file of JSON lines; what it holds is not run again")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = variants(args.models, all_anchors=args.all_anchors, betas=args.betas)
    chosen = [each for each in known if any(text in each.name for text in args.only)]
    setting = Setting(**{field.name: getattr(args, field.name) for field in fields(Setting)})
    if args.quick:
        args.seeds = 1
        few = ["asmil"] if args.models == list(MODELS) else args.models
        chosen = [each for each in chosen if each.model in few and each.name in ("no anchor", "ema nsf, beta 0.1")]
        setting = replace(setting, train=8, validation=4, test=8, epochs=4, most=1_000)
    print("| model | variant | " + " | ".join(f"{title} (sd)" for title, _ in COLUMNS.values()) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    done, results = Done(args.results), {}
    for variant in chosen:
        found = []
        for seed in range(args.seeds):
            key = {"model": variant.model, "variant": variant.name, "seed": seed, **asdict(setting)}
            found.append(done.find(key) or done.add(key, asdict(judge(variant, setting, seed=seed))))
        print(row_of(variant, found), flush=True)
        means = {name: float(np.mean([each[name] for each in found])) for name in Found.__annotations__}
        results[f"{variant.model}: {variant.name}"] = {name: round(value, 4) for name, value in means.items()}
    plain, anchored = results.get("asmil: no anchor"), results.get("asmil: ema nsf, beta 0.1")
    ratio = round(anchored["bag_auroc"] / plain["bag_auroc"], 3) if plain and anchored else None
    print(
        json.dumps({"benchmark": "planted", "ratio": ratio, "seeds": args.seeds, **asdict(setting), "results": results})
    )


if __name__ == "__main__":
    main()
