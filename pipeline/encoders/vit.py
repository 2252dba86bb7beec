"""Published vision transformers: timm's network with the authors' arguments, their checkpoint, and their pooling."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers.mlp import SwiGLUPacked
from timm.layers.norm import LayerNorm
from torch import Tensor, nn

from pipeline.encoders.checkpoint import SEED, load_strictly, read_state
from pipeline.encoders.layouts import LAYOUTS
from pipeline.encoders.registry import EncoderSpec
from pipeline.encoders.timm_encoder import create_network


class Pooled(nn.Module):
    """Turn the tokens of a vision transformer into one vector.

    Parameters
    ----------
    backbone
        timm's network.
    with_mean
        Whether the mean of the patch tokens is put beside the class token.
    """

    def __init__(self, backbone: nn.Module, *, with_mean: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.with_mean = with_mean

    def forward(self, image: Tensor) -> Tensor:
        """Encode images [B, 3, p, p]. Notation: B images, T tokens of which the first P are no patches, D width."""
        tokens: Tensor = self.backbone.forward_features(image)  # type: ignore[operator]  # (B, T, D), normalised
        class_token = tokens[:, 0]
        if not self.with_mean:
            return class_token
        # in float32: half precision loses digits in a sum of 256 tokens
        patches = tokens[:, self.backbone.num_prefix_tokens :].float()  # (B, T - P, D)
        return torch.cat([class_token.float(), patches.mean(1)], dim=1)  # (B, 2 D)


def build_vit(spec: EncoderSpec, path: Path | None) -> nn.Module:
    """Build a published vision transformer: normalised float [B, 3, p, p] to features [B, dim].

    Parameters
    ----------
    spec
        A row of the catalogue.
    path
        Its checkpoint; None for untrained, seeded weights.

    Raises
    ------
    ConfigError
        If the weights cannot be read or do not fit.
    """
    backbone = create(spec, weights_follow=path is not None)
    if path is not None:
        load_strictly(backbone, LAYOUTS[spec.layout](read_state(path), backbone), path)
    return Pooled(backbone, with_mean=spec.pooling == "cls+mean")


def create(spec: EncoderSpec, *, weights_follow: bool = False) -> nn.Module:
    """Create the network alone, without its classifier.

    Parameters
    ----------
    spec
        A row of the catalogue.
    weights_follow
        Whether every tensor is about to be replaced: then none is drawn, which takes a minute for a billion of them.
    """
    options: dict[str, Any] = dict(spec.options)
    if options.pop("mlp", None) == "swiglu":
        # timm's block would give the gate a GELU, which loads without a word and is wrong
        options |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    if "norm_eps" in options:
        options["norm_layer"] = _layer_norm(options.pop("norm_eps"))
    with torch.random.fork_rng(devices=[]), torch.device("meta" if weights_follow else torch.get_default_device()):
        torch.manual_seed(SEED)
        return create_network(spec, spec.architecture, options)


def _layer_norm(eps: float) -> Any:
    return partial(LayerNorm, eps=eps)
