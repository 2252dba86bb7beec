"""The anchor: METHOD section 12, items 14 to 20, its options, and models other than ASMIL."""

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.errors import TrainingError
from asmil.model import ASMIL
from asmil.normalizers import log_nsf, log_softmax

FEATURES = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))


def small(seed: int = 0) -> ASMIL:
    torch.manual_seed(seed)
    return ASMIL(12, 2, d_inner=16, tokens=3, heads=2)


def perturb(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def upstream(model: ASMIL) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in model.anchor_parameters()}


def followed(anchor: AnchorRegularizer) -> dict[str, Tensor]:
    return {name: value for name, value in anchor.state_dict().items() if name != "anchor.steps"}


def loss_of(anchor: AnchorRegularizer, model: ASMIL, features: Tensor = FEATURES, mask: Tensor | None = None) -> Tensor:
    _, attention_logits = model(features, mask)
    return anchor.loss(attention_logits, features, mask)


def test_anchor_takes_no_gradient_and_shares_no_parameter_with_the_optimizer() -> None:
    model = small()
    anchor = AnchorRegularizer(model)
    assert anchor.anchor is not None
    assert not any(parameter.requires_grad for parameter in anchor.anchor.parameters())
    optimized = {parameter.data_ptr() for parameter in model.parameters()}
    assert not optimized & {parameter.data_ptr() for parameter in anchor._parameters().values()}
    loss_of(anchor, model).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in anchor.anchor.parameters())


def test_anchor_starts_equal_to_the_model_in_its_own_storage() -> None:
    model = small()
    anchor, start = AnchorRegularizer(model), upstream(model)
    assert followed(anchor).keys() == start.keys()
    assert all(torch.equal(value, start[name]) for name, value in followed(anchor).items())
    perturb(model, 1)
    assert all(torch.equal(value, start[name]) for name, value in followed(anchor).items())


def test_anchor_parameters_are_exactly_those_the_attention_logits_depend_on() -> None:
    model = small()
    model.attention_logits(FEATURES).square().sum().backward()  # type: ignore[no-untyped-call]
    reached = {name for name, value in model.named_parameters() if value.grad is not None}
    assert reached == set(model.anchor_parameters())


def test_anchor_is_the_weighted_mean_of_the_models_past() -> None:
    model = small()
    anchor = AnchorRegularizer(model, AnchorConfig(momentum=0.9))
    states = [upstream(model)]
    for step in range(7):
        perturb(model, step)
        anchor.step()
        states.append(upstream(model))
    for name, value in followed(anchor).items():
        expected = 0.9**7 * states[0][name].double()
        expected += sum(0.1 * 0.9 ** (7 - t) * states[t][name].double() for t in range(1, 8))
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-5)


def test_anchor_moves_after_the_first_step() -> None:
    model = small()
    anchor, start = AnchorRegularizer(model), upstream(model)
    perturb(model, 1)
    anchor.step()
    assert all(not torch.equal(value, start[name]) for name, value in followed(anchor).items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_step_raises_on_a_weight_that_is_not_finite_and_leaves_the_anchor(value: float) -> None:
    model = small()
    anchor, start = AnchorRegularizer(model), upstream(model)
    perturb(model, 1)
    with torch.no_grad():
        model.token_pools.key_bias[1, 2] = value
    with pytest.raises(TrainingError, match=r"token_pools\.key_bias is not finite after step 1"):
        anchor.step()
    assert all(torch.equal(found, start[name]) for name, found in followed(anchor).items())


@pytest.mark.parametrize(("momentum", "copies"), [(1.0, False), (0.0, True)])
def test_momentum_of_one_freezes_and_of_zero_copies(momentum: float, copies: bool) -> None:
    model = small()
    start = upstream(model)
    anchor = AnchorRegularizer(model, AnchorConfig(momentum=momentum))
    perturb(model, 1)
    anchor.step()
    expected = upstream(model) if copies else start
    assert all(torch.equal(value, expected[name]) for name, value in followed(anchor).items())


def test_frozen_mode_never_moves() -> None:
    model = small()
    start = upstream(model)
    anchor = AnchorRegularizer(model, AnchorConfig(mode="frozen", momentum=0.0))
    perturb(model, 1)
    anchor.step()
    assert all(torch.equal(value, start[name]) for name, value in followed(anchor).items())


def test_update_every_moves_at_multiples_only() -> None:
    model = small()
    anchor = AnchorRegularizer(model, AnchorConfig(momentum=0.0, update_every=3))
    moved = []
    for step in range(6):
        before = followed(anchor)["tokens"].clone()
        perturb(model, step)
        anchor.step()
        moved.append(not torch.equal(before, followed(anchor)["tokens"]))
    assert moved == [False, False, True, False, False, True]


def test_half_life_in_epochs_leaves_half_of_the_start_after_so_many() -> None:
    model = small()
    start = upstream(model)["tokens"].clone()
    anchor = AnchorRegularizer(model, AnchorConfig(half_life_epochs=2, update_every=5))
    with pytest.raises(ValueError, match="begin_epoch"):
        anchor.step()
    with torch.no_grad():
        model.tokens.add_(1)
    for epoch in (1, 2):
        anchor.begin_epoch(epoch, steps_per_epoch=20)
        for _ in range(20):
            anchor.step()
    torch.testing.assert_close(followed(anchor)["tokens"], start + 0.5)


def test_ramp_forgets_the_start_sooner_and_reaches_the_momentum() -> None:
    anchor = AnchorRegularizer(small(), AnchorConfig(momentum=0.5, ramp=True))
    momenta = []
    for _ in range(12):
        momenta.append(anchor.momentum)
        anchor.step()
    assert momenta[:3] == [0.1, 2 / 11, 3 / 12]
    assert momenta[8:] == [0.5] * 4


def test_target_does_not_depend_on_training_mode_token_dropping_or_dropout() -> None:
    model = small()
    anchor = AnchorRegularizer(model)
    _, attention_logits = model.eval()(FEATURES)
    target = anchor.log_target(attention_logits, FEATURES)
    torch.testing.assert_close(target, log_nsf(attention_logits.detach()))
    model.train()
    for _ in range(3):
        _, attention_logits = model(FEATURES)
        assert torch.equal(anchor.log_target(attention_logits, FEATURES), target)


def test_inference_is_bitwise_the_same_with_and_without_an_anchor() -> None:
    alone, model = small().eval(), small().eval()
    anchor = AnchorRegularizer(model)
    loss_of(anchor, model)
    assert torch.equal(model(FEATURES)[0], alone(FEATURES)[0])
    assert model.state_dict().keys() == alone.state_dict().keys()


def test_stored_anchor_continues_bitwise() -> None:
    model = small()
    anchor = AnchorRegularizer(model, AnchorConfig(momentum=0.9, ramp=True))
    anchor.step()
    perturb(model, 1)
    anchor.step()
    stored = {name: value.clone() for name, value in anchor.state_dict().items()}
    other = AnchorRegularizer(model, AnchorConfig(momentum=0.9, ramp=True))
    other.load_state_dict(stored)
    perturb(model, 2)
    for each in (anchor, other):
        each.step()
    assert int(other.state_dict()["anchor.steps"]) == 3
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in anchor.state_dict().items())


def test_state_of_another_model_is_refused() -> None:
    state = AnchorRegularizer(small()).state_dict()
    state["other"] = state.pop("tokens")
    with pytest.raises(ValueError, match="other, tokens"):
        AnchorRegularizer(small()).load_state_dict(state)


def test_random_start_is_another_draw_that_leaves_torchs_generator() -> None:
    model = small()
    before = torch.get_rng_state()
    anchors = [AnchorRegularizer(model, AnchorConfig(init="random"), seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (followed(anchor) for anchor in anchors)
    for name, value in upstream(model).items():
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        assert not torch.equal(first[name], value)
        assert first[name].std().item() == pytest.approx(value.std().item(), rel=0.5)


def test_targets_are_what_their_options_say() -> None:
    model = small().eval()
    _, logits = model(FEATURES)
    logits = logits.detach()

    def target(**options: Any) -> Tensor:
        return AnchorRegularizer(model, AnchorConfig(**options)).log_target(logits, FEATURES)

    torch.testing.assert_close(target(temperature=0.1), log_nsf(logits, temperature=0.1))
    torch.testing.assert_close(target(target="softmax"), log_softmax(logits))
    torch.testing.assert_close(target(target="softmax", temperature=0.1), log_softmax(logits / 0.1))
    torch.testing.assert_close(target(center="mean"), log_nsf(logits - logits.mean(-1, keepdim=True)))
    torch.testing.assert_close(target(mode="uniform"), torch.full_like(logits, -math.log(30)))


def test_mode_none_has_no_loss_and_no_weight() -> None:
    model = small()
    anchor = AnchorRegularizer(model, AnchorConfig(mode="none", beta=1.0))
    assert loss_of(anchor, model) == 0
    assert anchor.weight == 0
    anchor.step()


def test_loss_acts_from_its_first_epoch() -> None:
    anchor = AnchorRegularizer(small(), AnchorConfig(beta=0.3, start_epoch=3))
    weights = []
    for epoch in range(1, 5):
        anchor.begin_epoch(epoch, steps_per_epoch=1)
        weights.append(anchor.weight)
    assert weights == [0, 0, 0.3, 0.3]


@pytest.mark.parametrize("mode", ["ema", "uniform"])
def test_padding_changes_neither_loss_nor_diagnostics(mode: str) -> None:
    model = small().eval()
    perturb(model, 1)
    anchor = AnchorRegularizer(small(1), AnchorConfig(mode=mode))  # type: ignore[arg-type]
    padded = torch.cat([FEATURES, torch.full((10, 12), 5.0)])
    mask = torch.arange(40) < 30
    expected, numbers = loss_of(anchor, model), anchor.diagnostics()
    torch.testing.assert_close(loss_of(anchor, model, padded, mask), expected)
    assert anchor.diagnostics() == pytest.approx(numbers, rel=1e-5)
    torch.testing.assert_close(loss_of(anchor, model, padded.repeat(2, 1, 1), mask.repeat(2, 1)), expected)


def test_diagnostics_are_means_since_the_last_call() -> None:
    model = small().eval()
    anchor = AnchorRegularizer(small(1), AnchorConfig(center="median"))
    assert anchor.anchor is not None
    logits = [anchor.anchor.attention_logits(FEATURES[:count]) for count in (10, 30)]
    positive = [float((each > 0).float().mean()) for each in logits]
    losses = [loss_of(anchor, model, FEATURES[:count]).item() for count in (10, 30)]
    numbers = anchor.diagnostics()
    assert numbers["anchor_kl"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert numbers["anchor_positive_share"] == pytest.approx(sum(positive) / 2)  # of the logits as they are
    assert 0 < numbers["anchor_target_entropy"] < 1
    assert anchor.diagnostics() == {}


def test_target_that_stays_nearly_uniform_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    model = small()
    anchor = AnchorRegularizer(model, AnchorConfig(temperature=50))
    with caplog.at_level(logging.WARNING, logger="asmil"):
        for epoch in range(1, 9):
            anchor.begin_epoch(epoch, steps_per_epoch=1)
            loss_of(anchor, model)
            anchor.diagnostics()
    assert [record.message[:8] for record in caplog.records] == ["epoch 6:"]
    sharp = AnchorRegularizer(model, AnchorConfig(temperature=0.01, center="median"))
    sharp.begin_epoch(6, steps_per_epoch=1)
    caplog.clear()
    loss_of(sharp, model)
    sharp.diagnostics()
    assert not caplog.records


@pytest.mark.parametrize(
    "options",
    [
        {"beta": -1.0},
        {"beta": math.nan},
        {"mode": "mean"},
        {"temperature": 0.0},
        {"momentum": 1.5},
        {"half_life_epochs": 0.0},
        {"update_every": 0},
        {"start_epoch": 0},
        {"quantile": 2.0},
        {"center": "mode"},
        {"beta": "0.1"},
        {"update_every": 1.5},
        {"ramp": 1},
        {"half_life_epochs": [2]},
    ],
)
def test_option_out_of_its_range_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        AnchorConfig(**options)


class GatedModel(nn.Module):
    """A small model of another kind: one attention row, batch norm with buffers, and a context that it shares."""

    d_in, classes = 12, 2

    def __init__(self, *, named: tuple[str, ...]) -> None:
        super().__init__()
        self.named, self.context = named, None
        self.project, self.norm = nn.Linear(12, 6), nn.BatchNorm1d(6)
        self.attend, self.classify = nn.Linear(6, 1), nn.Linear(6, 2)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        hidden = self.norm(self.project(features))
        logits = self.attend(hidden).T
        return self.classify(logits.softmax(-1) @ hidden)[0], logits

    def attention_logits(self, features: Tensor, mask: Tensor | None = None, context: Any = None) -> Tensor:
        logits: Tensor = self.attend(self.norm(self.project(features))).T
        return logits if context is None else logits + context

    def anchor_parameters(self) -> tuple[str, ...]:
        return self.named

    def score(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return self(features, mask)[1].softmax(-1)[0]  # type: ignore[no-any-return]


UPSTREAM = ("project.weight", "project.bias", "norm.weight", "norm.bias", "attend.weight", "attend.bias")


def test_any_model_of_the_protocol_is_followed_with_its_buffers_and_context() -> None:
    torch.manual_seed(0)
    model = GatedModel(named=UPSTREAM)
    anchor = AnchorRegularizer(model, AnchorConfig(momentum=0.0))
    _, logits = model.train()(FEATURES)  # moves the batch norm's running mean
    anchor.step()
    _, expected = model.eval()(FEATURES)
    torch.testing.assert_close(anchor.log_target(logits, FEATURES), log_nsf(expected.detach()))
    shift = torch.linspace(-3, 3, 30)
    shared = anchor.log_target(logits, FEATURES, context=shift)
    torch.testing.assert_close(shared, log_nsf(expected.detach() + shift))
    loss = anchor.loss(logits, FEATURES)
    assert loss.ndim == 0
    assert loss.item() > 0


def test_model_that_forgets_an_upstream_parameter_fails_instead_of_using_a_stale_one() -> None:
    for forgotten in UPSTREAM:
        model = GatedModel(named=tuple(name for name in UPSTREAM if name != forgotten))
        anchor = AnchorRegularizer(model)
        _, logits = model(FEATURES)
        with pytest.raises(ValueError, match="anchor_parameters"):
            anchor.loss(logits, FEATURES)


def test_anchor_holds_no_storage_for_what_is_not_upstream() -> None:
    model = small()
    anchor = AnchorRegularizer(model).to(torch.device("cpu"))
    assert anchor.anchor is not None
    held = sum(value.untyped_storage().nbytes() for value in anchor.anchor.parameters())
    needed = sum(4 * value.numel() for value in upstream(model).values())
    assert held <= needed + 4 * len(list(model.parameters()))


def test_name_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attend\.scale"):
        AnchorRegularizer(GatedModel(named=(*UPSTREAM, "attend.scale")))
