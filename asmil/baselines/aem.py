"""AEM: a penalty on concentrated attention, for any attention model.

Source: Zhang et al., "AEM: Attention Entropy Maximization for Multiple Instance Learning based Whole Slide Image
Classification", MICCAI 2025, arXiv 2406.15303: the loss gets lambda * sum_n a_n log a_n, the negative entropy of the
attention, averaged over its rows. It lies in [-log N, 0], so that its size depends on the bag's; dividing by log N
would be another lambda. The paper lets lambda fall along a cosine; taken here as the half cosine from lambda to 0 over
all steps, its exact form being unknown to us.

The host is gated ABMIL unless another is given; `FitConfig.entropy_weight` adds the same penalty to any model that is
trained. The penalty draws attention to uniform, a sharp anchor away from it.
"""

import math
from typing import Any

from torch import Tensor, nn

from asmil.bags import BagSource
from asmil.baselines.abmil import ABMIL
from asmil.losses import entropy_penalty
from asmil.options import check_kinds, cosine, kinds_of
from asmil.protocol import AttentionMIL, TrainingHooks


class AEM(TrainingHooks, nn.Module):
    """Add the entropy penalty to a model's loss; satisfies `asmil.protocol.AttentionMIL` in its place.

    Parameters
    ----------
    host
        Any attention model, also one with an objective of its own.
    entropy_weight
        Lambda, at least 0; 0 leaves the host's loss.
    anneal
        Whether lambda falls to 0 over the training.
    """

    def __init__(self, host: AttentionMIL, *, entropy_weight: float = 0.1, anneal: bool = True) -> None:
        super().__init__()
        if not 0 <= entropy_weight < math.inf:
            raise ValueError(f"entropy_weight is {entropy_weight}, it must be at least 0 and finite")
        if not isinstance(host, nn.Module):
            raise TypeError(f"the host is a {type(host).__name__}, not a torch.nn.Module")
        self.host: Any = host
        self.needs_classes = isinstance(host, TrainingHooks) and host.needs_classes
        self.d_in, self.classes = host.d_in, host.classes
        self.entropy_weight, self.anneal = entropy_weight, anneal
        self.options: dict[str, Any] = {
            **getattr(host, "options", {}),
            "entropy_weight": entropy_weight,
            "anneal": anneal,
        }
        self._share = 1.0
        self._attention_logits: Tensor | None = None

    @classmethod
    def on_abmil(
        cls, d_in: int, classes: int, *, entropy_weight: float = 0.1, anneal: bool = True, **options: Any
    ) -> "AEM":
        """Build it on gated ABMIL without a bias in the projection, as the method's authors do; options of `ABMIL`."""
        check_kinds(options, kinds_of(ABMIL))
        host = ABMIL(d_in, classes, **{"projection_bias": False, **options})
        return cls(host, entropy_weight=entropy_weight, anneal=anneal)

    @property
    def context(self) -> Any:
        """The host's."""
        return self.host.context

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give what the host gives."""
        logits, attention_logits = self.host(features, mask)
        self._attention_logits = attention_logits if self.training else None
        return logits, attention_logits

    def attention_logits(self, features: Tensor, mask: Tensor | None = None, context: Any = None) -> Tensor:
        """Give the host's attention logits."""
        logits: Tensor = self.host.attention_logits(features, mask, context)
        return logits

    def score(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give the host's score."""
        score: Tensor = self.host.score(features, mask)
        return score

    def anchor_parameters(self) -> tuple[str, ...]:
        """Name the host's, as they are called here."""
        return tuple(f"host.{name}" for name in self.host.anchor_parameters())

    def prepare(self, bags: BagSource, *, seed: int) -> None:
        """Let the host look at the bags."""
        if isinstance(self.host, TrainingHooks):
            self.host.prepare(bags, seed=seed)

    def begin_step(self, progress: float) -> None:
        """Set lambda's share, and tell the host."""
        self._share = cosine(progress) if self.anneal else 1.0
        if isinstance(self.host, TrainingHooks):
            self.host.begin_step(progress)

    def objective(self, cross_entropy: Tensor, label: int) -> Tensor:
        """Give the host's objective + lambda * sum a log a.

        Raises
        ------
        ValueError
            If there was no forward pass in training mode since the last call.
        """
        if self._attention_logits is None:
            raise ValueError("objective needs a forward pass of one bag, in training mode, right before it")
        penalty, self._attention_logits = entropy_penalty(self._attention_logits), None
        if isinstance(self.host, TrainingHooks):
            cross_entropy = self.host.objective(cross_entropy, label)
        return cross_entropy + self.entropy_weight * self._share * penalty

    def end_step(self) -> None:
        """Let the host follow its parameters."""
        if isinstance(self.host, TrainingHooks):
            self.host.end_step()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_attention_logits": None}  # a copy of a model has no forward pass behind it
