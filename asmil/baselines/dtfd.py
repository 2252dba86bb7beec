"""DTFD-MIL: a bag divided at random into pseudo-bags, and a second attention over what each of them found.

Source: Zhang et al., "DTFD-MIL: Double-Tier Feature Distillation Multiple Instance Learning for Histopathology Whole
Slide Image Classification", CVPR 2022, arXiv 2203.12081. Tier 1 is gated attention inside each pseudo-bag, whose label
is the slide's. Tier 2 is gated attention over the vectors distilled from them: the pooled vector (AFS), or the patches
of largest (and smallest) class probability, by class activation. Loss: the slide's (tier 2) + the pseudo-bags' mean
(tier 1). What tier 2 is given is detached: in the released code its gradient never reaches tier 1 either.

Choices where the source leaves traps: pseudo-bags differ by at most one patch and are never empty (a bag of fewer
patches than pseudo-bags has that many); at least one patch a pseudo-bag is distilled; with more than two classes the
largest probability of any class ranks the patches. In training the division is drawn anew for each bag; in evaluation
it is one fixed draw for each N, so that predictions repeat.

Attention logits are one row a pseudo-bag, -inf outside it, so that attention is aligned within each; the anchor gets
the same division. The score weights them with tier 2's attention.
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asmil.baselines.bag_model import Attention, ProjectedModel, names_of

Distillation = Literal["afs", "max", "max_min"]

DIVISION_SEED = 0
"""Of the division in evaluation."""


class DTFD(ProjectedModel):
    """Classify by the attention to what G pseudo-bags found.

    Parameters
    ----------
    d_in, classes, d_inner
        As for `ProjectedModel`.
    d_attention
        Width of both attention networks.
    pseudo_bags
        G, at least 1.
    distillation
        "afs": the pooled vector; "max": the patches of largest class probability; "max_min": and of smallest.
    distilled
        Patches taken from each end of a pseudo-bag for "max" and "max_min", at least 1.
    """

    needs_classes = True

    def __init__(
        self,
        d_in: int,
        classes: int,
        *,
        d_inner: int | None = None,
        d_attention: int = 128,
        pseudo_bags: int = 4,
        distillation: Distillation = "afs",
        distilled: int = 1,
    ) -> None:
        super().__init__(
            d_in,
            classes,
            d_inner=d_inner,
            bias=False,
            d_attention=d_attention,
            pseudo_bags=pseudo_bags,
            distillation=distillation,
            distilled=distilled,
        )
        if pseudo_bags < 1 or distilled < 1:
            raise ValueError(f"pseudo_bags is {pseudo_bags} and distilled {distilled}; both must be at least 1")
        if distillation not in get_args(Distillation):
            raise ValueError(f"distillation is {distillation!r}; choose from {', '.join(get_args(Distillation))}")
        self.pseudo_bags, self.distillation, self.distilled = pseudo_bags, distillation, distilled
        self.attend = Attention(self.width, d_attention)
        self.classify_pseudo_bag = nn.Linear(self.width, classes)
        self.attend_found = Attention(self.width, d_attention)
        self.classify = nn.Linear(self.width, classes)

    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits [C] and attention logits [G, N] of one bag [N, d_in]; `context`: each patch's pseudo-bag [N]."""
        self.context = self.divide(len(features), features.device)
        logits, attention_logits, _, pseudo_bag_logits = self._tiers(features, self.context)
        self.keep(pseudo_bag_logits=pseudo_bag_logits)
        return logits, attention_logits

    def divide(self, count: int, device: torch.device) -> Tensor:
        """Draw the pseudo-bag of each of N patches, int64 [N], values 0 to min(G, N) - 1, sizes as equal as can be."""
        if self.training:
            order = torch.randperm(count, device=device)
        else:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(DIVISION_SEED)).to(device)
        return order % min(self.pseudo_bags, count)

    def bag_attention_logits(self, features: Tensor, context: Any) -> Tensor:
        """Give the attention logits [G, N] of one bag alone, divided as in `context` where it is given."""
        division = self.divide(len(features), features.device) if context is None else context
        return self._rows(self.attend(self.project(features)), division)

    def bag_score(self, features: Tensor) -> Tensor:
        """Give tier 2's attention times that of the patches in what it attends to, [N]."""
        _, _, shares, _ = self._tiers(features, self.divide(len(features), features.device))
        return shares

    def anchor_parameters(self) -> tuple[str, ...]:
        """Name the projection and the attention network of tier 1; tier 2's map of G vectors is not aligned."""
        return names_of(self, "project.", "attend.")

    def objective(self, cross_entropy: Tensor, label: int) -> Tensor:
        """Give the slide's loss + the mean of the pseudo-bags'."""
        logits = self.take()["pseudo_bag_logits"].float()
        return cross_entropy + F.cross_entropy(logits, torch.full((len(logits),), label, device=logits.device))

    def _rows(self, attention_logits: Tensor, division: Tensor) -> Tensor:
        """Spread logits [1, N] over G rows; in a bag of fewer patches than G, rows repeat, as no row may be empty."""
        groups = torch.arange(self.pseudo_bags, device=division.device) % min(self.pseudo_bags, len(division))
        return attention_logits.masked_fill(division != groups[:, None], -torch.inf)

    def _tiers(self, features: Tensor, division: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give logits [C], attention logits [G, N], each patch's share [N] and the pseudo-bags' logits [G', C]."""
        hidden = self.project(features)
        attention_logits = self._rows(self.attend(hidden), division)
        attention = attention_logits[: min(self.pseudo_bags, len(features))].softmax(-1).to(hidden.dtype)  # (G', N)
        pseudo_bag_logits = self.classify_pseudo_bag(attention @ hidden)
        shares = self._distil(hidden.detach(), attention.detach())  # (R, N), rows sum to 1
        found = shares @ hidden.detach()
        weights = self.attend_found(found).softmax(-1).to(found.dtype)  # (1, R)
        logits: Tensor = self.classify((weights @ found).squeeze(0))
        return logits, attention_logits, (weights @ shares).squeeze(0), pseudo_bag_logits

    def _distil(self, hidden: Tensor, attention: Tensor) -> Tensor:
        """Give the share [R, N] of each patch in each vector that tier 2 sees."""
        if self.distillation == "afs":
            return attention
        activation = F.linear(attention.sum(0)[:, None] * hidden, self.classify_pseudo_bag.weight.detach()).softmax(-1)
        probability = activation[:, -1] if self.classes == 2 else activation.amax(-1)
        chosen = []
        for row in attention:
            members = row.nonzero().squeeze(-1)
            ranked = members[probability[members].argsort(descending=True, stable=True)]
            count = min(self.distilled, len(ranked))
            lowest = max(0, min(self.distilled, len(ranked) - count)) if self.distillation == "max_min" else 0
            chosen += [ranked[:count], ranked[len(ranked) - lowest :]]
        return F.one_hot(torch.cat(chosen), len(hidden)).to(hidden.dtype)
