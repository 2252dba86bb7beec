"""Training of every model of the registry: it learns with the anchor and without, resumes, and stops where it must."""

import copy
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag
from asmil.errors import TrainingError
from asmil.inference import predict
from asmil.training import FitConfig, Trainer, fit
from tests.test_baselines import ALL, BASELINES, make

QUICK = {"dsmil": (16, 5e-3), "max_pooling": (16, 5e-3), "transmil": (3, 2e-3)}
"""Epochs and learning rate of models that need more than others, or take longer."""


@pytest.mark.parametrize("name", ["mean_pooling", "max_pooling"])
@pytest.mark.parametrize("mode", ["ema", "uniform"])
def test_model_without_attention_gets_no_anchor(name: str, mode: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = make(name, d_in=16, classes=2)
    anchor = AnchorRegularizer(model, AnchorConfig(mode=mode))
    assert "has no attention to align" in caplog.text
    assert anchor.anchor is None
    assert anchor.weight == 0
    plain = copy.deepcopy(model)
    bags = planted(6, seed=0)
    result = fit(model, bags, bags, anchor=anchor, config=FitConfig(epochs=1), seed=0)
    other = fit(plain, bags, bags, config=FitConfig(epochs=1), seed=0)
    assert all(torch.equal(value, other.best_state[key]) for key, value in result.best_state.items())
    assert "anchor_kl" not in result.history[0]


def planted(count: int, *, seed: int) -> list[Bag]:
    """Make bags of 40 patches; in every second one six are shifted along one direction."""
    generator = torch.Generator().manual_seed(seed)
    bags = []
    for number in range(count):
        features = torch.randn(40, 16, generator=generator)
        if number % 2:
            features[torch.randperm(40, generator=generator)[:6], 0] += 3.5
        bags.append(Bag(features, number % 2, f"bag-{number}"))
    return bags


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("anchored", [False, True])
def test_model_learns_a_planted_signal_with_and_without_the_anchor(name: str, anchored: bool) -> None:
    options: dict[str, Any] = {} if name == "dsmil" else {"d_inner": 32}
    model = make(name, d_in=16, classes=2, **options)
    epochs, learning_rate = QUICK.get(name, (8, 2e-3))
    anchor = AnchorRegularizer(model, AnchorConfig(beta=0.05, momentum=0.95)) if anchored else None
    fit(
        model,
        planted(40, seed=1),
        planted(20, seed=2),
        anchor=anchor,
        config=FitConfig(epochs=epochs, learning_rate=learning_rate),
        seed=0,
    )
    test = planted(40, seed=3)
    probabilities = [predict(model, bag.features).probabilities[1] for bag in test]
    assert roc_auc_score([bag.label for bag in test], probabilities) > 0.9


@pytest.mark.parametrize("name", BASELINES)
def test_stopped_training_continues_bitwise(name: str) -> None:
    bags = planted(6, seed=0)

    def trainer() -> Trainer:
        model = make(name, d_in=16, classes=2)
        anchor = AnchorRegularizer(model)
        return Trainer(model, bags, bags, anchor=anchor, config=FitConfig(epochs=4, learning_rate=1e-3), seed=5)

    whole, first, second = trainer(), trainer(), trainer()
    for _ in range(3):
        whole.run_epoch()
    for _ in range(2):
        first.run_epoch()
    second.load_state_dict(first.state_dict())
    second.run_epoch()
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in second.model.state_dict().items())
    assert whole.history == second.history


def test_exploding_weights_of_a_baseline_stop_the_run() -> None:
    model = make("clam_sb", d_in=16, classes=2)
    with torch.no_grad():
        model.classify.weight.fill_(torch.inf)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        fit(model, planted(4, seed=0), planted(4, seed=0), config=FitConfig(epochs=1), seed=0)
