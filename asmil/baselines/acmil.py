"""ACMIL: several attention branches that are kept apart, and masking of the most attended patches.

Source: Zhang et al., "Attention-Challenging Multiple Instance Learning for Whole Slide Image Classification", ECCV
2024, arXiv 2311.07125, in its gated-attention form. Branch m pools by softmax(A_m) and has a classifier of its own; the
bag is pooled by the mean of the branches' attention, and only its logits are used at test time. Loss: the bag's, the
mean of the branches', and the mean cosine of the attention of two branches, all with weight 1; with one branch only the
first.

Stochastic top-k masking, in training only: of each branch's K largest logits a share p, chosen at random, is left out
before softmax. Counts go by min(K, N), so that a bag of few patches is never masked whole. The anchor sees the logits
before masking.
"""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asmil.baselines.bag_model import Attention, ProjectedModel, each_through


class ACMIL(ProjectedModel):
    """Classify by the mean attention of M branches.

    Parameters
    ----------
    d_in, classes, d_inner
        As for `ProjectedModel`.
    d_attention
        Width of the attention network.
    branches
        M, at least 1.
    masked_of
        K, the number of most attended patches of which some are masked; 0 masks none.
    mask_rate
        p in [0, 1): floor(p min(K, N)) of them are masked.
    """

    needs_classes = True

    def __init__(
        self,
        d_in: int,
        classes: int,
        *,
        d_inner: int | None = None,
        d_attention: int = 128,
        branches: int = 5,
        masked_of: int = 10,
        mask_rate: float = 0.6,
    ) -> None:
        super().__init__(
            d_in,
            classes,
            d_inner=d_inner,
            bias=False,
            d_attention=d_attention,
            branches=branches,
            masked_of=masked_of,
            mask_rate=mask_rate,
        )
        if branches < 1 or mask_rate >= 1:
            raise ValueError(f"branches is {branches} and mask_rate {mask_rate}; they must be at least 1, and below 1")
        self.masked_of, self.mask_rate = masked_of, mask_rate
        self.attend = Attention(self.width, d_attention, rows=branches)
        self.classify_branch = nn.ModuleList(nn.Linear(self.width, classes) for _ in range(branches))
        self.classify = nn.Linear(self.width, classes)

    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits [C] and the branches' attention logits [M, N], before masking, of one bag [N, d_in]."""
        hidden = self.project(features)
        attention_logits = self.attend(hidden)
        attention = self.mask(attention_logits).softmax(-1).to(hidden.dtype)
        if self.training:
            self.keep(attention=attention, branch_logits=each_through(self.classify_branch, attention @ hidden))
        logits: Tensor = self.classify(attention.mean(0) @ hidden)
        return logits, attention_logits

    def mask(self, attention_logits: Tensor) -> Tensor:
        """Set some of each row's largest logits [M, N] to -inf, in training."""
        top = min(self.masked_of, attention_logits.shape[-1])
        count = int(top * self.mask_rate)
        if not self.training or count == 0:
            return attention_logits
        places = attention_logits.detach().topk(top, dim=-1).indices
        chosen = torch.rand(places.shape, device=places.device).argsort(-1)[:, :count]
        return attention_logits.scatter(-1, places.gather(-1, chosen), -torch.inf)

    def bag_score(self, features: Tensor) -> Tensor:
        """Give the branches' mean attention [N]."""
        return self.bag_attention_logits(features, None).softmax(-1).mean(0)

    def objective(self, cross_entropy: Tensor, label: int) -> Tensor:
        """Give the bag's loss + the branches' mean loss + the branches' mean cosine."""
        kept = self.take()
        branch_logits = kept["branch_logits"].float()
        if len(branch_logits) == 1:
            return cross_entropy
        labels = torch.full((len(branch_logits),), label, device=branch_logits.device)
        return cross_entropy + F.cross_entropy(branch_logits, labels) + diversity_loss(kept["attention"].float())


def diversity_loss(attention: Tensor) -> Tensor:
    """Give the mean cosine over all pairs of rows of attention [M, N], M >= 2; 1 where the rows are the same."""
    first, second = torch.tensor(list(combinations(range(len(attention)), 2)), device=attention.device).T
    return F.cosine_similarity(attention[first], attention[second], dim=-1).mean()
