"""What is particular to ACMIL, AEM, DTFD, MHIM and PAMIL: their equations in cases done by hand, and their traps."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag
from asmil.baselines.abmil import ABMIL
from asmil.baselines.acmil import ACMIL, diversity_loss
from asmil.baselines.aem import AEM
from asmil.baselines.dtfd import DTFD
from asmil.baselines.mhim import MHIM
from asmil.baselines.pamil import PAMIL, find_centres
from asmil.losses import entropy_penalty
from asmil.model import ASMIL
from asmil.registry import MODELS
from tests.test_baselines import make, patches

FEATURES = patches(30)


# ACMIL


@pytest.mark.parametrize(("count", "masked"), [(50, 6), (10, 6), (5, 3), (1, 0)])
def test_so_many_of_the_largest_logits_are_masked_in_training(count: int, masked: int) -> None:
    model: ACMIL = make("acmil").train()
    logits = torch.randn(5, count)
    found = model.mask(logits)
    assert ((found == -torch.inf).sum(-1) == masked).all()
    lowest = logits.topk(min(10, count)).values[:, -1:]
    assert (logits[found == -torch.inf] >= lowest.expand_as(logits)[found == -torch.inf]).all()
    assert torch.equal(model.eval().mask(logits), logits)


def test_anchor_sees_the_logits_before_masking() -> None:
    model: ACMIL = make("acmil").train()
    assert model(FEATURES)[1].isfinite().all()


def test_single_branch_without_masking_is_gated_abmil() -> None:
    model: ACMIL = make("acmil", branches=1, masked_of=0).eval()
    plain = ABMIL(32, 3, projection_bias=False).eval()
    plain.project.load_state_dict(model.project.state_dict())
    plain.attend.load_state_dict(model.attend.state_dict())
    plain.classify.load_state_dict(model.classify.state_dict())
    torch.testing.assert_close(model(FEATURES)[0], plain(FEATURES)[0])
    logits, _ = model.train()(FEATURES)
    assert model.objective(torch.tensor(1.5), 0).item() == 1.5
    assert logits.shape == (3,)


def test_diversity_is_one_for_equal_branches_and_zero_for_disjoint_ones() -> None:
    row = torch.rand(9).softmax(0)
    assert diversity_loss(row.expand(4, 9)).item() == pytest.approx(1)
    assert diversity_loss(torch.eye(4, 9)).item() == 0
    rows = torch.rand(4, 9)
    pairs = [F.cosine_similarity(a, b, dim=0) for a, b in itertools.combinations(rows, 2)]
    torch.testing.assert_close(diversity_loss(rows), torch.stack(pairs).mean())


# AEM


def test_penalty_is_least_where_attention_is_uniform() -> None:
    assert entropy_penalty(torch.zeros(1, 100)).item() == pytest.approx(-math.log(100))
    one = torch.full((1, 50), -torch.inf)
    one[0, 3] = 0
    assert entropy_penalty(one).item() == 0


def test_weight_of_the_penalty_falls_along_half_a_cosine() -> None:
    model: AEM = make("aem").train()
    values = []
    for progress in (0.0, 0.5, 1.0):
        model.begin_step(progress)
        _, attention_logits = model(FEATURES)
        values.append((model.objective(torch.tensor(0.0), 0) / entropy_penalty(attention_logits)).item())
    assert values == pytest.approx([0.1, 0.05, 0.0], abs=1e-7)
    constant: AEM = make("aem", anneal=False).train()
    constant.begin_step(1.0)
    _, attention_logits = constant(FEATURES)
    torch.testing.assert_close(constant.objective(torch.tensor(0.0), 0), 0.1 * entropy_penalty(attention_logits))


def test_penalty_adds_to_the_hosts_own_objective() -> None:
    host = make("clam_sb", dropout=0.0)
    model, plain = AEM(host, entropy_weight=0.2, anneal=False).train(), copy.deepcopy(host).train()
    logits, attention_logits = model(FEATURES)
    plain(FEATURES)
    cross_entropy = F.cross_entropy(logits, torch.tensor(0))
    expected = plain.objective(cross_entropy, 0) + 0.2 * entropy_penalty(attention_logits)
    torch.testing.assert_close(model.objective(cross_entropy, 0), expected)


# DTFD


def test_single_pseudo_bag_is_classified_from_its_own_vector() -> None:
    model: DTFD = make("dtfd", pseudo_bags=1).eval()
    logits, attention_logits = model(FEATURES)
    hidden = model.project(FEATURES)
    torch.testing.assert_close(logits, model.classify(attention_logits.softmax(-1) @ hidden)[0])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 100])
def test_pseudo_bags_are_never_empty_and_cover_every_patch_once(count: int) -> None:
    model: DTFD = make("dtfd").train()
    _, attention_logits = model(patches(count))
    groups = torch.bincount(model.context)
    assert len(groups) == min(4, count)
    assert groups.max() - groups.min() <= 1
    assert attention_logits.shape == (4, count)
    assert ((attention_logits > -torch.inf)[: len(groups)].sum(0) == 1).all()


def test_division_is_drawn_anew_in_training_and_shared_with_the_anchor() -> None:
    model: DTFD = make("dtfd").train()
    first = model(FEATURES)[1]
    context = model.context
    second = model(FEATURES)[1]
    assert not torch.equal(first, second)
    assert torch.equal(model.attention_logits(FEATURES, None, context), first)


def test_slides_loss_does_not_reach_tier_one() -> None:
    model: DTFD = make("dtfd").train()
    model(FEATURES)[0].sum().backward()
    assert all(value.grad is None for value in model.project.parameters())
    assert all(value.grad is None for value in model.attend.parameters())


@pytest.mark.parametrize(("distillation", "rows"), [("afs", 4), ("max", 8), ("max_min", 16)])
def test_distilled_vectors_are_shares_of_patches(distillation: Any, rows: int) -> None:
    model: DTFD = make("dtfd", distillation=distillation, distilled=2).eval()
    hidden = model.project(FEATURES)
    attention = model.attention_logits(FEATURES).softmax(-1)
    shares = model._distil(hidden, attention)
    assert shares.shape == (rows, 30)
    torch.testing.assert_close(shares.sum(-1), torch.ones(rows))
    if distillation != "afs":
        assert (shares.sum(0) <= 1).all()  # no patch twice
    assert model.score(FEATURES).sum().item() == pytest.approx(1, abs=1e-6)


# MHIM


def test_without_masks_and_teacher_it_is_abmil() -> None:
    plain: dict[str, Any] = dict.fromkeys(
        ("high_ratio", "random_ratio", "low_ratio", "consistency_weight", "dropout"), 0.0
    )
    model: MHIM = make("mhim", **plain).train()
    logits, attention_logits = model(FEATURES)
    expected, expected_attention = model.student(FEATURES)
    assert torch.equal(logits, expected)
    assert torch.equal(attention_logits, expected_attention)
    assert model.objective(torch.tensor(1.25), 0).item() == 1.25


def test_teacher_follows_the_student_and_takes_no_gradient() -> None:
    model: MHIM = make("mhim", momentum=0.9).train()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = [value.clone() for value in model.teacher.parameters()]
    model.end_step()
    for old, slow, fast in zip(before, model.teacher.parameters(), model.student.parameters(), strict=True):
        torch.testing.assert_close(slow, 0.9 * old + 0.1 * fast, atol=1e-7, rtol=1e-6)
        assert not slow.requires_grad
    assert not model.teacher.training
    assert model.student.training


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_hidden_patches_are_those_the_ratios_say_and_one_is_always_kept(count: int) -> None:
    ratios: dict[str, Any] = {"high_ratio": 0.1, "high_hidden": 1.0, "random_ratio": 0.0, "low_ratio": 0.2}
    model: MHIM = make("mhim", **ratios).train()
    logits = torch.randn(count)
    kept = model.draw_kept(logits)
    assert kept.any()
    if count == 1000:
        order = logits.argsort(descending=True)
        assert not kept[order[:100]].any()
        assert not kept[order[800:]].any()
        assert kept.sum() == 700
        model.begin_step(1.0)
        assert model.draw_kept(logits).sum() == 800
    everything: MHIM = make("mhim", random_ratio=1.0).train()
    assert everything.draw_kept(logits).sum() == 1


def test_hidden_patches_are_hidden_from_the_anchor_too() -> None:
    model: MHIM = make("mhim").train()
    _, attention_logits = model(FEATURES)
    assert torch.equal(attention_logits[0] == -torch.inf, ~model.context)
    shared = model.attention_logits(FEATURES, None, model.context)
    assert torch.equal(shared == -torch.inf, attention_logits == -torch.inf)


def test_uniform_target_is_uniform_over_the_patches_that_are_seen() -> None:
    model: MHIM = make("mhim").train()
    _, attention_logits = model(FEATURES)
    anchor = AnchorRegularizer(model, AnchorConfig(mode="uniform"))
    target = anchor.log_target(attention_logits, FEATURES, context=model.context).exp()
    assert torch.equal(target > 0, model.context[None])
    assert target.sum().item() == pytest.approx(1)
    assert len(set(target.flatten().tolist())) == 2


def test_teacher_starts_from_a_trained_model() -> None:
    model: MHIM = make("mhim")
    trained = ABMIL(32, 3, gated=False, attention_bias=False)
    model.start_from(trained)
    assert all(torch.equal(a, b) for a, b in zip(model.teacher.parameters(), trained.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="attend"):
        model.start_from(ABMIL(32, 3, gated=False))


# PAMIL


def test_prototypes_are_centres_of_the_training_patches() -> None:
    generator = torch.Generator().manual_seed(0)
    places = 20 * torch.eye(3, 8)
    bags = [
        Bag(torch.cat([place + 0.1 * torch.randn(count, 8, generator=generator) for place in places]), 0, "bag")
        for count in (5, 900)
    ]
    centres = torch.from_numpy(find_centres(bags, count=3, d_in=8, seed=0))
    assert torch.cdist(places, centres).amin(1).max() < 0.5
    model: PAMIL = make("pamil", d_in=8, prototypes=3)
    model.prepare(bags, seed=0)
    assert torch.equal(model.prototypes, centres)
    assert "prototypes" in model.state_dict()


def test_fewer_patches_than_prototypes_repeat() -> None:
    centres = find_centres([Bag(torch.eye(2, 4), 0, "bag")], count=5, d_in=4, seed=0)
    assert centres.shape == (5, 4)


def test_order_of_prototypes_weights_stands_when_all_similarities_are_negative() -> None:
    model: PAMIL = make("pamil").eval()
    with torch.no_grad():
        model.prototype_side.bias.fill_(-5.0)
    similarity = model._similarity(model.project(FEATURES), model.project(model.prototypes)).amax(0)
    assert (similarity < 0).all()
    weights = (similarity / similarity.abs().amax()).softmax(-1)
    assert weights.argmax() == similarity.argmax()
    assert model(FEATURES)[0].isfinite().all()


def test_instance_classifiers_exist_only_with_their_loss() -> None:
    assert len(make("pamil").judge) == 0
    model: PAMIL = make("pamil", instance_weight=0.5).train()
    logits, _ = model(FEATURES)
    model.objective(F.cross_entropy(logits, torch.tensor(2)), 2).backward()  # type: ignore[no-untyped-call]
    head = model.judge[2]
    assert isinstance(head, nn.Linear)
    assert head.weight.grad is not None


def test_all_are_more_than_the_methods_own_model() -> None:
    assert MODELS["asmil"].build is ASMIL
    assert len(MODELS) == 14
