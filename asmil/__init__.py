"""Attention-stabilised multiple-instance learning: tensors in, tensors out.

Notation in every module: N patches of a bag, d_in the encoder's width, D the inner width, K learned tokens, H heads,
C classes, z attention logits before any normalisation. Names are loaded when they are first used, so that
`import asmil.errors` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asmil.anchor import AnchorConfig, AnchorRegularizer
    from asmil.bags import Bag
    from asmil.errors import BagError, TrainingError
    from asmil.inference import Prediction, attention, evidence, predict
    from asmil.model import ASMIL
    from asmil.protocol import AttentionMIL
    from asmil.stability import StabilityTracker
    from asmil.training import FitConfig, FitResult, fit

__all__ = [
    "ASMIL",
    "AnchorConfig",
    "AnchorRegularizer",
    "AttentionMIL",
    "Bag",
    "BagError",
    "FitConfig",
    "FitResult",
    "Prediction",
    "StabilityTracker",
    "TrainingError",
    "attention",
    "evidence",
    "fit",
    "predict",
]

_MODULE_OF = {
    "ASMIL": "model",
    "AnchorConfig": "anchor",
    "AnchorRegularizer": "anchor",
    "AttentionMIL": "protocol",
    "Bag": "bags",
    "BagError": "errors",
    "FitConfig": "training",
    "FitResult": "training",
    "Prediction": "inference",
    "evidence": "inference",
    "StabilityTracker": "stability",
    "TrainingError": "errors",
    "attention": "inference",
    "fit": "training",
    "predict": "inference",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
