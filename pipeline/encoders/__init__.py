"""Encoders: from patches to features. `load` builds one, `spec` says what it expects; neither ever uses the network."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.registry import (
    IMPORTED,
    RANDOM,
    WEIGHTS_FOLDER,
    EncoderSpec,
    built_in,
    required_weights,
    spec,
    weights_path,
)
from pipeline.errors import ConfigError
from pipeline.weights import checked, known_sha256

__all__ = [
    "Encoder",
    "EncoderSpec",
    "Overlapping",
    "build",
    "built_in",
    "check_precision",
    "check_weights",
    "load",
    "required_weights",
    "spec",
    "weights_path",
]

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Encoder(Protocol):
    """From patches, uint8 RGB [B, p, p, 3], to features, float32 [B, dim]; `mpp` and `patch_px` are its own scale."""

    spec: EncoderSpec
    mpp: float | None
    patch_px: int
    dim: int

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches."""


@runtime_checkable
class Overlapping(Encoder, Protocol):
    """An encoder that lets its caller prepare the next patches while it works, and says how many it wants at once."""

    batch_size: int

    def buffer(self, patch_px: int) -> NDArray[np.uint8]:
        """Give memory for one batch, uint8 [batch_size, patch_px, patch_px, 3], that the device reads fast from."""

    def submit(self, patches: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        """Start to encode patches, and give a function that waits for their features; till then leave them alone."""

    def use_threads(self, threads: int) -> None:
        """Use this many CPU threads from now on."""


def check_weights(name: str, *, folder: Path = WEIGHTS_FOLDER, weights: str | Path | None = None) -> str:
    """Check that an encoder's weights are there, before any slide is read.

    Parameters
    ----------
    name, folder, weights
        As for `weights_path`.

    Returns
    -------
    The file's sha256, or "" where there is no file to read. A file that `weights` names is taken as it is: its owner
    may have trained on.

    Raises
    ------
    ConfigError
        If the encoder is unknown, its file is missing, or the one in `folder` is not the published one or the one that
        was fetched.
    """
    path = required_weights(name, folder, weights)
    if path is None:
        return ""
    return known_sha256(path) if weights else checked(path, name, spec(name, folder).sha256)


def check_precision(precision: str, kind: str) -> None:
    """Raise a ConfigError if a kind of device, `cuda` or `cpu`, should not compute in a precision.

    torch emulates fp16 on most CPUs: it takes longer than fp32 there and only loses digits.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and kind == "cpu":
        raise ConfigError(
            "encoder.precision is fp16 and the computation is on the CPU, where that is slower than fp32; "
            "set it to auto, or run with a GPU"
        )


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    folder: Path = WEIGHTS_FOLDER,
    device: str | Callable[[], str] = "cpu",
    threads: int = 1,
    precision: str = "auto",
    batch_size: int | None = None,
    compiled: bool = False,
    stain: str = "none",
    patch_px: int | None = None,
) -> Encoder:
    """Build an encoder.

    Parameters
    ----------
    name, folder, weights
        As for `weights_path`.
    device
        A torch device ("cpu", "cuda", "cuda:1"), or a function that gives one and is called when the network is
        built, so that a job may wait for a device till it can use it; `texture` ignores it.
    threads
        CPU threads.
    precision
        "fp32", "bf16", "fp16", or "auto": bf16 on a GPU, fp32 on the CPU.
    batch_size
        Patches that go through the network at once; None for what was measured on this GPU before, or is measured
        now, and on the CPU for a fixed number. It halves itself when memory runs out.
    compiled
        Whether torch compiles the network: a minute's start for a faster run.
    stain
        `none`, `macenko` or `reinhard`: the stain normalisation before the encoder.
    patch_px
        Edge of the patches that will come; None for the encoder's own. A network that wants another resizes them on
        the device.

    Raises
    ------
    ConfigError
        If the encoder is unknown, its weights are missing or do not fit, or a setting is not to be had.
    """
    if threads < 1:
        raise ConfigError(f"encoder: {threads} threads; give 1 or more")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"encoder: batch size {batch_size}; give 1 or more, or leave it out")
    found = spec(name, folder)
    if str(weights) == IMPORTED:
        raise ConfigError(
            f"{name}: encoder.weights is {IMPORTED}, and this slide has no imported features; import them with "
            "`python -m pipeline import`, or take the slide out"
        )
    path = required_weights(name, folder, weights)
    settings: dict[str, Any] = {
        "threads": threads,
        "precision": precision,
        "batch_size": batch_size,
    }
    if found.needs_weights and path is None:
        logger.warning("%s: weights are %s, so its features mean nothing", name, RANDOM)
    if found.builder == "texture":
        from pipeline.encoders.texture import TextureEncoder

        return TextureEncoder(found, threads=threads, prepare=_stain_of(stain))
    if found.builder == "plugin":
        from pipeline.encoders.plugin import build_plugin

        return build_plugin(found, path, device=device() if callable(device) else device, **settings)
    from pipeline.encoders.torch_encoder import TorchEncoder

    network = build(found, path)
    return TorchEncoder(
        network,
        found,
        device=device() if callable(device) else device,
        compiled=compiled,
        stain=stain,
        patch_px=patch_px,
        **settings,
    )


def _stain_of(name: str) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None:
    if name == "none":
        return None
    from pipeline.encoders.stain import on_arrays

    return on_arrays(name)


def build(found: EncoderSpec, path: Path | None) -> "nn.Module":
    """Build an encoder's network: normalised float [B, 3, p, p] to features [B, dim].

    Parameters
    ----------
    found
        From `spec`; of no builder that needs no network.
    path
        Its weights; None for untrained, seeded ones.

    Raises
    ------
    ConfigError
        If the weights cannot be read or do not fit.
    """
    match found.builder:
        case "ctranspath":
            from pipeline.encoders.ctranspath import build_ctranspath

            return build_ctranspath(found, path)
        case "vit":
            from pipeline.encoders.vit import build_vit

            return build_vit(found, path)
        case "conch":
            from pipeline.encoders.conch import build_conch

            return build_conch(found, path)
        case _:
            from pipeline.encoders.timm_encoder import build_timm

            return build_timm(found, path)
