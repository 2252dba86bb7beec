"""The online model: K learned tokens, each with its own multi-head attention pool, and one more pool over the tokens.

Source: ASMIL, arXiv 2603.06658. A pool has a single query, so the query is folded into the key projection:
z = (Wk^T Q) . h / sqrt(d_h) + Q . bk, and the value projection is applied after pooling, Wv (sum a h) + bv, as the
weights sum to 1. No key or value tensor [N, D] exists, and the K pools are one matrix product.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asmil.options import default_d_inner
from asmil.protocol import TrainingHooks

NORM_EPS = 1e-6
"""The released layers' own; torch's default is 1e-5."""


def dropped_tokens(token_drop: float | str) -> float | int:
    """Read the option `token_drop`: a rate in [0, 1) as a float, "fixed:n" as the int n.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if isinstance(token_drop, str):
        kind, _, count = token_drop.partition(":")
        if kind == "fixed" and count.isdecimal():
            return int(count)
    elif 0 <= token_drop < 1:
        return float(token_drop)
    raise ValueError(f'token_drop is {token_drop!r}; give a rate in [0, 1) or "fixed:n"')


class AttentionPools(nn.Module):
    """P independent multi-head attention pools with one query each, over the same keys.

    Parameters
    ----------
    pools, width, heads
        P, D and H; D is a multiple of H.
    dropout
        Share of the output that is dropped in training, before the layer norm.
    """

    def __init__(self, pools: int, width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.pools, self.width, self.heads, self.dropout = pools, width, heads, dropout
        self.query_weight, self.query_bias = _empty_linear(pools, width)
        self.key_weight, self.key_bias = _empty_linear(pools, width)
        self.value_weight, self.value_bias = _empty_linear(pools, width)
        self.output_weight, self.output_bias = _empty_linear(pools, width)
        self.norm_weight = nn.Parameter(torch.ones(pools, width))
        self.norm_bias = nn.Parameter(torch.zeros(pools, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw projections as `torch.nn.Linear` does, uniform within 1 / sqrt(D); reset the layer norm."""
        bound = 1 / math.sqrt(self.width)
        for name, parameter in self.named_parameters():
            if name.startswith("norm"):
                nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def logits(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give attention logits [..., P, H, N] of queries [P, D] on keys [..., N, D]; -inf where `mask` is False."""
        split = (self.pools, self.heads, self.width // self.heads)
        query = torch.einsum("pij,pj->pi", self.query_weight, queries) + self.query_bias  # (P, D)
        query = query.view(split) / math.sqrt(split[-1])  # (P, H, d_h)
        folded = torch.einsum("phi,phid->phd", query, self.key_weight.view(*split, self.width))  # (P, H, D)
        # softmax cannot see this constant, the anchor's normalised sigmoid can
        offset = (query * self.key_bias.view(split)).sum(-1, keepdim=True)  # (P, H, 1)
        logits = folded.flatten(0, 1) @ keys.transpose(-1, -2)  # (..., P * H, N)
        logits = logits.view(*logits.shape[:-2], *split[:2], -1) + offset
        return logits if mask is None else logits.masked_fill(~mask[..., None, None, :], -torch.inf)

    def pool(self, weights: Tensor, keys: Tensor) -> Tensor:
        """Pool keys [..., N, D] by weights [..., P, H, N] into [..., P, D]: values, output, dropout, layer norm."""
        split = (self.pools, self.heads, self.width // self.heads)
        mean = (weights.flatten(-3, -2) @ keys).view(*weights.shape[:-1], -1)  # (..., P, H, D)
        value = torch.einsum("phid,...phd->...phi", self.value_weight.view(*split, self.width), mean)
        value = (value + self.value_bias.view(split)).flatten(-2)  # (..., P, D)
        output = torch.einsum("pij,...pj->...pi", self.output_weight, value) + self.output_bias
        output = F.dropout(output, self.dropout, self.training)
        return F.layer_norm(output, (self.width,), eps=NORM_EPS) * self.norm_weight + self.norm_bias


class ASMIL(TrainingHooks, nn.Module):
    """Classify a bag of patches; satisfies `asmil.protocol.AttentionMIL`.

    Parameters
    ----------
    d_in, classes
        Width of a patch's features, and the number of classes C.
    d_inner
        Inner width D, a multiple of `heads`; None takes `asmil.options.default_d_inner(d_in)`.
    tokens, heads
        K learned tokens and H attention heads.
    token_drop
        Token random dropping, in training only: a rate in [0, 1), each token dropped on its own but never all of them;
        or "fixed:n", exactly n of the K tokens dropped.
    dropout
        Share of a pool's output that is dropped in training.
    token_std
        Standard deviation of the learned tokens at the start. The default is small against the projections' rows, but
        does not vanish; the released code starts at 1e-6.
    token_loss
        Weight, in the training loss, of the cross-entropy of each token's vector through a classifier of its own (mean
        over the K tokens, the dropped ones too). The method has none: at 0 there are no such classifiers.

    Raises
    ------
    ValueError
        If D is not a multiple of H, or an option is out of its range.
    """

    context: None = None

    def __init__(
        self,
        d_in: int,
        classes: int,
        *,
        d_inner: int | None = None,
        tokens: int = 8,
        heads: int = 8,
        token_drop: float | str = 0.5,
        dropout: float = 0.1,
        token_std: float = 0.02,
        token_loss: float = 0.0,
    ) -> None:
        super().__init__()
        width = default_d_inner(d_in) if d_inner is None else d_inner
        _check_options(d_in, classes, width, tokens, heads, dropout)
        self.dropped = dropped_tokens(token_drop)
        if isinstance(self.dropped, int) and self.dropped >= tokens:
            raise ValueError(f"token_drop is {token_drop!r}, but there are {tokens} tokens and one must be kept")
        for name, value in (("token_std", token_std), ("token_loss", token_loss)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}, it must be at least 0 and finite")
        self.d_in, self.classes, self.d_inner, self.heads = d_in, classes, width, heads
        self.token_std, self.token_loss = token_std, token_loss
        self.options: dict[str, Any] = {
            "d_in": d_in,
            "classes": classes,
            "d_inner": width,
            "tokens": tokens,
            "heads": heads,
            "token_drop": token_drop,
            "dropout": dropout,
            "token_std": token_std,
            "token_loss": token_loss,
        }
        self.project = nn.Linear(d_in, width, bias=False)
        self.tokens = nn.Parameter(torch.empty(tokens, width))
        self.token_pools = AttentionPools(tokens, width, heads, dropout=dropout)
        self.bag_token = nn.Parameter(torch.empty(1, width))
        self.bag_pool = AttentionPools(1, width, heads, dropout=dropout)
        self.classify = nn.Linear(width, classes)
        if token_loss:
            self.classify_tokens = nn.ModuleList(nn.Linear(width, classes) for _ in range(tokens))
        self._found: Tensor | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the learned tokens (not the layers', which reset their own)."""
        nn.init.normal_(self.tokens, std=self.token_std)
        nn.init.normal_(self.bag_token, std=self.token_std)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Classify one bag [N, d_in] or a padded batch [B, N, d_in].

        Parameters
        ----------
        features
            Floating point, any precision. Padding must be finite; its value does not matter.
        mask
            bool [N] or [B, N], True on patches; at least one patch a bag.

        Returns
        -------
        Class logits [C] or [B, C], and attention logits [..., K, H, N], -inf on padding.
        """
        bag, attention_logits, _ = self._pool(features, mask)
        logits: Tensor = self.classify(bag)
        return logits, attention_logits

    @property
    def needs_classes(self) -> bool:  # type: ignore[override]
        """Whether the tokens' own loss is on, which is one of classes."""
        return self.token_loss > 0

    def objective(self, cross_entropy: Tensor, label: Any) -> Tensor:
        """Add the tokens' own cross-entropy, where it has a weight.

        Raises
        ------
        ValueError
            If it has one, and there was no forward pass of one bag in training mode since the last call.
        """
        if not self.token_loss:
            return cross_entropy
        if self._found is None or self._found.ndim != 2:
            raise ValueError("objective needs a forward pass of one bag, in training mode, right before it")
        found, self._found = self._found, None
        logits = torch.stack([layer(token) for layer, token in zip(self.classify_tokens, found, strict=True)])
        own = F.cross_entropy(logits.float(), torch.full((len(found),), label, device=found.device))
        return cross_entropy + self.token_loss * own

    def attention_logits(
        self,
        features: Tensor,
        mask: Tensor | None = None,
        context: Any = None,  # noqa: ARG002 (this model shares nothing with its anchor)
    ) -> Tensor:
        """Give the attention logits [..., K, H, N] alone, of all tokens; -inf on padding."""
        return self.token_pools.logits(self.tokens, self._hidden(features), mask)

    def anchor_parameters(self) -> tuple[str, ...]:
        """Name the parameters upstream of the attention logits: W_p, the tokens, and the query and key projections."""
        pools = (f"token_pools.{kind}_{part}" for kind in ("query", "key") for part in ("weight", "bias"))
        return ("project.weight", "tokens", *pools)

    def score(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give each patch's share of the attention, [N] or [B, N]; call it in eval mode.

        A patch's attention from each token (mean over heads), weighted by the bag pool's attention to that token (mean
        over heads); sums to 1 over a bag.
        """
        _, attention_logits, token_weights = self._pool(features, mask)
        return torch.einsum("...k,...kn->...n", token_weights, attention_logits.softmax(-1).mean(-2))

    def _hidden(self, features: Tensor) -> Tensor:
        return F.relu(self.project(features.to(self.project.weight.dtype)), inplace=True)  # (..., N, D)

    def _pool(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Give the bag's vector [..., D], the attention logits [..., K, H, N], and the bag pool's weights [..., K]."""
        hidden = self._hidden(features)
        attention_logits = self.token_pools.logits(self.tokens, hidden, mask)
        found = self.token_pools.pool(attention_logits.softmax(-1), hidden)  # (..., K, D)
        self._found = found if self.token_loss and self.training else None  # it holds the pass's graph
        weights = self.bag_pool.logits(self.bag_token, found, self._kept(found)).softmax(-1)  # (..., 1, H, K)
        bag = self.bag_pool.pool(weights, found).squeeze(-2)
        return bag, attention_logits, weights.mean(-2).squeeze(-2)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_found": None}  # a copy of a model has no forward pass behind it

    def _kept(self, found: Tensor) -> Tensor | None:
        """Draw which of the tokens' vectors [..., K, D] the bag pool may see: bool [..., K], None for all of them."""
        if not self.training or self.dropped == 0:
            return None
        draw = torch.rand(found.shape[:-1], device=found.device)
        if isinstance(self.dropped, int):
            return draw.argsort(-1).argsort(-1) >= self.dropped
        # the largest draw is kept anyway when any is, so this changes only the case in which none would be
        return (draw >= self.dropped) | (draw == draw.amax(-1, keepdim=True))


def _empty_linear(pools: int, width: int) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.empty(pools, width, width)), nn.Parameter(torch.empty(pools, width))


def _check_options(d_in: int, classes: int, width: int, tokens: int, heads: int, dropout: float) -> None:
    if min(d_in, classes, width, tokens, heads) < 1:
        raise ValueError(
            f"d_in {d_in}, classes {classes}, d_inner {width}, tokens {tokens} and heads {heads} must all be positive"
        )
    if width % heads:
        raise ValueError(f"d_inner {width} is not a multiple of heads {heads}; choose d_inner or heads so that it is")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, it must be at least 0 and below 1")
