"""Any model of timm as an encoder, with weights from a local file."""

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from pipeline.encoders.checkpoint import SEED, load_strictly, read_state
from pipeline.encoders.registry import TIMM_PREFIX, EncoderSpec, Triple
from pipeline.errors import ConfigError


def timm_spec(name: str) -> EncoderSpec:
    """Describe `timm:<model>` by what timm's own configuration of it says; its resolution is left to `tiling.mpp`.

    Raises
    ------
    ConfigError
        If timm has no such model.
    """
    model = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=3, cutoff=0.6)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() has the names"
        raise ConfigError(f"encoder.name: timm {timm.__version__} has no model {model!r}; {hint}")
    config = _pretrained_config(model)
    hub_file = config.hf_hub_filename or "model.safetensors"
    return EncoderSpec(
        name=name,
        mpp=None,
        patch_px=config.input_size[-1],
        dim=None,
        mean=_triple(config.mean),
        std=_triple(config.std),
        licence=config.license or "not stated by timm",
        source=str(config.hf_hub_id or config.url or "not stated by timm"),
        hub_id=config.hf_hub_id or "",
        hub_file=hub_file,
        weights_file=f"timm-{model}{PurePosixPath(hub_file).suffix}",
    )


def _pretrained_config(model: str) -> PretrainedCfg:
    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError as error:  # timm's way to say that it does not know the tag
        raise ConfigError(f"encoder.name: {error} in timm {timm.__version__}; correct or leave out the tag") from error
    return config or PretrainedCfg()


def _triple(values: tuple[float, ...]) -> Triple:
    red, green, blue = values
    return red, green, blue


def create_network(spec: EncoderSpec, architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """Let timm create a network without its classifier.

    Raises
    ------
    ConfigError
        If it cannot with these options, which a snapshot's `config.json` may state at will.
    """
    try:
        model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ConfigError(
            f"{spec.name}: timm {timm.__version__} cannot build {architecture} as it is described ({error!r}); fetch"
            " its weights and configuration again"
        ) from error
    return model


def build_timm(spec: EncoderSpec, path: Path | None) -> nn.Module:
    """Build a model without its classifier.

    Parameters
    ----------
    spec
        As `timm_spec` gives it.
    path
        Its weights, in timm's or their authors' layout; None for untrained, seeded ones.

    Raises
    ------
    ConfigError
        If the weights cannot be read or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = create_network(spec, spec.architecture or spec.name.removeprefix(TIMM_PREFIX), spec.options)
    if path is not None:
        load_strictly(model, _in_layout_of(model, read_state(path)), path)
    return model


def _in_layout_of(model: nn.Module, state: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename what timm itself renames for this family, and leave out the classifier and buffers that are computed."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    converted: Mapping[str, Tensor] = convert(state, model) if convert else state
    classifier = model.pretrained_cfg["classifier"]  # type: ignore[index]
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
    heads = tuple(f"{name}." for name in classifiers)
    return {name: tensor for name, tensor in converted.items() if not name.startswith(heads)}
