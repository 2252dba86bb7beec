"""A ViT and a DINOv2 as transformers 4 lays them out: tensors by its names, and the features they stand for.

Written from the published description of the models, on plain tensor operations: an independent word on what a
checkpoint means.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """Which of the layouts, and how large."""

    dino: bool
    gated: bool = False
    registers: int = 0
    width: int = 64
    depth: int = 2
    heads: int = 4
    patch: int = 16
    image: int = 224
    mlp: int = 256
    eps: float = 1e-6

    @property
    def hidden(self) -> int:
        """Width of one half of a gated MLP."""
        return (int(self.mlp * 2 / 3) + 7) // 8 * 8


def draw(kind: Kind, *, seed: int = 0, scale: float = 0.1) -> State:
    """Draw every tensor that a published file holds, those that a feature does not need included."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    patches = (kind.image // kind.patch) ** 2
    state = {
        "embeddings.cls_token": normal(1, 1, kind.width),
        "embeddings.position_embeddings": normal(1, 1 + patches, kind.width),
        "embeddings.patch_embeddings.projection.weight": normal(kind.width, 3, kind.patch, kind.patch),
        "embeddings.patch_embeddings.projection.bias": normal(kind.width),
        "layernorm.weight": 1 + normal(kind.width),
        "layernorm.bias": normal(kind.width),
    }
    if kind.dino:
        state["embeddings.mask_token"] = normal(1, kind.width)
    else:
        state |= {"pooler.dense.weight": normal(kind.width, kind.width), "pooler.dense.bias": normal(kind.width)}
    if kind.registers:
        state["embeddings.register_tokens"] = normal(1, kind.registers, kind.width)
    for layer in range(kind.depth):
        for name, shape in _layer_shapes(kind).items():
            state[f"encoder.layer.{layer}.{name}"] = normal(*shape)
    return state


def _layer_shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    width = kind.width
    norms = ("norm1", "norm2") if kind.dino else ("layernorm_before", "layernorm_after")
    linear = {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
    linear["attention.output.dense"] = (width, width)
    if kind.gated:
        linear |= {"mlp.weights_in": (2 * kind.hidden, width), "mlp.weights_out": (width, kind.hidden)}
    elif kind.dino:
        linear |= {"mlp.fc1": (kind.mlp, width), "mlp.fc2": (width, kind.mlp)}
    else:
        linear |= {"intermediate.dense": (kind.mlp, width), "output.dense": (width, kind.mlp)}
    shapes: dict[str, tuple[int, ...]] = {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
    if kind.dino:
        shapes |= {f"layer_scale{number}.lambda1": (width,) for number in (1, 2)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def class_token(state: State, image: Tensor, kind: Kind) -> Tensor:
    """Give the class token after the last norm, [B, width], of images [B, 3, image, image]."""
    patches = F.conv2d(
        image,
        state["embeddings.patch_embeddings.projection.weight"],
        state["embeddings.patch_embeddings.projection.bias"],
        stride=kind.patch,
    )
    tokens = patches.flatten(2).transpose(1, 2)
    first = state["embeddings.cls_token"].expand(len(image), -1, -1)
    tokens = torch.cat([first, tokens], 1) + state["embeddings.position_embeddings"]
    if kind.registers:
        registers = state["embeddings.register_tokens"].expand(len(image), -1, -1)
        tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
    for layer in range(kind.depth):
        prefix = f"encoder.layer.{layer}."
        tokens = _layer({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, tokens, kind)
    return F.layer_norm(tokens, (kind.width,), state["layernorm.weight"], state["layernorm.bias"], kind.eps)[:, 0]


def _layer(part: State, tokens: Tensor, kind: Kind) -> Tensor:
    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, part[f"{name}.weight"], part[f"{name}.bias"])

    def norm(name: str, values: Tensor) -> Tensor:
        return F.layer_norm(values, (kind.width,), part[f"{name}.weight"], part[f"{name}.bias"], kind.eps)

    def split(values: Tensor) -> Tensor:
        return values.view(*values.shape[:2], kind.heads, -1).transpose(1, 2)

    before, after = ("norm1", "norm2") if kind.dino else ("layernorm_before", "layernorm_after")
    scale1, scale2 = (part[f"layer_scale{n}.lambda1"] if kind.dino else 1.0 for n in (1, 2))
    normed = norm(before, tokens)
    query, key, value = (split(linear(f"attention.attention.{name}", normed)) for name in ("query", "key", "value"))
    weight = (query @ key.transpose(-1, -2) / (kind.width // kind.heads) ** 0.5).softmax(-1)
    attended = (weight @ value).transpose(1, 2).flatten(2)
    tokens = tokens + scale1 * linear("attention.output.dense", attended)
    normed = norm(after, tokens)
    if kind.gated:
        gate, up = linear("mlp.weights_in", normed).chunk(2, -1)
        return tokens + scale2 * linear("mlp.weights_out", F.silu(gate) * up)
    first, second = ("mlp.fc1", "mlp.fc2") if kind.dino else ("intermediate.dense", "output.dense")
    return tokens + scale2 * linear(second, F.gelu(linear(first, normed)))
