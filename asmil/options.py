"""Options of training and of models; nothing here needs torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Schedule = Literal["cosine", "constant", "step"]
BestBy = Literal["metrics", "loss"]
ClassWeights = Literal["none", "inverse_frequency"]
Precision = Literal["fp32", "bf16"]

UNIFORM_ENTROPY = 0.99
"""Entropy of an anchor's target, as a share of log N, above which its loss does little but flatten attention."""

WARM_UP_EPOCHS = 5
"""Epochs in which a uniform target is no news: every model starts with nearly uniform attention."""

WIDTH_STEP = 8
"""Inner widths that are not published are multiples of this."""

_D_INNER = {384: 128, 512: 256, 768: 384, 1024: 512, 1536: 768}
"""Inner width by encoder width, as the method's authors pair them."""


def default_d_inner(d_in: int) -> int:
    """Give the inner width for an encoder's width: the published pairs, else the multiple of 8 nearest to half."""
    return _D_INNER.get(d_in) or max(WIDTH_STEP, WIDTH_STEP * int(d_in / (2 * WIDTH_STEP) + 0.5))


def kinds_of(build: Callable[..., Any]) -> dict[str, Any]:
    """Give the annotations of what a class or a function takes by name, as far as they can be resolved.

    A class may hand its options on to the one that it extends; the most derived annotation of a name counts.
    """
    bases = (
        [vars(base)["__init__"] for base in reversed(build.__mro__) if "__init__" in vars(base)]
        if isinstance(build, type)
        else [build]
    )
    found: dict[str, Any] = {}
    for each in bases:
        try:
            found |= get_type_hints(each)
        except (NameError, TypeError):  # names for type checkers alone; objects that are called
            continue
    return found


def check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Any], *, of: str = "") -> None:
    """Refuse values of another kind than annotated, as JSON and YAML may hold: 2.5 or "2" for a whole number.

    Parameters
    ----------
    values
        By name; a name without a kind is left to others.
    kinds
        Annotations by name: Literal, bool, int, float, str, None or a union of these; others are not checked.
    of
        What the values belong to, for the message: "anchor ".

    Raises
    ------
    ValueError
        Naming the value, and what it may be.
    """
    for name, value in values.items():
        hint = kinds.get(name)
        allowed = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if hint is None or any(_is_kind(value, kind) for kind in allowed):
            continue
        choices = [choice for kind in allowed for choice in (get_args(kind) if get_origin(kind) is Literal else ())]
        if choices:
            raise ValueError(f"{of}{name} is {value!r}; choose from {', '.join(map(str, choices))}")
        words = " or ".join(_KINDS[kind] for kind in allowed)
        raise ValueError(f"{of}{name} is {value!r}; give {words}")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "nothing"}


def _is_kind(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return kind not in _KINDS or isinstance(value, kind)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Options of training; the defaults are the paper's protocol.

    Parameters
    ----------
    epochs
        Passes over the training bags, >= 1.
    learning_rate, weight_decay
        Of AdamW.
    schedule
        "cosine": from `learning_rate` to `least_learning_rate` over all steps, one value a step; "constant"; or "step":
        a fifth of `learning_rate` in the second half of the steps.
    least_learning_rate
        Where the cosine ends.
    gradient_clip
        Largest norm of the gradient; > 0.
    class_weights
        "inverse_frequency" weights the cross-entropy of class c by n / (C n_c) of the n training bags, in which C
        classes occur.
    patience
        Stop after so many epochs without a better one; None never stops early.
    stop_from
        The epoch before which patience does not stop.
    best_by
        By what an epoch is better: "metrics", as the task ranks them, or "loss" on the validation bags.
    best_from
        The share of the epochs before which none is kept as the best, in [0, 1).
    balanced
        Draw the bags of an epoch with replacement, so that every class is as likely; classes only, and without
        `class_weights`, which would weigh the rare ones a second time.
    accumulate
        Bags whose gradients are averaged into one optimizer step, >= 1; exact, and no larger in memory than one bag.
    entropy_weight
        Of AEM's penalty on concentrated attention (`asmil.losses.entropy_penalty`), which is added to the loss of any
        model that attends, at least 0; it falls to 0 along half a cosine. A model with an `entropy_weight` of its own,
        as `asmil.baselines.aem.AEM`, keeps that one.
    precision
        "bf16" computes the model's matrix products in bfloat16 (autocast) in training; the weights, the losses, the
        anchor and every evaluation stay in float32.

    Raises
    ------
    ValueError
        If a value is of another kind, or out of its range, or rare classes would be weighed twice.
    """

    epochs: int = 50
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    schedule: Schedule = "cosine"
    gradient_clip: float = 5.0
    class_weights: ClassWeights = "none"
    patience: int | None = None
    accumulate: int = 1
    entropy_weight: float = 0.0
    precision: Precision = "fp32"
    least_learning_rate: float = 0.0
    stop_from: int = 0
    best_by: BestBy = "metrics"
    best_from: float = 0.0
    balanced: bool = False

    def __post_init__(self) -> None:
        check_kinds(vars(self), get_type_hints(type(self)))
        ranges = {
            "epochs": self.epochs >= 1,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "gradient_clip": self.gradient_clip > 0,
            "patience": self.patience is None or self.patience >= 1,
            "accumulate": self.accumulate >= 1,
            "entropy_weight": 0 <= self.entropy_weight < math.inf,
            "least_learning_rate": 0 <= self.least_learning_rate <= self.learning_rate,
            "stop_from": self.stop_from >= 0,
            "best_from": 0 <= self.best_from < 1,
        }
        for name, fits in ranges.items():
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}, which is out of its range")
        if self.balanced and self.class_weights != "none":
            raise ValueError("balanced and class_weights would both weigh rare classes; leave one of them out")

    def rate_at(self, progress: float) -> float:
        """Give the learning rate of a step before which a share `progress` of all steps is done."""
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "step":
            return self.learning_rate if progress < 0.5 else self.learning_rate / 5
        return self.least_learning_rate + (self.learning_rate - self.least_learning_rate) * cosine(progress)

    def entropy_weight_at(self, progress: float) -> float:
        """Give the weight of AEM's penalty in a step, as `rate_at` the rate."""
        return self.entropy_weight * cosine(progress)


def cosine(progress: float) -> float:
    """Give half a cosine, from 1 at the start of training to 0 at its end."""
    return (1 + math.cos(math.pi * progress)) / 2
