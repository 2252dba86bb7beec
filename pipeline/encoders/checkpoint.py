"""Read the tensors of a checkpoint without running code, and put every one of them into its place."""

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError

SEED = 0
"""Seed of untrained weights."""
CONTAINERS = ("model", "state_dict", "teacher")
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
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch and safetensors raise on a file with changed or missing bytes, beside UnpicklingError."""
SMALL_BYTES = 1 << 28
"""A file up to this size that asks for more memory than there is states a length that is wrong."""


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
    except MemoryError as error:
        if path.stat().st_size > SMALL_BYTES:
            raise
        raise ConfigError(f"{path}: cannot be read as weights (its lengths are wrong); fetch the file again") from error
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
    if any(tensor.is_meta for tensor in wanted.values()):
        # the file's tensors become the model's; half precision files are computed with as any other
        model.load_state_dict(dict(state), strict=True, assign=True)
        model.float()
        return
    model.load_state_dict(dict(state), strict=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
