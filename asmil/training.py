"""Train one model on bags, with or without the anchor, and keep its best epoch.

Every epoch is seeded by (seed, epoch), so an epoch needs nothing of the random state of the one before it: a run that
is stopped and continued from `Trainer.state_dict` gives bitwise the same weights.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asmil.anchor import AnchorRegularizer
from asmil.bags import Bag, BagSource, Label
from asmil.errors import TrainingError
from asmil.judging import bag_outputs, checked, evaluate
from asmil.losses import entropy_penalty
from asmil.options import FitConfig as FitConfig
from asmil.protocol import AttentionMIL, TrainingHooks
from asmil.seeding import seeded
from asmil.tasks import Classification, Scale, Task

logger = logging.getLogger(__name__)

History = dict[str, float]
"""One epoch: `epoch` (int, from 1), `learning_rate` (of its last step), `loss`, the task's loss (as `cross_entropy`),
`alignment` (not yet weighted), `gradient_norm` (means over bags; a bag has the norm of its step), `validation_<task's
loss>`, `validation_<metric>` and the anchor's."""

_ORDER, _NOISE = 0, 1  # the two random streams of an epoch: the order of the bags; dropout and token dropping


@dataclass(frozen=True)
class FitResult:
    """What training gives.

    Parameters
    ----------
    history
        One entry an epoch.
    best_epoch
        The epoch (from 1) that is best on the validation bags by `FitConfig.best_by`: as the task ranks them (for
        classes: macro F1 + AUROC; ties: lower loss), or by the loss. Ties: the earlier epoch. The last one where the
        bags can rank none, as follow-ups of which no two have a known order.
    best_state
        The model's state dict at the end of that epoch, on the CPU.
    anchor_state
        The anchor's state after the last epoch, or None.
    scale
        What the output of a model with one means: (centre, spread) of centre + spread * output.
    """

    history: list[History]
    best_epoch: int
    best_state: dict[str, Tensor]
    anchor_state: dict[str, Tensor] | None
    scale: Scale = (0.0, 1.0)


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
    task: Task | None = None,
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
        Of this model; None trains on the task's loss alone.
    config
        The options; None takes the defaults.
    task
        What is learned of the labels; None: their classes.
    seed
        Of the order of the bags, dropout and token dropping. The same seed gives bitwise the same result on one CPU;
        torch's own generators are neither used nor moved.
    on_epoch
        Called after each epoch with its history and the model, in eval mode.

    Raises
    ------
    BagError
        If a bag is empty, of another width, not finite, or its label is not one of the task; names the bag.
    TrainingError
        If the loss, the gradient or a weight is no longer finite.
    ValueError
        If a source has no bags, the anchor is another model's, or the model's outputs are not the task's.
    """
    trainer = Trainer(model, training, validation, anchor=anchor, config=config, task=task, seed=seed, device=device)
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
        task: Task | None = None,
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
        self.task = task or Classification()
        self.task.begin(training, classes=model.classes, config=self.config)
        # a model with a penalty of its own (AEM) is not given a second one
        self.penalised = bool(model.anchor_parameters()) and not hasattr(model, "entropy_weight")
        self._steps = len(self.task.divide(np.arange(len(training))))
        self._numbers = ("loss", self.task.loss_name, "alignment", "gradient_norm")
        self.hooks = model if isinstance(model, TrainingHooks) else TrainingHooks()
        if self.hooks.needs_classes and not isinstance(self.task, Classification):
            raise ValueError(
                f"{type(model).__name__} has a loss of its own on classes; it cannot learn by {type(task).__name__}"
            )
        self.epoch = 0
        self.history: list[History] = []
        self._best = _Best()

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to run."""
        if self.epoch >= self.config.epochs:
            return True
        patience, best = self.config.patience, self._best.epoch
        if patience is None or best == 0 or self.epoch < self.config.stop_from:
            return False
        return self.epoch - best >= patience

    def run_epoch(self) -> History:
        """Train on every bag once, judge the model on the validation bags, and give the epoch's history."""
        if self.epoch == 0:
            self.hooks.prepare(self.training, seed=self.seed)
        self.epoch += 1
        if self.anchor is not None:
            self.anchor.begin_epoch(self.epoch, steps_per_epoch=self._steps)
        order = self.task.order(np.random.default_rng([self.seed, self.epoch, _ORDER]), len(self.training))
        self.model.train()
        with seeded(self.seed, self.epoch, _NOISE, device=self.device):
            steps = [self._step(group.tolist(), number) for number, group in enumerate(self.task.divide(order))]
        rows = [row for step in steps for row in step]
        row: History = {"epoch": self.epoch, "learning_rate": self._learning_rate(self._steps - 1)}
        row |= {name: math.fsum(each[name] for each in rows) / len(rows) for name in self._numbers}
        if self.anchor is not None:
            row |= self.anchor.diagnostics()
        judged = evaluate(self.model, self.validation, task=self.task)
        row |= {f"validation_{name}": value for name, value in judged.items()}
        self.history.append(row)
        self._keep_if_best(judged)
        logger.debug("epoch %d: %s", self.epoch, row)
        return row

    def finish(self) -> FitResult:
        """Give the model the weights of its best epoch, and give the result."""
        best = self.history[self._best.epoch - 1]
        self.model.load_state_dict(self._best.state)
        self.model.eval()
        found = {name: value for name, value in best.items() if name.startswith("validation_")}
        logger.info(
            "trained %d epochs on %d bags, best epoch %d: %s",
            self.epoch,
            len(self.training),
            self._best.epoch,
            ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.items()),
        )
        return FitResult(
            history=self.history,
            best_epoch=self._best.epoch,
            best_state=self._best.state,
            anchor_state=None if self.anchor is None else self.anchor.state_dict(),
            scale=self._scale(),
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
        """Continue from what `state_dict` gave, in a trainer with the same model, bags, options and seed.

        Raises
        ------
        ValueError
            If only one of the two has an anchor.
        """
        if (self.anchor is None) != (state["anchor"] is None):
            held, own = ("an", "none") if self.anchor is None else ("no", "one")
            raise ValueError(f"the state has {held} anchor and this trainer has {own}; use the saved one's options")
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
        compared = self._compare(places, number) if self.task.compares_bags else None
        penalty = self.config.entropy_weight_at(self._progress(number)) if self.penalised else 0.0
        values = []
        for position, place in enumerate(places):
            bag = self.training[place]
            if compared is None:
                values.append(self._backward(bag, share=1 / len(places), penalty=penalty))
                continue
            with self._noise_of(place, number):
                own = compared[0], compared[1][position]
                values.append(self._backward(bag, share=1 / len(places), penalty=penalty, compared=own))
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        # read together: on a GPU that is one synchronisation a step
        table = torch.stack([torch.stack([*row, norm.detach().float()]) for row in values]).tolist()
        rows = [dict(zip(self._numbers, row, strict=True)) for row in table]
        for place, row in zip(places, rows, strict=True):
            if not all(map(math.isfinite, row.values())):
                raise self._not_finite(row, self.training[place])
        self.optimizer.step()
        self.hooks.end_step()
        if self.anchor is not None:
            self.anchor.step()
        return rows

    def _compare(self, places: Sequence[int], number: int) -> tuple[Tensor, Tensor]:
        """Give the loss of a step that compares its bags, and its slope [n, C] in each bag's outputs.

        A forward pass that keeps no graph finds the outputs. `_backward` then repeats each bag's with the same noise:
        the gradient is exactly that of all bags at once, in the memory of one.
        """
        outputs, labels = [], []
        for place in places:
            features, label = self._checked(self.training[place])
            with torch.no_grad(), self._noise_of(place, number):
                outputs.append(self._forward(features)[0].float())
            labels.append(label)
        whole = torch.stack(outputs).requires_grad_()
        loss = self.task.step_loss(whole, labels)
        return loss.detach(), torch.autograd.grad(loss, whole)[0]

    def _noise_of(self, place: int, number: int) -> AbstractContextManager[None]:
        """Seed dropout and token dropping for one bag of one step, so that its forward pass can be repeated."""
        return seeded(self.seed, self.epoch, _NOISE, number, place, device=self.device)

    def _forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.model(features)

    def _backward(
        self, bag: Bag, *, share: float, penalty: float = 0.0, compared: tuple[Tensor, Tensor] | None = None
    ) -> list[Tensor]:
        """Add a share of one bag's gradient; give its loss, task loss and alignment, detached.

        Parameters
        ----------
        penalty
            Weight of the penalty on concentrated attention.
        compared
            Where the step's bags are compared: their loss, and its slope [C] in this bag's outputs.
        """
        features, label = self._checked(bag)
        outputs, attention_logits = self._forward(features)
        if compared is None:
            task_loss = self.task.bag_loss(outputs.float(), label)
        else:  # the value of the step's loss, with this bag's part of its gradient
            task_loss = compared[0] + (compared[1] / share * (outputs.float() - outputs.float().detach())).sum()
        alignment, weight = self._alignment(attention_logits, features)
        objective, counts = self.hooks.objective(task_loss, label), self.task.weight(label)
        if penalty:
            objective = objective + penalty * entropy_penalty(attention_logits.float())
        objective = objective if counts == 1 else counts * objective
        # without a weight the term is left out, so that a run with beta = 0 is bitwise one without an anchor
        loss = objective + weight * alignment if weight else objective
        (loss * share if share != 1 else loss).backward()  # type: ignore[no-untyped-call]
        return [value.detach().float() for value in (loss, task_loss, alignment)]

    def _checked(self, bag: Bag) -> tuple[Tensor, Label]:
        return checked(bag, self.model, task=self.task, device=self.device)

    def _alignment(self, attention_logits: Tensor, features: Tensor) -> tuple[Tensor, float]:
        """Give the alignment loss and its weight; where the weight is 0, the loss is only reported."""
        if self.anchor is None:
            return attention_logits.new_zeros(()), 0.0
        weight, context = self.anchor.weight, self.model.context
        if weight:
            return self.anchor.loss(attention_logits, features, context=context), weight
        return self.anchor.loss(attention_logits.detach(), features, context=context), 0.0

    def _not_finite(self, numbers: Mapping[str, float], bag: Bag) -> TrainingError:
        what, value = next(each for each in numbers.items() if not math.isfinite(each[1]))
        what, largest = what.replace("_", " "), float(self._checked(bag)[0].abs().max())
        return TrainingError(
            f"{bag.name}: the {what} is {value} in epoch {self.epoch} for features up to {largest:.3g};"
            " lower the learning rate"
        )

    def _learning_rate(self, number: int) -> float:
        return self.config.rate_at(self._progress(number))

    def _progress(self, number: int) -> float:
        """Give the share of all optimizer steps that is done before the `number`-th of this epoch."""
        return ((self.epoch - 1) * self._steps + number) / (self.config.epochs * self._steps)

    def _keep_if_best(self, judged: dict[str, float]) -> None:
        rank = self.task.rank(judged) if self.config.best_by == "metrics" else (-judged[self.task.loss_name], 0.0)
        known = self.task.ranks(judged)
        if not known and self.epoch == self.config.epochs:
            logger.warning("the validation bags cannot tell a better epoch from a worse one; the last is kept")
        if (rank > self._best.rank or not known) and self.epoch > self.config.best_from * self.config.epochs:
            state = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self._best = _Best(epoch=self.epoch, rank=rank, state=state)

    def _scale(self) -> Scale:
        if isinstance(self.task, Classification):
            return 0.0, 1.0
        return self.task.scale(bag_outputs(self.model, self.training, task=self.task)[0])
