"""Softmax and the normalised sigmoid: METHOD section 12, items 1 to 5."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asmil.normalizers import center_logits, log_nsf, log_softmax, nsf, softmax

LEVELS = {
    "within 50": lambda n: torch.empty(n).uniform_(-50, 50, generator=torch.Generator().manual_seed(n)),
    "all -50": lambda n: torch.full((n,), -50.0),
    "all 50": lambda n: torch.full((n,), 50.0),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("count", [1, 2, 1000, 50_000])
@pytest.mark.parametrize("normalise", [softmax, nsf])
def test_weights_are_not_negative_and_sum_to_one(normalise: Callable[..., Tensor], count: int, level: str) -> None:
    weights = normalise(LEVELS[level](count))
    assert weights.dtype == torch.float32
    assert weights.min() >= 0
    assert weights.double().sum().item() == pytest.approx(1, abs=1e-6)


def test_exponential_of_log_nsf_sums_to_one_when_every_sigmoid_underflows() -> None:
    assert log_nsf(torch.full((50_000,), -50.0)).exp().double().sum().item() == pytest.approx(1, abs=1e-6)
    assert log_nsf(torch.full((50_000,), -500.0), temperature=0.07).exp().double().sum().item() == pytest.approx(
        1, abs=1e-6
    )


@pytest.mark.parametrize("temperature", [0.07, 1.0, 3.0])
def test_log_space_nsf_is_the_ratio_of_sigmoids(temperature: float) -> None:
    logits = torch.randn(4, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    sigmoids = torch.sigmoid(logits / temperature)
    expected = sigmoids / sigmoids.sum(-1, keepdim=True)
    torch.testing.assert_close(nsf(logits, temperature=temperature), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(log_nsf(logits, temperature=temperature), expected.log(), rtol=1e-12, atol=1e-12)


def test_nsf_is_monotone_and_constant_logits_give_equal_weights() -> None:
    logits = torch.linspace(-20, 20, 101, dtype=torch.float64)
    assert (nsf(logits).diff() > 0).all()
    for level in (-50.0, 0.0, 50.0):
        torch.testing.assert_close(nsf(torch.full((37,), level)), torch.full((37,), 1 / 37))


@given(
    tau=st.floats(0.1, 20),
    high=st.lists(st.floats(0, 30), min_size=1, max_size=20),
    low=st.lists(st.floats(0, 30), min_size=1, max_size=50),
)
@settings(max_examples=200, deadline=None)
def test_nsf_flattens_what_is_above_tau_and_suppresses_what_is_below(
    tau: float, high: list[float], low: list[float]
) -> None:
    logits = torch.tensor([tau + value for value in high] + [-tau - value for value in low], dtype=torch.float64)
    weights = nsf(logits)
    inside, outside = weights[: len(high)], weights[len(high) :]
    assert inside.max() / inside.min() <= (1 + math.exp(-tau)) * (1 + 1e-12)
    assert outside.max() <= math.exp(-tau) / len(high) * (1 + 1e-12)


def test_shifted_nsf_goes_from_softmax_to_uniform() -> None:
    logits = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(nsf(logits - 40), softmax(logits), rtol=1e-9, atol=0)
    torch.testing.assert_close(nsf(logits + 40), torch.full_like(logits, 1 / 300), rtol=1e-9, atol=0)


@pytest.mark.parametrize("normalise", [softmax, nsf])
def test_padding_has_a_weight_of_exactly_zero_and_changes_no_other(normalise: Callable[..., Tensor]) -> None:
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(10) < 7
    weights = normalise(logits, mask)
    assert (weights[:, 7:] == 0).all()
    torch.testing.assert_close(weights[:, :7], normalise(logits[:, :7]))
    assert (log_nsf(logits, mask)[:, 7:] == -torch.inf).all()
    assert (log_softmax(logits, mask)[:, 7:] == -torch.inf).all()


def test_half_precision_logits_are_normalised_in_float32() -> None:
    logits = torch.linspace(-4, 4, 3000).half()
    assert nsf(logits).dtype == torch.float32
    torch.testing.assert_close(nsf(logits).double(), nsf(logits.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("center", "quantile"), [("mean", 0.9), ("median", 0.9), ("quantile", 0.9), ("quantile", 0.0)])
def test_centring_subtracts_each_rows_own_level_over_its_patches(center: str, quantile: float) -> None:
    logits = torch.randn(4, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 7
    mask = torch.arange(21) < 16
    level = {
        "mean": logits[:, :16].mean(-1),
        "median": logits[:, :16].quantile(0.5, dim=-1),
        "quantile": logits[:, :16].quantile(quantile, dim=-1),
    }[center]
    centred = center_logits(logits, mask, center=center, quantile=quantile)  # type: ignore[arg-type]
    torch.testing.assert_close(centred[:, :16], logits[:, :16] - level[:, None])
    assert (centred[:, 16:] == -torch.inf).all()


def test_centring_makes_nsf_blind_to_the_level_of_the_logits() -> None:
    logits = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    shifted = nsf(center_logits(logits + 30, center="median"))
    torch.testing.assert_close(shifted, nsf(center_logits(logits, center="median")))
    assert not torch.allclose(nsf(logits + 30), nsf(logits))
