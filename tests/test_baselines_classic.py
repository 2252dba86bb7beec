"""What is particular to pooling, ABMIL, CLAM, DSMIL and TransMIL, and how models are configured; cases done by hand."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from asmil.baselines.abmil import ABMIL
from asmil.baselines.clam import CLAMMB, CLAMSB, instance_loss
from asmil.baselines.dsmil import DSMIL
from asmil.baselines.nystrom import NystromAttention, pseudo_inverse
from asmil.baselines.transmil import TransMIL
from asmil.registry import MODELS
from pipeline import settings
from pipeline.errors import ConfigError
from pipeline.model_folder import build_model
from tests.conftest import ROOT
from tests.test_baselines import make, patches

FEATURES = patches(30)


def silent(model: nn.Module) -> None:
    """Set every weight to 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


def ordered(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sorted(options.items()) if key not in ("d_in", "classes")}


# configuration


def test_more_steps_than_rounding_allows_are_refused() -> None:
    with pytest.raises(ValueError, match="pinv_steps is 21, it must be at most 20"):
        make("transmil", pinv_steps=21)
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    model = make("transmil", pinv_steps=20).eval()
    repeated = rows[[0, 0, 1, 1, 2, 2, 0, 1]].repeat(1, model.d_in // 32)
    assert torch.isfinite(model(repeated)[0]).all()


def test_schema_and_configuration_name_every_model_of_the_registry() -> None:
    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "config.schema.yaml").read_text())
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    single, anchored, several = schema["properties"]["model"]["anyOf"]
    assert single["enum"] == list(MODELS)
    assert several["items"] == {"anyOf": [single, anchored]}
    for name, named in MODELS.items():
        assert bool(re.search(anchored["pattern"], f"{name}+ema")) == named.attends
    assert ["asmil", *config["baselines"]] == list(MODELS)
    assert list(schema["properties"]["baselines"]["properties"]) == list(config["baselines"])


@pytest.mark.parametrize("name", list(MODELS))
def test_configured_options_build_the_models_own_defaults(name: str) -> None:
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config |= {"model": name, "encoder": {**config["encoder"], "name": "texture"}}
    checked = settings.check(config, ROOT / "workflow" / "schemas" / "config.schema.yaml")
    section = {key: value for key, value in settings.model_options(checked, name).items() if value != "auto"}
    built = build_model(name, d_in=32, classes=2, options=section, seed=0)
    assert ordered(dict(built.options)) == ordered(dict(make(name, d_in=32, classes=2).options))
    assert set(section) <= set(built.options)


def test_option_of_another_model_is_refused(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["encoder"]["name"] = "texture"
    config["baselines"]["abmil"]["branches"] = 3
    with pytest.raises(ConfigError, match=r"unknown key 'baselines\.abmil\.branches'"):
        settings.check(config, ROOT / "workflow" / "schemas" / "config.schema.yaml")


# pooling


def test_mean_of_logits_and_share_of_each_patch() -> None:
    model = make("mean_pooling").eval()
    torch.testing.assert_close(model(FEATURES)[0], model.patch_logits(FEATURES).mean(0))
    assert torch.equal(model.score(FEATURES), torch.full((30,), 1 / 30))


def test_copy_of_a_patch_changes_no_maximum() -> None:
    model = make("max_pooling").eval()
    torch.testing.assert_close(model(torch.cat([FEATURES, FEATURES[4:5]]))[0], model(FEATURES)[0])
    assert set((model.score(FEATURES) * 3).round().long().tolist()) <= {0, 1, 2, 3}


# ABMIL


@pytest.mark.parametrize("name", ["abmil", "gated_abmil"])
def test_attention_over_patches_follows_the_equation(name: str) -> None:
    model: ABMIL = make(name).eval()
    hidden = torch.relu(F.linear(FEATURES, *model.project[0].parameters()))
    inner = torch.tanh(model.attend.content(hidden))
    if name == "gated_abmil":
        assert model.attend.gate is not None
        inner = inner * torch.sigmoid(model.attend.gate(hidden))
    attention = torch.softmax(inner @ model.attend.combine.weight[0], dim=0)
    torch.testing.assert_close(model(FEATURES)[0], model.classify(attention @ hidden))
    torch.testing.assert_close(model.score(FEATURES), attention)


def test_bag_of_one_patch_is_that_patch() -> None:
    model: ABMIL = make("gated_abmil").eval()
    assert model.score(FEATURES[:1]).tolist() == [1.0]
    torch.testing.assert_close(model(FEATURES[:1])[0], model.classify(model.project(FEATURES[:1]))[0])


# CLAM


@pytest.mark.parametrize("name", ["clam_sb", "clam_mb"])
def test_loss_at_zero_weights_is_that_of_chance(name: str) -> None:
    model = make(name).train()
    silent(model)
    logits, _ = model(FEATURES)
    loss = model.objective(F.cross_entropy(logits, torch.tensor(1)), 1)
    assert loss.item() == pytest.approx(0.7 * math.log(3) + 0.3 * math.log(2))


def test_support_vector_loss_is_cross_entropy_with_a_margin() -> None:
    heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(2))
    silent(heads)
    loss = instance_loss(torch.randn(1, 30), torch.randn(30, 4), heads, label=0, count=8, margin=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.e))


def test_instance_loss_takes_the_most_and_least_attended_patches() -> None:
    head = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [1.0]]))
    attention_logits, hidden = torch.arange(10.0)[None], torch.arange(10.0)[:, None]
    loss = instance_loss(attention_logits, hidden, nn.ModuleList([head]), label=0, count=2)
    expected = torch.tensor([F.softplus(torch.tensor(value)) for value in (-9.0, -8.0, 0.0, 1.0)]).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("count", "terms"), [(1, 0), (2, 1), (3, 1), (15, 7), (16, 8), (40, 8)])
def test_no_patch_is_both_positive_and_negative(count: int, terms: int) -> None:
    seen: list[int] = []
    head = nn.Linear(3, 2)
    head.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    loss = instance_loss(torch.randn(1, count), torch.randn(count, 3), nn.ModuleList([head]), label=0, count=8)
    assert sum(seen) == 2 * terms
    assert (loss.item() == 0) == (terms == 0)


def test_other_classes_count_only_when_classes_exclude_each_other() -> None:
    heads = nn.ModuleList(nn.Linear(3, 2) for _ in range(3))
    silent(heads)
    arguments = (torch.randn(1, 30), torch.randn(30, 3), heads)
    assert instance_loss(*arguments, label=1, count=4).item() == pytest.approx(math.log(2))
    assert instance_loss(*arguments, label=1, count=4, subtyping=True).item() == pytest.approx(math.log(2))
    heads[0].bias.data.copy_(torch.tensor([2.0, 0.0]))  # type: ignore[operator]
    assert instance_loss(*arguments, label=1, count=4).item() == pytest.approx(math.log(2))
    assert instance_loss(*arguments, label=1, count=4, subtyping=True).item() < math.log(2)


def test_many_branches_with_shared_weights_are_the_single_branch() -> None:
    single: CLAMSB = make("clam_sb").eval()
    many: CLAMMB = make("clam_mb").eval()
    many.project.load_state_dict(single.project.state_dict())
    with torch.no_grad():
        many.attend.load_state_dict(
            {
                name: value.expand(3, *value.shape[1:]) if name.startswith("combine") else value
                for name, value in single.attend.state_dict().items()
            }
        )
        for number, layer in enumerate(many.classify):
            layer.weight.copy_(single.classify.weight[number : number + 1])  # type: ignore[operator]
            layer.bias.copy_(single.classify.bias[number : number + 1])  # type: ignore[operator]
    torch.testing.assert_close(many(FEATURES)[0], single(FEATURES)[0])
    torch.testing.assert_close(many.score(FEATURES), single.score(FEATURES))


def test_instance_loss_reaches_the_projection() -> None:
    model: CLAMSB = make("clam_sb", instance_weight=1.0).train()
    logits, _ = model(FEATURES)
    model.objective(F.cross_entropy(logits, torch.tensor(1)), 1).backward()  # type: ignore[no-untyped-call]
    gradient = model.project[0].weight.grad
    assert isinstance(gradient, Tensor)
    assert gradient.abs().sum() > 0


# DSMIL


def test_bag_of_one_patch_is_classified_from_copies_of_it() -> None:
    model: DSMIL = make("dsmil").eval()
    logits, attention_logits = model(FEATURES[:1])
    torch.testing.assert_close(logits, model.classify(FEATURES[:1].expand(1, 3, -1)).flatten())
    assert torch.equal(attention_logits.softmax(-1), torch.ones(3, 1))


def test_attention_is_the_likeness_to_each_classs_critical_patch() -> None:
    model: DSMIL = make("dsmil").eval()
    _, attention_logits = model(FEATURES)
    queries = model.query(FEATURES)
    for number, place in enumerate(model.judge(FEATURES).argmax(0)):
        torch.testing.assert_close(attention_logits[number], queries @ queries[place] / math.sqrt(128))
        torch.testing.assert_close(attention_logits[number, place], queries[place].square().sum() / 128**0.5)


def test_only_the_first_streams_loss_trains_the_choice_of_the_critical_patch() -> None:
    model: DSMIL = make("dsmil").train()
    model(FEATURES)[0].sum().backward()
    assert model.judge.weight.grad is None
    logits, _ = model(FEATURES)
    model.objective(F.cross_entropy(logits, torch.tensor(1)), 1).backward()  # type: ignore[no-untyped-call]
    assert model.judge.weight.grad is not None


def test_shared_critical_patches_decide_the_anchors_attention() -> None:
    model: DSMIL = make("dsmil").eval()
    shared = torch.tensor([3, 3, 7])
    queries = model.query(FEATURES)
    torch.testing.assert_close(
        model.attention_logits(FEATURES, None, shared), queries[shared] @ queries.T / math.sqrt(128)
    )


def test_mean_of_both_streams_is_a_distribution() -> None:
    model: DSMIL = make("dsmil", average=True).eval()
    logits, _ = model(FEATURES)
    assert logits.exp().sum().item() == pytest.approx(1, abs=1e-6)


# TransMIL


@pytest.mark.parametrize("count", [1, 17, 65, 100])
def test_with_as_many_landmarks_as_tokens_attention_is_exact(count: int) -> None:
    torch.manual_seed(0)
    layer = NystromAttention(64, heads=4, landmarks=count, pinv_steps=20).eval().double()
    query, key, value = (torch.randn(4, count, 16, dtype=torch.float64) for _ in range(3))
    found = layer.attend(query * 0.25, key, value)
    exact = (query * 0.25 @ key.mT).softmax(-1) @ value
    assert ((found - exact).norm() / exact.norm()).item() < 1e-3


def test_released_padding_drowns_short_bags_and_ours_does_not() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(8, 17, 64) for _ in range(3))
    query = query / 8
    exact = (query @ key.mT).softmax(-1) @ value

    def error(compat: bool) -> float:
        found = NystromAttention(512, compat=compat).attend(query, key, value)
        return float((found - exact).norm() / exact.norm())

    assert error(True) > 0.8
    assert error(False) < 0.1


@pytest.mark.parametrize("count", [255, 256, 257, 300, 513, 1000])
def test_landmarks_are_means_of_all_tokens(count: int) -> None:
    layer = NystromAttention(64, heads=2, landmarks=256)
    rows = torch.randn(2, count, 32)
    each = math.ceil(count / 256)
    expected = torch.stack([chunk.mean(1) for chunk in torch.split(rows, each, dim=1)], dim=1)
    found = layer._landmarks(rows)
    assert found.shape[1] <= 256
    torch.testing.assert_close(found, expected)


def test_pseudo_inverse_of_one_head_is_not_changed_by_another() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 20, 20).softmax(-1), 5 * torch.randn(2, 20, 20)
    alone = pseudo_inverse(first, steps=6)
    together = pseudo_inverse(torch.cat([first, second.softmax(-1)]), steps=6)
    torch.testing.assert_close(together[:2], alone)
    shared = pseudo_inverse(torch.cat([first, second.softmax(-1)]), steps=6, shared_scale=True)
    assert not torch.allclose(shared[:2], alone, atol=1e-3)


def test_class_tokens_attention_leaves_out_itself_and_repeated_patches() -> None:
    model: TransMIL = make("transmil").eval()
    features = patches(10)  # a square of 16: six patches come again
    _, attention_logits = model(features)
    assert attention_logits.shape == (8, 10)
    _, query, key, _ = model._second_layer(features)
    assert query.shape[1] == 17
    torch.testing.assert_close(attention_logits[2], key[2, 1:11] @ query[2, 0])


def test_order_of_the_patches_matters_to_the_grid() -> None:
    model: TransMIL = make("transmil").eval()
    assert not torch.allclose(model(FEATURES.flip(0))[0], model(FEATURES)[0], atol=1e-6)


def test_width_of_an_encoder_of_384_has_the_published_size() -> None:
    assert sum(value.numel() for value in TransMIL(384, 2).parameters()) == 193_298
