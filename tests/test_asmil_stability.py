"""Measures of attention against hand-made cases: METHOD section 8, and section 12, item 29."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from asmil.stability import (
    StabilityTracker,
    agreement,
    effective_number,
    entropy_share,
    jensen_shannon,
    spearman,
    top_mass,
    top_overlap,
)

Rows = NDArray[np.float64]


def weights(*shape: int, seed: int = 0, sharpness: float = 1.0) -> Rows:
    values = np.exp(sharpness * np.random.default_rng(seed).standard_normal(shape))
    return np.asarray(values / values.sum(-1, keepdims=True))


def test_divergence_of_attention_from_itself_is_zero() -> None:
    assert jensen_shannon(weights(4, 100), weights(4, 100)) == pytest.approx(np.zeros(4), abs=1e-15)


def test_divergence_without_a_common_patch_is_ln_2_which_counts_as_one() -> None:
    assert jensen_shannon([0.5, 0.5, 0, 0], [0, 0, 0.3, 0.7]) == pytest.approx(1, abs=1e-15)


def test_divergence_is_symmetric_and_between_zero_and_one() -> None:
    first, second = weights(20, 300, seed=1, sharpness=4), weights(20, 300, seed=2, sharpness=4)
    found = jensen_shannon(first, second)
    assert found == pytest.approx(jensen_shannon(second, first), abs=1e-15)
    assert ((found > 0) & (found < 1)).all()


def test_divergence_is_that_of_its_definition() -> None:
    p, q = np.array([0.8, 0.2]), np.array([0.4, 0.6])
    middle = (p + q) / 2
    expected = ((p * np.log(p / middle)).sum() + (q * np.log(q / middle)).sum()) / 2 / math.log(2)
    assert jensen_shannon(p, q) == pytest.approx(expected, rel=1e-12)


def test_entropy_and_effective_number_span_uniform_to_one_patch() -> None:
    uniform, single = np.full(50, 0.02), np.eye(50)[3]
    assert entropy_share([uniform, single]) == pytest.approx([1, 0], abs=1e-12)
    assert effective_number([uniform, single]) == pytest.approx([50, 1])
    assert entropy_share([[1.0]]) == pytest.approx([1])


@pytest.mark.parametrize("levels", [5, 1000])
def test_rank_correlation_is_scipys_with_and_without_ties(levels: int) -> None:
    generator = np.random.default_rng(0)
    first, second = generator.integers(levels, size=(2, 200))
    assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


def test_rank_correlation_with_constant_attention_is_not_defined() -> None:
    assert math.isnan(spearman(np.full(9, 1 / 9), weights(9)))


def test_top_overlap_is_one_for_the_same_zero_for_other_and_a_third_for_half_common_patches() -> None:
    base = np.arange(200.0)
    assert top_overlap(base, base) == 1
    assert top_overlap(base, -base) == 0
    assert top_overlap([0, 1, 2], [1, 2, 3]) == 1  # at least one patch, also of three
    half = base.copy()
    half[0] = 198.5  # the top two of 200 are now 199 and 0
    assert top_overlap(base, half) == pytest.approx(1 / 3)


def test_top_overlap_is_not_defined_where_chance_decides_what_is_in_the_top() -> None:
    sparse = [np.zeros(1000), np.zeros(1000)]
    sparse[0][:5], sparse[1][5:10] = 0.2, 0.2  # five patches of the top ten are any of those without weight
    assert math.isnan(top_overlap(*sparse))
    assert math.isnan(top_overlap(np.ones(300), np.arange(300)))
    assert top_overlap(np.ones(1), np.ones(1)) == 1


def test_top_mass_adds_the_ten_largest_or_all() -> None:
    assert top_mass(np.full(40, 1 / 40)) == pytest.approx(0.25)
    assert top_mass([0.25] * 4) == pytest.approx(1)


def test_agreement_is_one_for_like_maps_and_near_zero_for_unrelated_ones() -> None:
    map_ = weights(500)
    assert agreement([map_, map_**2 / (map_**2).sum(), map_]) == pytest.approx(1)
    assert abs(agreement(weights(4, 5000))) < 0.03
    assert math.isnan(agreement([map_]))


def test_tracker_compares_with_one_and_five_epochs_before() -> None:
    tracker = StabilityTracker()
    epochs = [[weights(3, 80, seed=seed)] for seed in range(8)]
    rows = [tracker.add(number, attention) for number, attention in enumerate(epochs, start=1)]
    assert math.isnan(rows[0]["jsd_lag1"])
    assert [math.isnan(row["jsd_lag5"]) for row in rows] == [True] * 5 + [False] * 3
    expected = jensen_shannon(epochs[2][0].mean(0), epochs[7][0].mean(0))
    assert rows[7]["jsd_lag5"] == pytest.approx(float(expected), rel=1e-5)
    expected = jensen_shannon(epochs[6][0], epochs[7][0]).mean()
    assert rows[7]["branch_jsd_lag1"] == pytest.approx(float(expected), rel=1e-5)
    assert rows[7]["branch_jsd_lag1"] > rows[7]["jsd_lag1"]  # averaging over branches hides part of the movement


def test_epoch_that_is_missing_is_not_replaced_by_its_neighbour() -> None:
    tracker = StabilityTracker()
    tracker.add(1, [weights(2, 30)])
    assert math.isnan(tracker.add(3, [weights(2, 30)])["jsd_lag1"])


def test_uniform_attention_is_stable_and_says_so_by_its_entropy() -> None:
    tracker = StabilityTracker()
    uniform = [np.full((2, 64), 1 / 64)]
    tracker.add(1, uniform)
    row = tracker.add(2, uniform)
    assert row["jsd_lag1"] == pytest.approx(0, abs=1e-12)
    assert row["entropy"] == pytest.approx(1)
    assert row["effective_patches"] == pytest.approx(64)
    assert row["top10_mass"] == pytest.approx(10 / 64)
    assert math.isnan(row["spearman_lag1"])


def test_continued_tracker_gives_what_an_uninterrupted_one_gives() -> None:
    whole, continued = StabilityTracker(), StabilityTracker()
    for epoch in range(1, 4):
        whole.add(epoch, [weights(2, 30, seed=epoch)])
    continued.load_state_dict(whole.state_dict())
    assert continued.add(4, [weights(2, 30, seed=9)]) == pytest.approx(
        whole.add(4, [weights(2, 30, seed=9)]), nan_ok=True, rel=0, abs=0
    )


def test_another_panel_or_an_earlier_epoch_is_refused() -> None:
    tracker = StabilityTracker()
    tracker.add(2, [weights(2, 30)])
    with pytest.raises(ValueError, match="later epochs only"):
        tracker.add(2, [weights(2, 30)])
    with pytest.raises(ValueError, match="give the same bags"):
        tracker.add(3, [weights(2, 31)])
