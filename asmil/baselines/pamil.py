"""PAMIL: attention by the likeness of patches to prototypes.

Source: Liu et al., "PAMIL: Prototype Attention-based Multiple Instance Learning for Whole Slide Image Classification",
MICCAI 2024. (Another paper of that acronym, CVPR 2024, is about pseudo-bags chosen by reinforcement.) Prototypes P are
centres of the training patches and go through the patches' own projection. S = sigmoid(H W_b) tanh(P W_a)' is [N, p],
attention logits are S W_c; every class pools and classifies for itself. A second branch classifies the prototypes,
weighted by the largest similarity each has in the bag; the logits are the mean of both.

Loss: cross-entropy + 0.5 KL(branches) - 0.5 mean_n max_p softmax_p(S) - 0.2 mean_p max_n softmax_p(S), and optionally
the instance loss of CLAM. What differs from the released code: cross-entropy takes logits, not probabilities; the KL is
between the branches' softmax distributions, not their sigmoids, from the attention branch to the prototypes'; prototype
weights are divided by max |s|, as max s can be negative and would turn their order; prototypes stay the centres that
they start from, since the step that replaces them by patches reads labels of patches, which a slide does not have.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asmil.bags import BagSource, check_features, each
from asmil.baselines.bag_model import ProjectedModel, each_through, names_of, pool
from asmil.baselines.clam import instance_loss

BRANCH_WEIGHT, PATCH_WEIGHT, PROTOTYPE_WEIGHT = 0.5, 0.5, 0.2
"""Weights of the loss's terms, in the order of the module's text (the source's own)."""

SAMPLED = 500
"""Patches of a bag that the centres are sought among."""


class PAMIL(ProjectedModel):
    """Classify by attention through prototypes, which `prepare` takes from the training bags.

    Parameters
    ----------
    d_in, classes, d_inner
        As for `ProjectedModel`.
    d_attention
        Width in which patches and prototypes are compared.
    prototypes
        p, at least 1.
    dropout
        Share of the projected features dropped in training.
    instance_weight
        Weight of CLAM's instance loss; with 0 its classifiers do not exist. The source has it as an option, with 0.5.
    instances
        Patches that the instance loss takes from each end.
    """

    needs_classes = True
    prototypes: Tensor

    def __init__(
        self,
        d_in: int,
        classes: int,
        *,
        d_inner: int | None = None,
        d_attention: int = 256,
        prototypes: int = 10,
        dropout: float = 0.0,
        instance_weight: float = 0.0,
        instances: int = 8,
    ) -> None:
        super().__init__(
            d_in,
            classes,
            d_inner=d_inner,
            d_attention=d_attention,
            prototypes=prototypes,
            dropout=dropout,
            instance_weight=instance_weight,
            instances=instances,
        )
        if prototypes < 1:
            raise ValueError(f"prototypes is {prototypes}, it must be at least 1")
        self.instance_weight, self.instances = instance_weight, instances
        self.register_buffer("prototypes", torch.randn(prototypes, d_in))
        self.patch_side = nn.Linear(self.width, d_attention)
        self.prototype_side = nn.Linear(self.width, d_attention)
        self.combine = nn.Linear(prototypes, classes)
        self.classify = nn.ModuleList(nn.Linear(self.width, 1) for _ in range(classes))
        self.classify_prototypes = nn.Linear(self.width, classes)
        self.judge = nn.ModuleList(nn.Linear(self.width, 2) for _ in range(classes if instance_weight else 0))

    def prepare(self, bags: BagSource, *, seed: int) -> None:
        """Set the prototypes to centres of the bags' patches, sought first in each bag and then among its centres."""
        centres = find_centres(bags, count=len(self.prototypes), d_in=self.d_in, seed=seed)
        self.prototypes.copy_(torch.from_numpy(centres))

    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits [C] and attention logits [C, N] of one bag [N, d_in]."""
        hidden, prototypes = self.project(features), self.project(self.prototypes)
        similarity = self._similarity(hidden, prototypes)  # (N, p)
        attention_logits = self.combine(similarity).transpose(0, 1)
        by_patches = each_through(self.classify, pool(attention_logits, hidden)).squeeze(-1)
        largest = similarity.amax(0)
        weights = (largest / largest.abs().amax().clamp(min=1e-6)).softmax(-1).to(hidden.dtype)
        by_prototypes = self.classify_prototypes(weights @ prototypes)
        self.keep(
            hidden=hidden,
            similarity=similarity,
            attention_logits=attention_logits,
            by_patches=by_patches,
            by_prototypes=by_prototypes,
        )
        return (by_patches + by_prototypes) / 2, attention_logits

    def bag_attention_logits(self, features: Tensor, context: Any) -> Tensor:  # noqa: ARG002
        """Give the attention logits [C, N] of one bag alone."""
        similarity = self._similarity(self.project(features), self.project(self.prototypes))
        logits: Tensor = self.combine(similarity)
        return logits.transpose(0, 1)

    def bag_score(self, features: Tensor) -> Tensor:
        """Give the attention [N] of the predicted class."""
        logits, attention_logits = self.classify_bag(features)
        return attention_logits[int(logits.argmax())].softmax(-1)

    def anchor_parameters(self) -> tuple[str, ...]:
        """Name the projection and what compares patches and prototypes."""
        return names_of(self, "project.", "patch_side.", "prototype_side.", "combine.")

    def objective(self, cross_entropy: Tensor, label: int) -> Tensor:
        """Give the bag's loss and the terms that draw branches together and patches to prototypes."""
        kept = {name: tensor.float() for name, tensor in self.take().items()}
        patches, prototypes = kept["by_patches"].log_softmax(-1), kept["by_prototypes"].log_softmax(-1)
        divergence = (patches.exp() * (patches - prototypes)).sum()
        closeness = kept["similarity"].softmax(-1)
        loss = cross_entropy + BRANCH_WEIGHT * divergence
        loss = loss - PATCH_WEIGHT * closeness.amax(1).mean() - PROTOTYPE_WEIGHT * closeness.amax(0).mean()
        if self.instance_weight:
            loss = loss + self.instance_weight * instance_loss(
                kept["attention_logits"], kept["hidden"], self.judge, label=label, count=self.instances
            )
        return loss

    def _similarity(self, hidden: Tensor, prototypes: Tensor) -> Tensor:
        similarity: Tensor = self.patch_side(hidden).sigmoid() @ self.prototype_side(prototypes).tanh().transpose(0, 1)
        return similarity


def find_centres(bags: BagSource, *, count: int, d_in: int, seed: int) -> NDArray[np.float32]:
    """Give centres of the patches of some bags, found by k-means in each bag and then among what was found.

    Every bag has the same say, however many patches it has.

    Returns
    -------
    float32 [count, d_in]; where there are fewer distinct patches than that, centres repeat.

    Raises
    ------
    BagError
        If a bag is empty, of another width or not finite; names the bag.
    """
    generator = np.random.default_rng(seed)
    found = []
    for bag in each(bags):
        patches = check_features(bag.features, name=bag.name, d_in=d_in, device=torch.device("cpu")).float().numpy()
        chosen = generator.permutation(len(patches))[:SAMPLED]
        found.append(_k_means(patches[chosen], count, seed))
    centres = _k_means(np.concatenate(found), count, seed)
    return centres[np.arange(count) % len(centres)]


def _k_means(rows: NDArray[np.float32], count: int, seed: int) -> NDArray[np.float32]:
    from sklearn.cluster import KMeans

    distinct = np.unique(rows, axis=0)
    if len(distinct) <= count:
        return distinct
    centres = KMeans(count, n_init=1, random_state=seed).fit(rows).cluster_centers_
    return np.asarray(centres, dtype=np.float32)
