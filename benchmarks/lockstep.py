"""Train many small models at once, each on its own copy of the same bags, a step of all of them at a time.

On bags of a few patches a step costs what launching its operations costs, so folds and seeds one after the other spend
their time on nothing. Here the runs go through the bags in one common order, and torch's vmap makes one operation of
what all of them compute. Every run has its own weights, AdamW state, noise, features (as its own fold standardises
them) and anchor; a run whose test fold holds a bag leaves that step out. What is computed is what
`asmil.training.Trainer` computes (tests/test_benchmarks.py compares the two), but for the order of bags, which seeds
share.
"""

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from asmil.anchor import AnchorConfig
from asmil.bags import Bag
from asmil.baselines.bag_model import pool
from asmil.baselines.mhim import MHIM
from asmil.losses import alignment_loss, relative_entropy
from asmil.normalizers import center_logits, log_nsf, log_softmax
from asmil.options import FitConfig
from asmil.protocol import TrainingHooks
from asmil.registry import NamedModel
from asmil.seeding import seeded

_ORDER, _NOISE = 0, 1

_Named = dict[str, Tensor]


class Lockstep:
    """R models of one kind in training together.

    Parameters
    ----------
    models
        R models, differing in their weights only; what they take from their training bags beforehand, they take here.
    bags
        One tensor [R, N, d_in] a bag: the bag as each run sees it.
    labels
        Class of each bag.
    trains
        bool [R, B]: whether a run trains on a bag.
    anchor
        None, or mode "none", trains on the model's own loss alone.
    config
        As for `asmil.training.Trainer`; only the epochs, the learning rate and its course, the weight decay and the
        gradient clip count.
    """

    def __init__(
        self,
        models: Sequence[NamedModel],
        bags: Sequence[Tensor],
        labels: Sequence[int],
        trains: NDArray[np.bool_],
        *,
        anchor: AnchorConfig | None,
        config: FitConfig,
        seed: int,
    ) -> None:
        for run, model in enumerate(models):
            if isinstance(model, TrainingHooks):
                places = np.flatnonzero(trains[run]).tolist()
                own = [Bag(bags[place][run].numpy(), labels[place], f"bag {place}") for place in places]
                model.prepare(own, seed=seed)
        self.model = _of_one_size(copy.deepcopy(models[0]))
        self.follower: Any = copy.deepcopy(models[0]).eval()
        self.hooks = self.model if isinstance(self.model, TrainingHooks) else TrainingHooks()
        self.bags, self.labels, self.trains, self.config, self.seed = bags, labels, trains, config, seed
        starts = [dict(model.named_parameters()) for model in models]
        self.weights = {name: torch.stack([start[name].detach() for start in starts]) for name in starts[0]}
        # the optimizer sees each run's row, so that a run can leave a step out
        self.rows = [
            {name: nn.Parameter(rows[run]) for name, rows in self.weights.items()} for run in range(len(models))
        ]
        taken = [dict(model.named_buffers()) for model in models]
        self.buffers = {name: torch.stack([each[name] for each in taken]) for name in taken[0]}
        self.optimizer = torch.optim.AdamW(
            [row for rows in self.rows for row in rows.values()],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        late = anchor is not None and (anchor.start_epoch > 1 or anchor.ramp or anchor.update_every > 1)
        if late or (anchor is not None and anchor.init != "copy"):
            raise ValueError("in lockstep an anchor starts as the model and follows it from the first step on")
        self.anchor = anchor if anchor and anchor.mode != "none" and self.model.anchor_parameters() else None
        self.anchors = {name: self.weights[name].clone() for name in self.model.anchor_parameters()}
        self.epoch = 0
        self.target_entropy = math.nan

    def run_epoch(self) -> None:
        """Take every run through its training bags once."""
        self.epoch += 1
        order = np.random.default_rng([self.seed, self.epoch, _ORDER]).permutation(len(self.bags))
        steps = [int(bag) for bag in order if self.trains[:, bag].any()]
        self.model.train()
        entropies = []
        with seeded(self.seed, self.epoch, _NOISE, device=torch.device("cpu")):
            for number, bag in enumerate(steps):
                entropies.append(self._step(bag, (self.epoch - 1 + number / len(steps)) / self.config.epochs))
        self.target_entropy = float(torch.stack(entropies).mean())

    @torch.no_grad()
    def look(self, bag: int, runs: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give some runs' class probabilities [r, C] of a bag and their attention [r, rows, N], in eval mode."""
        self.model.eval()

        def one(own: _Named, features: Tensor) -> tuple[Tensor, Tensor]:
            logits, attention = functional_call(self.model, own, (features,))
            return logits.softmax(-1), attention.softmax(-1).flatten(0, -2)

        places = torch.from_numpy(runs)
        # what is random here (the division of DTFD) is drawn from a fixed seed, the same for all
        own = {name: rows[places] for name, rows in (self.weights | self.buffers).items()}
        probabilities, attention = vmap(one, randomness="same")(own, self.bags[bag][places])
        return probabilities.numpy(), attention.numpy()

    @torch.no_grad()
    def scores(self, bag: int, run: int) -> NDArray[np.float32]:
        """Give one run's score of a bag's patches, [N]."""
        self.follower.load_state_dict(self.state(run))
        return np.asarray(self.follower.score(self.bags[bag][run]).numpy())

    def state(self, run: int) -> _Named:
        """Give one run's parameters and buffers by their names; they move on with the run."""
        return {name: rows[run] for name, rows in (self.weights | self.buffers).items()}

    def _step(self, bag: int, progress: float) -> Tensor:
        runs = np.flatnonzero(self.trains[:, bag])
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate_at(progress)
        self.hooks.begin_step(progress)
        self.optimizer.zero_grad(set_to_none=True)  # a weight without a gradient is left alone, its moments too
        # all runs are computed, also the few that leave this step out: to gather the others costs more
        leaves = {name: rows.detach().requires_grad_() for name, rows in self.weights.items()}

        def one(own: _Named, anchor: _Named, features: Tensor) -> tuple[Tensor, Tensor]:
            loss, attention = functional_call(_Loss(self.model), _of_model(own), (features, self.labels[bag]))
            if self.anchor is None:
                return loss, loss.new_full((), math.nan)
            target = self._log_target(own | anchor, features, attention.detach())
            aligned = alignment_loss(target, log_softmax(attention), reduction=self.anchor.reduction)
            return loss + self.anchor.beta * aligned, relative_entropy(target).mean()

        together = vmap(one, randomness="different")
        losses, entropies = together(leaves | self.buffers, self.anchors, self.bags[bag])
        self._descend(losses, leaves, runs)
        self._end_step(runs)
        self._follow(runs)
        return entropies.detach()[torch.from_numpy(runs)].mean()

    def _descend(self, losses: Tensor, leaves: _Named, runs: NDArray[np.intp]) -> None:
        """Take an optimizer step along the gradients of some runs; a weight that a bag does not use rests."""
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        # the fused AdamW takes a gradient of other strides than its weight's for one of the same
        gradients = {name: each.contiguous() for name, each in zip(leaves, found, strict=True) if each is not None}
        norms = torch.stack([each.flatten(1).norm(dim=1) for each in gradients.values()]).norm(dim=0)  # of each run
        if bool((norms > self.config.gradient_clip).any()):
            shares = (self.config.gradient_clip / (norms + 1e-6)).clamp(max=1)
            for each in gradients.values():
                each *= _beside(shares, each)
        for run in runs:
            for name, each in gradients.items():
                self.rows[run][name].grad = each[run]
        self.optimizer.step()

    @torch.no_grad()
    def _end_step(self, runs: NDArray[np.intp]) -> None:
        """Let the models that took a step change their own weights after it, as a teacher that follows them does."""
        if getattr(type(self.model), "end_step", TrainingHooks.end_step) is TrainingHooks.end_step:
            return
        ending = _EndStep(self.model)
        for run in runs:
            functional_call(ending, _of_model(self.state(int(run))), ())  # in place

    def _log_target(self, weights: _Named, features: Tensor, online: Tensor) -> Tensor:
        assert self.anchor is not None
        if self.anchor.mode == "uniform":
            return log_softmax(torch.zeros_like(online), online > -torch.inf)
        call = _AttentionLogits(self.follower)
        logits = functional_call(call, _of_model(weights), (features, self.model.context)).detach()
        logits = center_logits(logits, center=self.anchor.center, quantile=self.anchor.quantile)
        if self.anchor.target == "softmax":
            return log_softmax(logits / self.anchor.temperature)
        return log_nsf(logits, temperature=self.anchor.temperature)

    def _follow(self, runs: NDArray[np.intp]) -> None:
        """Move the anchors of the runs that took a step."""
        if self.anchor is None or self.anchor.mode != "ema":
            return
        half_life = self.anchor.half_life_epochs
        moves = torch.zeros(len(self.trains))
        for run in runs:
            momentum = self.anchor.momentum
            if half_life is not None:
                momentum = 0.5 ** (1 / (half_life * int(self.trains[run].sum())))
            moves[run] = 1 - momentum
        with torch.no_grad():
            for name, rows in self.anchors.items():
                rows.lerp_(self.weights[name], _beside(moves, rows))


def _of_model(weights: _Named) -> _Named:
    """Name weights as the modules below do, which hold the model."""
    return {f"model.{name}": value for name, value in weights.items()}


def _beside(values: Tensor, rows: Tensor) -> Tensor:
    """Shape one value a run, [R], so that it broadcasts against `rows` [R, ...]."""
    return values.to(rows.dtype).view(-1, *(1,) * (rows.ndim - 1))


class _Loss(nn.Module):
    """A model whose forward pass gives its loss on one bag, and the attention logits, for `functional_call`.

    Both in one call: an objective may use weights of its own, as CLAM's classifiers of patches are, and they are those
    of a run only within it.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.hooks = model if isinstance(model, TrainingHooks) else TrainingHooks()

    def forward(self, features: Tensor, label: int) -> tuple[Tensor, Tensor]:
        """Give the loss, a scalar, and the attention logits of one bag."""
        logits, attention = self.model(features)
        return self.hooks.objective(F.cross_entropy(logits, torch.tensor(label)), label), attention


class _EndStep(nn.Module):
    """A model whose forward pass ends a step, for `functional_call`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> None:
        """Change the weights in place."""
        self.model.end_step()


class _AttentionLogits(nn.Module):
    """A model whose forward pass gives the attention logits alone, for `functional_call`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, context: Any) -> Tensor:
        """Give the attention logits of one bag."""
        logits: Tensor = self.model.attention_logits(features, None, context)
        return logits


def _of_one_size(model: Any) -> Any:
    """Let MHIM compute hidden patches too: runs hide different numbers of them, and one operation has one size."""
    if isinstance(model, MHIM):
        model.learn_from = functools.partial(_learn_from_masked, model)  # type: ignore[method-assign]
    return model


def _learn_from_masked(model: MHIM, features: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Do as `MHIM.learn_from`, with the hidden patches computed too and given no weight."""
    hidden = model.student.project(features)
    attention_logits = model.student.attend(hidden).masked_fill(~kept, -torch.inf)
    return pool(attention_logits, hidden).squeeze(0), attention_logits
