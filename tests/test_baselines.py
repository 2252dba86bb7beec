"""Every model of the registry: what the protocol asks, published sizes, invariances, and the anchor on it."""

import copy
import functools
import math
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.baselines.abmil import ABMIL
from asmil.baselines.aem import AEM
from asmil.protocol import TrainingHooks
from asmil.registry import MODELS, Entry, NamedModel, build

WIDTH, CLASSES = 32, 3
ALL = tuple(MODELS)
BASELINES = tuple(name for name in ALL if name != "asmil")
ATTENDING = tuple(name for name, entry in MODELS.items() if entry.attends)
ORDERED = ("transmil", "dtfd")
"""The order of the patches matters: a grid is filled by it, or a division drawn."""

SIZES = {
    "mean_pooling": 525_826,
    "max_pooling": 525_826,
    "abmil": 591_619,
    "gated_abmil": 657_283,
    "clam_sb": 790_791,
    "clam_mb": 791_048,
    "dsmil": 153_860,
    "transmil": 2_672_146,
    "acmil": 662_417,
    "aem": 656_771,
    "dtfd": 789_254,
    "mhim": 2 * 591_490,  # student and teacher
    "pamil": 801_822 - 10 * 1024 - 2 * 1026,  # without the prototypes, which are a buffer, and optional heads
}


def make(name: str, *, d_in: int = WIDTH, classes: int = CLASSES, **options: Any) -> Any:
    torch.manual_seed(0)
    return build(name, d_in, classes, **options)


def patches(count: int, *, seed: int = 0, d_in: int = WIDTH) -> Tensor:
    return torch.randn(count, d_in, generator=torch.Generator().manual_seed(seed))


def loss_of(model: Any, features: Tensor, label: int = 1) -> Tensor:
    logits, _ = model(features)
    cross_entropy = F.cross_entropy(logits, torch.tensor(label))
    return model.objective(cross_entropy, label) if isinstance(model, TrainingHooks) else cross_entropy


@pytest.mark.parametrize("name", BASELINES)
def test_number_of_parameters_is_the_published_models(name: str) -> None:
    model = make(name, d_in=1024, classes=2)
    assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("gated_abmil", {"d_attention": 256}, 788_739),
        ("gated_abmil", {"d_attention": 384}, 920_195),
        ("clam_sb", {"d_attention": 384}, 922_247),
        ("clam_mb", {"d_attention": 384}, 922_632),
        ("dsmil", {"nonlinear_query": False}, 137_348),
        ("dsmil", {"value_network": True}, 1_203_460),
        ("acmil", {"branches": 1}, 657_797),
        ("pamil", {"instance_weight": 0.5}, 801_822 - 10 * 1024),
    ],
)
def test_options_change_the_size_as_published(name: str, options: dict[str, Any], size: int) -> None:
    model = make(name, d_in=1024, classes=2, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == size


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 225, 226, 257, 1000])
def test_every_bag_size_gives_finite_logits_and_gradients(name: str, count: int) -> None:
    model, features = make(name), patches(count)
    loss_of(model.train(), features).backward()  # type: ignore[no-untyped-call]
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    model.eval()
    logits, attention_logits = model(features)
    score = model.score(features)
    assert logits.shape == (CLASSES,)
    assert logits.isfinite().all()
    assert attention_logits.shape[-1] == count
    assert (attention_logits > -torch.inf).any(-1).all()
    assert score.shape == (count,)
    assert score.sum().item() == pytest.approx(1, abs=1e-5)
    assert (score >= 0).all()


@pytest.mark.parametrize("name", BASELINES)
def test_every_parameter_that_is_used_learns(name: str) -> None:
    options: dict[str, Any] = {"instance_weight": 0.5} if name == "pamil" else {}
    model = make(name, classes=2, **options).train()
    for label in (0, 1):
        loss_of(model, patches(40), label).backward()  # type: ignore[no-untyped-call]
    silent = {key for key, value in model.named_parameters() if value.requires_grad and value.grad is None}
    assert not silent
    assert all(value.grad is None for key, value in model.named_parameters() if key.startswith("teacher."))


@pytest.mark.parametrize("name", ALL)
def test_evaluation_twice_is_bitwise_the_same_and_moves_no_generator(name: str) -> None:
    model, features = make(name).eval(), patches(37)
    before = torch.get_rng_state()
    first, second = model(features), model(features)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(model.score(features), model.score(features))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in ORDERED])
def test_permuting_patches_permutes_attention_and_leaves_logits(name: str) -> None:
    model, features = make(name).double().eval(), patches(60).double()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    logits, attention_logits = model(features)
    permuted, permuted_attention = model(features[order])
    torch.testing.assert_close(permuted, logits, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(permuted_attention, attention_logits[..., order], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(model.score(features[order]), model.score(features)[order], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in ORDERED])
@pytest.mark.parametrize("times", [2, 3])
def test_repeating_the_whole_bag_leaves_logits(name: str, times: int) -> None:
    model, features = make(name).double().eval(), patches(40).double()
    torch.testing.assert_close(model(features.repeat(times, 1))[0], model(features)[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_batch_gives_each_bag_what_it_gives_alone_and_padding_gets_no_attention(name: str) -> None:
    model = make(name).eval()
    bags = [patches(count, seed=count) for count in (9, 1, 5)]
    features, mask = torch.full((3, 9, WIDTH), 1e3), torch.zeros(3, 9, dtype=torch.bool)
    for row, bag in enumerate(bags):
        features[row, : len(bag)], mask[row, : len(bag)] = bag, True
    logits, attention_logits = model(features, mask)
    shared = model.attention_logits(features, mask, model.context)
    score = model.score(features, mask)
    torch.testing.assert_close(shared, attention_logits)
    for row, bag in enumerate(bags):
        alone, alone_attention = model(bag)
        torch.testing.assert_close(logits[row], alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(attention_logits[row, ..., : len(bag)], alone_attention, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(score[row, : len(bag)], model.score(bag), atol=1e-6, rtol=1e-5)
        assert (attention_logits[row, ..., len(bag) :] == -torch.inf).all()
        assert (score[row, len(bag) :] == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_model_is_rebuilt_from_its_options_and_state(name: str) -> None:
    model: NamedModel = make(name).eval()
    options = dict(model.options)
    other: NamedModel = build(name, options.pop("d_in"), options.pop("classes"), **options)
    other.load_state_dict(model.state_dict())
    other.eval()
    assert torch.equal(other(patches(9))[0], model(patches(9))[0])


@pytest.mark.parametrize("name", ATTENDING)
def test_anchor_parameters_are_exactly_those_the_attention_logits_depend_on(name: str) -> None:
    model = make(name).eval()
    logits = model.attention_logits(patches(30))
    logits[logits > -torch.inf].square().sum().backward()
    reached = {key for key, value in model.named_parameters() if value.grad is not None}
    assert reached == set(model.anchor_parameters())


@pytest.mark.parametrize("name", ATTENDING)
def test_attention_logits_alone_are_those_of_the_whole_pass(name: str) -> None:
    model = make(name).eval()
    _, attention_logits = model(patches(30))
    assert torch.equal(model.attention_logits(patches(30), None, model.context), attention_logits)


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("target", ["nsf", "softmax"])
@pytest.mark.parametrize("count", [1, 3, 50])
def test_anchor_aligns_attention_and_follows_the_steps(name: str, target: Any, count: int) -> None:
    model, features = make(name).train(), patches(count)
    anchor = AnchorRegularizer(model, AnchorConfig(target=target, momentum=0.5, center="median"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        logits, attention_logits = model(features)
        loss = anchor.loss(attention_logits, features, context=model.context)
        (F.cross_entropy(logits, torch.tensor(0)) + loss).backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite()
        assert loss >= -1e-6
        assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())
        optimizer.step()
        anchor.step()
    assert anchor.diagnostics()["anchor_kl"] >= -1e-6


@pytest.mark.parametrize("name", ATTENDING)
def test_anchor_that_is_a_copy_gives_the_models_own_attention_in_training(name: str) -> None:
    model = make(name)
    for module in model.modules():  # dropout is the one thing in which the copy is meant to differ
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    anchor = AnchorRegularizer(model.train(), AnchorConfig(target="softmax"))
    _, attention_logits = model(patches(50))
    loss = anchor.loss(attention_logits, patches(50), context=model.context)
    assert loss.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ATTENDING)
def test_anchor_can_start_from_a_draw_of_its_own(name: str) -> None:
    model = make(name)
    anchor = AnchorRegularizer(model, AnchorConfig(init="random"), seed=3)
    assert anchor.anchor is not None
    model.train()
    _, attention_logits = model(patches(20))
    assert anchor.loss(attention_logits, patches(20), context=model.context).isfinite()
    drawn = dict(anchor.anchor.named_parameters())
    for upstream in model.anchor_parameters():
        own, other = dict(model.named_parameters())[upstream], drawn[upstream]
        if own.unique().numel() == 1 < own.numel():  # zero biases, the scales of a norm
            assert torch.equal(own, other), upstream
        elif own.numel() > 1:
            assert not torch.equal(own, other)
            assert other.std().item() == pytest.approx(own.std().item(), rel=0.15 + 3 / own.numel() ** 0.5), upstream


@pytest.mark.parametrize("name", ATTENDING)
def test_model_of_bfloat16_weights_has_an_anchor_of_float32(name: str) -> None:
    model = make(name).to(torch.bfloat16).train()
    anchor = AnchorRegularizer(model)
    _, attention_logits = model(patches(20))
    loss = anchor.loss(attention_logits, patches(20), context=model.context)
    assert loss.isfinite()
    anchor.step()
    assert anchor.anchor is not None
    assert {value.dtype for value in anchor.anchor.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", BASELINES)
def test_copy_of_a_model_after_a_pass_in_training_works(name: str) -> None:
    model = make(name).train()
    model(patches(20))
    copied = copy.deepcopy(model).eval()
    assert torch.equal(copied(patches(20))[0], model.eval()(patches(20))[0])


@pytest.mark.parametrize("name", ["clam_sb", "dsmil", "acmil", "aem", "dtfd", "mhim", "pamil"])
def test_objective_without_a_pass_before_it_is_refused(name: str) -> None:
    model = make(name).train()
    with pytest.raises(ValueError, match="objective needs a forward pass"):
        model.objective(torch.tensor(1.0), 0)
    model(patches(6))
    model.objective(torch.tensor(1.0), 0)
    with pytest.raises(ValueError, match="objective needs a forward pass"):
        model.objective(torch.tensor(1.0), 0)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("asmil", {"tokens": 2.5}, "tokens is 2.5; give a whole number"),
        ("asmil", {"token_drop": [1]}, r"token_drop is \[1\]; give a number or a text"),
        ("abmil", {"gated": "yes"}, "but a model named 'abmil' has False"),
        ("clam_sb", {"dropout": "0.1"}, "dropout is '0.1'; give a number"),  # named by the class it extends
        ("clam_mb", {"instance_loss": "hinge"}, "choose from cross_entropy, svm"),
        ("aem", {"d_attention": 2.5}, "d_attention is 2.5; give a whole number"),  # named by its host
        ("dtfd", {"pseudo_bags": None}, "pseudo_bags is None; give a whole number"),
        ("pamil", {"d_inner": "64"}, "d_inner is '64'; give a whole number or nothing"),
    ],
)
def test_options_of_another_kind_are_refused_in_words(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(name, **options)


def test_a_model_of_ones_own_is_built_whatever_its_annotations_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(ABMIL):
        def __init__(self, d_in: int, classes: int, *, d_attention: str, **options: Any) -> None:
            super().__init__(d_in, classes, d_attention=len(d_attention), **options)

    class Either(ABMIL):
        def __init__(self, d_in: int, classes: int, *, kind: Literal["a", "b"] | None = None) -> None:
            super().__init__(d_in, classes)

    kinds: dict[str, Any] = {"either": Either, "own": Own, "part": functools.partial(ABMIL, gated=True)}
    for name, kind in kinds.items():
        monkeypatch.setitem(MODELS, name, Entry(build=kind, title=name, source="here"))
    assert build("own", 16, 2, d_attention="four").options["d_attention"] == 4
    assert build("part", 16, 2, d_attention=4).options["gated"]
    with pytest.raises(ValueError, match="d_attention is 4; give a text"):
        build("own", 16, 2, d_attention=4)
    with pytest.raises(ValueError, match="kind is 'z'; choose from a, b"):
        build("either", 16, 2, kind="z")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("abmil", {"d_attention": 0}),
        ("abmil", {"dropout": 1.0}),
        ("abmil", {"gated": True}),
        ("abmil", {"heads": 3}),
        ("clam_sb", {"instance_weight": 1.5}),
        ("clam_mb", {"instance_loss": "hinge"}),
        ("transmil", {"heads": 7}),
        ("acmil", {"branches": 0}),
        ("acmil", {"mask_rate": 1.0}),
        ("aem", {"entropy_weight": -1.0}),
        ("aem", {"entropy_weight": math.nan}),
        ("clam_sb", {"instance_weight": math.nan}),
        ("pamil", {"instance_weight": math.inf}),
        ("mhim", {"consistency_weight": math.nan}),
        ("dtfd", {"pseudo_bags": 0}),
        ("dtfd", {"distillation": "mean"}),
        ("mhim", {"momentum": 1.5}),
        ("pamil", {"prototypes": 0}),
        ("resnet", {}),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        make(name, **options)


def test_every_entry_names_its_source_and_recipe() -> None:
    for name, entry in MODELS.items():
        assert entry.title
        assert entry.source
        assert entry.recipe.epochs >= 20
        make(name, **entry.source_options)


def test_penalty_rides_on_any_model() -> None:
    for name in ("clam_sb", "transmil", "asmil", "dtfd"):
        model = AEM(make(name), entropy_weight=0.1).train()
        model.begin_step(0.0)
        loss_of(model, patches(30)).backward()  # type: ignore[no-untyped-call]
        assert AnchorRegularizer(model).anchor is not None
