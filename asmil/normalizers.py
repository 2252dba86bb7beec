"""Turn attention logits into weights over the patches of a bag: softmax and the normalised sigmoid (NSF).

All functions work along the last axis, in float32 or better, and give padding (mask False, or a logit of -inf) a weight
of exactly 0. A mask is bool and broadcasts against the logits.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Center = Literal["none", "mean", "median", "quantile"]


def softmax(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give softmax weights, shape and mask as `logits`; sum to 1 over the last axis."""
    return F.softmax(_masked(logits, mask), dim=-1)


def log_softmax(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give the logarithm of `softmax`; -inf on padding."""
    return F.log_softmax(_masked(logits, mask), dim=-1)


def nsf(logits: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """Give normalised-sigmoid weights, sigma(z / T) / sum sigma(z / T); sum to 1 over the last axis."""
    return F.softmax(_log_sigmoid(logits, mask, temperature), dim=-1)


def log_nsf(logits: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0) -> Tensor:
    """Give the logarithm of `nsf`; -inf on padding.

    Equals logsigmoid(z / T) - logsumexp(logsigmoid(z / T)). It is taken as the log-softmax of the log-sigmoid: the same
    number, but the largest term is subtracted first, which keeps the sum within 1e-6 of 1 when all logits are -50.
    """
    return F.log_softmax(_log_sigmoid(logits, mask, temperature), dim=-1)


def center_logits(logits: Tensor, mask: Tensor | None = None, *, center: Center, quantile: float = 0.9) -> Tensor:
    """Subtract from each row its own mean, median or quantile over the patches; padding stays -inf.

    The normalised sigmoid depends on the level of the logits, which nothing trains; this sets the level.

    Parameters
    ----------
    logits
        Shape [..., N]; no gradient flows through this function.
    center
        "none" returns the (masked) logits.
    quantile
        The share of patches, in [0, 1], that end at or below 0; used with "quantile" only.
    """
    masked = _masked(logits.detach(), mask)
    if center == "none":
        return masked
    if center == "mean":
        valid = masked > -torch.inf
        level = masked.masked_fill(~valid, 0).sum(-1, keepdim=True) / valid.sum(-1, keepdim=True)
        return masked - level
    return masked - _row_quantile(masked, 0.5 if center == "median" else quantile)


def _row_quantile(masked: Tensor, quantile: float) -> Tensor:
    """Give each row's quantile [..., 1], interpolated, over what is not -inf; torch.quantile takes 16 M values only."""
    count = (masked > -torch.inf).sum(-1, keepdim=True)
    ascending = masked.sort(dim=-1).values
    place = quantile * (count - 1).to(masked.dtype)
    below = place.floor().long()
    above = torch.minimum(below + 1, count - 1)
    first = masked.shape[-1] - count  # -inf sorts to the front
    low, high = ascending.gather(-1, first + below), ascending.gather(-1, first + above)
    return torch.lerp(low, high, place - below)


def _masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if mask is None else wide.masked_fill(~mask, -torch.inf)


def _log_sigmoid(logits: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    return F.logsigmoid(_masked(logits, mask) / temperature)
