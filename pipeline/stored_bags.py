"""Bags read from their stores when training asks for them, kept in memory up to a limit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from asmil.bags import Bag, FollowUp, Label
from asmil.errors import BagError
from pipeline import store
from pipeline.errors import ConfigError
from pipeline.split import Assignment
from pipeline.tasks import CLASSIFICATION, follow_up

SHARED = ("encoder", "weights_sha256", "dim", "patch_px", "target_mpp")
"""What all bags of a cohort must have in common, or their features cannot be compared."""


class Cache:
    """Memory for features as they are stored, shared by several sources.

    Parameters
    ----------
    limit_bytes
        What does not fit is read again each time it is asked for.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.free_bytes = limit_bytes
        self._kept: dict[Path, NDArray[np.float16]] = {}

    def features(self, path: Path) -> NDArray[np.float16]:
        """Give the features of a bag, shape (N, d)."""
        if path in self._kept:
            return self._kept[path]
        features = cast("NDArray[np.float16]", store.read(path, ["features"]).arrays["features"])
        if features.nbytes <= self.free_bytes:
            self.free_bytes -= features.nbytes
            self._kept[path] = features
        return features


class StoredBags(Sequence[Bag]):
    """Bags as `asmil.fit` takes them, standardised on the way.

    Parameters
    ----------
    rows
        The slides and their labels, in the order they are given.
    folder
        Where the bags lie.
    classes
        Names of the classes; a bag's label is its index. Empty for another task.
    task
        What the rows' labels are.
    cache
        Where features are kept.
    mean, sd
        Subtracted from and divided into the features, each of shape (d,); None leaves them as they are.
    """

    def __init__(
        self,
        rows: Sequence[Assignment],
        *,
        folder: Path,
        classes: Sequence[str],
        cache: Cache,
        task: str = CLASSIFICATION,
        mean: NDArray[np.float32] | None = None,
        sd: NDArray[np.float32] | None = None,
    ) -> None:
        self.rows = list(rows)
        self.folder = folder
        self.classes, self.task = list(classes), task
        self.cache = cache
        self.mean, self.sd = mean, sd

    @property
    def labels(self) -> list[Label]:
        """Each bag's label, known without reading a bag."""
        return [self._label(row) for row in self.rows]

    def _label(self, row: Assignment) -> Label:
        if self.task == CLASSIFICATION:
            return self.classes.index(row.label)
        return FollowUp(*follow_up(row.label)) if self.task == "survival" else float(row.label)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Bag:  # type: ignore[override]
        if not 0 <= index < len(self.rows):
            raise IndexError(index)
        row = self.rows[index]
        values = self.raw(index).astype(np.float32)
        if self.mean is not None and self.sd is not None:
            values -= self.mean  # in place: a large slide's features are not held twice
            values /= self.sd
        return Bag(values, self._label(row), row.slide_id)

    def raw(self, index: int) -> NDArray[np.float16]:
        """Give a bag's features as stored, shape (N, d)."""
        return self.cache.features(self.folder / f"{self.rows[index].slide_id}.zarr.zip")


def standardisation(bags: StoredBags) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the mean and the standard deviation of each feature over the patches of some bags.

    Every bag weighs the same, so that one large slide does not set the scale. A constant feature gets an sd of 1.

    Returns
    -------
    Mean and sd, each float32 of shape (d,).

    Raises
    ------
    BagError
        If a bag is empty or has features that are not finite: it would spoil those of every other bag.
    """
    means, squares = [], []
    for index, row in enumerate(bags.rows):
        values = bags.raw(index).astype(np.float64)
        if len(values) == 0:
            raise BagError(f"{row.slide_id}: the bag has no patches; leave it out")
        means.append(values.mean(0))
        squares.append((values**2).mean(0))
        if not np.isfinite(means[-1]).all():
            broken = int((~np.isfinite(values)).any(axis=1).sum())
            raise BagError(
                f"{row.slide_id}: {broken} of {len(values)} patches have features that are not finite; embed it again"
            )
    mean = np.mean(means, axis=0)
    variance = np.maximum(np.mean(squares, axis=0) - mean**2, 0)
    sd = np.sqrt(variance)
    constant = sd <= 1e-4 * np.maximum(1, np.abs(mean))
    return mean.astype(np.float32), np.where(constant, 1, sd).astype(np.float32)


def common_attributes(slides: Sequence[str], folder: Path) -> dict[str, Any]:
    """Give what the bags have in common (see `SHARED`), and the encoder's wish to have its features standardised.

    Raises
    ------
    BagError
        If two bags differ, naming both.
    """
    first: dict[str, Any] | None = None
    for slide in slides:
        attributes = store.read_attributes(folder / f"{slide}.zarr.zip")
        found = {key: attributes[key] for key in (*SHARED, "standardise")}
        if first is None:
            first, name = found, slide
        for key, value in found.items():
            if value != first[key]:
                raise BagError(
                    f"bags of '{name}' and '{slide}' differ in {key} ({first[key]} and {value}); embed both alike"
                )
    if first is None:
        raise ConfigError("the splits name no slide; label some")
    return first
