"""The benchmarks of the method run, and training in lockstep computes what the trainer computes."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag
from asmil.inference import predict
from asmil.options import FitConfig
from asmil.registry import build
from asmil.training import Trainer
from pipeline import store

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import classic_mil  # type: ignore[import-not-found]
import composed  # type: ignore[import-not-found]
import planted  # type: ignore[import-not-found]
from lockstep import Lockstep  # type: ignore[import-not-found]

QUIET = {
    "asmil": {"token_drop": 0.0, "dropout": 0.0, "token_loss": 0.5},
    "gated_abmil": {},
    "dsmil": {},
    "pamil": {},
    "aem": {},
    # half of the patches hidden by rank, which is not random; a teacher that moves
    "mhim": {"dropout": 0.0, "high_ratio": 0.5, "high_hidden": 1.0, "random_ratio": 0.0, "momentum": 0.5},
    "clam_mb": {"dropout": 0.0, "subtyping": True},  # so that every bag uses the classifiers of both classes
}
MOVING = AnchorConfig(beta=1.0, half_life_epochs=1, center="quantile")


@pytest.mark.parametrize(
    ("name", "anchor"),
    [
        ("dsmil", None),
        ("clam_mb", None),
        ("mhim", None),
        ("gated_abmil", MOVING),
        ("asmil", MOVING),
        ("pamil", MOVING),
        ("aem", MOVING),
        ("mhim", MOVING),
    ],
)
def test_lockstep_trains_as_the_trainer_does(name: str, anchor: AnchorConfig | None) -> None:
    rng = np.random.default_rng(0)
    bags = [Bag(rng.standard_normal((3 + n, 32)).astype(np.float32), n % 2, f"bag {n}") for n in range(6)]
    # in float64: in float32 Adam takes full steps along the rounding of a gradient that is 0 (a bias before a softmax)
    model: Any = build(name, 32, 2, **QUIET[name])
    model.double()
    config = FitConfig(epochs=3, learning_rate=1e-3)
    start = parameters_to_vector(model.parameters()).detach().clone()
    # run 0 leaves out the last bag; run 1 trains on all, as the trainer below
    trains = np.ones((2, 6), dtype=bool)
    trains[0, -1] = False
    stacked = [torch.from_numpy(np.stack([bag.features] * 2)).double() for bag in bags]
    labels = [n % 2 for n in range(6)]
    copies = [copy.deepcopy(model) for _ in range(2)]
    together = Lockstep(copies, stacked, labels, trains, anchor=anchor, config=config, seed=0)
    follower = None if anchor is None else AnchorRegularizer(model, anchor)
    trainer = Trainer(model, bags, bags[:1], anchor=follower, config=config, seed=0)
    for _ in range(3):
        together.run_epoch()
        trainer.run_epoch()
    alone = parameters_to_vector(model.parameters()).detach()
    moved = (alone - start).abs().max()
    first, second = (torch.cat([rows[run].flatten() for rows in together.weights.values()]) for run in (0, 1))
    assert (second - alone).abs().max() < 1e-3 * moved
    assert (first - alone).abs().max() > 0.1 * moved
    if follower is not None:
        assert follower.anchor is not None
        for anchored in follower.anchor.anchor_parameters():
            own = dict(follower.anchor.named_parameters())[anchored]
            assert (own - together.anchors[anchored][1]).abs().max() < 1e-3 * moved


def test_run_that_leaves_a_step_out_stays_where_it_is() -> None:
    bags = [torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    trains = np.array([[True, True, True, False], [True] * 4])
    models = [build("mhim", 16, 2) for _ in range(2)]
    together = Lockstep(models, bags, [0, 1, 0, 1], trains, anchor=MOVING, config=FitConfig(epochs=3), seed=0)
    together.run_epoch()
    everything = together.weights | {f"anchor.{name}": rows for name, rows in together.anchors.items()}
    before = {name: rows.clone() for name, rows in everything.items()}
    together._step(3, 0.5)
    assert all(torch.equal(rows[0], before[name][0]) for name, rows in everything.items())
    assert all((rows[1] != before[name][1]).any() for name, rows in everything.items())


def test_classic_mil_goes_on_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(12), 4)
    np.savez(tmp_path / "musk1.npz", X=rng.standard_normal((48, 8)), bag_index=place, bag_label=np.arange(12) % 2)
    results = tmp_path / "rows.jsonl"
    command = ["classic_mil", "--data", str(tmp_path), "--quick", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", command)
    classic_mil.main()
    first = capsys.readouterr().out
    rows = results.read_text().splitlines()
    assert len(rows) == 4
    results.write_text("\n".join(rows[:2]) + "\n")
    classic_mil.main()
    assert capsys.readouterr().out == first
    assert json.loads(first.splitlines()[-1])["rows"] == [json.loads(row) for row in rows]


def test_every_control_is_tried_on_every_model_that_attends() -> None:
    names = {each.name for each in planted.variants(["asmil"]) if "beta" in each.name and each.options == ()}
    assert {"uniform, beta 0.1", "frozen, beta 1.0", "ema softmax, beta 0.1", "ema nsf, beta 1.0"} < names
    found = planted.variants(["gated_abmil", "mean_pooling"], all_anchors=True)
    assert [each.name for each in found if each.model == "mean_pooling"] == ["no anchor"]
    tried = [each for each in found if each.model == "gated_abmil"]
    kinds = {(each.anchor.mode, each.anchor.target, each.anchor.beta) for each in tried if each.anchor is not None}
    assert len(kinds) == len(tried) - 1 == 8


def test_planted_truth_is_where_the_signal_is() -> None:
    setting = planted.Setting(train=6, validation=0, test=0, epochs=1, most=600, least=0.05, shift=2.5, site_sd=0.02)
    bags, truths = planted.planted(setting.train, setting, seed=0)
    assert [bool(truth.any()) for truth in truths] == [False, True] * 3
    positive = [(bag.features[:, 0], truth) for bag, truth in zip(bags, truths, strict=True) if bag.label]
    shifts = [values[truth].mean() - values[~truth].mean() for values, truth in positive]
    assert np.allclose(shifts, setting.shift, atol=0.8)


def test_planted_goes_on_where_it_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "rows.jsonl"
    monkeypatch.setattr(sys, "argv", ["planted", "--quick", "--only", "no anchor", "--results", str(results)])
    planted.main()
    first = capsys.readouterr().out
    known = results.read_text()
    planted.main()
    assert capsys.readouterr().out == first
    assert results.read_text() == known
    assert len(known.splitlines()) == 1


def test_composed_judges_held_out_slides_by_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    lines, cells = ["slide_id,patient_id,label"], ["slide_id,x,y,size,label"]
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 100
    for number in range(12):
        name, features = f"s{number}", rng.standard_normal((64, 32)).astype(np.float16)
        lines.append(f"{name},p{number},{'tumour' if number % 2 else 'normal'}")
        if number % 2:
            features[:8, :4] += 4
            cells += [f"{name},{x},{y},100,tumour" for x, y in grid[:8]]
        more = {"patch_level0_px": 100.0}
        attributes = store.stage_attributes("embed", slide_id=name, fingerprint="f", error=None, **more)
        store.write(tmp_path / f"{name}.zarr.zip", {"features": features, "coords": grid.astype(np.int32)}, attributes)
    lines.append("s99,p99,tumour")  # without a bag: left out
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    (tmp_path / "truth.csv").write_text("\n".join(cells))
    files = ["--bags", str(tmp_path), "--labels", str(tmp_path / "labels.csv"), "--truth", str(tmp_path / "truth.csv")]
    sizes = ["--models", "gated_abmil", "--seeds", "1", "--folds", "2", "--epochs", "80"]
    monkeypatch.setattr(sys, "argv", ["composed", *files, *sizes])
    composed.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["slides"] == 12
    gated = found["results"]["gated_abmil, anchor none"]
    assert gated["patch_auroc"] > 0.9
    assert gated["slide_auroc"] > 0.9


def test_lockstep_looks_at_a_model_that_divides_its_bags() -> None:
    bag = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    models = [build("dtfd", 16, 2) for _ in range(2)]
    trains = np.ones((2, 1), dtype=bool)
    together = Lockstep(models, [bag], [1], trains, anchor=None, config=FitConfig(epochs=1), seed=0)
    probabilities, attention = together.look(0, np.array([0, 1]))
    for run, model in enumerate(models):
        alone = predict(model, bag[run])
        np.testing.assert_allclose(probabilities[run], alone.probabilities, atol=1e-5)
    assert attention.shape[-1] == 9
