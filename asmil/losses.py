"""Losses on attention over the patches of a bag, safe for padding (-inf in a log-weight)."""

from typing import Literal

import torch
from torch import Tensor

from asmil.normalizers import log_softmax

Reduction = Literal["sum", "mean_patches"]


def kl_divergence(log_target: Tensor, log_attention: Tensor) -> Tensor:
    """Give KL(target | attention) = sum over N of a' (log a' - log a), in nats.

    Parameters
    ----------
    log_target, log_attention
        Logarithms of weights that sum to 1 over the last axis, shape [..., N]; -inf marks padding in both.

    Returns
    -------
    Shape [...]. Its gradient on the logits z behind `log_attention = log_softmax(z)` is a - a'.
    """
    patches = log_target > -torch.inf
    difference = (log_target - log_attention).masked_fill(~patches, 0)
    return (log_target.exp() * difference).sum(-1)


def entropy(log_attention: Tensor) -> Tensor:
    """Give the entropy of attention, -sum over N of a log a, in nats; shape [...] of [..., N].

    Padding has a log-weight of -inf and adds nothing.
    """
    finite = log_attention.masked_fill(log_attention == -torch.inf, 0)
    return -(log_attention.exp() * finite).sum(-1)


def entropy_penalty(attention_logits: Tensor) -> Tensor:
    """Give sum_n a_n log a_n with a = softmax of logits [..., N], averaged over the rows; in [-log N, 0].

    The penalty of AEM (arXiv 2406.15303).
    """
    return -entropy(log_softmax(attention_logits)).mean()


def relative_entropy(log_attention: Tensor) -> Tensor:
    """Give `entropy` as a share of its largest value, log N over the bag's own N patches; 1 for a bag of one patch."""
    count = (log_attention > -torch.inf).sum(-1)
    share = entropy(log_attention) / count.clamp(min=2).log()
    return torch.where(count > 1, share, torch.ones_like(share))


def alignment_loss(log_target: Tensor, log_attention: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """Give the alignment loss L_AS: the KL of each row, averaged over heads, tokens and bags.

    Parameters
    ----------
    log_target, log_attention
        As for `kl_divergence`; the anchor's weights come first and carry no gradient.
    reduction
        "sum" adds over the patches; "mean_patches" divides that by the bag's number of patches.

    Returns
    -------
    A scalar.
    """
    divergence = kl_divergence(log_target, log_attention)
    if reduction == "mean_patches":
        divergence = divergence / (log_target > -torch.inf).sum(-1)
    return divergence.mean()
