"""Training of every model of the registry: it learns with the anchor and without, resumes, and stops where it must."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag
from asmil.baselines.aem import AEM
from asmil.errors import TrainingError
from asmil.inference import predict
from asmil.recipes import LookaheadRAdam, source_config, source_trainer
from asmil.registry import MODELS
from asmil.tasks import Classification, Regression, SurvivalTask
from asmil.training import FitConfig, Trainer, fit
from tests.test_baselines import ALL, BASELINES, make

QUICK = {"dsmil": (12, 8e-3), "max_pooling": (12, 8e-3), "transmil": (3, 3e-3)}
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
            features[torch.randperm(40, generator=generator)[:6], 0] += 4.5
        bags.append(Bag(features, number % 2, f"bag-{number}"))
    return bags


KINDS = [("uniform", "nsf"), ("frozen", "nsf"), ("ema", "softmax"), ("ema", "nsf")]


@pytest.mark.parametrize("name", [name for name in ALL if MODELS[name].attends])
@pytest.mark.parametrize(("mode", "target"), KINDS)
def test_every_anchor_trains_every_model(name: str, mode: Any, target: Any) -> None:
    options: dict[str, Any] = {} if name == "dsmil" else {"d_inner": 32}
    model = make(name, d_in=16, classes=2, **options)
    anchor = AnchorRegularizer(model, AnchorConfig(mode=mode, target=target, beta=1.0))
    result = fit(model, planted(4, seed=0), planted(2, seed=1), anchor=anchor, config=FitConfig(epochs=1), seed=0)
    assert -1e-6 < result.history[0]["anchor_kl"] < math.inf  # rounding may take a KL of 0 below it
    assert 0 < result.history[0]["anchor_target_entropy"] <= 1 + 1e-6


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("anchored", [False, True])
def test_model_learns_a_planted_signal_with_and_without_the_anchor(name: str, anchored: bool) -> None:
    options: dict[str, Any] = {} if name == "dsmil" else {"d_inner": 32}
    model = make(name, d_in=16, classes=2, **options)
    epochs, learning_rate = QUICK.get(name, (6, 4e-3))
    anchor = AnchorRegularizer(model, AnchorConfig(beta=0.05, momentum=0.95)) if anchored else None
    fit(
        model,
        planted(24, seed=1),
        planted(8, seed=2),
        anchor=anchor,
        config=FitConfig(epochs=epochs, learning_rate=learning_rate),
        seed=0,
    )
    test = planted(20, seed=3)
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


@pytest.mark.parametrize("name", ["gated_abmil", "clam_mb", "asmil"])
def test_entropy_weight_trains_any_model_as_aem_around_it_does(name: str) -> None:
    bags, validation = planted(6, seed=0), planted(4, seed=1)
    host: Any = make(name, d_in=16, classes=2)
    wrapped = AEM(copy.deepcopy(host), entropy_weight=0.3)
    plain = copy.deepcopy(host)
    for model, weight in ((wrapped, 0.7), (host, 0.3), (plain, 0.0)):  # AEM keeps its own weight
        config = FitConfig(epochs=3, learning_rate=1e-3, entropy_weight=weight, accumulate=2)
        trainer = Trainer(model, bags, validation, config=config, seed=0)
        while not trainer.finished:
            trainer.run_epoch()
    for key, value in wrapped.host.state_dict().items():
        torch.testing.assert_close(host.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(value, host.state_dict()[key]) for key, value in plain.state_dict().items())


def test_entropy_weight_adds_nothing_to_a_model_without_attention() -> None:
    bags, validation = planted(6, seed=0), planted(4, seed=1)
    found = []
    for weight in (0.0, 0.3):
        model = make("mean_pooling", d_in=16, classes=2)
        config = FitConfig(epochs=2, learning_rate=1e-3, entropy_weight=weight)
        found.append(fit(model, bags, validation, config=config, seed=0).history)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["transmil", "dsmil", "clam_sb", "asmil", "mhim"])
def test_sources_recipe_trains_and_continues_bitwise(name: str) -> None:
    bags = planted(7, seed=0)

    def trainer() -> Trainer:
        model = make(name, d_in=16, classes=2)
        return source_trainer(name, model, bags, bags, seed=5, anchor=AnchorRegularizer(model), epochs=4)

    whole, first, second = trainer(), trainer(), trainer()
    for _ in range(3):
        whole.run_epoch()
    for _ in range(2):
        first.run_epoch()
    second.load_state_dict(first.state_dict())
    second.run_epoch()
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in second.model.state_dict().items())


def test_recipe_sets_optimizer_betas_decay_and_bags_a_step() -> None:
    bags = planted(4, seed=0)
    trainer = source_trainer("transmil", make("transmil", d_in=16, classes=2), bags, bags, seed=0)
    decayed, spared = trainer.optimizer.param_groups
    assert isinstance(trainer.optimizer, LookaheadRAdam)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-5, 0)
    assert all(value.ndim < 2 for value in spared["params"])
    assert (trainer.config.accumulate, trainer.config.epochs, trainer.config.learning_rate) == (2, 200, 2e-4)
    dual = source_trainer("dsmil", make("dsmil", d_in=16, classes=2), bags, bags, seed=0)
    assert type(dual.optimizer) is torch.optim.Adam
    assert dual.optimizer.param_groups[0]["betas"] == (0.5, 0.9)


def test_rate_falls_to_the_sources_end_or_to_a_fifth_half_way() -> None:
    dual, tiers = source_config("dsmil"), source_config("dtfd")
    assert [dual.rate_at(share) for share in (0, 0.5, 1)] == pytest.approx([1e-4, (1e-4 + 5e-6) / 2, 5e-6])
    assert [tiers.rate_at(share) for share in (0, 0.49, 0.5, 0.99)] == pytest.approx([1e-4, 1e-4, 2e-5, 2e-5])


def test_best_epoch_is_the_sources_and_patience_waits_for_it() -> None:
    bags = planted(8, seed=0)
    model = make("clam_sb", d_in=16, classes=2, d_inner=32)
    trainer = source_trainer("clam_sb", model, bags, planted(8, seed=1), seed=0, learning_rate=2e-2, patience=1)
    while not trainer.finished:
        trainer.run_epoch()
    losses = [row["validation_cross_entropy"] for row in trainer.history]
    assert 50 <= len(losses) < 200  # epochs without a better one came long before the 50th
    assert trainer.finish().best_epoch == 1 + losses.index(min(losses))
    last = source_trainer("dtfd", make("dtfd", d_in=16, classes=2), bags, bags, seed=0, epochs=5)
    while not last.finished:
        last.run_epoch()
    assert last.finish().best_epoch == 5  # of the last fifth


def test_balanced_epoch_draws_rare_and_common_classes_alike() -> None:
    bags = [*planted(2, seed=0), *(Bag(torch.zeros(3, 16), 0, f"common-{number}") for number in range(18))]
    task = Classification()
    task.begin(bags, classes=2, config=source_config("clam_mb"))
    rng = np.random.default_rng(0)
    drawn = np.concatenate([task.order(rng, len(bags)) for _ in range(200)])
    assert np.mean(drawn == 1) == pytest.approx(0.5, abs=0.03)
    assert len(np.unique(drawn)) == len(bags)
    for other in (Regression(), SurvivalTask()):
        with pytest.raises(ValueError, match="has no classes that class_weights or balanced could weigh"):
            other.begin(bags, classes=1, config=FitConfig(class_weights="inverse_frequency"))


def test_lookahead_steps_back_half_way_every_sixth_step() -> None:
    plain, looking = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizers = torch.optim.RAdam([plain], lr=0.1), LookaheadRAdam([looking], lr=0.1)
    for step in range(1, 7):
        for value, optimizer in zip((plain, looking), optimizers, strict=True):
            value.grad = torch.tensor([1.0, -2.0, 0.5]) * step
            optimizer.step()
        if step < 6:
            assert torch.equal(plain, looking)
    torch.testing.assert_close(looking, (1 + plain) / 2)


@pytest.mark.parametrize("name", ALL)
def test_training_in_bfloat16_stays_finite_and_keeps_weights_in_float32(name: str) -> None:
    bags, model = planted(4, seed=0), make(name, d_in=16, classes=2)
    result = fit(
        model,
        bags,
        bags,
        anchor=AnchorRegularizer(model),
        config=FitConfig(epochs=1, precision="bf16", accumulate=2),
        seed=0,
    )
    assert math.isfinite(result.history[0]["loss"])
    assert all(value.dtype == torch.float32 for value in result.best_state.values())
