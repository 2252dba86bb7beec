"""CONCH's picture side: a vision transformer whose tokens one learned query attends to.

M. Y. Lu et al., "A visual-language foundation model for computational pathology", Nature Medicine 30, 2024. The network
is written here from its description and the shapes of its tensors; the features are those before the projection that
compares pictures with text.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.encoders.checkpoint import SEED, load_strictly, read_state
from pipeline.encoders.registry import EncoderSpec
from pipeline.encoders.vit import create

HEADS = 8
PREFIX = "visual."
UNUSED = ("attn_pool_caption.", "ln_caption.", "proj_contrast", "proj_caption")
"""Parts of the picture side that serve captions, or the comparison with text."""


class AttentionPool(nn.Module):
    """Let one learned query attend to all tokens.

    Parameters
    ----------
    dim, token_dim
        Width of the result, and of the tokens.
    """

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, dim))
        self.attn = nn.MultiheadAttention(dim, HEADS, kdim=token_dim, vdim=token_dim, batch_first=True)
        self.ln_q = nn.LayerNorm(dim)
        self.ln_k = nn.LayerNorm(token_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens [B, T, token_dim] to [B, dim]."""
        keys = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), 1, -1)
        pooled: Tensor = self.attn(query, keys, keys, need_weights=False)[0]  # (B, 1, dim)
        return pooled[:, 0]


class Conch(nn.Module):
    """The network: images [B, 3, 448, 448] to features [B, dim].

    Parameters
    ----------
    trunk
        The vision transformer.
    dim, token_dim
        Width of the features, and of the trunk's tokens.
    """

    def __init__(self, trunk: nn.Module, *, dim: int, token_dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionPool(dim, token_dim)
        self.ln_contrast = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images; the class token is one of those attended to."""
        tokens: Tensor = self.trunk.forward_features(image)  # type: ignore[operator]
        features: Tensor = self.ln_contrast(self.attn_pool_contrast(tokens))
        return features


def build_conch(spec: EncoderSpec, path: Path | None) -> nn.Module:
    """Build the network; arguments and errors as those of `pipeline.encoders.vit.build_vit`."""
    trunk = create(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Conch(trunk, dim=spec.dim or 0, token_dim=int(trunk.num_features))  # type: ignore[arg-type]
    if path is not None:
        load_strictly(model, picture_side(read_state(path)), path)
    return model


def picture_side(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take what makes the features out of the whole model's tensors."""
    visual = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    return {name: tensor for name, tensor in (visual or state).items() if not name.startswith(UNUSED)}
