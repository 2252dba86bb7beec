"""What the baselines share: one bag at a time, padding cut away before a model sees it, and state between hooks."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asmil.options import default_d_inner
from asmil.protocol import TrainingHooks


class BagModel(TrainingHooks, nn.Module):
    """Base of models that are written for a single bag without padding; satisfies `asmil.protocol.AttentionMIL`.

    A model writes `classify_bag`, `bag_attention_logits`, `bag_score` and `anchor_parameters`. A batch is taken apart
    into its bags, so that nothing can pass from one bag, or from padding, to another.

    Parameters
    ----------
    d_in, classes
        Width of a patch's features, and the number of classes C.
    options
        All other arguments of the model, as they were resolved; it can be rebuilt from `options`.

    Raises
    ------
    ValueError
        If a whole number among them is negative, or `d_in`, `classes` or a width is not positive.
    """

    context: Any = None

    def __init__(self, d_in: int, classes: int, **options: Any) -> None:
        super().__init__()
        self.d_in, self.classes = d_in, classes
        self.options: dict[str, Any] = {"d_in": d_in, "classes": classes, **options}
        self._kept: dict[str, Tensor] | None = None
        for name, value in self.options.items():
            smallest = 1 if name in ("d_in", "classes") or name.startswith("d_") else 0
            if not isinstance(value, str | bool) and not smallest <= value < math.inf:
                raise ValueError(f"{name} is {value}, it must be at least {smallest} and finite")
        if not 0 <= self.options.get("dropout", 0) < 1:
            raise ValueError(f"dropout is {self.options['dropout']}, it must be at least 0 and below 1")

    @abstractmethod
    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Classify one bag [N, d_in]: logits [C] and attention logits [R, N]; may set `context` and `keep` tensors."""

    @abstractmethod
    def bag_attention_logits(self, features: Tensor, context: Any) -> Tensor:
        """Give the attention logits [R, N] of one bag [N, d_in] alone."""

    @abstractmethod
    def bag_score(self, features: Tensor) -> Tensor:
        """Give each patch's share of the attention, [N] of [N, d_in]; sums to 1."""

    @abstractmethod
    def anchor_parameters(self) -> tuple[str, ...]:
        """Name every parameter upstream of the attention logits, as `named_parameters` does."""

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Classify one bag [N, d_in] or a padded batch [B, N, d_in]; see `asmil.protocol.AttentionMIL`.

        Returns
        -------
        Class logits [C] or [B, C], and attention logits [..., R, N], -inf on padding.
        """
        self._kept = None
        if features.ndim == 2:
            logits, attention_logits = self.classify_bag(self._bag(features, mask))
            return logits, _padded(attention_logits, mask, value=-torch.inf)
        found, contexts = [], []
        for bag, own in _bags(features, mask):
            logits, attention_logits = self.classify_bag(self._bag(bag, own))
            found.append((logits, _padded(attention_logits, own, value=-torch.inf)))
            contexts.append(self.context)
        self.context, self._kept = contexts, None
        return torch.stack([logits for logits, _ in found]), torch.stack([attention for _, attention in found])

    def attention_logits(self, features: Tensor, mask: Tensor | None = None, context: Any = None) -> Tensor:
        """Give the attention logits [..., R, N] alone; -inf on padding. `context`: that of the copy to compare with."""
        if features.ndim == 2:
            return _padded(self.bag_attention_logits(self._bag(features, mask), context), mask, value=-torch.inf)
        contexts = [None] * len(features) if context is None else context
        rows = [
            self.attention_logits(bag, own, one)
            for (bag, own), one in zip(_bags(features, mask), contexts, strict=True)
        ]
        return torch.stack(rows)

    def score(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give each patch's share of the attention, [N] or [B, N], 0 on padding; call it in eval mode."""
        if features.ndim == 2:
            return _padded(self.bag_score(self._bag(features, mask)), mask, value=0.0)
        return torch.stack([self.score(bag, own) for bag, own in _bags(features, mask)])

    def keep(self, **tensors: Tensor) -> None:
        """Remember tensors of this forward pass for `objective`; only in training, as they hold its graph."""
        if self.training:
            self._kept = tensors

    def take(self) -> dict[str, Tensor]:
        """Give what the last forward pass kept, once.

        Raises
        ------
        ValueError
            If there was none, in training mode and on a single bag, since the last call.
        """
        if self._kept is None:
            raise ValueError("objective needs a forward pass of one bag, in training mode, right before it")
        kept, self._kept = self._kept, None
        return kept

    def _bag(self, features: Tensor, mask: Tensor | None) -> Tensor:
        bag = features if mask is None else features[mask]
        return bag.to(next(self.parameters()).dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # a copy of a model has no forward pass behind it


class Attention(nn.Module):
    """Attention logits of patches by a small network, a = w tanh(V h), or gated, a = w (tanh(V h) * sigmoid(U h)).

    Source: Ilse et al., arXiv 1802.04712, equations 8 and 9. The bias of w moves all logits alike: softmax cannot see
    it, the anchor's normalised sigmoid can.

    Parameters
    ----------
    width, d_attention
        Width of a patch's vector h, and of the layer between.
    rows
        R, attention maps.
    bias
        Whether the layers have one.
    dropout
        Share of the tanh and sigmoid layers that is dropped in training.
    """

    def __init__(
        self,
        width: int,
        d_attention: int,
        *,
        rows: int = 1,
        gated: bool = True,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.content = nn.Linear(width, d_attention, bias=bias)
        self.gate = nn.Linear(width, d_attention, bias=bias) if gated else None
        self.combine = nn.Linear(d_attention, rows, bias=bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """Give logits [R, N] of patches [N, width]."""
        inner = self.drop(self.content(hidden).tanh())
        if self.gate is not None:
            inner = inner * self.drop(self.gate(hidden).sigmoid())
        logits: Tensor = self.combine(inner)
        return logits.transpose(0, 1)


class ProjectedModel(BagModel):
    """Base of models whose patches go through a linear layer, ReLU and dropout first, and are then attended to.

    Parameters
    ----------
    d_inner
        Width E of the projected features; None takes `asmil.options.default_d_inner(d_in)`.
    bias
        Whether the layer has one.
    options
        As for `BagModel`; `dropout` among them is also that of the layer.

    Notes
    -----
    A model sets `attend`, or writes `bag_attention_logits` and `anchor_parameters` itself.
    """

    attend: Attention

    def __init__(self, d_in: int, classes: int, *, d_inner: int | None, bias: bool = True, **options: Any) -> None:
        width = inner_width(d_inner, d_in)
        super().__init__(d_in, classes, d_inner=width, **options)
        self.width = width
        self.project = projection(d_in, width, bias=bias, dropout=options.get("dropout", 0.0))

    def bag_attention_logits(self, features: Tensor, context: Any) -> Tensor:  # noqa: ARG002
        """Give the attention logits [R, N] of one bag alone."""
        logits: Tensor = self.attend(self.project(features))
        return logits

    def anchor_parameters(self) -> tuple[str, ...]:
        """Name the projection and the attention network."""
        return names_of(self, "project.", "attend.")


def projection(d_in: int, width: int, *, bias: bool = True, dropout: float = 0.0) -> nn.Sequential:
    """Give the layer that most models begin with: linear, ReLU, dropout."""
    return nn.Sequential(nn.Linear(d_in, width, bias=bias), nn.ReLU(), nn.Dropout(dropout))


def inner_width(d_inner: int | None, d_in: int) -> int:
    """Give `d_inner`, or where it is None the width that goes with the encoder's."""
    return default_d_inner(d_in) if d_inner is None else d_inner


def names_of(module: nn.Module, *prefixes: str) -> tuple[str, ...]:
    """Name the parameters of some of a module's parts."""
    return tuple(name for name, _ in module.named_parameters() if name.startswith(prefixes))


def pool(attention_logits: Tensor, hidden: Tensor) -> Tensor:
    """Give the attention-weighted means [R, E] of patches [N, E], by logits [R, N]."""
    return attention_logits.softmax(-1).to(hidden.dtype) @ hidden


def each_through(layers: Sequence[nn.Module] | nn.ModuleList, rows: Tensor) -> Tensor:
    """Send row r [E] of [R, E] through layer r and stack what comes out."""
    return torch.stack([layer(row) for layer, row in zip(layers, rows, strict=True)])


def _bags(features: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    masks = [None] * len(features) if mask is None else list(mask)
    return list(zip(features, masks, strict=True))


def _padded(values: Tensor, mask: Tensor | None, *, value: float) -> Tensor:
    """Put values [..., n] of a bag's n patches back to their places among N, where `mask` [N] is True."""
    if mask is None:
        return values
    full = values.new_full((*values.shape[:-1], len(mask)), value)
    full[..., mask] = values
    return full
