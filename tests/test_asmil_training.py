"""Training: METHOD section 12, items 12, 20, 32 to 34, the bags it refuses, and what it must not disturb."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import asmil
from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag, read_labels
from asmil.errors import BagError, TrainingError
from asmil.inference import attention, predict
from asmil.losses import relative_entropy
from asmil.model import ASMIL
from asmil.normalizers import log_softmax
from asmil.registry import MODELS, build
from asmil.tasks import Classification
from asmil.training import FitConfig, FitResult, Trainer, fit

WIDTH = 16


def planted(count: int, *, seed: int, patches: int = 60, share: float = 0.15) -> tuple[list[Bag], list[Tensor]]:
    """Make bags in which a share of a positive bag's patches is shifted along one direction, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    bags, truths = [], []
    for number in range(count):
        features = torch.randn(patches + number, WIDTH, generator=generator)
        truth = torch.zeros(len(features), dtype=torch.bool)
        if number % 2:
            truth[torch.randperm(len(features), generator=generator)[: int(share * len(features))]] = True
            features[truth] += 3.0 * torch.eye(WIDTH)[0]
        bags.append(Bag(features, number % 2, f"bag-{number}"))
        truths.append(truth)
    return bags, truths


def small(seed: int = 0) -> ASMIL:
    torch.manual_seed(seed)
    return ASMIL(WIDTH, 2, d_inner=16, tokens=4, heads=2)


TRAINING, VALIDATION = planted(8, seed=0)[0], planted(6, seed=1)[0]
QUICK = FitConfig(epochs=3, learning_rate=1e-3)


def run(options: AnchorConfig | None = None, *, config: FitConfig = QUICK, seed: int = 0) -> tuple[ASMIL, FitResult]:
    model = small()
    anchor = None if options is None else AnchorRegularizer(model, options)
    return model, fit(model, TRAINING, VALIDATION, anchor=anchor, config=config, seed=seed)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_same_seed_gives_bitwise_the_same_history_and_weights_and_another_does_not() -> None:
    results = [run(AnchorConfig(), seed=seed)[1] for seed in (3, 3, 4)]
    assert results[0].history == results[1].history
    assert same(results[0].best_state, results[1].best_state)
    assert results[0].anchor_state is not None
    assert results[1].anchor_state is not None
    assert same(results[0].anchor_state, results[1].anchor_state)
    assert results[0].history != results[2].history


@pytest.mark.parametrize(
    "options",
    [
        AnchorConfig(beta=0.0),
        AnchorConfig(mode="none"),
        AnchorConfig(start_epoch=9),
        AnchorConfig(mode="uniform", beta=0),
    ],
)
def test_anchor_without_weight_gives_bitwise_the_weights_of_a_run_without_anchor(options: AnchorConfig) -> None:
    model, result = run(options)
    plain_model, plain = run(None)
    assert same(result.best_state, plain.best_state)
    assert same(model.state_dict(), plain_model.state_dict())
    assert [row["loss"] for row in result.history] == [row["loss"] for row in plain.history]


def test_anchor_with_weight_changes_the_run() -> None:
    assert not same(run(AnchorConfig(beta=0.5))[1].best_state, run(None)[1].best_state)


def test_anchor_follows_every_step_of_training() -> None:
    states = [run(AnchorConfig(momentum=momentum))[1].anchor_state for momentum in (0.999, 0.5)]
    start = AnchorRegularizer(small()).state_dict()
    for state in states:
        assert state is not None
        assert state["anchor.steps"] == QUICK.epochs * len(TRAINING)
    moves = [(state["project.weight"] - start["project.weight"]).norm() for state in states if state is not None]
    assert 0 < moves[0] < moves[1] / 10


def test_training_neither_uses_nor_moves_torchs_own_generator() -> None:
    model, anchored = small(), small()
    torch.manual_seed(1)
    first = fit(model, TRAINING, VALIDATION, config=QUICK, seed=0)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = fit(anchored, TRAINING, VALIDATION, config=QUICK, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.history == second.history


def test_stopped_run_continues_bitwise_from_its_checkpoint() -> None:
    def trainer() -> Trainer:
        model = small()
        options = AnchorConfig(half_life_epochs=1, ramp=True)
        return Trainer(model, TRAINING, VALIDATION, anchor=AnchorRegularizer(model, options), config=QUICK, seed=0)

    whole, stopped, continued = trainer(), trainer(), trainer()
    stopped.run_epoch()
    checkpoint = stopped.state_dict()
    frozen = copy.deepcopy(checkpoint)
    stopped.run_epoch()  # what was stored must not move with the run
    continued.load_state_dict(checkpoint)
    assert same(checkpoint["model"], frozen["model"])
    for each in (whole, continued):
        while not each.finished:
            each.run_epoch()
    expected, found = whole.finish(), continued.finish()
    assert found.history == expected.history
    assert found.best_epoch == expected.best_epoch
    assert same(found.best_state, expected.best_state)
    assert found.anchor_state is not None
    assert expected.anchor_state is not None
    assert same(found.anchor_state, expected.anchor_state)


def test_eight_bags_are_learned_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    bags = [Bag(torch.randn(20, WIDTH, generator=generator), number % 2, str(number)) for number in range(8)]
    model = small()
    anchor = AnchorRegularizer(model, AnchorConfig(beta=0.01))
    result = fit(model, bags, bags, anchor=anchor, config=FitConfig(epochs=60, learning_rate=3e-3), seed=0)
    best = result.history[result.best_epoch - 1]
    assert best["validation_accuracy"] == 1
    assert result.history[-1]["validation_cross_entropy"] < 0.05


@pytest.fixture(scope="module")
def trained() -> ASMIL:
    model = small()
    training, validation = planted(40, seed=2)[0], planted(10, seed=3)[0]
    config = FitConfig(epochs=20, learning_rate=3e-3)
    fit(model, training, validation, anchor=AnchorRegularizer(model), config=config, seed=0)
    return model


def test_planted_patches_get_the_attention_and_their_bags_the_class(trained: ASMIL) -> None:
    bags, truths = planted(20, seed=4)
    predictions = [predict(trained, bag.features) for bag in bags]
    hits = [prediction.probabilities.argmax() == bag.label for prediction, bag in zip(predictions, bags, strict=True)]
    assert np.mean(hits) >= 0.95
    positive = [number for number, bag in enumerate(bags) if bag.label]
    areas = [roc_auc_score(truths[number].numpy(), predictions[number].score) for number in positive]
    assert np.mean(areas) > 0.9


def test_larger_beta_gives_attention_of_larger_entropy() -> None:
    shares = []
    for beta in (0.0, 0.3, 3.0):
        model, _ = run(AnchorConfig(beta=beta), config=FitConfig(epochs=15, learning_rate=3e-3))
        with torch.no_grad():
            logits = [model(bag.features)[1] for bag in VALIDATION]
        shares.append(float(np.mean([relative_entropy(log_softmax(each)).mean().item() for each in logits])))
    assert shares[0] < shares[1] < shares[2] <= 1


def test_prediction_sums_to_one_takes_half_precision_and_keeps_the_models_mode(trained: ASMIL) -> None:
    features = TRAINING[0].features
    assert isinstance(features, Tensor)
    trained.train()
    prediction = predict(trained, features.half().numpy())
    assert trained.training
    assert prediction.probabilities.dtype == prediction.score.dtype == np.float32
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert prediction.score.sum() == pytest.approx(1, abs=1e-5)
    assert np.array_equal(prediction.score, predict(trained.eval(), features.half()).score)


def test_attention_has_a_row_a_branch_and_each_sums_to_one(trained: ASMIL) -> None:
    rows = attention(trained, TRAINING[0].features)
    assert rows.shape == (4 * 2, len(TRAINING[0].features))
    assert rows.sum(axis=1) == pytest.approx(np.ones(8), abs=1e-5)


def bad(features: Tensor | None = None, label: Any = 0) -> Bag:
    return Bag(torch.zeros(5, WIDTH) if features is None else features, label, "slide-7")


BAD_BAGS = {
    "no patches": bad(torch.zeros(0, WIDTH)),
    r"shape \[5, 3\]": bad(torch.zeros(5, 3)),
    r"shape \[16\]": bad(torch.zeros(WIDTH)),
    "2 of 5 patches have features that are not finite": bad(
        torch.zeros(5, WIDTH).index_fill(0, torch.tensor([1, 3]), math.nan)
    ),
    "1 of 5 patches have features that are not finite": bad(
        torch.zeros(5, WIDTH).half().index_fill(0, torch.tensor([1]), math.inf)
    ),
    "label 2 is not a class": bad(label=2),
    "label -1 is not a class": bad(label=-1),
    "label None is not a class": bad(label=None),
    "label tumour is not a class": bad(label="tumour"),
}


@pytest.mark.parametrize("message", BAD_BAGS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_names_a_bad_bag(name: str, message: str) -> None:
    options: Any = {} if name == "dsmil" else {"d_inner": 16}
    with pytest.raises(BagError, match=f"^slide-7: .*{message}"):
        fit(build(name, WIDTH, 2, **options), [*TRAINING[:2], BAD_BAGS[message]], VALIDATION, config=QUICK, seed=0)


@pytest.mark.parametrize("message", BAD_BAGS)
@pytest.mark.parametrize("role", ["training", "validation"])
def test_bad_bag_is_named_and_leaves_finite_weights(message: str, role: str) -> None:
    model = small()
    sources = {"training": list(TRAINING), "validation": list(VALIDATION)}
    sources[role].append(BAD_BAGS[message])
    with pytest.raises(BagError, match=f"^slide-7: .*{message}"):
        fit(model, sources["training"], sources["validation"], config=QUICK, seed=0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_prediction_names_a_bad_bag() -> None:
    with pytest.raises(BagError, match=r"^a\.svs: the bag has no patches"):
        predict(small(), np.zeros((0, WIDTH), dtype=np.float16), name="a.svs")


@pytest.mark.parametrize("huge", [torch.full((5, WIDTH), 3e38), torch.full((5, WIDTH), 1e300, dtype=torch.float64)])
def test_prediction_that_overflows_is_refused(huge: torch.Tensor) -> None:
    with pytest.raises(BagError, match=r"^a\.svs: the model's outputs are not finite"):
        predict(small(), huge, name="a.svs")


@pytest.mark.parametrize("name", ["asmil", "dsmil", "acmil", "dtfd"])
def test_class_weight_weighs_all_that_a_loss_says_of_a_bag(name: str) -> None:
    options: Any = {} if name == "dsmil" else {"d_inner": 16}
    bags = [Bag(TRAINING[0].features, label, f"bag-{number}") for number, label in enumerate((0, 0, 0, 1))]
    losses: dict[str, list[float]] = {}
    for weights in ("none", "inverse_frequency"):
        torch.manual_seed(0)
        config = FitConfig(epochs=1, learning_rate=1e-30, class_weights=weights)
        trainer = Trainer(build(name, WIDTH, 2, **options), bags, bags[:1], config=config, seed=0)
        trainer.model.train()
        losses[weights] = []
        for place in (0, 3):
            torch.manual_seed(1)  # the same dropout in both
            losses[weights].append(trainer._step([place], 0)[0]["loss"])
    common, rare = np.array(losses["inverse_frequency"]) / losses["none"]
    assert common == pytest.approx(4 / 6, rel=1e-5)
    assert rare == pytest.approx(2, rel=1e-5)


def test_loss_that_is_not_finite_stops_the_run_before_the_weights() -> None:
    model = small()
    huge = Bag(torch.full((5, WIDTH), 3e38), 0, "slide-8")
    with pytest.raises(TrainingError, match=r"slide-8: the (loss|cross entropy|gradient norm)"):
        fit(model, [huge], VALIDATION, config=QUICK, seed=0)
    assert same(model.state_dict(), small().state_dict())


@pytest.mark.parametrize(
    ("features", "kind"),
    [
        ([[0.0] * WIDTH], "list"),
        (np.zeros((3, WIDTH), np.complex64), "complex64"),
        (torch.zeros((3, WIDTH), dtype=torch.complex64), "torch.complex64"),
        (np.full((3, WIDTH), "a"), "<U1"),
    ],
)
def test_features_that_are_no_numbers_are_named(features: Any, kind: str) -> None:
    with pytest.raises(BagError, match=f"^slide-7: features are {kind}, the model takes"):
        fit(small(), [Bag(features, 0, "slide-7")], VALIDATION, config=QUICK, seed=0)


def test_features_of_another_byte_order_are_the_same_numbers() -> None:
    features = np.asarray(TRAINING[0].features, dtype=np.float32)
    swapped = features.astype(features.dtype.newbyteorder())
    found = [predict(small(), each).logits for each in (features, swapped)]
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("options", [{"class_weights": "inverse_frequency"}, {"balanced": True}])
@pytest.mark.parametrize("label", [[1], np.array([1]), "1", None, 0.5])
def test_a_label_that_is_no_class_is_named_also_where_classes_are_weighed(label: Any, options: dict[str, Any]) -> None:
    bags = [Bag(TRAINING[0].features, label, "slide-7"), TRAINING[1]]
    with pytest.raises(BagError, match=r"^slide-7: label .* is not a class index"):
        fit(small(), bags, VALIDATION, config=FitConfig(epochs=3, **options), seed=0)


def test_a_validation_bag_that_overflows_the_model_is_named() -> None:
    huge = Bag(torch.full((5, WIDTH), 3e38), 0, "slide-8")
    with pytest.raises(TrainingError, match=r"^slide-8: the model's outputs are not finite for features up to 3e\+38"):
        fit(small(), TRAINING, [*VALIDATION, huge], config=QUICK, seed=0)


def test_a_state_with_an_anchor_does_not_continue_without_one_nor_the_other_way_round() -> None:
    def trainer(*, anchored: bool) -> Trainer:
        model = small()
        anchor = AnchorRegularizer(model) if anchored else None
        return Trainer(model, TRAINING, VALIDATION, anchor=anchor, config=QUICK, seed=0)

    with pytest.raises(ValueError, match="the state has an anchor and this trainer has none"):
        trainer(anchored=False).load_state_dict(trainer(anchored=True).state_dict())
    with pytest.raises(ValueError, match="the state has no anchor and this trainer has one"):
        trainer(anchored=True).load_state_dict(trainer(anchored=False).state_dict())


def test_source_without_bags_and_anchor_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="no validation bags"):
        fit(small(), TRAINING, [], seed=0)
    with pytest.raises(ValueError, match="another model"):
        fit(small(), TRAINING, VALIDATION, anchor=AnchorRegularizer(small()), seed=0)


class Streamed(Sequence[Bag]):
    """A source that counts what it reads, and gives read-only float16 arrays as a file would."""

    def __init__(self, bags: list[Bag]) -> None:
        self.bags, self.read = bags, 0
        self.labels = [bag.label for bag in bags]

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> Bag:  # type: ignore[override]
        self.read += 1
        bag = self.bags[index]
        features = np.asarray(bag.features, dtype=np.float16)
        features.flags.writeable = False
        return Bag(features, bag.label, bag.name)

    def __iter__(self) -> Iterator[Bag]:
        raise AssertionError("bags are to be read by index, when they are needed")


def test_bags_are_read_once_an_epoch_and_labels_without_the_bags() -> None:
    training, validation = Streamed(TRAINING), Streamed(VALIDATION)
    config = FitConfig(epochs=2, class_weights="inverse_frequency")
    fit(small(), training, validation, config=config, seed=0)
    assert (training.read, validation.read) == (2 * len(TRAINING), 2 * len(VALIDATION))


def test_class_weights_of_a_fold_without_one_of_the_classes_average_to_one() -> None:
    task = Classification()
    task.begin(TRAINING, classes=3, config=FitConfig(class_weights="inverse_frequency"))
    assert len(set(read_labels(TRAINING))) == 2
    assert np.mean([task.weight(label) for label in read_labels(TRAINING)]) == pytest.approx(1)


def test_classes_that_are_drawn_alike_are_not_weighed_too() -> None:
    with pytest.raises(ValueError, match="would both weigh rare classes"):
        FitConfig(balanced=True, class_weights="inverse_frequency")


def test_training_bag_that_overflows_the_model_is_named_with_its_largest_feature() -> None:
    huge = Bag(torch.full((5, WIDTH), 3e38), 0, "slide-8")
    with pytest.raises(TrainingError, match=r"^slide-8: the loss is .* in epoch 1 for features up to 3e\+38; lower"):
        fit(small(), [*TRAINING, huge], VALIDATION, config=QUICK, seed=0)


def test_class_weights_scale_the_loss_of_single_bags() -> None:
    bags = [TRAINING[0], TRAINING[1], TRAINING[2], TRAINING[4]]  # labels 0, 1, 0, 0
    frozen = FitConfig(epochs=1, learning_rate=1e-30, class_weights="inverse_frequency")
    trainer = Trainer(small(), bags, VALIDATION, config=frozen, seed=0)
    weights = [4 / (2 * 3), 4 / (2 * 1)]
    plain = Trainer(small(), bags, VALIDATION, config=FitConfig(epochs=1, learning_rate=1e-30), seed=0)
    order = np.random.default_rng([0, 1, 0]).permutation(4)
    for trainee in (trainer, plain):
        trainee.model.eval()
        trainee.epoch = 1
    for place in order:
        (weighted,), (unweighted,) = trainer._step([place], 0), plain._step([place], 0)
        expected = weights[read_labels(bags)[place]] * unweighted["cross_entropy"]
        assert weighted["loss"] == pytest.approx(expected, rel=1e-6)


def test_learning_rate_falls_along_half_a_cosine_to_zero_or_stays() -> None:
    trainer = Trainer(small(), TRAINING, VALIDATION, config=FitConfig(epochs=4, learning_rate=1.0), seed=0)
    rates = []
    for trainer.epoch in range(1, 5):
        rates += [trainer._learning_rate(step) for step in range(8)]
    assert rates[0] == 1
    assert rates[16] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01
    assert rates == sorted(rates, reverse=True)
    config = FitConfig(epochs=2, schedule="constant")
    assert [row["learning_rate"] for row in run(config=config)[1].history] == [1e-4, 1e-4]


def test_accumulated_step_is_that_of_the_mean_loss_over_its_bags() -> None:
    config = FitConfig(epochs=1, accumulate=4, gradient_clip=1e9)
    trainer = Trainer(small(), TRAINING, VALIDATION, config=config, seed=0)
    trainer.model.eval()
    trainer.epoch = 1
    trainer._step([0, 1, 2, 5], 0)
    model = small().eval()
    losses = [
        torch.nn.functional.cross_entropy(model(bag.features)[0], torch.tensor(bag.label))
        for bag in (TRAINING[place] for place in (0, 1, 2, 5))
    ]
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
    found = dict(trainer.model.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad, atol=1e-7, rtol=1e-5)


def test_accumulation_divides_the_steps_of_an_epoch_and_leaves_a_smaller_last_one() -> None:
    config = FitConfig(epochs=2, learning_rate=1e-3, accumulate=3)
    _, result = run(AnchorConfig(), config=config)
    assert result.anchor_state is not None
    assert result.anchor_state["anchor.steps"] == 2 * 3  # 8 bags: 3, 3 and 2
    assert result.history[-1]["learning_rate"] == pytest.approx(1e-3 * (1 + math.cos(math.pi * 5 / 6)) / 2)


def test_bfloat16_training_is_near_float32_and_keeps_weights_and_anchor_in_float32() -> None:
    coarse = run(AnchorConfig(), config=FitConfig(epochs=3, learning_rate=1e-3, precision="bf16"))[1]
    fine = run(AnchorConfig())[1]
    assert coarse.history != fine.history
    assert coarse.history[-1]["loss"] == pytest.approx(fine.history[-1]["loss"], rel=0.02)
    assert coarse.anchor_state is not None
    states = {**coarse.best_state, **coarse.anchor_state}
    assert {value.dtype for name, value in states.items() if name != "anchor.steps"} == {torch.float32}


def test_history_has_one_row_an_epoch_with_every_number() -> None:
    _, result = run(AnchorConfig())
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    assert all(isinstance(row["epoch"], int) for row in result.history)
    row = result.history[0]
    assert row["loss"] == pytest.approx(row["cross_entropy"] + 0.1 * row["alignment"], rel=1e-5)
    assert row["anchor_kl"] == pytest.approx(row["alignment"], rel=1e-5)
    expected = {"learning_rate", "gradient_norm", "anchor_target_entropy", "anchor_positive_share"}
    expected |= {f"validation_{name}" for name in ("cross_entropy", "macro_f1", "auroc", "accuracy", "ece")}
    assert expected <= row.keys()
    assert all(math.isfinite(value) for value in row.values())


def test_best_epoch_is_that_of_highest_f1_and_auroc_then_of_lowest_cross_entropy() -> None:
    trainer = Trainer(small(), TRAINING, VALIDATION, config=FitConfig(epochs=9), seed=0)
    rows = [(0.5, 0.9, 0.5), (0.7, 0.8, 0.9), (0.7, 0.8, 0.6), (0.7, 0.8, 0.6), (0.9, math.nan, 0.1)]
    for trainer.epoch, (f1, auroc, cross_entropy) in enumerate(rows, start=1):
        trainer._keep_if_best({"macro_f1": f1, "auroc": auroc, "cross_entropy": cross_entropy})
    assert trainer._best.epoch == 3


def test_model_is_left_in_eval_mode_with_the_weights_of_its_best_epoch() -> None:
    states = []
    model = small()
    config = FitConfig(epochs=6, learning_rate=3e-3)
    result = fit(
        model,
        TRAINING,
        VALIDATION,
        config=config,
        seed=0,
        on_epoch=lambda _, each: states.append(copy.deepcopy(each.state_dict())),
    )
    assert not model.training
    assert same(model.state_dict(), result.best_state)
    assert same(result.best_state, states[result.best_epoch - 1])


def test_patience_stops_so_many_epochs_after_the_best() -> None:
    config = FitConfig(epochs=40, learning_rate=3e-3, patience=2)
    _, result = run(config=config)
    assert len(result.history) < 40
    assert result.history[-1]["epoch"] == result.best_epoch + 2


def test_what_a_callback_draws_and_evaluates_does_not_change_the_run() -> None:
    def meddle(_: dict[str, float], model: asmil.AttentionMIL) -> None:
        torch.rand(5)
        model.train()

    assert fit(small(), TRAINING, VALIDATION, config=QUICK, seed=0, on_epoch=meddle).history == run()[1].history


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"schedule": "fall"},
        {"patience": 0},
        {"accumulate": 0},
        {"best_by": "auroc"},
        {"best_from": 1.0},
        {"epochs": 2.5},
        {"epochs": True},
        {"patience": "3"},
        {"balanced": "no"},
        {"class_weights": ["none"]},
    ],
)
def test_training_option_out_of_its_range_is_refused_by_name(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        FitConfig(**options)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_options_as_others() -> None:
    config = FitConfig(epochs=np.int64(3), learning_rate=np.float32(0.5), weight_decay=0)  # type: ignore[arg-type]
    assert (config.epochs, config.learning_rate, config.weight_decay) == (3, 0.5, 0)


def test_public_names_are_loaded_from_the_package() -> None:
    assert asmil.fit is fit
    assert asmil.ASMIL is ASMIL
    assert asmil.AnchorRegularizer is AnchorRegularizer
    assert {"fit", "predict", "Bag", "BagError", "FitConfig"} <= set(dir(asmil))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = asmil.nothing


def test_labels_of_torch_weigh_their_classes_as_ints_do() -> None:
    labelled = [Bag(bag.features, cast("int", torch.tensor(bag.label)), bag.name) for bag in TRAINING]
    config = FitConfig(epochs=1, learning_rate=1e-3, class_weights="inverse_frequency")
    results = [fit(small(), bags, VALIDATION, config=config, seed=0) for bags in (TRAINING, labelled)]
    assert results[0].history == results[1].history


def test_a_target_that_is_only_looked_at_changes_no_diagnostics() -> None:
    model = small()
    anchor = AnchorRegularizer(model)
    features = torch.as_tensor(TRAINING[0].features)
    _, logits = model(features)
    anchor.loss(logits, features)
    expected = anchor.diagnostics()
    anchor.loss(logits, features)
    anchor.log_target(logits, features)
    anchor.log_target(logits, features)
    assert anchor.diagnostics() == pytest.approx(expected)


def test_a_frozen_anchor_needs_no_length_of_an_epoch() -> None:
    AnchorRegularizer(small(), AnchorConfig(mode="frozen", half_life_epochs=1)).step()
