"""A trained model as a folder: weights, anchor, and everything a prediction needs to know."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from asmil.registry import MODELS, NamedModel, build
from asmil.seeding import seeded
from asmil.training import FitResult
from pipeline import checksums, json_text, store
from pipeline.calibration import choose_thresholds, softmax
from pipeline.errors import ArtefactError, ConfigError
from pipeline.outliers import Outliers
from pipeline.tasks import CLASSIFICATION
from pipeline.versions import SCHEMA_VERSION, library_versions, made_by

__all__ = ["MODELS", "ModelFolder", "build_model", "load_model"]

_MEAN, _SD = "standardise.mean", "standardise.sd"
_OUTLIERS, _OUTLIER_ARRAYS = "outliers.", ("mean", "basis", "variances")


def build_model(name: str, *, d_in: int, classes: int, options: dict[str, Any], seed: int) -> NamedModel:
    """Build a model with seeded initial weights; its name is one that `model:` in the configuration takes.

    Raises
    ------
    ConfigError
        If the name is unknown or an option does not fit.
    """
    if name not in MODELS:
        raise ConfigError(f"model '{name}' is unknown; choose from {', '.join(MODELS)}")
    try:
        with seeded(seed, device=torch.device("cpu")):
            return build(name, d_in, classes, **options)
    except ValueError as error:
        raise ConfigError(f"model '{name}' cannot be built: {error}") from error


@dataclass(frozen=True)
class ModelFolder:
    """What `model.json` says, and the standardisation of the features.

    Parameters
    ----------
    name, options
        The model, and the arguments it is built with.
    classes
        Names of the classes, in the order of the logits.
    bags
        What every bag must have in common with those it was trained on: encoder, weights' sha256, width, scale.
    fold, best_epoch, training
        Where the model comes from.
    seen
        Fingerprints of the slides it was trained on or its epoch was chosen on.
    mean, sd
        Standardisation of the features, each float32 of shape (d,), or None.
    task
        What the model learned.
    scale
        What its output means where it has one: (centre, spread) of centre + spread * output.
    temperature, thresholds, validation
        What was fitted on the validation slides, and their class indices and logits, without their names.
    outliers
        The distribution of the training slides' features; None where there are too few.
    seen_overviews
        Perceptual hashes of the slides of `seen`.
    preparation
        How a new slide becomes a bag: settings by stage.
    """

    name: str
    options: dict[str, Any]
    classes: list[str]
    bags: dict[str, Any]
    fold: int
    best_epoch: int
    training: dict[str, Any]
    seen: list[str]
    mean: NDArray[np.float32] | None = None
    sd: NDArray[np.float32] | None = None
    task: str = CLASSIFICATION
    scale: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0
    thresholds: dict[str, float] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    outliers: Outliers | None = None
    seen_overviews: list[str] = field(default_factory=list)
    preparation: dict[str, Any] = field(default_factory=dict)

    def thresholds_for(self, at_least: float) -> dict[str, float]:
        """Choose thresholds anew on the validation slides, for another sensitivity or specificity than when trained.

        Empty for other than two classes.
        """
        if len(self.classes) != 2:
            return {}
        positive = np.array(self.validation["labels"]) == 1
        likely = softmax(np.array(self.validation["logits"]), self.temperature)[:, 1]
        return choose_thresholds(positive, likely, at_least=at_least)

    def standardised(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Give a bag's features (N, d) as the model takes them."""
        values = features.astype(np.float32)
        if self.mean is not None and self.sd is not None:
            values -= self.mean
            values /= self.sd
        return values

    def write(self, folder: Path, result: FitResult) -> None:
        """Write weights, anchor and description; each file appears when it is complete."""
        state = {name: tensor.contiguous() for name, tensor in result.best_state.items()}
        if self.mean is not None and self.sd is not None:
            state |= {_MEAN: torch.from_numpy(self.mean), _SD: torch.from_numpy(self.sd)}
        if self.outliers is not None:
            state |= {f"{_OUTLIERS}{key}": torch.from_numpy(getattr(self.outliers, key)) for key in _OUTLIER_ARRAYS}
        with store.replacing(folder / "weights.safetensors") as part:
            part.write_bytes(save(state))  # its own writer has no sentence for a full disk
        with store.replacing(folder / "anchor.safetensors") as part:
            part.write_bytes(save({name: tensor.contiguous() for name, tensor in (result.anchor_state or {}).items()}))
        description = {
            "schema_version": SCHEMA_VERSION,
            **made_by("train"),
            "model": self.name,
            "options": self.options,
            "task": self.task,
            "scale": list(self.scale),
            "classes": self.classes,
            "bags": self.bags,
            "fold": self.fold,
            "best_epoch": self.best_epoch,
            "training": self.training,
            "temperature": self.temperature,
            "thresholds": self.thresholds,
            "validation": self.validation,
            "outliers": None if self.outliers is None else self.outliers.numbers(),
            "preparation": self.preparation,
            "versions": library_versions(),
            "seen": self.seen,
            "seen_overviews": self.seen_overviews,
        }
        store.write_text(folder / "model.json", json.dumps(description, indent=2, ensure_ascii=False) + "\n")

    def check_bag(self, attributes: dict[str, Any], *, folder: Path) -> None:
        """Raise an ArtefactError if a bag was not made as those the model was trained on."""
        for key, value in self.bags.items():
            if attributes.get(key) != value:
                raise ArtefactError(
                    f"{folder} was trained with {key} {value}, the bag of '{attributes['slide_id']}' has"
                    f" {attributes.get(key)}; embed the slide as the model's were"
                )


def read_description(folder: Path) -> dict[str, Any]:
    """Read `model.json`.

    Raises
    ------
    ArtefactError
        If it is missing, damaged, or of another schema version.
    """
    if (folder / "model.json").exists():
        checksums.check(folder / "model.json")
    try:
        found = json_text.parse_object((folder / "model.json").read_bytes())
    except (FileNotFoundError, json_text.JsonError) as error:
        raise ArtefactError(f"{folder}: its model.json is missing or damaged ({error}); train again") from error
    if found.get("schema_version") != SCHEMA_VERSION:
        raise ArtefactError(
            f"{folder}: made by another version of asmil-wsi (schema version {found.get('schema_version')}, this one"
            f" reads {SCHEMA_VERSION}); delete the folder and train again"
        )
    return found


def load_model(folder: Path) -> tuple[NamedModel, ModelFolder]:
    """Load a model in evaluation mode.

    Raises
    ------
    ArtefactError
        If the folder is incomplete, damaged, or of another schema version.
    """
    found = read_description(folder)
    if (folder / "weights.safetensors").exists():
        checksums.check(folder / "weights.safetensors")
    try:
        _check_shapes(found, folder / "weights.safetensors")
        state = load_file(folder / "weights.safetensors")
        mean, sd = state.pop(_MEAN, None), state.pop(_SD, None)
        arrays = {key: state.pop(f"{_OUTLIERS}{key}", None) for key in _OUTLIER_ARRAYS}
        model = _described(found)
        model.load_state_dict(state)
        return model.eval(), _folder(found, model, mean=mean, sd=sd, outliers=_outliers(found["outliers"], arrays))
    except (FileNotFoundError, SafetensorError) as error:
        raise ArtefactError(f"{folder}: its weights are missing or damaged ({error}); train again") from error
    except RuntimeError as error:
        raise ArtefactError(f"{folder}: its weights do not fit its model.json; train again") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"{folder}: its model.json lacks something or has it in another form ({error!r}); train again"
        ) from error


def _check_shapes(found: Mapping[str, Any], weights: Path) -> None:
    """Raise a RuntimeError if a `model.json` describes other arrays than the file has, before memory is taken."""
    with torch.device("meta"):
        described = {name: tuple(tensor.shape) for name, tensor in _described(found).state_dict().items()}
    with safe_open(weights, framework="pt") as handle:
        there = {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118 - no mapping
    if any(there.get(name) != shape for name, shape in described.items()):
        raise RuntimeError("shapes differ")


def _described(found: Mapping[str, Any]) -> NamedModel:
    """Build the model of a `model.json`, without its weights."""
    options = dict(found["options"])
    return build_model(
        found["model"],
        d_in=options.pop("d_in"),
        classes=options.pop("classes"),
        options=options,
        seed=0,
    )


def _folder(
    found: Mapping[str, Any],
    model: NamedModel,
    *,
    mean: torch.Tensor | None,
    sd: torch.Tensor | None,
    outliers: Outliers | None,
) -> ModelFolder:
    return ModelFolder(
        name=found["model"],
        options=dict(model.options),
        classes=found["classes"],
        bags=found["bags"],
        fold=found["fold"],
        best_epoch=found["best_epoch"],
        training=found["training"],
        seen=found["seen"],
        mean=None if mean is None else mean.numpy(),
        sd=None if sd is None else sd.numpy(),
        task=found["task"],
        scale=(found["scale"][0], found["scale"][1]),
        temperature=found["temperature"],
        thresholds=found["thresholds"],
        validation=found["validation"],
        outliers=outliers,
        seen_overviews=found["seen_overviews"],
        preparation=found["preparation"],
    )


def _outliers(numbers: Mapping[str, Any] | None, arrays: Mapping[str, torch.Tensor | None]) -> Outliers | None:
    if numbers is None:
        return None
    known = {key: tensor.numpy() for key, tensor in arrays.items() if tensor is not None}
    if len(known) < len(_OUTLIER_ARRAYS):
        raise LookupError("the weights hold no outlier arrays")
    return Outliers(known["mean"], known["basis"], known["variances"], **numbers)
