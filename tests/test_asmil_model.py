"""The model against plain layers, its invariances, masks and token dropping: METHOD section 12, items 6, 21-28."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asmil.compat import from_released
from asmil.losses import alignment_loss
from asmil.model import ASMIL
from asmil.normalizers import log_nsf, log_softmax
from asmil.options import default_d_inner
from asmil.protocol import AttentionMIL


class PlainPool(nn.Module):
    """One query's multi-head attention pool, written out: every key and value is formed."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, query: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        size = query.shape[-1] // self.heads
        queries, keys, values = self.q_proj(query), self.k_proj(rows), self.v_proj(rows)
        logits, outputs = [], []
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            logits.append(keys[:, part] @ queries[part] / math.sqrt(size))
            outputs.append(logits[-1].softmax(0) @ values[:, part])
        return self.layer_norm(self.out_proj(torch.cat(outputs))), torch.stack(logits)


class PlainClassifier(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)


class PlainProjection(nn.Module):
    def __init__(self, d_in: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_in, width, bias=False)


class PlainASMIL(nn.Module):
    """The architecture of METHOD section 2 from plain torch layers, under the names of the released one."""

    def __init__(self, d_in: int, width: int, *, tokens: int, heads: int, classes: int) -> None:
        super().__init__()
        self.dimreduction = PlainProjection(d_in, width)
        self.sub_attention = nn.ModuleList(PlainPool(width, heads) for _ in range(tokens))
        self.bag_attention = PlainPool(width, heads)
        self.q, self.cls = nn.Parameter(torch.randn(1, tokens, width)), nn.Parameter(torch.randn(1, 1, width))
        self.Slide_classifier = PlainClassifier(width, classes)
        self.classifier = nn.ModuleList(PlainClassifier(width, classes) for _ in range(tokens))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if "norm" in name:  # as after training: a norm at its start would hide a norm that is not loaded
                nn.init.normal_(parameter, mean=0.5)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.dimreduction.fc1(features))
        pooled = [pool(query, hidden) for pool, query in zip(self.sub_attention, self.q[0], strict=True)]
        bag, _ = self.bag_attention(self.cls[0, 0], torch.stack([found for found, _ in pooled]))
        return self.Slide_classifier.fc(bag), torch.stack([logits for _, logits in pooled])


@pytest.fixture
def plain() -> PlainASMIL:
    torch.manual_seed(0)
    return PlainASMIL(24, 32, tokens=5, heads=4, classes=3).eval()


@pytest.fixture
def model() -> ASMIL:
    torch.manual_seed(0)
    return ASMIL(20, 3, d_inner=16, tokens=4, heads=2).eval()


def bag(count: int, width: int = 20, *, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 300])
def test_folded_query_gives_what_plain_layers_give(plain: PlainASMIL, count: int) -> None:
    features = bag(count, 24)
    logits, attention_logits = from_released(plain.state_dict(), heads=4).eval()(features)
    expected, expected_attention = plain(features)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention_logits, expected_attention, atol=1e-5, rtol=1e-5)


def test_folded_query_has_the_gradient_of_plain_layers(plain: PlainASMIL) -> None:
    model = from_released(plain.double().state_dict(), heads=4).double().eval()
    features = bag(50, 24).double()
    for network in (plain, model):
        logits, attention_logits = network(features)
        (logits.logsumexp(0) + attention_logits.sigmoid().sum()).backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    theirs = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for k in range(5):
        for kind, name in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "output")):
            for part in ("weight", "bias"):
                mine = ours[f"token_pools.{name}_{part}"]
                assert mine is not None
                torch.testing.assert_close(mine[k], theirs[f"sub_attention.{k}.{kind}_proj.{part}"])
    torch.testing.assert_close(ours["project.weight"], theirs["dimreduction.fc1.weight"])


@pytest.mark.parametrize(
    "key", ["q", "cls", "dimreduction.fc1.weight", "sub_attention.2.k_proj.bias", "bag_attention.layer_norm.weight"]
)
def test_missing_key_of_a_released_state_dict_is_named(plain: PlainASMIL, key: str) -> None:
    state = plain.state_dict()
    del state[key]
    with pytest.raises(ValueError, match=f"no {key} in the state dict"):
        from_released(state, heads=4)


@pytest.mark.parametrize("key", ["sub_attention.0.gate.weight", "dimreduction.fc1.bias", "classifier.0.fc2.weight"])
def test_unexpected_key_of_a_released_state_dict_is_named_unless_ignored(plain: PlainASMIL, key: str) -> None:
    state = plain.state_dict() | {key: torch.zeros(3)}
    with pytest.raises(ValueError, match=f"unexpected {key} in the state dict"):
        from_released(state, heads=4)
    from_released(state, heads=4, ignore=[key])


def test_tensor_of_another_shape_in_a_released_state_dict_is_named(plain: PlainASMIL) -> None:
    state = plain.state_dict() | {"sub_attention.1.v_proj.weight": torch.zeros(8, 32)}
    with pytest.raises(ValueError, match=r"sub_attention\.1\.v_proj\.weight has shape \[8, 32\]"):
        from_released(state, heads=4)
    with pytest.raises(ValueError, match=r"q has shape \[1, 4, 32\]"):
        from_released(plain.state_dict() | {"q": torch.zeros(1, 4, 32)}, heads=4)
    with pytest.raises(ValueError, match=r"Slide_classifier\.fc\.bias has shape \[\]"):
        from_released(plain.state_dict() | {"Slide_classifier.fc.bias": torch.tensor(1.0)}, heads=4)


def test_a_token_of_an_absurd_number_is_named_and_fills_no_memory(plain: PlainASMIL) -> None:
    key = "sub_attention.99999999.q_proj.bias"
    with pytest.raises(ValueError, match=f"unexpected {key} in the state dict"):
        from_released(plain.state_dict() | {key: torch.zeros(32)}, heads=4)


def test_model_satisfies_the_protocol(model: ASMIL) -> None:
    checked: AttentionMIL = model
    assert (checked.d_in, checked.classes, checked.context) == (20, 3, None)


@pytest.mark.parametrize(
    ("d_in", "width"), [(384, 128), (512, 256), (768, 384), (1024, 512), (1536, 768), (166, 80), (2560, 1280), (4, 8)]
)
def test_inner_width_follows_the_encoders_width(d_in: int, width: int) -> None:
    assert default_d_inner(d_in) == width


@pytest.mark.parametrize("count", [1, 3, 50_000])
def test_outputs_have_their_shapes_from_one_patch_to_fifty_thousand(model: ASMIL, count: int) -> None:
    with torch.no_grad():
        logits, attention_logits = model(bag(count))
        score = model.score(bag(count))
    assert logits.shape == (3,)
    assert attention_logits.shape == (4, 2, count)
    assert score.shape == (count,)
    assert logits.isfinite().all()


def test_batch_gives_each_bag_what_it_gives_alone_and_padding_gets_no_attention(model: ASMIL) -> None:
    bags = [bag(count, seed=count) for count in (9, 1, 5)]
    features, mask = torch.full((3, 9, 20), 1e3), torch.zeros(3, 9, dtype=torch.bool)
    for row, one in enumerate(bags):
        features[row, : len(one)], mask[row, : len(one)] = one, True
    logits, attention_logits = model(features, mask)
    score = model.score(features, mask)
    assert logits.shape == (3, 3)
    assert attention_logits.shape == (3, 4, 2, 9)
    for row, one in enumerate(bags):
        alone, alone_attention = model(one)
        torch.testing.assert_close(logits[row], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(attention_logits[row, ..., : len(one)], alone_attention, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(score[row, : len(one)], model.score(one), atol=1e-6, rtol=1e-5)
        assert (attention_logits[row, ..., len(one) :] == -torch.inf).all()
        assert (attention_logits[row].softmax(-1)[..., len(one) :] == 0).all()
        assert (score[row, len(one) :] == 0).all()


def test_permuting_patches_permutes_attention_and_leaves_logits(model: ASMIL) -> None:
    features, order = bag(200), torch.randperm(200, generator=torch.Generator().manual_seed(1))
    logits, attention_logits = model(features)
    permuted, permuted_attention = model(features[order])
    torch.testing.assert_close(permuted, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(permuted_attention, attention_logits[..., order], atol=1e-5, rtol=1e-5)


def test_duplicating_every_patch_leaves_logits_and_halves_the_score(model: ASMIL) -> None:
    features = bag(60)
    twice = torch.cat([features, features])
    torch.testing.assert_close(model(twice)[0], model(features)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.score(twice)[:60], model.score(features) / 2, atol=1e-6, rtol=1e-5)


def test_evaluation_is_deterministic_and_training_is_not(model: ASMIL) -> None:
    features = bag(30)
    assert torch.equal(model(features)[0], model(features)[0])
    model.train()
    assert not torch.equal(model(features)[0], model(features)[0])


def test_score_is_the_token_weighted_attention_and_sums_to_one(plain: PlainASMIL) -> None:
    features = bag(40, 24)
    hidden = torch.relu(plain.dimreduction.fc1(features))
    pooled = [pool(query, hidden) for pool, query in zip(plain.sub_attention, plain.q[0], strict=True)]
    _, bag_logits = plain.bag_attention(plain.cls[0, 0], torch.stack([found for found, _ in pooled]))
    token_weights = bag_logits.softmax(-1).mean(0)
    expected = sum(token_weights[k] * pooled[k][1].softmax(-1).mean(0) for k in range(5))
    score = from_released(plain.state_dict(), heads=4).eval().score(features)
    torch.testing.assert_close(score, expected)
    assert score.sum().item() == pytest.approx(1, abs=1e-6)


def test_half_precision_features_are_computed_in_the_models_precision(model: ASMIL) -> None:
    features = bag(30).half()
    assert torch.equal(model(features)[0], model(features.float())[0])


def test_dropout_acts_on_the_pools_output_in_training_only() -> None:
    torch.manual_seed(0)
    model = ASMIL(20, 2, d_inner=16, tokens=1, heads=2, token_drop=0.0, dropout=0.25)
    pool = model.token_pools
    weights = torch.full((2000, 1, 2, 30), 1 / 30)
    rows = bag(30, 16).expand(2000, 30, 16)
    drawn, plain = pool.train().pool(weights, rows), pool.eval().pool(weights, rows)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(plain[0], plain[1])
    assert (
        len({row.numpy().tobytes() for row in drawn.detach()}) > 1000
    )  # 16 entries, each dropped with probability 1 / 4


def kept_tokens(model: ASMIL, draws: int) -> Tensor:
    torch.manual_seed(3)
    kept = model.train()._kept(torch.zeros(draws, model.tokens.shape[0], 1))
    assert kept is not None
    return kept


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.9])
def test_each_token_is_kept_at_the_complement_of_the_drop_rate_and_never_none_is(rate: float) -> None:
    kept = kept_tokens(ASMIL(8, 2, d_inner=8, tokens=8, heads=2, token_drop=rate), 20_000)
    assert kept.any(-1).all()
    none_kept = rate**8  # probability that an unguarded draw drops all; the guard then keeps one of the eight
    share = kept.float().mean(0)
    standard_error = math.sqrt(rate * (1 - rate) / 20_000)
    torch.testing.assert_close(share, torch.full((8,), 1 - rate + none_kept / 8), atol=5 * standard_error, rtol=0)


def test_fixed_token_dropping_drops_exactly_so_many_tokens() -> None:
    kept = kept_tokens(ASMIL(8, 2, d_inner=8, tokens=6, heads=2, token_drop="fixed:2"), 1000)
    assert (kept.sum(-1) == 4).all()
    assert kept.float().mean(0).min() > 0.55


def test_single_token_survives_any_drop_rate() -> None:
    assert kept_tokens(ASMIL(8, 2, d_inner=8, tokens=1, heads=2, token_drop=0.99), 1000).all()


def test_dropped_token_learns_nothing_from_the_label_but_is_still_aligned() -> None:
    torch.manual_seed(0)
    model = ASMIL(20, 2, d_inner=16, tokens=6, heads=2).train()
    torch.manual_seed(11)
    logits, attention_logits = model(bag(40))
    nn.functional.cross_entropy(logits, torch.tensor(1)).backward(retain_graph=True)  # type: ignore[no-untyped-call]
    pools = model.token_pools

    def learns(weight: nn.Parameter) -> Tensor:
        assert weight.grad is not None
        return weight.grad.flatten(1).abs().sum(1) > 0

    kept = learns(pools.value_weight)
    assert 0 < int(kept.sum()) < 6
    for weight in (pools.output_weight, pools.query_weight, pools.key_weight):
        assert torch.equal(learns(weight), kept)
    target = log_nsf(torch.randn_like(attention_logits))
    alignment_loss(target, log_softmax(attention_logits)).backward()  # type: ignore[no-untyped-call]
    assert learns(pools.query_weight).all()
    assert learns(pools.key_weight).all()
    assert torch.equal(learns(pools.value_weight), kept)


def test_numbers_of_parameters_is_that_of_plain_layers(plain: PlainASMIL) -> None:
    unused = sum(p.numel() for n, p in plain.named_parameters() if n.startswith(("classifier.", "norm.")))
    ours = sum(p.numel() for p in ASMIL(24, 3, d_inner=32, tokens=5, heads=4).parameters())
    assert ours == sum(p.numel() for p in plain.parameters()) - unused


def test_tokens_start_small_and_projections_as_linear_layers_do() -> None:
    torch.manual_seed(0)
    model = ASMIL(768, 2)
    assert model.tokens.std().item() == pytest.approx(0.02, rel=0.05)
    bound = 1 / math.sqrt(384)
    assert model.token_pools.key_weight.abs().max().item() == pytest.approx(bound, rel=1e-3)


def test_no_key_or_value_of_a_patch_is_kept_for_the_backward_pass() -> None:
    model = ASMIL(64, 2, d_inner=64, tokens=8, heads=8)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.numel() >= 1000 * 8:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(bag(1000, 64))
    # the features, h [N, D] and the attention [K * H, N]; eight tokens' keys and values would be sixteen times h
    assert sum(saved.values()) <= 4 * 1000 * (64 + 64 + 64) + np.dtype(np.float32).itemsize * 5 * 8 * 64 * 64


def test_tokens_own_loss_is_the_mean_over_all_of_them_and_reaches_every_pool() -> None:
    torch.manual_seed(0)
    model = ASMIL(20, 3, d_inner=16, tokens=4, heads=2, token_loss=0.5, token_drop=0.9, dropout=0.0).train()
    model(bag(30))
    loss = model.objective(torch.tensor(2.0), 1)
    loss.backward()  # type: ignore[no-untyped-call]
    hidden = torch.relu(model.project(bag(30)))
    found = model.token_pools.pool(model.attention_logits(bag(30)).softmax(-1), hidden)
    own = [layer(token).log_softmax(-1)[1] for layer, token in zip(model.classify_tokens, found, strict=True)]
    torch.testing.assert_close(loss, 2.0 - 0.5 * torch.stack(own).mean())
    assert all((gradient := model.token_pools.query_weight.grad) is not None and gradient[k].any() for k in range(4))
    with pytest.raises(ValueError, match="right before it"):
        model.objective(torch.tensor(2.0), 1)


def test_without_a_weight_the_tokens_have_no_classifiers_and_no_loss() -> None:
    model = ASMIL(20, 3, d_inner=16, tokens=4, heads=2).train()
    model(bag(30))
    given = torch.tensor(2.0)
    assert model.objective(given, 1) is given
    assert not any("classify_tokens" in name for name in model.state_dict())


def test_tokens_start_with_the_spread_that_is_asked_for() -> None:
    torch.manual_seed(0)
    assert ASMIL(20, 2, d_inner=256, tokens=64, token_std=1e-6).tokens.std().item() == pytest.approx(1e-6, rel=0.05)
    assert ASMIL(20, 2, d_inner=256, tokens=64).tokens.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"d_inner": 20, "heads": 8},
        {"tokens": 0},
        {"token_drop": 1.0},
        {"token_drop": "fixed:8"},
        {"token_drop": "half"},
        {"token_drop": -0.1},
        {"token_std": -1.0},
        {"token_loss": math.nan},
    ],
)
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"d_inner|token"):
        ASMIL(20, 2, **options)


def test_model_is_rebuilt_from_its_options(model: ASMIL) -> None:
    other = ASMIL(**model.options).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(bag(9))[0], model(bag(9))[0])
