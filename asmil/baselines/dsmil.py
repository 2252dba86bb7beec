"""DSMIL: a patch classifier finds one critical patch a class, and attention is the likeness of patches to it.

Source: Li, Li and Eliceiri, "Dual-stream Multiple Instance Learning Network for Whole Slide Image Classification with
Self-supervised Contrastive Learning", CVPR 2021, arXiv 2011.08939. Stream 1: c = W x, a bag's score is the maximum over
its patches, m_c the patch that has it. Stream 2: A[c, n] = q(x_n) . q(x_{m_c}) / sqrt(128), softmax over the patches, B
= A x; the logits mix all rows of B. Loss: half the bag's, half the first stream's, without which nothing would train
the choice of the critical patch, as no gradient of the bag reaches it. Cross-entropy over C classes stands for the
original's C sigmoids.

The anchor is given the critical patches of the model, or the two maps would answer different questions; the logit of a
critical patch itself is its squared length over sqrt(128), so that one cell a row is not free.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asmil.baselines.bag_model import BagModel, names_of


class DSMIL(BagModel):
    """Classify by the attention of all patches to the critical patch of each class.

    Parameters
    ----------
    d_in, classes
        Width of a patch's features, and the number of classes C.
    d_attention
        Width of the queries.
    nonlinear_query
        Two layers with ReLU and tanh, as the original has by default; else one linear layer.
    value_network
        Whether the patches go through dropout, a layer of their own width and ReLU before they are pooled.
    dropout
        Of the value network.
    average
        Whether probabilities at test time are the mean of both streams' instead of the bag's alone.

    Notes
    -----
    The features enter as they are: the model has no projection, so that its width follows the encoder's.
    """

    needs_classes = True

    def __init__(
        self,
        d_in: int,
        classes: int,
        *,
        d_attention: int = 128,
        nonlinear_query: bool = True,
        value_network: bool = False,
        dropout: float = 0.0,
        average: bool = False,
    ) -> None:
        super().__init__(
            d_in,
            classes,
            d_attention=d_attention,
            nonlinear_query=nonlinear_query,
            value_network=value_network,
            dropout=dropout,
            average=average,
        )
        self.average = average
        self.judge = nn.Linear(d_in, classes)
        first = nn.Linear(d_in, d_attention)
        rest = (nn.ReLU(), nn.Linear(d_attention, d_attention), nn.Tanh()) if nonlinear_query else ()
        self.query = nn.Sequential(first, *rest)
        value = (nn.Dropout(dropout), nn.Linear(d_in, d_in), nn.ReLU()) if value_network else (nn.Identity(),)
        self.value = nn.Sequential(*value)
        self.classify = nn.Conv1d(classes, classes, kernel_size=d_in)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw orthogonal weights and zero biases, on which this model's training depends."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                nn.init.orthogonal_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type] # every layer here has one

    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits [C] and attention logits [C, N] of one bag [N, d_in]; `context`: the critical patches [C]."""
        patch_logits = self.judge(features)  # (N, C)
        critical = patch_logits.argmax(0)
        self.context = critical.detach()
        attention_logits = self._similarity(features, critical)
        pooled = attention_logits.softmax(-1).to(features.dtype) @ self.value(features)  # (C, d_in)
        logits: Tensor = self.classify(pooled[None]).flatten()
        largest = patch_logits.gather(0, critical[None]).squeeze(0)
        self.keep(largest=largest)
        if self.average and not self.training:
            logits = torch.logaddexp(logits.log_softmax(-1), largest.log_softmax(-1)) - math.log(2)
        return logits, attention_logits

    def bag_attention_logits(self, features: Tensor, context: Any) -> Tensor:
        """Give the attention logits [C, N] of one bag, towards the critical patches of `context` where it is given."""
        return self._similarity(features, self.judge(features).argmax(0) if context is None else context)

    def bag_score(self, features: Tensor) -> Tensor:
        """Give the attention [N] of the predicted class."""
        logits, attention_logits = self.classify_bag(features)
        return attention_logits[int(logits.argmax())].softmax(-1)

    def anchor_parameters(self) -> tuple[str, ...]:
        """Name the query network; the critical patches come from the model itself."""
        return names_of(self, "query.")

    def objective(self, cross_entropy: Tensor, label: int) -> Tensor:
        """Give the mean of the bag's loss and the critical patches'."""
        largest = self.take()["largest"].float()
        return (cross_entropy + F.cross_entropy(largest, torch.tensor(label, device=largest.device))) / 2

    def _similarity(self, features: Tensor, critical: Tensor) -> Tensor:
        queries = self.query(features)  # (N, Q)
        similarity: Tensor = queries[critical] @ queries.transpose(0, 1) / math.sqrt(queries.shape[-1])
        return similarity
