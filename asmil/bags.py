"""Bags: what a caller gives for a slide, and its check."""

import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmil.errors import BagError


@dataclass(frozen=True)
class FollowUp:
    """How long a patient was observed.

    Parameters
    ----------
    time
        Until the event or, where there was none, until the last contact; > 0, in any one unit.
    event
        Whether the event was seen; False: the time is censored.
    """

    time: float
    event: bool


Label = int | float | FollowUp
"""A class index in [0, C), a number, or a follow-up, by what is learned (`asmil.tasks`)."""


@dataclass(frozen=True)
class Bag:
    """The patches of one slide.

    Parameters
    ----------
    features
        Shape [N, d_in], floating point of any precision.
    label
        What is learned of it.
    name
        What errors call the bag.
    """

    features: Tensor | NDArray[Any]
    label: Label
    name: str


class BagSource(Protocol):
    """A sequence of bags, each read when it is asked for; a list of `Bag` is one.

    A source that also has `labels`, a sequence of them, is not read through to learn them.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Bag: ...


def read_labels(bags: BagSource) -> list[Label]:
    """Give the label of every bag, from the source's `labels` where it has them, else by reading each bag."""
    known = getattr(bags, "labels", None)
    return list(known) if known is not None else [bag.label for bag in each(bags)]


def each(bags: BagSource) -> Iterator[Bag]:
    """Read the bags in order, one at a time."""
    return (bags[index] for index in range(len(bags)))


def check_features(features: Tensor | NDArray[Any], *, name: str, d_in: int, device: torch.device) -> Tensor:
    """Give a bag's features as a float tensor on `device`, float32 or better.

    Raises
    ------
    BagError
        If they are not numbers [N, d_in] with N >= 1, or not all finite.
    """
    if isinstance(features, np.ndarray) and features.dtype.kind in "biuf" and features.dtype.itemsize <= 8:
        native = features.dtype.newbyteorder("=")
        # torch warns of read-only memory
        features = torch.from_numpy(np.require(features, dtype=native, requirements=["C", "W"]))
    if not isinstance(features, Tensor) or features.is_complex():
        kind = getattr(features, "dtype", type(features).__name__)
        raise BagError(f"{name}: features are {kind}, the model takes an array or a tensor of real numbers")
    if features.ndim != 2 or features.shape[1] != d_in:
        raise BagError(f"{name}: features have shape {list(features.shape)}, the model takes [patches, {d_in}]")
    if len(features) == 0:
        raise BagError(f"{name}: the bag has no patches; leave it out")
    features = features.to(device)
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    low, high = torch.aminmax(features)  # unlike isfinite().all(), this allocates nothing; NaN passes through
    if not (low.isfinite() & high.isfinite()):
        rows = int((~features.isfinite()).any(dim=1).sum())
        raise BagError(f"{name}: {rows} of {len(features)} patches have features that are not finite; embed it again")
    return features


def is_number(label: object) -> TypeGuard[float]:
    """Tell a number, of numpy or torch too, from a follow-up, a text or nothing."""
    return isinstance(label, numbers.Real) or (isinstance(label, np.generic | np.ndarray | Tensor) and label.ndim == 0)


def check_label(label: Label, *, name: str, classes: int) -> int:
    """Give the label as an int.

    Raises
    ------
    BagError
        If it is not one of 0 to `classes` - 1.
    """
    if not is_number(label) or not 0 <= label < classes or int(label) != label:
        raise BagError(f"{name}: label {label} is not a class index from 0 to {classes - 1}")
    return int(label)
