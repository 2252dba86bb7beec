"""TransMIL: two layers of Nystrom attention over all patches and a class token, and a convolution between them.

Source: Shao et al., "TransMIL: Transformer based Correlated Multiple Instance Learning for Whole Slide Image
Classification", NeurIPS 2021, arXiv 2106.00908. The patches, in the order of the bag, fill a square whose last cells
are filled with the first patches again; a learned class token goes in front. Its vector after the second layer is
classified. There is no feed-forward layer. The convolutions (PPEG) see the square, so that the order of the patches
matters: shuffling them changes the logits.

The released code pads sequences with zeros that take part in attention, which outweigh the patches in bags of up to
about 100; `compat` computes the same, else nothing is padded (`asmil.baselines.nystrom`).

Attention logits: the exact scores of the class token's query on the patches' keys in the second layer, without itself
and without the repeated patches. The approximated rows have negative entries and do not sum to 1, and are of no use as
attention.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from asmil.baselines.bag_model import BagModel, inner_width, names_of
from asmil.baselines.nystrom import NystromAttention


class TransMIL(BagModel):
    """Classify by a class token that attends to all patches.

    Parameters
    ----------
    d_in, classes
        Width of a patch's features, and the number of classes C.
    d_inner
        Width E, a multiple of `heads`; None takes `asmil.options.default_d_inner(d_in)`. There are E / 2 landmarks.
    heads
        Attention heads.
    dropout
        Share of an attention layer's output dropped in training.
    pinv_steps
        Iterations for the pseudo-inverse.
    compat
        Whether to pad and scale as the released code does.
    """

    def __init__(
        self,
        d_in: int,
        classes: int,
        *,
        d_inner: int | None = None,
        heads: int = 8,
        dropout: float = 0.1,
        pinv_steps: int = 6,
        compat: bool = False,
    ) -> None:
        width = inner_width(d_inner, d_in)
        super().__init__(
            d_in, classes, d_inner=width, heads=heads, dropout=dropout, pinv_steps=pinv_steps, compat=compat
        )
        if heads < 1 or width % heads:
            raise ValueError(f"d_inner {width} is not a multiple of heads {heads}; choose one so that it is")
        self.project = nn.Sequential(nn.Linear(d_in, width), nn.ReLU())
        self.class_token = nn.Parameter(torch.empty(1, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.layers = nn.ModuleList(
            NystromAttention(
                width,
                heads=heads,
                landmarks=max(1, width // 2),
                pinv_steps=pinv_steps,
                dropout=dropout,
                compat=compat,
            )
            for _ in range(2)
        )
        self.positions = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in (7, 5, 3))
        self.last_norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the class token (not the layers', which reset their own)."""
        nn.init.normal_(self.class_token)

    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits [C] and attention logits [H, N] of one bag [N, d_in]."""
        tokens, query, key, value = self._second_layer(features)
        tokens = tokens + self.layers[1](query, key, value)
        logits: Tensor = self.classify(self.last_norm(tokens[0]))
        return logits, _class_scores(query, key, len(features))

    def bag_attention_logits(self, features: Tensor, context: Any) -> Tensor:  # noqa: ARG002
        """Give the attention logits [H, N] of one bag alone."""
        _, query, key, _ = self._second_layer(features)
        return _class_scores(query, key, len(features))

    def bag_score(self, features: Tensor) -> Tensor:
        """Give the class token's attention to the patches alone, mean over the heads, [N]."""
        return self.bag_attention_logits(features, None).softmax(-1).mean(0)

    def anchor_parameters(self) -> tuple[str, ...]:
        """Name everything up to the second layer's projections."""
        first = ("project.", "class_token", "norms.", "layers.0.", "positions.", "layers.1.to_qkv.")
        return names_of(self, *first)

    def _second_layer(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give the n = 1 + s * s tokens [n, E] before the second layer, its queries, keys and values [H, n, d_h]."""
        patches = self.project(features)
        side = math.isqrt(len(patches) - 1) + 1
        patches = torch.cat([patches, patches[: side * side - len(patches)]])
        tokens = torch.cat([self.class_token.to(patches.dtype), patches])
        tokens = tokens + self.layers[0](*self.layers[0].split(self.norms[0](tokens)))  # type: ignore[operator]
        tokens = torch.cat([tokens[:1], self._place(tokens[1:], side)])
        return (tokens, *self.layers[1].split(self.norms[1](tokens)))  # type: ignore[operator]

    def _place(self, patches: Tensor, side: int) -> Tensor:
        """Add to patches [s * s, E] what three convolutions over their square see."""
        square = patches.transpose(0, 1).reshape(1, -1, side, side)
        placed = square + torch.stack([convolve(square) for convolve in self.positions]).sum(0)
        return placed.flatten(2).squeeze(0).transpose(0, 1)


def _class_scores(query: Tensor, key: Tensor, count: int) -> Tensor:
    """Give the class token's logits [H, N] on the N patches, which follow it; their repetitions come after them."""
    return (query[:, :1] @ key[:, 1 : 1 + count].mT).squeeze(1)
