"""`hf-hub:<id>`: a model as the hub keeps it, a folder with `config.json` and weights, read from disk alone.

Two kinds of configuration are understood: timm's, and that of a ViT, Dinov2 or Dinov2WithRegisters of transformers. No
code of a snapshot is ever run.
"""

from pathlib import Path
from typing import Any

import timm

from pipeline import json_text
from pipeline.encoders.registry import HUB_PREFIX, IMAGENET_MEAN, IMAGENET_STD, EncoderSpec, Triple
from pipeline.errors import ConfigError

WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
"""Names of weights in a snapshot, the best first."""
PREPROCESSING = "preprocessor_config.json"
OF_CREATION = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes"}
)
"""Arguments that are for us to give, not for a snapshot: which file is read, and that there is no classifier."""
FROM_TRANSFORMERS = ("vit", "dinov2", "dinov2_with_registers")
REGISTERS = 4
"""transformers' own default where a configuration does not say the number."""


def snapshot_folder(name: str, folder: Path) -> Path:
    """Say where the snapshot of `hf-hub:<id>` is kept below the folder of weights."""
    return folder / name.removeprefix(HUB_PREFIX).replace("/", "--")


def snapshot_spec(name: str, folder: Path) -> EncoderSpec:
    """Describe a snapshot by its own configuration; its resolution is left to `tiling.mpp`.

    Raises
    ------
    ConfigError
        If it is not there, or its model is none that can be built here.
    """
    place = snapshot_folder(name, folder)
    config = _read_json(place / "config.json", name)
    try:
        described = _of_timm(config, name) if "architecture" in config else _of_transformers(config, name, place)
        licence = config.get("license") or config.get("pretrained_cfg", {}).get("license")
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ConfigError(
            f"{place / 'config.json'}: lacks something or has it in another form ({error!r}); fetch the snapshot again"
        ) from error
    found = next((file for file in WEIGHTS_NAMES if (place / file).is_file()), WEIGHTS_NAMES[0])
    hub_id = name.removeprefix(HUB_PREFIX)
    return EncoderSpec(
        name=name,
        mpp=None,
        dim=None,
        licence=str(licence or "see the hub's page"),
        source=f"https://huggingface.co/{hub_id}",
        hub_id=hub_id,
        hub_file=found,
        weights_file=f"{place.name}/{found}",
        **described,
    )


def _of_timm(config: dict[str, Any], name: str) -> dict[str, Any]:
    architecture, pretrained = str(config["architecture"]), dict(config.get("pretrained_cfg", {}))
    if not timm.is_model(architecture.split(".")[0]):
        raise ConfigError(f"{name}: timm {timm.__version__} has no model {architecture!r}; update timm")
    size = pretrained.get("input_size") or config.get("input_size") or (3, 224, 224)
    return {
        "patch_px": int(size[-1]),
        "mean": _triple(pretrained.get("mean"), IMAGENET_MEAN),
        "std": _triple(pretrained.get("std"), IMAGENET_STD),
        "architecture": architecture.split(".")[0],
        "options": {key: value for key, value in (config.get("model_args") or {}).items() if key not in OF_CREATION},
        "builder": "snapshot",
    }


def _of_transformers(config: dict[str, Any], name: str, place: Path) -> dict[str, Any]:
    kind = config.get("model_type")
    if kind not in FROM_TRANSFORMERS:
        raise ConfigError(
            f"{name}: its config.json describes {kind!r}; only timm's models and {', '.join(FROM_TRANSFORMERS)} "
            "can be built here; give an encoder of your own as module:attribute"
        )
    preprocessing = place / PREPROCESSING
    pictures = _read_json(preprocessing, name) if preprocessing.is_file() else {}
    width = int(config["hidden_size"])
    gated = bool(config.get("use_swiglu_ffn", False))
    ratio = config.get("mlp_ratio") or config.get("intermediate_size", 4 * width) / width
    patch_px = int(config.get("image_size", 224))
    options: dict[str, Any] = {
        "img_size": patch_px,
        "patch_size": int(config.get("patch_size", 16)),
        "embed_dim": width,
        "depth": int(config["num_hidden_layers"]),
        "num_heads": int(config["num_attention_heads"]),
        "mlp_ratio": _gated_width(width, ratio) / width if gated else ratio,
        "qkv_bias": bool(config.get("qkv_bias", True)),
        "norm_eps": float(config.get("layer_norm_eps", 1e-6)),
        "dynamic_img_size": True,
    }
    if kind != "vit":
        options["init_values"] = 1.0
    if kind == "dinov2_with_registers":
        options |= {"reg_tokens": int(config.get("num_register_tokens", REGISTERS)), "no_embed_class": True}
    if gated:
        options["mlp"] = "swiglu"
    return {
        "patch_px": patch_px,
        "mean": _triple(pictures.get("image_mean"), IMAGENET_MEAN),
        "std": _triple(pictures.get("image_std"), IMAGENET_STD),
        "architecture": "vit_base_patch16_224",
        "options": options,
        "builder": "vit",
        "pooling": "cls",
        "layout": "huggingface",
    }


def _gated_width(width: int, ratio: float) -> int:
    """Give the width of both halves of a gated MLP: two thirds of the plain one, in steps of 8, as DINOv2 has it."""
    return 2 * ((int(int(width * ratio) * 2 / 3) + 7) // 8 * 8)


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json_text.parse_object(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{name}: no snapshot at {path.parent}; run `python -m pipeline weights fetch {name}`, or copy the "
            f"hub's folder there ({path.name} is missing)"
        ) from error
    except json_text.JsonError as error:
        raise ConfigError(f"{path}: {error}; fetch the snapshot again") from error
    return found


def _triple(values: Any, otherwise: Triple) -> Triple:
    if not values:
        return otherwise
    red, green, blue = (float(value) for value in values)
    return red, green, blue
