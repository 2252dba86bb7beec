"""What the authors' released code does: the layout of its weights, and its training where it differs from the paper."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asmil.anchor import AnchorConfig
from asmil.model import ASMIL

_PARTS = {
    "q_proj.weight": "query_weight",
    "q_proj.bias": "query_bias",
    "k_proj.weight": "key_weight",
    "k_proj.bias": "key_bias",
    "v_proj.weight": "value_weight",
    "v_proj.bias": "value_bias",
    "out_proj.weight": "output_weight",
    "out_proj.bias": "output_bias",
    "layer_norm.weight": "norm_weight",
    "layer_norm.bias": "norm_bias",
}

_UNUSED = re.compile(r"(classifier\.\d+\.fc|(.+\.)?(norm|ln|layer_?norm)\d*)\.(weight|bias)", re.IGNORECASE)
"""Stored but not on the way to the logits: one auxiliary classifier a token, and layer norms outside the pools."""


@dataclass(frozen=True)
class ReleasedSettings:
    """Options of `asmil.ASMIL` and of the anchor that belong together."""

    model: dict[str, Any]
    anchor: AnchorConfig


def from_released(state_dict: Mapping[str, Tensor], *, heads: int = 8, ignore: Collection[str] = ()) -> ASMIL:
    """Build the model that a released-layout state dict describes, in eval mode; its logits and attention are the same.

    Parameters
    ----------
    state_dict
        Keys `dimreduction.fc1.weight`, `q`, `cls`, `sub_attention.<k>.<part>`, `bag_attention.<part>` with parts
        `{q,k,v,out}_proj.{weight,bias}` and `layer_norm.{weight,bias}`, and `Slide_classifier.fc.{weight,bias}`.
        Auxiliary classifiers `classifier.<k>.fc.*` and layer norms outside the pools (`norm.*`, `layer_norm.*`) are
        not used by the forward pass, and are left out, whatever the norms are called.
    heads
        H, which no shape tells; the released configuration has 8.
    ignore
        Further keys to leave out.

    Raises
    ------
    ValueError
        If a key is missing or unexpected, or its tensor has another shape than the rest imply; it names the key.
    """
    wanted = _wanted_keys(state_dict)
    left = [key for key in state_dict if key not in wanted and key not in ignore and not _UNUSED.fullmatch(key)]
    if left:
        raise ValueError(f"unexpected {_listed(left)} in the state dict; it is not of the released ASMIL layout")
    if missing := [key for key in wanted if key not in state_dict]:
        raise ValueError(f"no {_listed(missing)} in the state dict; it is not of the released ASMIL layout")
    model = _empty_model(state_dict, heads=heads)
    own = model.state_dict()
    for name, value in own.items():
        sources = [key for key, target in wanted.items() if target == name]
        stacked = "_pool" in name
        shape = value.shape[1:] if stacked else value.shape
        parts = torch.stack([_shaped(state_dict[key], shape, key=key) for key in sources])
        value.copy_(parts if stacked else parts[0])
    return model.eval()


def _shaped(value: Tensor, shape: torch.Size, *, key: str) -> Tensor:
    squeezed = value[0] if value.ndim == 3 else value  # `q` and `cls` are stored as a batch of one
    if squeezed.shape != shape:
        raise ValueError(f"{key} has shape {list(value.shape)}, the other keys imply {list(shape)}")
    return squeezed


def _wanted_keys(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Give our parameter for each released key; the keys of token k come in the order of k."""
    tokens = {int(match[1]) for key in state_dict if (match := re.match(r"sub_attention\.(\d+)\.", key))}
    wanted = {
        "dimreduction.fc1.weight": "project.weight",
        "q": "tokens",
        "cls": "bag_token",
        "Slide_classifier.fc.weight": "classify.weight",
        "Slide_classifier.fc.bias": "classify.bias",
    }
    for part, name in _PARTS.items():
        wanted |= {f"sub_attention.{k}.{part}": f"token_pools.{name}" for k in range(max(1, len(tokens)))}
        wanted[f"bag_attention.{part}"] = f"bag_pool.{name}"
    return wanted


def _empty_model(state_dict: Mapping[str, Tensor], *, heads: int) -> ASMIL:
    for key, axes in (("dimreduction.fc1.weight", 2), ("Slide_classifier.fc.bias", 1)):
        if state_dict[key].ndim != axes:
            raise ValueError(f"{key} has shape {list(state_dict[key].shape)}; it is not of the released ASMIL layout")
    width, d_in = state_dict["dimreduction.fc1.weight"].shape
    tokens = sum(key.startswith("sub_attention.") and key.endswith("q_proj.bias") for key in state_dict)
    classes = len(state_dict["Slide_classifier.fc.bias"])
    return ASMIL(d_in, classes, d_inner=width, tokens=tokens, heads=heads)


def _listed(keys: Collection[str]) -> str:
    shown = sorted(keys)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def released_code(*, tokens: int = 8, dropped: int | None = None, temperature: float = 0.5) -> ReleasedSettings:
    """Give the settings under which training follows the authors' released code where it differs from the paper.

    There the anchor is drawn on its own and never updated (an inverted check for NaN skips every update), the alignment
    loss is averaged over patches with a weight of 1, a fixed number of tokens is dropped, and all tokens start at
    almost 0. Use it to compare, not to train: its target holds no knowledge of the slides.

    Parameters
    ----------
    tokens
        K.
    dropped
        Tokens dropped at each step, below K; None drops half of them.
    temperature
        T of the normalised sigmoid; the released experiments tried 0.07 to 0.5.
    """
    count = tokens // 2 if dropped is None else dropped
    return ReleasedSettings(
        model={"tokens": tokens, "token_drop": f"fixed:{count}", "token_std": 1e-6},
        anchor=AnchorConfig(
            mode="frozen", init="random", target="nsf", temperature=temperature, reduction="mean_patches", beta=1.0
        ),
    )
