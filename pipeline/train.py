"""Train the model of one fold on stored bags, and write a folder that predicts."""

import csv
import io
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag
from asmil.errors import BagError
from asmil.training import FitConfig, FitResult, fit
from pipeline import store
from pipeline.errors import ConfigError
from pipeline.model_folder import ModelFolder, build_model
from pipeline.split import Assignment, Role, read_splits

log = logging.getLogger(__name__)

SHARED = ("encoder", "weights_sha256", "dim", "patch_px", "target_mpp")
"""What all bags of a cohort must have in common, or their features cannot be compared."""


class StoredBags(Sequence[Bag]):
    """Bags read from their stores when they are asked for, standardised, kept in memory up to a limit.

    Parameters
    ----------
    rows
        The slides and their labels, in the order they are given.
    folder
        Where the bags lie.
    classes
        Names of the classes; a bag's label is its index.
    mean, sd
        Subtracted from and divided into the features, each of shape (d,); None leaves them as they are.
    cache_bytes
        Memory that the bags may take; what does not fit is read again each time.
    """

    def __init__(
        self,
        rows: Sequence[Assignment],
        *,
        folder: Path,
        classes: Sequence[str],
        mean: NDArray[np.float32] | None = None,
        sd: NDArray[np.float32] | None = None,
        cache_bytes: int = 4 << 30,
    ) -> None:
        self.rows = list(rows)
        self.folder = folder
        self.classes = list(classes)
        self.mean, self.sd = mean, sd
        self._free_bytes = cache_bytes
        self._cache: dict[int, NDArray[np.float16]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Bag:  # type: ignore[override]
        if not 0 <= index < len(self.rows):
            raise IndexError(index)
        row = self.rows[index]
        features = self._features(index)
        if self.mean is not None and self.sd is not None:
            values = (features.astype(np.float32) - self.mean) / self.sd
        else:
            values = features.astype(np.float32)
        return Bag(values, self.classes.index(row.label), row.slide_id)

    def _features(self, index: int) -> NDArray[np.float16]:
        if index in self._cache:
            return self._cache[index]
        path = self.folder / f"{self.rows[index].slide_id}.zarr.zip"
        features = store.read(path, ["features"]).arrays["features"]
        name = self.rows[index].slide_id
        # looked for here, as the standardisation would spread one slide's NaN over all
        if not len(features):
            raise BagError(f"{name}: its bag is empty; embed it again")
        if not np.isfinite(features).all():
            raise BagError(f"{name}: its bag has features that are not finite; embed it again")
        if features.nbytes <= self._free_bytes:
            self._free_bytes -= features.nbytes
            self._cache[index] = features
        return cast("NDArray[np.float16]", features)

    def raw(self) -> Iterator[NDArray[np.float16]]:
        """Give every bag's features as stored, shape (N, d)."""
        for index in range(len(self)):
            yield self._features(index)


def standardisation(bags: StoredBags) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the mean and the standard deviation of each feature over the patches of some bags.

    Every bag weighs the same, so that one large slide does not set the scale. A constant feature gets an sd of 1.

    Returns
    -------
    Mean and sd, each float32 of shape (d,).
    """
    means, squares = [], []
    for features in bags.raw():
        values = features.astype(np.float64)
        means.append(values.mean(0))
        squares.append((values**2).mean(0))
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


def run(
    *,
    fold: int,
    splits: Path,
    bags: Path,
    folder: Path,
    model: str,
    model_options: dict[str, Any],
    anchor: AnchorConfig,
    training: FitConfig,
    seed: int,
    device: str,
) -> None:
    """Train the model of one fold and write its folder.

    Parameters
    ----------
    fold
        The fold of the splits file.
    splits, bags
        The splits file, and the folder of the bags.
    folder
        The model folder to write.
    model, model_options
        Name of the model, and its own options.
    anchor, training
        Options of the anchor and of the training.
    seed
        Seed of the run; every fold derives its own.
    device
        `cpu` or `cuda`.
    """
    rows = [row for row in read_splits(splits) if row.fold == fold]
    if not rows:
        raise ConfigError(f"{splits} has no fold {fold}; run the workflow again")
    classes = sorted({row.label for row in rows})
    shared = common_attributes([row.slide_id for row in rows], bags)
    mean = sd = None
    if shared["standardise"]:
        mean, sd = standardisation(StoredBags(_of_role(rows, "train"), folder=bags, classes=classes))
    sets = {
        role: StoredBags(_of_role(rows, role), folder=bags, classes=classes, mean=mean, sd=sd)
        for role in cast("tuple[Role, ...]", ("train", "validation"))
    }
    start = time.perf_counter()
    network = build_model(model, d_in=shared["dim"], classes=len(classes), options=model_options, seed=seed + fold)
    regularizer = None if anchor.mode == "none" else AnchorRegularizer(network, anchor)
    result = fit(
        network,
        sets["train"],
        sets["validation"],
        anchor=regularizer,
        config=training,
        seed=seed + fold,
        device=device,
    )
    log.info(
        "fold %d: %d training and %d validation slides, best epoch %d of %d, %.1f s",
        fold,
        len(sets["train"]),
        len(sets["validation"]),
        result.best_epoch,
        len(result.history),
        time.perf_counter() - start,
    )
    ModelFolder(
        name=model,
        options=dict(network.options),
        classes=classes,
        bags=shared,
        fold=fold,
        best_epoch=result.best_epoch,
        training={"seed": seed, "anchor": asdict(anchor), **asdict(training)},
        mean=mean,
        sd=sd,
    ).write(folder, result)
    store.write_text(folder / "history.csv", history_table(result))


def _of_role(rows: Sequence[Assignment], role: Role) -> list[Assignment]:
    return [row for row in rows if row.role == role]


def history_table(result: FitResult) -> str:
    """Give the history as CSV, a row an epoch."""
    buffer = io.StringIO()
    columns = list(dict.fromkeys(key for entry in result.history for key in entry))
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows([{key: _plain(value) for key, value in entry.items()} for entry in result.history])
    return buffer.getvalue()


def _plain(value: object) -> object:
    return json.loads(json.dumps(value)) if isinstance(value, float) else value
