"""Prediction for one bag; the anchor plays no part in it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmil.bags import check_features
from asmil.errors import BagError
from asmil.protocol import AttentionMIL


@dataclass(frozen=True)
class Prediction:
    """What a model says about one bag.

    Parameters
    ----------
    probabilities
        float32 [C], sums to 1.
    score
        float32 [N], each patch's share of the attention, sums to 1.
    logits
        float32 [C], what `probabilities` is the softmax of.
    """

    probabilities: NDArray[np.float32]
    score: NDArray[np.float32]
    logits: NDArray[np.float32]


@torch.no_grad()
def predict(
    model: AttentionMIL, features: Tensor | NDArray[Any], *, device: str | torch.device = "cpu", name: str = "the bag"
) -> Prediction:
    """Classify one bag and score its patches, in eval mode; the model's own mode is put back.

    Parameters
    ----------
    features
        Shape [N, d_in], floating point of any precision.
    device
        Where to compute; the model is moved there.
    name
        What errors call the bag.

    Raises
    ------
    BagError
        If the features are not [N, d_in] with N >= 1, not all finite, or so large that the model overflows.
    """
    place = torch.device(device)
    checked = check_features(features, name=name, d_in=model.d_in, device=place)
    was_training = model.training
    model.to(place).eval()
    try:
        logits, _ = model(checked)
        score = model.score(checked)
    finally:
        model.train(was_training)
    logits = logits.float()
    if not (logits.isfinite().all() & score.isfinite().all()):
        raise BagError(
            f"{name}: the model's outputs are not finite for features up to {float(checked.abs().max()):.3g};"
            " embed it again with the encoder that the model was trained on"
        )
    return Prediction(
        probabilities=logits.softmax(-1).cpu().numpy(),
        score=score.float().cpu().numpy(),
        logits=logits.cpu().numpy(),
    )


@torch.no_grad()
def attention(
    model: AttentionMIL, features: Tensor | NDArray[Any], *, device: str | torch.device = "cpu", name: str = "the bag"
) -> NDArray[np.float32]:
    """Give a model's attention on one bag by branch, in eval mode; parameters and errors as for `predict`.

    Returns
    -------
    float32 [R, N], rows sum to 1; R is the product of the model's leading axes (tokens and heads), 1 for a model that
    has none.
    """
    place = torch.device(device)
    checked = check_features(features, name=name, d_in=model.d_in, device=place)
    was_training = model.training
    model.to(place).eval()
    try:
        _, logits = model(checked)
    finally:
        model.train(was_training)
    return logits.float().softmax(-1).reshape(-1, len(checked)).cpu().numpy()


def evidence(
    model: AttentionMIL, features: Tensor | NDArray[Any], *, device: str | torch.device = "cpu", name: str = "the bag"
) -> NDArray[np.float32]:
    """Give how much each patch of one bag speaks for each class, in eval mode; parameters and errors as for `predict`.

    Gradient times input (Shrikumar et al., arXiv 1605.01713): a patch's features times the slope of a class's logit
    above the mean of all classes' logits. It needs nothing of the model but that it is differentiable. Of a model that
    is linear in the features, the patches' evidence adds up to that difference of logits, but for the constant.

    Returns
    -------
    float32 [N, C], positive for a class, negative against it; each patch's classes add up to 0.
    All 0 of a model that cuts the gradient between patches and logits, as DTFD-MIL does.
    """
    place = torch.device(device)
    checked = check_features(features, name=name, d_in=model.d_in, device=place).float().requires_grad_()
    was_training = model.training
    model.to(place).eval()
    try:
        with torch.enable_grad():
            logits, _ = model(checked)
            centred = logits.float() - logits.float().mean()
            rows = [
                torch.autograd.grad(value, checked, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
                for value in centred
            ]
    finally:
        model.train(was_training)
    return torch.stack([(row * checked).sum(-1) for row in rows], dim=-1).detach().cpu().numpy()
