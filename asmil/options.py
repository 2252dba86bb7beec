"""Options of training."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Schedule = Literal["cosine", "constant"]
ClassWeights = Literal["none", "inverse_frequency"]
Precision = Literal["fp32", "bf16"]
_CHOICES = (("schedule", Schedule), ("class_weights", ClassWeights), ("precision", Precision))


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
        "cosine": from `learning_rate` to 0 over all steps, one value a step; or "constant".
    gradient_clip
        Largest norm of the gradient; > 0.
    class_weights
        "inverse_frequency" weights the cross-entropy of class c by n / (C n_c) of the training bags.
    patience
        Stop after so many epochs without a better one; None never stops early.
    accumulate
        Bags whose gradients are averaged into one optimizer step, >= 1; exact, and no larger in memory than one bag.
    precision
        "bf16" computes the model's matrix products in bfloat16 (autocast) in training; the weights, the losses, the
        anchor and every evaluation stay in float32.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    epochs: int = 50
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    schedule: Schedule = "cosine"
    gradient_clip: float = 5.0
    class_weights: ClassWeights = "none"
    patience: int | None = None
    accumulate: int = 1
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        for name, choice in _CHOICES:
            if getattr(self, name) not in get_args(choice):
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(get_args(choice))}")
        ranges = {
            "epochs": self.epochs >= 1,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "gradient_clip": self.gradient_clip > 0,
            "patience": self.patience is None or self.patience >= 1,
            "accumulate": self.accumulate >= 1,
        }
        for name, fits in ranges.items():
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}, which is out of its range")
