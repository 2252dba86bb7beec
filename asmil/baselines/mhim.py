"""MHIM-MIL: a slow teacher points out the easy patches, and the student learns without many of them.

Source: Tang et al., "Multiple Instance Learning Framework with Masked Hard Instance Mining for Whole Slide Image
Classification", ICCV 2023, arXiv 2307.15254, on ABMIL. In training the teacher, an average of the student's weights,
attends to the whole bag; of the ceil(r_h N) patches it attends to most, a random share is hidden from the student, and
so are random patches and the least attended. r_h falls to 0 along a cosine. Loss: the student's + gamma times the
cross-entropy of softmax(student's bag vector) under softmax(teacher's / 0.1). At test time the student sees every
patch.

The teacher ranks in eval mode, and at least one patch is always kept. The source starts the teacher, with a momentum of
0.9999, from a model that was trained before; without one a teacher that slow stays what it was at the start, so that
the default here is faster. `start_from` takes a trained ABMIL.

Attention logits of hidden patches are -inf; the anchor hides the same. It is an average of its own, of the attention
alone and with its own momentum; the teacher also gives a bag vector.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from asmil.baselines.abmil import ABMIL
from asmil.baselines.bag_model import BagModel, names_of
from asmil.options import cosine

TEACHER_TEMPERATURE = 0.1
"""Of the softmax over the teacher's bag vector (the source's own)."""


class MHIM(BagModel):
    """Train an ABMIL on what a teacher leaves of each bag.

    Parameters
    ----------
    d_in, classes
        Width of a patch's features, and the number of classes C.
    d_inner, d_attention, gated, dropout
        Of the `ABMIL` that is trained; its attention network has no biases.
    high_ratio
        r_h in [0, 1]: share of the patches that count as easy at the start.
    high_hidden
        Share of the easy patches that is hidden, in [0, 1].
    random_ratio, low_ratio
        Share of random patches, and of the least attended, that is hidden, in [0, 1].
    consistency_weight
        gamma, at least 0.
    momentum
        Of the teacher, in [0, 1].
    """

    def __init__(
        self,
        d_in: int,
        classes: int,
        *,
        d_inner: int | None = None,
        d_attention: int = 128,
        gated: bool = False,
        dropout: float = 0.25,
        high_ratio: float = 0.01,
        high_hidden: float = 0.5,
        random_ratio: float = 0.5,
        low_ratio: float = 0.0,
        consistency_weight: float = 0.1,
        momentum: float = 0.999,
    ) -> None:
        shares = {
            "high_ratio": high_ratio,
            "high_hidden": high_hidden,
            "random_ratio": random_ratio,
            "low_ratio": low_ratio,
            "momentum": momentum,
        }
        student = ABMIL(
            d_in,
            classes,
            d_inner=d_inner,
            d_attention=d_attention,
            gated=gated,
            dropout=dropout,
            attention_bias=False,
        )
        of_student = {name: student.options[name] for name in ("d_inner", "d_attention", "gated", "dropout")}
        super().__init__(d_in, classes, **of_student, **shares, consistency_weight=consistency_weight)
        for name, value in shares.items():
            if value > 1:
                raise ValueError(f"{name} is {value}, it must be at most 1")
        self.high_ratio, self.high_hidden, self.random_ratio = high_ratio, high_hidden, random_ratio
        self.low_ratio, self.consistency_weight, self.momentum = low_ratio, consistency_weight, momentum
        self.student = student
        self.reset_parameters()
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self._easy_share = 1.0

    def reset_parameters(self) -> None:
        """Draw the student's weights as the source does: Xavier normal, zero biases."""
        for module in self.student.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits [C] and attention logits [1, N], -inf on hidden patches; `context`: bool [N], which are kept."""
        self.context = None
        if not self.training:
            return self.student.classify_bag(features)
        with torch.no_grad():
            taught, teacher_logits = self.teacher.bag_vector(features)
        kept = self.draw_kept(teacher_logits.squeeze(0))
        self.context = kept
        found, attention_logits = self.learn_from(features, kept)
        self.keep(taught=taught, found=found)
        logits: Tensor = self.student.classify(found)
        return logits, attention_logits

    def learn_from(self, features: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Give the student's bag vector [E] of the kept patches alone, and its logits [1, N], -inf on the hidden."""
        found, attention_logits = self.student.bag_vector(features[kept])
        return found, _spread(attention_logits, kept)

    def draw_kept(self, teacher_logits: Tensor) -> Tensor:
        """Choose the patches that the student sees, bool [N], from the teacher's logits [N]; at least one."""
        count, device = len(teacher_logits), teacher_logits.device
        order = teacher_logits.argsort(descending=True, stable=True)
        easy = order[: math.ceil(self.high_ratio * self._easy_share * count)]
        some = easy[torch.randperm(len(easy), device=device)[: math.ceil(self.high_hidden * len(easy))]]
        drawn = torch.randperm(count, device=device)
        hidden = [
            some,
            drawn[: math.ceil(self.random_ratio * count)],
            order[count - math.ceil(self.low_ratio * count) :],
        ]
        kept = torch.ones(count, dtype=torch.bool, device=device).scatter(0, torch.cat(hidden), False)
        # without a look at the result, which would stall a GPU
        return kept | (~kept.any() & (torch.arange(count, device=device) == drawn[-1]))

    def bag_attention_logits(self, features: Tensor, context: Any) -> Tensor:
        """Give the student's attention logits [1, N] of one bag, -inf where `context` says that a patch is hidden."""
        logits = self.student.bag_attention_logits(features, None)
        return logits if context is None else logits.masked_fill(~context, -torch.inf)

    def bag_score(self, features: Tensor) -> Tensor:
        """Give the student's attention [N] to the whole bag."""
        return self.student.bag_score(features)

    def anchor_parameters(self) -> tuple[str, ...]:
        """Name the student's projection and attention network."""
        return names_of(self, "student.project.", "student.attend.")

    def begin_step(self, progress: float) -> None:
        """Set how many patches count as easy."""
        self._easy_share = cosine(progress)

    def objective(self, cross_entropy: Tensor, label: int) -> Tensor:  # noqa: ARG002
        """Give the student's loss + gamma times its distance from the teacher."""
        kept = self.take()
        target = (kept["taught"].float() / TEACHER_TEMPERATURE).softmax(-1)
        return cross_entropy - self.consistency_weight * (target * kept["found"].float().log_softmax(-1)).sum()

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the teacher a little towards the student."""
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)

    def start_from(self, trained: ABMIL) -> None:
        """Start the teacher from a trained `ABMIL`, and the student's projection too, as the source does.

        Raises
        ------
        RuntimeError
            If it is not of this model's shape, or has biases in its attention network.
        """
        self.teacher.load_state_dict(trained.state_dict())
        self.student.project.load_state_dict(trained.project.state_dict())

    def train(self, mode: bool = True) -> "MHIM":
        """Set the mode of the student; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self


def _spread(attention_logits: Tensor, kept: Tensor) -> Tensor:
    """Put logits [1, n] of the kept patches to their places among all N, -inf elsewhere."""
    full = attention_logits.new_full((1, len(kept)), -torch.inf)
    full[:, kept] = attention_logits
    return full
