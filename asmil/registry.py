"""The models by name: how each is built, where it comes from, and how its source trains it.

All models train by one shared recipe, the defaults of `asmil.training.FitConfig`, so that a comparison compares models.
`Recipe` holds what each source does instead; where a source has several, that for whole-slide features.
`asmil.recipes` trains by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from asmil.baselines.abmil import ABMIL
from asmil.baselines.acmil import ACMIL
from asmil.baselines.aem import AEM
from asmil.baselines.clam import CLAMMB, CLAMSB
from asmil.baselines.dsmil import DSMIL
from asmil.baselines.dtfd import DTFD
from asmil.baselines.mhim import MHIM
from asmil.baselines.pamil import PAMIL
from asmil.baselines.pooling import MaxPooling, MeanPooling
from asmil.baselines.transmil import TransMIL
from asmil.model import ASMIL
from asmil.options import BestBy, Schedule, check_kinds, kinds_of
from asmil.protocol import AttentionMIL

Optimizer = Literal["adamw", "adam", "lookahead_radam"]


class NamedModel(AttentionMIL, Protocol):
    """A model that the registry builds: it can be built again from its `options`."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Every argument of the model as it was resolved, with `d_in` and `classes`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a source trains its model.

    Parameters
    ----------
    optimizer
        "lookahead_radam" is Lookahead (6 steps, half way) around RAdam.
    learning_rate, weight_decay, betas
        Of the optimizer.
    schedule, least_learning_rate, epochs, patience, stop_from, best_by, best_from, balanced, accumulate
        As in `asmil.options.FitConfig`.
    decay_vectors
        Whether weight decay also acts on biases and norms.
    differs
        What this recipe does not hold of the source's, in words, beside the gradient clip, which is ours in all of them
        (of the sources only DTFD is known to clip); empty where nothing is known to be missing.
    """

    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Schedule = "cosine"
    least_learning_rate: float = 0.0
    epochs: int = 50
    patience: int | None = None
    stop_from: int = 0
    best_by: BestBy = "metrics"
    best_from: float = 0.0
    balanced: bool = False
    accumulate: int = 1
    decay_vectors: bool = True
    differs: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model.

    Parameters
    ----------
    build
        Called with d_in, classes and the model's options by keyword.
    title, source
        What a reader is told: the method's name, and its paper.
    recipe
        How the source trains it.
    source_options
        Options in which the source's own training differs from the defaults here.
    fixed
        Options that make it the model of this name; they cannot be set.
    attends
        Whether there is attention to align; without it an anchor has nothing to do.
    """

    build: Callable[..., NamedModel]
    title: str
    source: str
    recipe: Recipe = field(default_factory=Recipe)
    source_options: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    attends: bool = True


_ILSE = "Ilse et al., ICML 2018, arXiv 1802.04712"
_LU = "Lu et al., Nature Biomedical Engineering 2021"
_ACMIL_FAMILY = Recipe(epochs=100)
_CLAM = Recipe(
    optimizer="adam",
    learning_rate=2e-4,
    schedule="constant",
    epochs=200,
    patience=20,
    stop_from=50,
    best_by="loss",
    balanced=True,
)
_ABMIL = Recipe(
    optimizer="adam", learning_rate=1e-4, weight_decay=5e-4, schedule="constant", epochs=100, best_by="loss"
)
"""Of its experiments on histology, from memory of the paper; those on digits took other values."""

MODELS: dict[str, Entry] = {
    "asmil": Entry(build=ASMIL, title="ASMIL", source="ICLR 2026, arXiv 2603.06658"),
    "mean_pooling": Entry(
        build=MeanPooling, title="Mean pooling", source=f"floor of {_ILSE}", recipe=_ACMIL_FAMILY, attends=False
    ),
    "max_pooling": Entry(
        build=MaxPooling, title="Max pooling", source=f"floor of {_ILSE}", recipe=_ACMIL_FAMILY, attends=False
    ),
    "abmil": Entry(build=ABMIL, title="ABMIL", source=_ILSE, recipe=_ABMIL, fixed={"gated": False}),
    "gated_abmil": Entry(build=ABMIL, title="Gated ABMIL", source=_ILSE, recipe=_ABMIL, fixed={"gated": True}),
    "clam_sb": Entry(build=CLAMSB, title="CLAM-SB", source=_LU, recipe=_CLAM, source_options={"instance_loss": "svm"}),
    "clam_mb": Entry(build=CLAMMB, title="CLAM-MB", source=_LU, recipe=_CLAM, source_options={"instance_loss": "svm"}),
    "dsmil": Entry(
        build=DSMIL,
        title="DSMIL",
        source="Li et al., CVPR 2021, arXiv 2011.08939",
        recipe=Recipe(
            optimizer="adam",
            weight_decay=1e-3,
            betas=(0.5, 0.9),
            least_learning_rate=5e-6,
            patience=10,
            differs="a sigmoid a class, here a softmax over the classes",
        ),
    ),
    "transmil": Entry(
        build=TransMIL,
        title="TransMIL",
        source="Shao et al., NeurIPS 2021, arXiv 2106.00908",
        recipe=Recipe(
            optimizer="lookahead_radam",
            learning_rate=2e-4,
            schedule="constant",
            epochs=200,
            patience=10,
            best_by="loss",
            accumulate=2,
            decay_vectors=False,
            differs="half precision (float16)",
        ),
        source_options={"compat": True},
    ),
    "acmil": Entry(
        build=ACMIL,
        title="ACMIL",
        source="Zhang et al., ECCV 2024, arXiv 2311.07125",
        recipe=_ACMIL_FAMILY,
    ),
    "aem": Entry(build=AEM.on_abmil, title="AEM on gated ABMIL", source="Zhang et al., MICCAI 2025, arXiv 2406.15303"),
    "dtfd": Entry(
        build=DTFD,
        title="DTFD-MIL",
        source="Zhang et al., CVPR 2022, arXiv 2203.12081",
        recipe=Recipe(
            optimizer="adam",
            weight_decay=1e-4,
            schedule="step",
            epochs=200,
            best_from=0.8,
            differs="an optimizer a tier, clipped a module",
        ),
    ),
    "mhim": Entry(
        build=MHIM,
        title="MHIM-MIL on ABMIL",
        source="Tang et al., ICCV 2023, arXiv 2307.15254",
        recipe=Recipe(
            optimizer="adam",
            learning_rate=2e-4,
            epochs=200,
            differs="the teacher starts from a trained ABMIL; training stops early, at 130 epochs at the latest",
        ),
        source_options={"momentum": 0.9999},
    ),
    "pamil": Entry(
        build=PAMIL,
        title="PAMIL (prototypes)",
        source="Liu et al., MICCAI 2024",
        recipe=Recipe(
            optimizer="adam",
            schedule="constant",
            epochs=350,
            differs="80 epochs without the prototypes; no step that replaces prototypes by patches",
        ),
    ),
}
"""In the order in which they are listed to a user."""


def build(name: str, d_in: int, classes: int, **options: Any) -> NamedModel:
    """Build a model with weights drawn from torch's generator.

    Parameters
    ----------
    name
        A key of `MODELS`.
    d_in, classes
        Width of a patch's features, and the number of classes.
    options
        The model's own; what a model was built with, `model.options`, fits too.

    Raises
    ------
    ValueError
        If the name or an option is unknown, or a value is of another kind or out of its range.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown; choose from {', '.join(MODELS)}")
    entry = MODELS[name]
    for key, value in entry.fixed.items():
        if options.get(key, value) != value:
            raise ValueError(f"{key} is {options[key]!r}, but a model named {name!r} has {value!r}")
    check_kinds(options, kinds_of(entry.build))
    try:
        return entry.build(d_in, classes, **{**options, **entry.fixed})
    except TypeError as error:
        raise ValueError(f"model {name!r} does not take these options: {error}") from error
