"""Rename a published checkpoint's tensors to timm's vision transformer; no value changes but by joining and adding.

Each layout is a function from the tensors of the file to those of the model. What a layout does not know keeps its
name, so that the strict load that follows names it.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

State = Mapping[str, Tensor]

HUGGINGFACE_WRAPPERS = ("vit.", "dinov2.", "dinov2_with_registers.")
"""What transformers puts before the names of a backbone that was saved inside another model."""
HUGGINGFACE_UNUSED = ("embeddings.mask_token", "pooler.", "classifier.", "decoder.")
EMBEDDINGS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
IN_LAYER = (
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
    (r"mlp\.weights_in\.", "mlp.fc1."),
    (r"mlp\.weights_out\.", "mlp.fc2."),
    (r"layer_scale([12])\.lambda1$", r"ls\1.gamma"),
)
"""What transformers 4 (ViT, Dinov2) calls the parts of a layer, and what timm does; the first that matches is taken."""
LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
QUERY_KEY_VALUE = ("query", "key", "value")
CHUNKED_BLOCK = re.compile(r"blocks\.\d+\.(\d+)\.")
META_MLP = ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))


def as_stored(state: State, _model: nn.Module) -> State:
    """Take a file that is in timm's own layout."""
    return state


def from_timm(state: State, model: nn.Module) -> State:
    """Let timm convert, which also resamples the position embedding to the model's grid."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    converted: State = checkpoint_filter_fn(dict(state), model)  # type: ignore[arg-type]
    return converted


def from_huggingface(state: State, model: nn.Module) -> State:
    """Convert what transformers 4 saves of a ViT, a Dinov2 or a Dinov2WithRegisters."""
    names = {_without_wrapper(name): tensor for name, tensor in state.items()}
    if any(name.startswith("blocks.") for name in names):
        return from_meta(names, model)
    renamed: dict[str, Tensor] = {}
    for name, tensor in names.items():
        if name.startswith(HUGGINGFACE_UNUSED) or ".attention.attention." in name:
            continue
        renamed[_renamed(name)] = tensor
    return _registers_apart(renamed | _joined_attention(names))


def _without_wrapper(name: str) -> str:
    for wrapper in HUGGINGFACE_WRAPPERS:
        if name.startswith(wrapper):
            return name.removeprefix(wrapper)
    return name


def _renamed(name: str) -> str:
    in_layer = LAYER.fullmatch(name)
    if in_layer is None:
        return EMBEDDINGS.get(name, name)
    part = in_layer[2]
    for pattern, replacement in IN_LAYER:
        part, found = re.subn(f"^{pattern}", replacement, part)
        if found:
            break
    return f"blocks.{in_layer[1]}.{part}"


def _joined_attention(names: State) -> dict[str, Tensor]:
    """Join each layer's query, key and value, in this order, into timm's one projection."""
    joined: dict[str, Tensor] = {}
    for name in names:
        at_layer = LAYER.fullmatch(name)
        if at_layer is None or not at_layer[2].startswith("attention.attention.query."):
            continue
        parts = [name.replace(".query.", f".{part}.") for part in QUERY_KEY_VALUE]
        kind = name.rpartition(".")[2]
        if all(part in names for part in parts):
            joined[f"blocks.{at_layer[1]}.attn.qkv.{kind}"] = torch.cat([names[part] for part in parts])
    return joined


def from_meta(state: State, _model: nn.Module) -> State:
    """Convert what Meta's DINOv2 code saves: register tokens, gated MLPs, and blocks that may lie in chunks."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "mask_token":
            continue
        name = CHUNKED_BLOCK.sub(r"blocks.\1.", name)
        for old, new in META_MLP:
            name = name.replace(old, new)
        renamed[name] = tensor
    return _registers_apart(renamed)


def _registers_apart(state: dict[str, Tensor]) -> State:
    """Where there are registers, add the class token's position to it: timm's positions are those of patches alone."""
    if "register_tokens" not in state or not {"cls_token", "pos_embed"} <= set(state):
        return state
    rest = dict(state)
    positions = rest.pop("pos_embed")
    rest["reg_token"] = rest.pop("register_tokens")
    rest["cls_token"] = rest["cls_token"] + positions[:, :1]
    rest["pos_embed"] = positions[:, 1:]
    return rest


def from_gpfm(state: State, model: nn.Module) -> State:
    """Convert GPFM's file: the hub's is bare, the release's holds the teacher's backbone beside a projection head."""
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    return from_meta(backbone or state, model)


LAYOUTS: dict[str, Callable[[State, nn.Module], State]] = {
    "timm": as_stored,
    "resampled": from_timm,
    "huggingface": from_huggingface,
    "gpfm": from_gpfm,
}
"""Conversions by the `layout` of an encoder's spec."""
