"""CLAM: gated attention, and a loss on the patches it likes most and least.

Source: Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", Nature
Biomedical Engineering 2021. CLAM-SB has one attention map, CLAM-MB one a class with a classifier of its own. Each class
c has an instance classifier on the projected patches: for the bag's own class, the k most attended patches are taken as
positive and the k least attended as negative; for other classes, only when classes exclude each other (`subtyping`),
the k most attended are negative.

The weight of the instance loss is the paper's, 0.3; comparisons in which it is 0 are of gated ABMIL. Where N < 2 k, as
many as N // 2 patches are taken from each end, so that no patch has both labels; a bag of one patch has no instance
loss.
"""

from abc import abstractmethod
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asmil.baselines.bag_model import Attention, ProjectedModel, each_through, pool

InstanceLoss = Literal["cross_entropy", "svm"]


class CLAM(ProjectedModel):
    """What CLAM-SB and CLAM-MB share.

    Parameters
    ----------
    d_in, classes, d_inner
        As for `ProjectedModel`.
    rows
        Attention maps: 1 (SB) or C (MB).
    d_attention
        Width of the attention network: 256 in the small model, 384 in the big one.
    dropout
        Share of the projected features, and of the attention network, dropped in training.
    instance_weight
        Share w of the instance loss, in [0, 1]: (1 - w) bag + w instance.
    instances
        k, patches taken from each end.
    instance_loss
        "cross_entropy", or "svm": the smooth top-1 support vector loss, which at its temperature of 1 is the
        cross-entropy after the margin 1 was added to the wrong class.
    subtyping
        Whether the classes exclude each other.
    """

    needs_classes = True

    def __init__(
        self,
        d_in: int,
        classes: int,
        *,
        rows: int,
        d_inner: int | None = None,
        d_attention: int = 256,
        dropout: float = 0.25,
        instance_weight: float = 0.3,
        instances: int = 8,
        instance_loss: InstanceLoss = "cross_entropy",
        subtyping: bool = False,
    ) -> None:
        super().__init__(
            d_in,
            classes,
            d_inner=d_inner,
            d_attention=d_attention,
            dropout=dropout,
            instance_weight=instance_weight,
            instances=instances,
            instance_loss=instance_loss,
            subtyping=subtyping,
        )
        if instance_weight > 1:
            raise ValueError(f"instance_weight is {instance_weight}, it must be at most 1")
        if instance_loss not in get_args(InstanceLoss):
            raise ValueError(f"instance_loss is {instance_loss!r}; choose from {', '.join(get_args(InstanceLoss))}")
        self.instance_weight, self.instances, self.subtyping = instance_weight, instances, subtyping
        self.margin = 1.0 if instance_loss == "svm" else 0.0
        self.attend = Attention(self.width, d_attention, rows=rows, dropout=dropout)
        self.judge = nn.ModuleList(nn.Linear(self.width, 2) for _ in range(classes))

    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits [C] and attention logits [R, N] of one bag [N, d_in]."""
        hidden = self.project(features)
        attention_logits = self.attend(hidden)
        self.keep(hidden=hidden, attention_logits=attention_logits)
        return self.classify_rows(pool(attention_logits, hidden)), attention_logits

    @abstractmethod
    def classify_rows(self, pooled: Tensor) -> Tensor:
        """Give logits [C] of the bag's vectors [R, E]."""

    def bag_score(self, features: Tensor) -> Tensor:
        """Give the attention [N]; with a map a class, that of the predicted class."""
        logits, attention_logits = self.classify_bag(features)
        row = int(logits.argmax()) if len(attention_logits) > 1 else 0
        return attention_logits[row].softmax(-1)

    def objective(self, cross_entropy: Tensor, label: int) -> Tensor:
        """Give (1 - w) bag loss + w instance loss."""
        kept = self.take()
        instance = instance_loss(
            kept["attention_logits"],
            kept["hidden"],
            self.judge,
            label=label,
            count=self.instances,
            subtyping=self.subtyping,
            margin=self.margin,
        )
        return (1 - self.instance_weight) * cross_entropy + self.instance_weight * instance


class CLAMSB(CLAM):
    """CLAM with a single attention branch; parameters as for `CLAM`."""

    def __init__(self, d_in: int, classes: int, **options: Any) -> None:
        super().__init__(d_in, classes, rows=1, **options)
        self.classify = nn.Linear(self.options["d_inner"], classes)

    def classify_rows(self, pooled: Tensor) -> Tensor:
        """Give logits [C] of the bag's vector [1, E]."""
        logits: Tensor = self.classify(pooled.squeeze(0))
        return logits


class CLAMMB(CLAM):
    """CLAM with an attention branch and a classifier for each class; parameters as for `CLAM`."""

    def __init__(self, d_in: int, classes: int, **options: Any) -> None:
        super().__init__(d_in, classes, rows=classes, **options)
        self.classify = nn.ModuleList(nn.Linear(self.options["d_inner"], 1) for _ in range(classes))

    def classify_rows(self, pooled: Tensor) -> Tensor:
        """Give logits [C], each of its own vector in [C, E]."""
        return each_through(self.classify, pooled).squeeze(-1)


def instance_loss(
    attention_logits: Tensor,
    hidden: Tensor,
    heads: nn.ModuleList,
    *,
    label: int,
    count: int,
    subtyping: bool = False,
    margin: float = 0.0,
) -> Tensor:
    """Give the loss of the instance classifiers, a scalar; 0 where no patches can be taken.

    Parameters
    ----------
    attention_logits
        Shape [R, N], R = 1 or C; only their order counts.
    hidden
        Projected patches, shape [N, E].
    heads
        C classifiers of a patch, E -> 2 (negative, positive).
    label
        Class of the bag.
    count
        Patches taken from each end, at most N // 2.
    subtyping
        Whether the other classes' most attended patches are negatives; the sum is then divided by C.
    margin
        Added to the logit of the wrong class.
    """
    taken = min(count, len(hidden) // 2)
    if taken == 0:
        return hidden.new_zeros(())
    rows = hidden.to(next(heads.parameters()).dtype)  # which autocast may have made narrower
    terms = []
    for number, head in enumerate(heads):
        order = (
            attention_logits[number if len(attention_logits) > 1 else 0].detach().argsort(descending=True, stable=True)
        )
        if number == label:
            chosen, targets = torch.cat([order[:taken], order[-taken:]]), [1] * taken + [0] * taken
        elif subtyping:
            chosen, targets = order[:taken], [0] * taken
        else:
            continue
        target = torch.tensor(targets, device=hidden.device)
        wrong = F.one_hot(1 - target, 2)
        terms.append(F.cross_entropy(head(rows[chosen]).float() + margin * wrong, target))
    return torch.stack(terms).sum() / (len(heads) if subtyping else 1)
