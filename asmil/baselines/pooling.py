"""Mean and max pooling: the floor that every attention model has to beat.

A patch is classified by a small network, and the bag's logits are the mean, or per class the maximum, of the patches'
logits. The mean of logits is not the logits of the mean feature, as the network has a ReLU. Sources: the pooling
baselines that Ilse et al. (arXiv 1802.04712) compare with, in the width of the ACMIL family (arXiv 2311.07125).

There is no attention, and none is made up: attention logits are all 0, nothing is upstream of them, and an anchor
leaves these models alone. The score of a patch is its share in the bag's logits: 1 / N each, or 1 / C for each class in
which it is the maximum.
"""

from typing import Any

import torch
from torch import Tensor, nn

from asmil.baselines.bag_model import BagModel, inner_width, projection


class MeanPooling(BagModel):
    """Classify each patch and take the mean of the logits.

    Parameters
    ----------
    d_in, classes
        Width of a patch's features, and the number of classes C.
    d_inner
        Width E of the hidden layer; None takes `asmil.options.default_d_inner(d_in)`.
    dropout
        Share of the hidden layer dropped in training.
    """

    def __init__(self, d_in: int, classes: int, *, d_inner: int | None = None, dropout: float = 0.25) -> None:
        width = inner_width(d_inner, d_in)
        super().__init__(d_in, classes, d_inner=width, dropout=dropout)
        self.classify = nn.Sequential(*projection(d_in, width, dropout=dropout), nn.Linear(width, classes))

    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give the mean of the patches' logits [C], and zeros [1, N]."""
        return self.patch_logits(features).mean(0), features.new_zeros(1, len(features))

    def patch_logits(self, features: Tensor) -> Tensor:
        """Give the logits [N, C] of patches [N, d_in]."""
        logits: Tensor = self.classify(features)
        return logits

    def bag_attention_logits(self, features: Tensor, context: Any) -> Tensor:  # noqa: ARG002
        """Give zeros [1, N]: there is no attention."""
        return features.new_zeros(1, len(features))

    def bag_score(self, features: Tensor) -> Tensor:
        """Give 1 / N for each patch."""
        return features.new_full((len(features),), 1 / len(features))

    def anchor_parameters(self) -> tuple[str, ...]:
        """Name nothing: there is no attention to align."""
        return ()


class MaxPooling(MeanPooling):
    """Classify each patch and take the maximum of each class's logit; parameters as for `MeanPooling`.

    At most C patches of a bag get a gradient, so that it learns slowly and depends on the seed.
    """

    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give the largest logit of each class [C], and zeros [1, N]."""
        return self.patch_logits(features).amax(0), features.new_zeros(1, len(features))

    def bag_score(self, features: Tensor) -> Tensor:
        """Give 1 / C for each class whose largest logit a patch has; the first patch of equal ones."""
        largest = self.patch_logits(features).argmax(0)
        return torch.bincount(largest, minlength=len(features)).to(features.dtype) / self.classes
