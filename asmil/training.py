"""Train one model on bags, with or without the anchor, and keep its best epoch.

Every epoch is seeded by (seed, epoch), so an epoch needs nothing of the random state of the one before it: a run that
is stopped and continued from `Trainer.state_dict` gives bitwise the same weights.
"""

import copy
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from asmil.anchor import AnchorRegularizer
from asmil.bags import Bag, BagSource, check_features, check_label, each, read_labels
from asmil.errors import TrainingError
from asmil.metrics import classification_metrics
from asmil.options import FitConfig as FitConfig
from asmil.protocol import AttentionMIL, TrainingHooks
from asmil.seeding import seeded

logger = logging.getLogger(__name__)

History = dict[str, float]
"""One epoch: `epoch` (int, from 1), `learning_rate` (of its last step), `loss`, `cross_entropy`, `alignment` (not yet
weighted), `gradient_norm` (means over bags; a bag has the norm of its step), `validation_cross_entropy`,
`validation_<metric>` and the anchor's."""

_NUMBERS = ("loss", "cross_entropy", "alignment", "gradient_norm")
_ORDER, _NOISE = 0, 1  # the two random streams of an epoch: the order of the bags; dropout and token dropping


@dataclass(frozen=True)
class FitResult:
    """What training gives.

    Parameters
    ----------
    history
        One entry an epoch.
    best_epoch
        The epoch (from 1) of highest validation macro F1 + AUROC; ties: lower cross-entropy, then the earlier epoch.
    best_state
        The model's state dict at the end of that epoch, on the CPU.
    anchor_state
        The anchor's state after the last epoch, or None.
    """

    history: list[History]
    best_epoch: int
    best_state: dict[str, Tensor]
    anchor_state: dict[str, Tensor] | None


@dataclass
class _Best:
    """The best epoch so far; `rank` grows with its quality."""

    epoch: int = 0
    rank: tuple[float, float] = (-math.inf, -math.inf)
    state: dict[str, Tensor] = field(default_factory=dict)


def fit(
    model: AttentionMIL,
    training: BagSource,
    validation: BagSource,
    *,
    anchor: AnchorRegularizer | None = None,
    config: FitConfig | None = None,
    seed: int,
    device: str | torch.device = "cpu",
    on_epoch: Callable[[History, AttentionMIL], None] | None = None,
) -> FitResult:
    """Train a model, one bag at a time, and leave it with the weights of its best epoch, in eval mode.

    Parameters
    ----------
    model
        Trained in place, on `device`.
    training, validation
        Bags, read one at a time; no bag may be in both. The validation bags choose the epoch.
    anchor
        Of this model; None trains on the cross-entropy alone.
    config
        The options; None takes the defaults.
    seed
        Of the order of the bags, dropout and token dropping. The same seed gives bitwise the same result on one CPU;
        torch's own generators are neither used nor moved.
    on_epoch
        Called after each epoch with its history and the model, in eval mode.

    Raises
    ------
    BagError
        If a bag is empty, of another width, not finite, or its label is not a class; names the bag.
    TrainingError
        If the loss, the gradient or a weight is no longer finite.
    ValueError
        If a source has no bags, or the anchor is another model's.
    """
    trainer = Trainer(model, training, validation, anchor=anchor, config=config, seed=seed, device=device)
    while not trainer.finished:
        row = trainer.run_epoch()
        if on_epoch is not None:
            on_epoch(row, model)
    return trainer.finish()


class Trainer:
    """The state of a training run between two epochs; parameters as for `fit`."""

    def __init__(
        self,
        model: AttentionMIL,
        training: BagSource,
        validation: BagSource,
        *,
        anchor: AnchorRegularizer | None = None,
        config: FitConfig | None = None,
        seed: int,
        device: str | torch.device = "cpu",
    ) -> None:
        for role, bags in (("training", training), ("validation", validation)):
            if len(bags) == 0:
                raise ValueError(f"there are no {role} bags; give at least one")
        if anchor is not None and anchor.model is not model:
            raise ValueError("the anchor follows another model; build it from the model that is trained")
        self.config = config or FitConfig()
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.anchor = None if anchor is None else anchor.to(self.device)
        self.training, self.validation, self.seed = training, validation, seed
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,  # one pass over the weights: 7 ms a step instead of 33 for the default model on one core
        )
        self.class_weights = self._class_weights()
        self.hooks = model if isinstance(model, TrainingHooks) else TrainingHooks()
        self.epoch = 0
        self.history: list[History] = []
        self._best = _Best()

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to run."""
        patience = self.config.patience
        waited = patience is not None and self.epoch - self._best.epoch >= patience
        return self.epoch >= self.config.epochs or waited

    def run_epoch(self) -> History:
        """Train on every bag once, judge the model on the validation bags, and give the epoch's history."""
        if self.epoch == 0:
            self.hooks.prepare(self.training, seed=self.seed)
        self.epoch += 1
        if self.anchor is not None:
            self.anchor.begin_epoch(self.epoch, steps_per_epoch=self._steps)
        order = np.random.default_rng([self.seed, self.epoch, _ORDER]).permutation(len(self.training))
        self.model.train()
        with seeded(self.seed, self.epoch, _NOISE, device=self.device):
            steps = [self._step(group.tolist(), number) for number, group in enumerate(self._groups(order))]
        rows = [row for step in steps for row in step]
        row: History = {"epoch": self.epoch, "learning_rate": self._learning_rate(self._steps - 1)}
        row |= {name: math.fsum(each[name] for each in rows) / len(rows) for name in _NUMBERS}
        if self.anchor is not None:
            row |= self.anchor.diagnostics()
        row |= {f"validation_{name}": value for name, value in evaluate(self.model, self.validation).items()}
        self.history.append(row)
        self._keep_if_best(row)
        logger.debug("epoch %d: %s", self.epoch, row)
        return row

    def finish(self) -> FitResult:
        """Give the model the weights of its best epoch, and give the result."""
        best = self.history[self._best.epoch - 1]
        self.model.load_state_dict(self._best.state)
        self.model.eval()
        logger.info(
            "trained %d epochs on %d bags, best epoch %d: validation macro F1 %.3f, AUROC %.3f, cross-entropy %.3f",
            self.epoch,
            len(self.training),
            self._best.epoch,
            best["validation_macro_f1"],
            best["validation_auroc"],
            best["validation_cross_entropy"],
        )
        return FitResult(
            history=self.history,
            best_epoch=self._best.epoch,
            best_state=self._best.state,
            anchor_state=None if self.anchor is None else self.anchor.state_dict(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Give a copy of everything that the next epoch depends on."""
        state = {
            "epoch": self.epoch,
            "history": self.history,
            "best": vars(self._best),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "anchor": None if self.anchor is None else self.anchor.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave, in a trainer with the same model, bags, options and seed."""
        state = copy.deepcopy(dict(state))
        self.epoch, self.history, self._best = state["epoch"], state["history"], _Best(**state["best"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.anchor is not None:
            self.anchor.load_state_dict(state["anchor"])

    def _step(self, places: Sequence[int], number: int) -> list[dict[str, float]]:
        """Take one optimizer step, the `number`-th (from 0) of this epoch, on the training bags at some places."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(number)
        self.hooks.begin_step(self._progress(number))
        self.optimizer.zero_grad(set_to_none=True)
        names, values = [], []
        for place in places:
            bag = self.training[place]
            names.append(bag.name)
            values.append(self._backward(bag, share=1 / len(places)))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        # read together: on a GPU that is one synchronisation a step
        table = torch.stack([torch.stack([*row, norm.detach().float()]) for row in values]).tolist()
        rows = [dict(zip(_NUMBERS, row, strict=True)) for row in table]
        for name, row in zip(names, rows, strict=True):
            self._check_finite(row, name)
        self.optimizer.step()
        self.hooks.end_step()
        if self.anchor is not None:
            self.anchor.step()
        return rows

    def _backward(self, bag: Bag, *, share: float) -> list[Tensor]:
        """Add a share of one bag's gradient; give its loss, cross-entropy and alignment, detached."""
        features, label = _checked(bag, self.model, self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits, attention_logits = self.model(features)
        cross_entropy = self._cross_entropy(logits, label)
        alignment, weight = self._alignment(attention_logits, features)
        objective = self.hooks.objective(cross_entropy, label)
        # without a weight the term is left out, so that a run with beta = 0 is bitwise one without an anchor
        loss = objective + weight * alignment if weight else objective
        (loss * share if share != 1 else loss).backward()  # type: ignore[no-untyped-call]
        return [value.detach().float() for value in (loss, cross_entropy, alignment)]

    def _cross_entropy(self, logits: Tensor, label: int) -> Tensor:
        target = torch.tensor(label, device=logits.device)
        # F.cross_entropy divides by the sum of its weights, which for one bag cancels the weight; so it is applied here
        return self.class_weights[label] * F.cross_entropy(logits.float(), target)

    def _alignment(self, attention_logits: Tensor, features: Tensor) -> tuple[Tensor, float]:
        """Give the alignment loss and its weight; where the weight is 0, the loss is only reported."""
        if self.anchor is None:
            return attention_logits.new_zeros(()), 0.0
        weight, context = self.anchor.weight, self.model.context
        if weight:
            return self.anchor.loss(attention_logits, features, context=context), weight
        return self.anchor.loss(attention_logits.detach(), features, context=context), 0.0

    @property
    def _steps(self) -> int:
        """Optimizer steps an epoch."""
        return math.ceil(len(self.training) / self.config.accumulate)

    def _groups(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Divide an epoch's bags into those of each step; the last step may have fewer."""
        return [order[start : start + self.config.accumulate] for start in range(0, len(order), self.config.accumulate)]

    def _check_finite(self, numbers: Mapping[str, float], name: str) -> None:
        for what, value in numbers.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{name}: the {what.replace('_', ' ')} is {value} in epoch {self.epoch}; lower the learning rate"
                )

    def _learning_rate(self, number: int) -> float:
        if self.config.schedule == "constant":
            return self.config.learning_rate
        return self.config.learning_rate * (1 + math.cos(math.pi * self._progress(number))) / 2

    def _progress(self, number: int) -> float:
        """Give the share of all optimizer steps that is done before the `number`-th of this epoch."""
        return ((self.epoch - 1) * self._steps + number) / (self.config.epochs * self._steps)

    def _class_weights(self) -> list[float]:
        classes = self.model.classes
        if self.config.class_weights == "none":
            return [1.0] * classes
        count = Counter(read_labels(self.training))
        # a class without a training bag has a weight that is never used
        return [len(self.training) / (classes * count[index]) if count[index] else 0.0 for index in range(classes)]

    def _keep_if_best(self, row: History) -> None:
        auroc = row["validation_auroc"]  # NaN where a class is missing: the epoch is then chosen by macro F1 alone
        quality = row["validation_macro_f1"] + (0.0 if math.isnan(auroc) else auroc)
        rank = (quality, -row["validation_cross_entropy"])
        if rank > self._best.rank:
            state = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self._best = _Best(epoch=self.epoch, rank=rank, state=state)


@torch.no_grad()
def evaluate(model: AttentionMIL, bags: BagSource) -> dict[str, float]:
    """Judge a model on bags, in eval mode, in which it is left.

    Returns
    -------
    `cross_entropy` (unweighted mean, nats) and `asmil.metrics.classification_metrics`.
    """
    model.eval()
    device = next(model.parameters()).device
    labels: list[int] = []
    log_probabilities: list[NDArray[np.float64]] = []
    for bag in each(bags):
        features, label = _checked(bag, model, device)
        logits, _ = model(features)
        labels.append(label)
        log_probabilities.append(F.log_softmax(logits.double(), dim=-1).cpu().numpy())
    rows = np.stack(log_probabilities)
    cross_entropy = -float(rows[np.arange(len(labels)), labels].mean())
    if not math.isfinite(cross_entropy):
        raise TrainingError(f"the cross-entropy over {len(labels)} bags is {cross_entropy}; lower the learning rate")
    return {"cross_entropy": cross_entropy, **classification_metrics(labels, np.exp(rows))}


def _checked(bag: Bag, model: AttentionMIL, device: torch.device) -> tuple[Tensor, int]:
    features = check_features(bag.features, name=bag.name, d_in=model.d_in, device=device)
    return features, check_label(bag.label, name=bag.name, classes=model.classes)
