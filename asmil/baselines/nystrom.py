"""Nystrom attention over a sequence, with landmarks that padding cannot reach.

Source: Xiong et al., "Nystromformer: A Nystrom-Based Algorithm for Approximating Self-Attention", AAAI 2021, arXiv
2102.03902, in the form that TransMIL uses: out = softmax(q k~') pinv(softmax(q~ k~')) softmax(q~ k') v, where q~, k~
are means of consecutive tokens, plus a depth-wise convolution of v along the sequence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 33
"""Width of the convolution over the values, in tokens (TransMIL)."""

MOST_STEPS = 20
"""Of the iteration for the pseudo-inverse."""


class NystromAttention(nn.Module):
    """Multi-head self-attention whose cost is linear in the number of tokens.

    Parameters
    ----------
    width, heads
        E and H; E is a multiple of H.
    landmarks
        m, the largest number of landmarks.
    pinv_steps
        Iterations for the pseudo-inverse.
    dropout
        Share of the output dropped in training.
    compat
        Compute as the released code: zeros in front up to a multiple of m tokens, which take part in every softmax
        (they take 64 % of the attention of a bag of 65 tokens), and one scale for the pseudo-inverses of all heads.
        Otherwise n tokens have ceil(n / ceil(n / m)) landmarks, and nothing is padded.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int = 8,
        landmarks: int = 256,
        pinv_steps: int = 6,
        dropout: float = 0.1,
        compat: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}; choose one so that it is")
        if pinv_steps > MOST_STEPS:
            raise ValueError(
                f"pinv_steps is {pinv_steps}, it must be at most {MOST_STEPS}; more steps only add rounding"
            )
        self.heads, self.landmarks, self.pinv_steps, self.compat = heads, landmarks, pinv_steps, compat
        self.scale = (width // heads) ** -0.5
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_output = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))
        self.local = nn.Conv2d(heads, heads, (KERNEL, 1), padding=(KERNEL // 2, 0), groups=heads, bias=False)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries (already scaled by 1 / sqrt(d_h)), keys and values, each [H, n, d_h], of tokens [n, E]."""
        parts = self.to_qkv(tokens).view(len(tokens), 3, self.heads, -1).permute(1, 2, 0, 3)
        return parts[0] * self.scale, parts[1], parts[2]

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Give the tokens' new vectors [n, E] from what `split` gives."""
        found = self.attend(query, key, value).to(value.dtype) + self.local(value[None])[0]
        output: Tensor = self.to_output(found.transpose(0, 1).flatten(1))
        return output

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Give approximately softmax(q k') v, each [H, n, d_h]."""
        count = query.shape[1]
        if self.compat:
            front = (0, 0, -count % self.landmarks, 0)
            query, key, value = F.pad(query, front), F.pad(key, front), F.pad(value, front)
        few_queries, few_keys = self._landmarks(query), self._landmarks(key)
        spread = (query @ few_keys.mT).softmax(-1)  # (H, n, m)
        core = (few_queries @ few_keys.mT).softmax(-1)  # (H, m, m)
        gather = (few_queries @ key.mT).softmax(-1)  # (H, m, n)
        inverse = pseudo_inverse(core, steps=self.pinv_steps, shared_scale=self.compat)
        return ((spread.to(inverse.dtype) @ inverse) @ (gather.to(value.dtype) @ value).to(inverse.dtype))[:, -count:]

    def _landmarks(self, rows: Tensor) -> Tensor:
        """Give the means [H, m, d_h] of consecutive rows [H, n, d_h]; the last of them may have fewer rows."""
        heads, count, width = rows.shape
        each = -(-count // self.landmarks)
        groups = -(-count // each)
        sums = F.pad(rows, (0, 0, 0, groups * each - count)).view(heads, groups, each, width).sum(2)
        sizes = torch.full((groups, 1), float(each), dtype=rows.dtype, device=rows.device)
        sizes[-1] = count - (groups - 1) * each
        return sums / sizes


def pseudo_inverse(matrices: Tensor, *, steps: int, shared_scale: bool = False) -> Tensor:
    """Approximate the Moore-Penrose inverse of softmax matrices [H, m, m], in float32 or better.

    Six steps leave an error of a few per cent, on which trained weights of TransMIL depend; 20 have converged. With
    singular matrices, as repeated patches make them, rounding has the upper hand at 30, and at 40 all is NaN.

    Parameters
    ----------
    steps
        Iterations Z <- Z (13 - AZ (15 - AZ (7 - AZ))) / 4 from Z = A' / (largest row sum * largest column sum).
    shared_scale
        Take these sums' maxima over all matrices, by which one matrix changes the result of another, as the released
        code does; else of each its own.
    """
    with torch.autocast(matrices.device.type, enabled=False):
        wide = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
        rows, columns = wide.abs().sum(-1).amax(-1), wide.abs().sum(-2).amax(-1)
        scale = rows.amax() * columns.amax() if shared_scale else (rows * columns)[:, None, None]
        inverse = wide.mT / scale
        identity = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
        for _ in range(steps):
            product = wide @ inverse
            inverse = inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product))) / 4
        return inverse
