"""What a model learns from a bag's label: its class, a number, or how soon an event comes.

A task checks labels, gives the loss of a step, and judges a model on bags. Models do not know it: they have C outputs,
of which a number and a risk need one.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from asmil.bags import Bag, BagSource, FollowUp, Label, check_label, is_number, read_labels
from asmil.errors import BagError
from asmil.metrics import classification_metrics
from asmil.options import FitConfig
from asmil.outcome_metrics import regression_metrics
from asmil.survival import concordance, partial_likelihood_loss

Floats = NDArray[np.float64]
Scale = tuple[float, float]
"""(centre, spread): what a single output means is centre + spread * output."""


class Task(ABC):
    """One kind of label. `begin` is called before the others, as what a loss needs may depend on the training bags."""

    loss_name: ClassVar[str]
    compares_bags: ClassVar[bool] = False
    """Whether a bag's loss depends on the other bags of its step; then `step_loss` is used and not `bag_loss`."""

    @abstractmethod
    def begin(self, training: BagSource, *, classes: int, config: FitConfig) -> None:
        """Look at the labels that will be learned by a model with C outputs."""

    @abstractmethod
    def check(self, bag: Bag) -> Label:
        """Give a bag's label; raises a BagError if it is not one of this task."""

    def bag_loss(self, outputs: Tensor, label: Label) -> Tensor:
        """Give the loss of one bag's outputs [C], a scalar."""
        raise NotImplementedError

    def weight(self, label: Label) -> float:  # noqa: ARG002
        """Give how much a bag of this label counts, with all that a model's loss says of it."""
        return 1.0

    def step_loss(self, outputs: Tensor, labels: Sequence[Label]) -> Tensor:
        """Give the loss of the outputs [n, C] of a step's bags, a scalar."""
        raise NotImplementedError

    def order(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Draw the places of an epoch's training bags, `count` of them, in the order in which they are learned."""
        return rng.permutation(count)

    def divide(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Divide an epoch's bags, in their order, into those of each step."""
        return [order[start : start + self._step_bags] for start in range(0, len(order), self._step_bags)]

    @abstractmethod
    def judge(self, outputs: Floats, labels: Sequence[Label]) -> dict[str, float]:
        """Give the mean loss, under `loss_name`, and the metrics of outputs [n, C]."""

    @abstractmethod
    def rank(self, judged: dict[str, float]) -> tuple[float, float]:
        """Give what of two epochs is larger for the better one, of what `judge` gave."""

    def ranks(self, judged: dict[str, float]) -> bool:  # noqa: ARG002
        """Whether the bags that `judge` saw can tell a better epoch from a worse one."""
        return True

    def scale(self, outputs: Floats) -> Scale:  # noqa: ARG002
        """Give what an output means, from the trained model's outputs [n, C] on the training bags."""
        return 0.0, 1.0

    _step_bags: int = 1


class Classification(Task):
    """One of C classes, by cross-entropy; the best epoch is that of highest macro F1 + AUROC."""

    loss_name = "cross_entropy"

    def begin(self, training: BagSource, *, classes: int, config: FitConfig) -> None:
        """Find the classes' weights, in the loss and in the draw of bags."""
        self._step_bags, self.classes = config.accumulate, classes
        self.class_weights = [1.0] * classes
        self._chances: Floats | None = None
        # numbers of numpy and torch are not alike as keys
        labels = [_as_index(label) for label in read_labels(training)]
        if config.class_weights == "inverse_frequency":
            count = Counter(labels)
            # of the classes that occur, so that the mean over the bags is 1; another's weight is never used
            self.class_weights = [
                len(training) / (len(count) * count[index]) if count[index] else 0.0 for index in range(classes)
            ]
        if config.balanced:
            count = Counter(labels)
            self._chances = np.array([1 / (len(count) * count[label]) for label in labels])

    def order(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Shuffle the bags or, balanced, draw as many with replacement, every class as likely."""
        if self._chances is None:
            return rng.permutation(count)
        return rng.choice(count, count, p=self._chances)

    def check(self, bag: Bag) -> int:
        """Give the class index."""
        return check_label(bag.label, name=bag.name, classes=self.classes)

    def bag_loss(self, outputs: Tensor, label: Label) -> Tensor:
        """Give the cross-entropy."""
        return F.cross_entropy(outputs, torch.tensor(label, device=outputs.device))

    def weight(self, label: Label) -> float:
        """Give the class's weight."""
        assert isinstance(label, int)
        return self.class_weights[label]

    def judge(self, outputs: Floats, labels: Sequence[Label]) -> dict[str, float]:
        """Give the unweighted cross-entropy, nats, and `asmil.metrics.classification_metrics`."""
        classes = np.array(labels, dtype=np.int64)
        rows = F.log_softmax(torch.from_numpy(outputs), dim=-1).numpy()
        cross_entropy = -float(rows[np.arange(len(classes)), classes].mean())
        if not math.isfinite(cross_entropy):
            return {self.loss_name: cross_entropy}
        return {self.loss_name: cross_entropy, **classification_metrics(classes, np.exp(rows))}

    def rank(self, judged: dict[str, float]) -> tuple[float, float]:
        """Rank by macro F1 + AUROC, then by cross-entropy."""
        auroc = judged["auroc"]  # NaN where a class is missing: the epoch is then chosen by macro F1 alone
        return judged["macro_f1"] + (0.0 if math.isnan(auroc) else auroc), -judged[self.loss_name]


class Regression(Task):
    """A number, by squared error; the best epoch is that of the smallest mean absolute error.

    The model learns the number standardised by the mean and sd of the training bags, so that learning rates do not
    depend on its unit.
    """

    loss_name = "squared_error"

    def begin(self, training: BagSource, *, classes: int, config: FitConfig) -> None:
        """Find the labels' mean and sd."""
        _refuse_outputs("regression", classes)
        _refuse_class_options("regression", config)
        self._step_bags = config.accumulate
        given = read_labels(training)
        for place, label in enumerate(given):
            if not (is_number(label) and math.isfinite(label)):
                raise BagError(f"{training[place].name}: label {label} is not a finite number")
        labels = np.array(given, dtype=np.float64)
        self.mean, self.sd = float(labels.mean()), float(labels.std()) or 1.0

    def check(self, bag: Bag) -> float:
        """Give the number."""
        if not (is_number(bag.label) and math.isfinite(bag.label)):
            raise BagError(f"{bag.name}: label {bag.label} is not a finite number")
        return float(bag.label)

    def bag_loss(self, outputs: Tensor, label: Label) -> Tensor:
        """Give the squared error, in the training labels' sd."""
        assert not isinstance(label, FollowUp)
        return (outputs.squeeze(-1) - (label - self.mean) / self.sd) ** 2

    def judge(self, outputs: Floats, labels: Sequence[Label]) -> dict[str, float]:
        """Give the squared error, in sd, and `asmil.outcome_metrics.regression_metrics`, in the label's unit."""
        observed = np.array(labels, dtype=np.float64)
        predicted = self.mean + self.sd * outputs[:, 0]
        with np.errstate(over="ignore"):  # what is too large to be squared is refused by who asked
            error = float((((predicted - observed) / self.sd) ** 2).mean())
        if not math.isfinite(error):
            return {self.loss_name: error}
        return {self.loss_name: error, **regression_metrics(observed, predicted)}

    def rank(self, judged: dict[str, float]) -> tuple[float, float]:
        """Rank by mean absolute error, then by squared error."""
        return -judged["mae"], -judged[self.loss_name]

    def scale(self, outputs: Floats) -> Scale:  # noqa: ARG002
        """Give the labels' mean and sd."""
        return self.mean, self.sd


class SurvivalTask(Task):
    """How soon an event comes, by Cox's partial likelihood; the best epoch is that of the highest concordance index.

    Parameters
    ----------
    risk_set
        Bags that are compared in a step, at least 2. Steps are of nearly equal size and share the events evenly, and
        there are no more of them than events: a step without one would teach nothing.
    """

    loss_name = "partial_likelihood"
    compares_bags = True

    def __init__(self, *, risk_set: int = 16) -> None:
        if risk_set < 2:
            raise ValueError(f"risk_set is {risk_set}; it must be at least 2, as the loss compares bags")
        self.risk_set = risk_set

    def begin(self, training: BagSource, *, classes: int, config: FitConfig) -> None:
        """Find which bags had the event."""
        _refuse_outputs("survival", classes)
        _refuse_class_options("survival", config)
        labels = read_labels(training)
        self.events = np.array([isinstance(label, FollowUp) and bool(label.event) for label in labels])
        if all(isinstance(label, FollowUp) for label in labels) and not self.events.any():
            raise ValueError("no training bag had the event, of which survival is learned; give some that had it")

    def check(self, bag: Bag) -> FollowUp:
        """Give the follow-up."""
        label = bag.label
        if not isinstance(label, FollowUp) or not _is_follow_up(label):
            raise BagError(f"{bag.name}: label {label} is not a follow-up of a time above 0")
        return label

    def step_loss(self, outputs: Tensor, labels: Sequence[Label]) -> Tensor:
        """Give the negative log partial likelihood, a mean over the events."""
        time, event = _follow_ups(labels)
        return partial_likelihood_loss(
            outputs[:, 0], torch.from_numpy(time).to(outputs.device), torch.from_numpy(event).to(outputs.device)
        )

    def divide(self, order: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Divide an epoch's bags into steps that share the events evenly."""
        had = self.events[order]
        steps = max(1, min(math.ceil(len(order) / self.risk_set), int(had.sum())))
        with_event = np.array_split(order[had], steps)  # the first parts are the larger ones,
        without = np.array_split(order[~had], steps)[::-1]  # so here the last are
        return [np.concatenate(pair) for pair in zip(with_event, without, strict=True)]

    def judge(self, outputs: Floats, labels: Sequence[Label]) -> dict[str, float]:
        """Give the partial likelihood's loss over all bags, nats an event, and the concordance index."""
        loss = float(self.step_loss(torch.from_numpy(outputs), labels))
        time, event = _follow_ups(labels)
        return {self.loss_name: loss, "c_index": concordance(outputs[:, 0], time, event)}

    def rank(self, judged: dict[str, float]) -> tuple[float, float]:
        """Rank by concordance, by the loss where two epochs are equal."""
        found = judged["c_index"]
        return 0.5 if math.isnan(found) else found, -judged[self.loss_name]

    def ranks(self, judged: dict[str, float]) -> bool:
        """Whether two of the bags have a known order, or the loss tells something, as of events at one time."""
        return not math.isnan(judged["c_index"]) or judged[self.loss_name] != 0

    def scale(self, outputs: Floats) -> Scale:
        """Give minus the training bags' median: a risk of 0 is that of the typical training bag."""
        return -float(np.median(outputs[:, 0])), 1.0


def _as_index(label: Label) -> int | None:
    """Give a class index as an int, None for what is none: `check` refuses it when its bag is read, by its name."""
    return int(label) if is_number(label) and float(label).is_integer() else None


def _is_follow_up(label: FollowUp) -> bool:
    numbers = is_number(label.time) and is_number(label.event)
    return numbers and 0 < label.time < math.inf and label.event in (True, False)


def _refuse_outputs(task: str, classes: int) -> None:
    if classes != 1:
        raise ValueError(f"{task} needs a model of one output, this one has {classes}; build it with classes=1")


def _refuse_class_options(task: str, config: FitConfig) -> None:
    if config.class_weights != "none" or config.balanced:
        raise ValueError(f"{task} has no classes that class_weights or balanced could weigh; leave them out")


def _follow_ups(labels: Sequence[Label]) -> tuple[Floats, NDArray[np.bool_]]:
    known = [label for label in labels if isinstance(label, FollowUp)]
    return np.array([each.time for each in known]), np.array([each.event for each in known], dtype=bool)
