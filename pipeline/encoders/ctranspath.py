"""CTransPath: Swin-T behind a convolutional stem, and the layout of its authors' checkpoint on today's timm.

X. Wang et al., "Transformer-based unsupervised contrastive learning for histopathological image classification",
Medical Image Analysis 81, 2022. The network is written here from its description and the shapes of its tensors; the
weights are the authors' (GPLv3, non-commercial academic use only) and come from a file.
"""

import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from pipeline.encoders.checkpoint import SEED, load_strictly, read_state
from pipeline.encoders.registry import EncoderSpec

COMPUTED = ("attn_mask", "relative_position_index")
"""Buffers that the old layout stores and today's timm computes."""
MERGE = re.compile(r"layers\.(\d+)\.downsample\.")
"""Patch merging: once the end of a stage, now the start of the next."""


class ConvStem(nn.Module):
    """Three convolutions in place of Swin's patch projection: 4 x 4 pixels to one token.

    Parameters
    ----------
    img_size, patch_size, in_chans, embed_dim, norm_layer
        As timm gives them to any patch embedding; `patch_size` must be 4 and `embed_dim` a multiple of 8.
    **_unused
        What timm also gives, and a stem of fixed size and layout does not need.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: type[nn.Module] | None = None,
        **_unused: Any,
    ) -> None:
        super().__init__()
        if patch_size != 4 or embed_dim % 8:
            raise ValueError(f"patch size {patch_size}, width {embed_dim}; two halvings need 4 and a multiple of 8")
        self.img_size = (img_size, img_size)
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        eighth, quarter = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, eighth, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(eighth),
            nn.ReLU(inplace=True),
            nn.Conv2d(eighth, quarter, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(quarter),
            nn.ReLU(inplace=True),
            nn.Conv2d(quarter, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Embed images. Notation: B images, p pixels an edge, C = embed_dim."""
        tokens: Tensor = self.proj(image)  # (B, C, p/4, p/4)
        normed: Tensor = self.norm(tokens.permute(0, 2, 3, 1))  # (B, p/4, p/4, C)
        return normed


def build_ctranspath(spec: EncoderSpec, path: Path | None) -> nn.Module:
    """Build the network: normalised float [B, 3, 224, 224] to the mean of its last 7 x 7 tokens, [B, 768].

    Parameters
    ----------
    spec
        The registry's.
    path
        A checkpoint in the authors' layout or in today's; None for untrained, seeded weights.

    Raises
    ------
    ConfigError
        If the weights cannot be read or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: nn.Module = timm.create_model(
            "swin_tiny_patch4_window7_224",
            pretrained=False,
            num_classes=0,
            img_size=spec.patch_px,
            embed_layer=ConvStem,
            weight_init="skip" if path else "",  # half the time of a build, for values that are replaced at once
        )
    if path is not None:
        load_strictly(model, in_current_layout(read_state(path)), path)
    return model


def in_current_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint's tensors from timm 0.5's Swin to today's; no value changes.

    The authors' layout is told by the merge at the end of its first stage, `layers.0.downsample`; today's has none.
    """
    kept = {
        name: tensor for name, tensor in state.items() if not name.endswith(COMPUTED) and not name.startswith("head.")
    }
    if not any(name.startswith("layers.0.downsample.") for name in kept):
        return kept
    return {MERGE.sub(_next_stage, name): tensor for name, tensor in kept.items()}


def _next_stage(merge: re.Match[str]) -> str:
    return f"layers.{int(merge[1]) + 1}.downsample."
