"""The alignment loss and the entropy: METHOD section 12, items 7 to 11."""

import math

import pytest
import torch
from torch import Tensor

from asmil.losses import alignment_loss, entropy, kl_divergence, relative_entropy
from asmil.normalizers import log_nsf, log_softmax


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_divergence_is_zero_for_equal_weights_and_positive_otherwise() -> None:
    target, attention = log_nsf(logits(5, 40)), log_softmax(logits(5, 40, seed=1))
    assert (kl_divergence(target, target) == 0).all()
    assert (kl_divergence(target, attention) > 0).all()


def test_divergence_is_cross_entropy_less_entropy() -> None:
    target, attention = log_nsf(logits(5, 40)), log_softmax(logits(5, 40, seed=1))
    cross_entropy = -(target.exp() * attention).sum(-1)
    torch.testing.assert_close(kl_divergence(target, attention), cross_entropy - entropy(target))


def test_gradient_on_the_logits_is_attention_less_target() -> None:
    online = logits(3, 40, seed=1).requires_grad_()
    target = log_nsf(logits(3, 40))
    kl_divergence(target, log_softmax(online)).sum().backward()  # type: ignore[no-untyped-call]
    assert online.grad is not None
    torch.testing.assert_close(online.grad, online.detach().softmax(-1) - target.exp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient_are_finite_at_extreme_logits(dtype: torch.dtype) -> None:
    online = torch.tensor([200.0, -200.0, 0.0, -200.0], dtype=dtype, requires_grad=True)
    for extreme in ([-200.0, 200.0, 200.0, -200.0], [-200.0] * 4, [200.0] * 4):
        loss = alignment_loss(log_nsf(torch.tensor(extreme, dtype=dtype)), log_softmax(online))
        (gradient,) = torch.autograd.grad(loss, online)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_mean_over_patches_is_the_sum_divided_by_their_number() -> None:
    target, attention = log_nsf(logits(2, 4, 40)), log_softmax(logits(2, 4, 40, seed=1))
    per_patch = alignment_loss(target, attention, reduction="mean_patches")
    torch.testing.assert_close(per_patch * 40, alignment_loss(target, attention))


def test_mean_over_patches_counts_each_bags_own_patches() -> None:
    mask = torch.tensor([[True] * 10, [True] * 4 + [False] * 6])[:, None]
    target, attention = log_nsf(logits(2, 3, 10), mask), log_softmax(logits(2, 3, 10, seed=1), mask)
    each = [alignment_loss(target[i], attention[i], reduction="mean_patches") for i in (0, 1)]
    torch.testing.assert_close(alignment_loss(target, attention, reduction="mean_patches"), sum(each) / 2)


def test_divergence_weights_by_the_target_which_comes_first() -> None:
    sharp, flat = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.5, 0.5]).log()
    assert kl_divergence(sharp, flat).item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), rel=1e-5)
    assert kl_divergence(flat, sharp).item() == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5), rel=1e-5)


def test_padding_adds_nothing_to_divergence_entropy_or_gradient() -> None:
    mask = torch.arange(12) < 9
    online = logits(2, 12, seed=1).requires_grad_()
    target = log_nsf(logits(2, 12), mask)
    loss = kl_divergence(target, log_softmax(online, mask))
    torch.testing.assert_close(loss, kl_divergence(target[:, :9], log_softmax(online[:, :9])))
    torch.testing.assert_close(entropy(target), entropy(target[:, :9]))
    (gradient,) = torch.autograd.grad(loss.sum(), online)
    assert gradient.isfinite().all()
    assert (gradient[:, 9:] == 0).all()


def test_relative_entropy_is_one_when_uniform_and_zero_when_on_one_patch() -> None:
    uniform = log_softmax(torch.zeros(2, 30), torch.arange(30) < 8)
    torch.testing.assert_close(relative_entropy(uniform), torch.ones(2))
    torch.testing.assert_close(relative_entropy(log_softmax(torch.tensor([500.0, 0, 0]))), torch.tensor(0.0))
    assert relative_entropy(log_softmax(torch.zeros(1))) == 1
