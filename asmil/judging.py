"""Judge a model on bags, one at a time."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmil.bags import Bag, BagSource, Label, check_features, each
from asmil.errors import TrainingError
from asmil.protocol import AttentionMIL
from asmil.tasks import Task


def evaluate(model: AttentionMIL, bags: BagSource, *, task: Task) -> dict[str, float]:
    """Judge a model on bags, in eval mode, in which it is left; what `task.judge` gives.

    Raises
    ------
    TrainingError
        If an output, or the loss, is not finite.
    """
    outputs, labels = bag_outputs(model, bags, task=task)
    judged = task.judge(outputs, labels)
    loss, what = judged[task.loss_name], task.loss_name.replace("_", " ")
    if not math.isfinite(loss):  # of finite outputs: labels beyond what can be squared
        raise TrainingError(f"the {what} over {len(labels)} bags is {loss}; their labels are too large")
    return judged


@torch.no_grad()
def bag_outputs(model: AttentionMIL, bags: BagSource, *, task: Task) -> tuple[NDArray[np.float64], list[Label]]:
    """Give a model's outputs [n, C] on bags, and their labels; in eval mode, in which it is left.

    Raises
    ------
    TrainingError
        If an output is not finite; names the bag.
    """
    model.eval()
    device = next(model.parameters()).device
    labels: list[Label] = []
    rows: list[NDArray[np.float64]] = []
    for bag in each(bags):
        features, label = checked(bag, model, task=task, device=device)
        rows.append(model(features)[0].double().cpu().numpy())
        labels.append(label)
        if not np.isfinite(rows[-1]).all():
            largest = f"for features up to {float(features.abs().max()):.3g}"
            raise TrainingError(f"{bag.name}: the model's outputs are not finite {largest}; lower the learning rate")
    return np.stack(rows), labels


def checked(bag: Bag, model: AttentionMIL, *, task: Task, device: torch.device) -> tuple[Tensor, Label]:
    """Give a bag's features and label as a model and a task take them; a BagError names the bag that does not fit."""
    return check_features(bag.features, name=bag.name, d_in=model.d_in, device=device), task.check(bag)
