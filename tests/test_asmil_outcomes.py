"""Survival and regression: losses and metrics against other implementations, and planted signals found."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag, FollowUp
from asmil.errors import BagError, TrainingError
from asmil.model import ASMIL
from asmil.options import FitConfig
from asmil.outcome_metrics import regression_metrics, regression_statistic, survival_metrics, survival_statistic
from asmil.recipes import source_trainer
from asmil.registry import MODELS, build
from asmil.resampling import resampled_intervals
from asmil.survival import concordance, partial_likelihood_loss
from asmil.tasks import Regression, SurvivalTask, Task
from asmil.training import Trainer, fit

WIDTH = 12
NEED_CLASSES = ("clam_sb", "clam_mb", "dsmil", "acmil", "dtfd", "pamil")

# 30 patients with ties in time and in risk; what lifelines 0.30.3 gives for them is quoted in the tests
RISK = np.fromstring(
    "2 -2.6 .4 -.6 -.5 -.2 -2 -.2 -.9 3.3 .2 -.4 -.3 -.7 -1.1 -.4 .5 -.2 1 -.2 0 1.5 .5 -.5 -.2 .5 1.9 -.3 -.2 1",
    sep=" ",
)
TIME = np.fromstring(
    ".3 1 1.1 5.7 .4 1 1 1.6 5.3 .1 1.2 1.8 1.1 3.7 1.3 3.1 2.8 .3 1 1 .6 .1 2 .3 1.9 .5 .5 1.7 5.3 .2", sep=" "
)
EVENT = np.array(list("100101010000001111101110001101")) == "1"


def planted(count: int, *, seed: int, survival: bool) -> list[Bag]:
    """Make bags whose share of shifted patches sets the hazard, or the number."""
    rng = np.random.default_rng(seed)
    bags = []
    for number in range(count):
        share = rng.uniform(0, 0.6)
        features = rng.standard_normal((50, WIDTH)).astype(np.float32)
        features[: int(50 * share), 0] += 3
        time, end = rng.exponential(np.exp(-8 * share)), rng.exponential(0.5)
        label = FollowUp(float(min(time, end)) + 1e-6, bool(time <= end)) if survival else 40 + 100 * share
        bags.append(Bag(features, label, f"bag-{number}"))
    return bags


def small(name: str = "asmil", **options: Any) -> Any:
    torch.manual_seed(0)
    own = {"d_inner": 16, "tokens": 4, "heads": 2} if name == "asmil" else {"d_attention": 8} if name == "dsmil" else {}
    return build(name, WIDTH, 1, **{**own, **options})


def pairs_counted(risk: Any, time: Any, event: Any, part: Any) -> float:
    """Give the concordance by looking at every pair."""
    right = known = 0.0
    for i, j in itertools.permutations(range(len(risk)), 2):
        if part[i] == part[j] and event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
            known += 1
            right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return right / known


def test_concordance_is_that_of_lifelines() -> None:
    assert concordance(RISK, TIME, EVENT) == pytest.approx(0.7969432314410481, abs=1e-12)


def test_concordance_within_strata_compares_no_pair_across_them() -> None:
    part = np.arange(30) % 4
    found = survival_metrics(RISK, TIME, EVENT, strata=part)
    assert found["c_index"] == pytest.approx(pairs_counted(RISK, TIME, EVENT, part), abs=1e-12)
    assert found["c_index_pooled"] == pytest.approx(pairs_counted(RISK, TIME, EVENT, np.zeros(30)), abs=1e-12)
    moved = survival_metrics(RISK + 100 * part, TIME, EVENT, strata=part)  # another zero for each model
    assert moved["c_index"] == found["c_index"]


def test_concordance_without_an_order_is_nan() -> None:
    assert np.isnan(concordance([1.0, 2.0], [3.0, 4.0], [False, False]))


def test_partial_likelihood_is_that_of_lifelines() -> None:
    risk, time = torch.from_numpy(1.4477878784395777 * RISK), torch.from_numpy(TIME + 1e-3 * np.arange(30))
    loss = partial_likelihood_loss(risk, time, torch.from_numpy(EVENT))
    assert float(loss) * EVENT.sum() == pytest.approx(30.641316031668243, rel=1e-9)


def test_partial_likelihood_sees_no_level_and_stays_finite() -> None:
    risk = torch.tensor([300.0, -300.0, 0.0], requires_grad=True)
    time, event = torch.tensor([2.0, 1.0, 3.0]), torch.tensor([True, True, False])
    loss = partial_likelihood_loss(risk, time, event)
    loss.backward()  # type: ignore[no-untyped-call]
    assert risk.grad is not None
    assert risk.grad.isfinite().all()
    assert float(loss.detach()) == pytest.approx(
        float(partial_likelihood_loss(risk.detach() + 7, time, event)), rel=1e-6
    )
    assert float(partial_likelihood_loss(risk.detach(), time, torch.zeros(3, dtype=torch.bool))) == 0


def test_bootstrap_weights_are_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=25).round(1)
    guess = (truth + rng.normal(size=25)).round(1)
    found = regression_metrics(truth, guess)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, guess))
    assert found["r2"] == pytest.approx(r2_score(truth, guess))
    assert found["spearman"] == pytest.approx(spearmanr(truth, guess).statistic)
    drawn = np.random.default_rng(5).integers(25, size=(1, 25))  # what the one resample of seed 5 draws
    options: dict[str, Any] = {"resamples": 1, "level": 0.9, "seed": 5}
    low, high = resampled_intervals(regression_statistic(truth, guess), np.arange(25), **options)["spearman"]
    assert low == high == pytest.approx(spearmanr(truth[drawn[0]], guess[drawn[0]]).statistic)
    part = np.arange(30) % 2
    drawn = np.random.default_rng(5).integers(30, size=(1, 30))
    low, _ = resampled_intervals(survival_statistic(RISK, TIME, EVENT, strata=part), np.arange(30), **options)[
        "c_index"
    ]
    assert low == pytest.approx(pairs_counted(RISK[drawn[0]], TIME[drawn[0]], EVENT[drawn[0]], part[drawn[0]]))


def test_correlations_of_constants_are_nan_whatever_the_unit() -> None:
    assert np.isnan(regression_metrics([1e-9, 3e-9, 2e-9], [5.0, 5.0, 5.0])["spearman"])
    assert regression_metrics([1e-9, 3e-9, 2e-9], [1e-9, 3e-9, 2e-9])["r2"] == 1
    assert np.isnan(regression_metrics([1e9, 1e9], [1.0, 2.0])["r2"])


def test_gradient_of_a_compared_step_is_that_of_all_bags_at_once() -> None:
    bags = planted(9, seed=0, survival=True)
    model = small()  # with token dropping and dropout on
    trainer = Trainer(model, bags, bags, task=SurvivalTask(risk_set=9), seed=3)
    trainer.epoch = 1
    model.train()
    outputs = []
    for place, bag in enumerate(bags):
        with trainer._noise_of(place, 0):
            outputs.append(model(torch.as_tensor(bag.features))[0])
    trainer.task.step_loss(torch.stack(outputs), [bag.label for bag in bags]).backward()  # type: ignore[no-untyped-call]
    whole = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    compared = trainer._compare(range(9), 0)
    for place, bag in enumerate(bags):
        with trainer._noise_of(place, 0):
            trainer._backward(bag, share=1 / 9, compared=(compared[0], compared[1][place]))
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, whole[name], rtol=1e-4, atol=1e-7)


def test_every_step_has_an_event_and_every_bag_is_in_one() -> None:
    task = SurvivalTask(risk_set=4)
    bags = [Bag(np.ones((1, 2), np.float32), FollowUp(1.0 + number, number % 5 == 0), "b") for number in range(23)]
    task.begin(bags, classes=1, config=FitConfig())
    order = np.random.default_rng(0).permutation(23)
    steps = task.divide(order)
    assert sorted(np.concatenate(steps).tolist()) == list(range(23))
    assert all(task.events[step].any() for step in steps)
    assert max(map(len, steps)) - min(map(len, steps)) <= 1


@pytest.mark.parametrize("mode", ["ema", "none"])
def test_survival_finds_a_planted_hazard(mode: str) -> None:
    training, validation, test = (planted(n, seed=n, survival=True) for n in (48, 24, 60))
    model = small()
    anchor = None if mode == "none" else AnchorRegularizer(model, AnchorConfig())
    config = FitConfig(epochs=12, learning_rate=3e-3)
    result = fit(model, training, validation, anchor=anchor, config=config, task=SurvivalTask(risk_set=12), seed=0)
    with torch.no_grad():
        risk = np.array([float(model(torch.as_tensor(bag.features))[0]) for bag in test])
    follow_ups = [bag.label for bag in test if isinstance(bag.label, FollowUp)]
    time, event = np.array([each.time for each in follow_ups]), np.array([each.event for each in follow_ups])
    assert concordance(risk, time, event) > 0.72
    judged = [row["validation_c_index"] for row in result.history]
    assert judged[result.best_epoch - 1] == max(judged)
    with torch.no_grad():
        of_training = [float(model(torch.as_tensor(bag.features))[0]) for bag in training]
    assert result.scale[0] == pytest.approx(-np.median(of_training))
    assert result.scale[1] == 1


def test_regression_finds_a_planted_number_in_its_own_unit() -> None:
    training, validation, test = (planted(n, seed=n, survival=False) for n in (32, 16, 30))
    model = small()
    result = fit(
        model, training, validation, config=FitConfig(epochs=20, learning_rate=2e-3), task=Regression(), seed=0
    )
    centre, spread = result.scale
    with torch.no_grad():
        predicted = [centre + spread * float(model(torch.as_tensor(bag.features))[0]) for bag in test]
    assert regression_metrics(np.array([bag.label for bag in test], dtype=float), predicted)["r2"] > 0.7


def test_validation_that_knows_no_order_keeps_the_last_epoch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    training = planted(12, seed=1, survival=True)
    # the only event comes last: it is compared with nobody
    validation = [
        Bag(bag.features, FollowUp(float(n + 1), n == 3), bag.name)
        for n, bag in enumerate(planted(4, seed=2, survival=True))
    ]
    result = fit(
        small(), training, validation, config=FitConfig(epochs=4, patience=1), task=SurvivalTask(risk_set=4), seed=0
    )
    assert result.best_epoch == 4
    assert "cannot tell a better epoch from a worse one; the last is kept" in caplog.text


@pytest.mark.parametrize("task", [Regression(), SurvivalTask(risk_set=4)])
def test_resuming_is_bitwise_for_outcomes_too(task: Task) -> None:
    bags = planted(12, seed=1, survival=isinstance(task, SurvivalTask))

    def trainer() -> Trainer:
        model = small()
        config = FitConfig(epochs=3, learning_rate=1e-3)
        return Trainer(model, bags, bags, anchor=AnchorRegularizer(model), config=config, task=task, seed=2)

    whole, first = trainer(), trainer()
    for _ in range(3):
        whole.run_epoch()
    first.run_epoch()
    second = trainer()
    second.load_state_dict(first.state_dict())
    while not second.finished:
        second.run_epoch()
    assert second.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name


@pytest.mark.parametrize("name", [name for name in MODELS if name not in NEED_CLASSES])
def test_models_without_a_loss_on_classes_learn_outcomes(name: str) -> None:
    bags = planted(8, seed=2, survival=True)
    model = small(name)
    config = FitConfig(epochs=2, learning_rate=1e-3)
    result = fit(model, bags, bags, config=config, task=SurvivalTask(risk_set=4), seed=0)
    assert np.isfinite(result.history[-1]["partial_likelihood"])
    assert model.score(torch.as_tensor(bags[0].features)).sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", NEED_CLASSES)
def test_models_with_a_loss_on_classes_are_refused(name: str) -> None:
    bags = planted(4, seed=2, survival=False)
    with pytest.raises(ValueError, match="a loss of its own on classes"):
        Trainer(small(name), bags, bags, task=Regression(), seed=0)


def test_a_loss_beyond_all_numbers_stops_the_training_in_a_sentence() -> None:
    good = planted(6, seed=0, survival=False)
    far = Bag(good[0].features, 1e300, "far")
    with pytest.raises(TrainingError, match="the squared error over 2 bags is inf; their labels are too large"):
        fit(small(), good, [far, good[1]], config=FitConfig(epochs=1), task=Regression(), seed=0)


def test_a_sources_recipe_learns_outcomes_too() -> None:
    bags = planted(8, seed=2, survival=True)
    task = SurvivalTask(risk_set=4)
    trainer = source_trainer("transmil", small("transmil"), bags, bags, task=task, epochs=1, seed=0)
    assert np.isfinite(trainer.run_epoch()["partial_likelihood"])


def test_labels_of_another_task_are_refused() -> None:
    good = planted(4, seed=0, survival=False)
    features = good[0].features
    with pytest.raises(BagError, match="odd: label nan is not a finite number"):
        Trainer(small(), [*good, Bag(features, float("nan"), "odd")], good, task=Regression(), seed=0)
    with pytest.raises(BagError, match=r"odd: label 3\.0 is not a follow-up"):
        fit(small(), [Bag(features, 3.0, "odd")], good, task=SurvivalTask(), seed=0)
    with pytest.raises(BagError, match="not a follow-up of a time above 0"):
        SurvivalTask().check(Bag(features, FollowUp(0.0, True), "odd"))
    for time, event in (("3", True), (np.array([3.0]), True), (3.0, np.array([True, False])), (3.0, "yes")):
        with pytest.raises(BagError, match=r"odd: label .* is not a follow-up"):
            SurvivalTask().check(Bag(features, FollowUp(time, event), "odd"))  # type: ignore[arg-type]
    with pytest.raises(BagError, match=r"odd: label .* is not a class index"):
        fit(ASMIL(WIDTH, 2, d_inner=16), [Bag(features, FollowUp(1.0, True), "odd")], good, seed=0)
    with pytest.raises(ValueError, match="needs a model of one output"):
        Trainer(ASMIL(WIDTH, 2, d_inner=16), good, good, task=Regression(), seed=0)
    with pytest.raises(ValueError, match="risk_set is 1"):
        SurvivalTask(risk_set=1)
