"""Encoders: from patches to features. `load` builds one, `spec` says what it expects; neither ever uses the network."""

import logging
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.registry import RANDOM, EncoderSpec, required_weights, spec, weights_path
from pipeline.errors import ConfigError
from pipeline.weights import sha256_of

__all__ = ["Encoder", "EncoderSpec", "check_weights", "load", "required_weights", "spec", "weights_path"]

logger = logging.getLogger(__name__)

WEIGHTS_FOLDER = Path("weights")


class Encoder(Protocol):
    """From patches, uint8 RGB [B, p, p, 3], to features, float32 [B, dim]; `mpp` and `patch_px` are its own scale."""

    spec: EncoderSpec
    mpp: float | None
    patch_px: int
    dim: int

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches."""


def check_weights(name: str, *, folder: Path = WEIGHTS_FOLDER, weights: str | Path | None = None) -> str:
    """Check that an encoder's weights are there, before any slide is read.

    Parameters
    ----------
    name, folder, weights
        As for `weights_path`.

    Returns
    -------
    The file's sha256, or "" where there is no file to read. A file in `folder` whose digest is not the published one is
    used, with a warning: its owner may have trained on.

    Raises
    ------
    ConfigError
        If the encoder is unknown or its file is missing.
    """
    path = required_weights(name, folder, weights)
    if path is None:
        return ""
    digest = sha256_of(path)
    published = spec(name).sha256
    if not weights and published and digest != published:
        logger.warning("%s: sha256 of %s is %s, of the published file %s", name, path, digest, published)
    return digest


def load(
    name: str,
    *,
    weights: str | Path | None = None,
    folder: Path = WEIGHTS_FOLDER,
    device: str = "cpu",
    threads: int = 1,
    precision: str = "auto",
    batch_size: int | None = None,
) -> Encoder:
    """Build an encoder.

    Parameters
    ----------
    name, folder, weights
        As for `weights_path`.
    device
        A torch device ("cpu", "cuda", "cuda:1"); `texture` ignores it.
    threads
        CPU threads.
    precision
        "fp32", "bf16", "fp16", or "auto": bf16 on a GPU, fp32 on the CPU.
    batch_size
        Patches that go through the network at once; None for a start that halves itself when memory runs out.

    Raises
    ------
    ConfigError
        If the encoder is unknown, its weights are missing or do not fit, or a setting is not to be had.
    """
    if threads < 1:
        raise ConfigError(f"encoder: {threads} threads; give 1 or more")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"encoder: batch size {batch_size}; give 1 or more, or leave it out")
    found = spec(name)
    path = required_weights(name, folder, weights)
    if not found.uses_gpu:
        from pipeline.encoders.texture import TextureEncoder

        return TextureEncoder(found, threads=threads)
    from pipeline.encoders.torch_encoder import TorchEncoder

    if path is None:
        logger.warning("%s: weights are %s, so its features mean nothing", name, RANDOM)
    if name == "ctranspath":
        from pipeline.encoders.ctranspath import build_ctranspath as build
    else:
        from pipeline.encoders.timm_encoder import build_timm as build
    return TorchEncoder(
        build(found, path), found, device=device, threads=threads, precision=precision, batch_size=batch_size
    )
