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
from asmil.options import FitConfig
from asmil.registry import build
from asmil.training import Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import classic_mil  # type: ignore[import-not-found]
from lockstep import Lockstep, fits  # type: ignore[import-not-found]

QUIET = {"asmil": {"token_drop": 0.0, "dropout": 0.0}, "gated_abmil": {}, "dsmil": {}}
MOVING = AnchorConfig(beta=1.0, half_life_epochs=1, center="quantile")


@pytest.mark.parametrize(("name", "anchor"), [("dsmil", None), ("gated_abmil", MOVING), ("asmil", MOVING)])
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
    assert (together.weights[1].detach() - alone).abs().max() < 1e-3 * moved
    assert (together.weights[0].detach() - alone).abs().max() > 0.1 * moved
    if follower is not None:
        assert follower.anchor is not None
        for anchored in follower.anchor.anchor_parameters():
            own = dict(follower.anchor.named_parameters())[anchored]
            mine = together._named(together.anchors[1])[anchored]
            assert (own - mine).abs().max() < 1e-3 * moved


def test_models_with_state_of_their_own_are_not_trained_in_lockstep() -> None:
    assert [fits(build(name, 16, 2)) for name in ("abmil", "pamil", "mhim")] == [True, False, False]


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
