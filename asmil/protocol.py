"""What a model offers to be trained by `fit` and stabilised by `AnchorRegularizer`."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from asmil.bags import BagSource


class TrainingHooks:
    """Mixin of a model that adds something to its training; as they stand, the four methods add nothing.

    A trainer calls them in this order; a model that needs none of them need not know this class::

        hooks.prepare(bags, seed=...)                      # once, before the first epoch
        hooks.begin_step(progress)                         # before each optimizer step
        logits, attention_logits = model(features)         # in training mode; for each bag of the step
        loss = hooks.objective(cross_entropy, label)       # right after the forward pass of the same bag
        loss.backward(), ..., optimizer.step()
        hooks.end_step()

    What `begin_step` sets depends on its argument alone, so a run that is stopped and continued needs nothing of it.
    """

    needs_classes: bool = False
    """Whether `objective` reads the label as a class index; such a model learns no number and no risk."""

    def prepare(self, bags: BagSource, *, seed: int) -> None:
        """Look at the training bags, for what a model takes from them other than by gradients; set buffers only."""

    def begin_step(self, progress: float) -> None:
        """Take note of the share of all optimizer steps that is done, in [0, 1); schedules of a model follow it."""

    def objective(self, cross_entropy: Tensor, label: Any) -> Tensor:  # noqa: ARG002
        """Give the loss of the bag of the last forward pass, a scalar.

        Parameters
        ----------
        cross_entropy
            Of the bag's logits, a scalar; of another task its own loss. A class's weight is applied to what is given.
        label
            Class index of the bag; of another task its own label.
        """
        return cross_entropy

    def end_step(self) -> None:
        """Follow the parameters, after each optimizer step."""


class AttentionMIL(Protocol):
    """A `torch.nn.Module` that classifies a bag by attention over its patches.

    The first block of members is what a model author writes; the second comes with `torch.nn.Module`. A module that
    owns an anchored parameter has `reset_parameters()`, as torch's layers do, if `init="random"` is to be used.
    """

    @property
    def d_in(self) -> int:
        """Width of a patch's features."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes C."""
        ...

    @property
    def context(self) -> Any:
        """What the last forward pass shares with the anchor (an index, a random split); None for most models."""
        ...

    def __call__(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Classify one bag [N, d_in] or a padded batch [B, N, d_in].

        Parameters
        ----------
        features
            Floating point, any precision; cast to the parameters' own.
        mask
            bool [N] or [B, N], True on patches and False on padding; None where nothing is padded.

        Returns
        -------
        Class logits [C] or [B, C], and attention logits [..., N], -inf on padding.
        """
        ...

    def attention_logits(self, features: Tensor, mask: Tensor | None = None, context: Any = None) -> Tensor:
        """Give the attention logits [..., N] alone, before any normalisation; -inf on padding.

        `context` is another copy's `context`: what both must share for their attention to be comparable.
        """
        ...

    def anchor_parameters(self) -> tuple[str, ...]:
        """Name every parameter upstream of the attention logits, as `named_parameters` does."""
        ...

    def score(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give each patch's share of the attention, [N] or [B, N]; sums to 1 over a bag (in eval mode)."""
        ...

    @property
    def training(self) -> bool: ...  # noqa: D102
    def train(self, mode: bool = True) -> Self: ...  # noqa: D102
    def eval(self) -> Self: ...  # noqa: D102
    def to(self, device: torch.device) -> Self: ...  # noqa: D102
    def modules(self) -> Iterator[nn.Module]: ...  # noqa: D102
    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...  # noqa: D102
    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...  # noqa: D102
    def get_submodule(self, target: str) -> nn.Module: ...  # noqa: D102
    def state_dict(self) -> dict[str, Tensor]: ...  # noqa: D102
    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any: ...  # noqa: D102
