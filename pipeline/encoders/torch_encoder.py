"""What every encoder that is a network shares: reading weights strictly, and running batches on a device."""

import logging
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.encoders.registry import EncoderSpec
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

SEED = 0
"""Seed of untrained weights."""
CONTAINERS = ("model", "state_dict")
"""Keys under which published checkpoints keep their tensors."""
PREFIXES = ("module.", "model.")
"""What wrappers (DataParallel, Lightning) put before every name."""
DAMAGE = (
    safetensors.SafetensorError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch and safetensors raise on a file with changed or missing bytes, beside UnpicklingError."""
GPU_BATCH, CPU_BATCH = 256, 32
PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, without running code that it may hold.

    Parameters
    ----------
    path
        A `.safetensors` file, or one of `torch.save`: tensors by name, bare or under `model` or `state_dict`.

    Raises
    ------
    ConfigError
        If the file is damaged, holds anything but tensors and plain containers, or holds no tensors by name.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path}: not a checkpoint of tensors alone ({_first_line(error)}); fetch the published file again"
        ) from error
    except DAMAGE as error:
        raise ConfigError(f"{path}: cannot be read as weights ({_first_line(error)}); fetch the file again") from error
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ConfigError(f"{path}: holds no tensors by name; give the state dict of the model")
    return without_prefix(dict(content))


def without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take a wrapper's prefix off the names, where all of them carry it."""
    for prefix in PREFIXES * 2:  # either may be outermost
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load every tensor into its place.

    Raises
    ------
    ConfigError
        If a tensor is missing, is one too many, or has another shape; the message names the first.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    misshapen = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    for what, names in (("lacks", missing), ("has an unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ConfigError(f"{path}: {what} tensor {names[0]}{more}; give the weights of this very model")
    if misshapen:
        name = misshapen[0]
        found, expected = tuple(state[name].shape), tuple(wanted[name].shape)
        raise ConfigError(f"{path}: tensor {name} is {found}, not {expected}; give the weights of this very model")
    model.load_state_dict(dict(state), strict=True)


class TorchEncoder:
    """Run a network over patches.

    Parameters
    ----------
    model
        From normalised float [B, 3, p, p] to features [B, dim].
    spec
        What the encoder declares; its `mean` and `std` are applied on the device.
    device, threads, precision, batch_size
        As for `pipeline.encoders.load`.

    Raises
    ------
    ConfigError
        If there is no such device or precision.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: EncoderSpec,
        *,
        device: str = "cpu",
        threads: int = 1,
        precision: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        self.spec = spec
        self.mpp = spec.mpp
        self.patch_px = spec.patch_px
        self._device = _usable_device(device)
        self._dtype = _dtype(precision, self._device)
        self.batch_size = batch_size or (CPU_BATCH if self._device.type == "cpu" else GPU_BATCH)
        torch.set_num_threads(threads)
        self._model = model.eval().requires_grad_(False).to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = 255 * torch.tensor(spec.mean, device=self._device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(spec.std, device=self._device).view(1, 3, 1, 1)
        self.dim = spec.dim or self._probe()

    def _probe(self) -> int:
        return int(self._forward(np.zeros((1, self.patch_px, self.patch_px, 3), np.uint8)).shape[1])

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode patches, uint8 RGB [B, p, p, 3] with p = `patch_px`, into features, float32 [B, dim].

        A batch that does not fit the device's memory is tried again in halves, and later batches start at that size.

        Raises
        ------
        ValueError
            If the patches have another shape or dtype.
        """
        expected = (self.patch_px, self.patch_px, 3)
        if patches.dtype != np.uint8 or patches.ndim != 4 or patches.shape[1:] != expected:
            raise ValueError(f"patches are {patches.dtype} {patches.shape}; give uint8, B patches of {expected}")
        features = np.empty((len(patches), self.dim), np.float32)
        start = 0
        while start < len(patches):
            part = patches[start : start + self.batch_size]
            try:
                features[start : start + len(part)] = self._forward(part)
            except torch.OutOfMemoryError:
                self._halve(len(part))
                continue
            start += len(part)
        return features

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise ConfigError(
                f"{self.spec.name}: one patch does not fit the memory of {self._device}; use a smaller encoder"
            )
        self.batch_size = (tried + 1) // 2
        torch.cuda.empty_cache()
        logger.info("%s: out of memory at %d patches; going on with %d", self.spec.name, tried, self.batch_size)

    @torch.inference_mode()
    def _forward(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        raw = torch.from_numpy(np.ascontiguousarray(patches))
        if self._device.type == "cuda":
            raw = raw.pin_memory().to(self._device, non_blocking=True)
        image = (
            raw.permute(0, 3, 1, 2).float().sub_(self._mean).div_(self._std)
        )  # (B, 3, p, p), channels last in memory
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
            features: Tensor = self._model(image)
        return features.float().cpu().numpy()


def _usable_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not one that torch knows; give cpu, cuda or cuda:<index>") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs; run with `--resources gpu=0`")
    return device


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not one of auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
