"""Train many small models at once, each on its own copy of the same bags, a step of all of them at a time.

On bags of a few patches a step costs what launching its operations costs, so folds and seeds one after the other spend
their time on nothing. Here the runs go through the bags in one common order, and torch's vmap makes one operation of
what all of them compute. Every run has its own weights, AdamW state, noise, features (as its own fold standardises
them) and anchor; a run whose test fold holds a bag leaves that step out. What is computed is what
`asmil.training.Trainer` computes (tests/test_benchmarks.py compares the two), but for the order of bags, which seeds
share, models that follow their own weights (MHIM), and weights that a bag does not use (CLAM's classifier of patches of
the other class): they follow their momentum here and rest there.
"""

import copy
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
from asmil.losses import alignment_loss, relative_entropy
from asmil.normalizers import center_logits, log_nsf, log_softmax
from asmil.options import FitConfig
from asmil.protocol import TrainingHooks
from asmil.registry import NamedModel
from asmil.seeding import seeded

_ORDER, _NOISE = 0, 1

_Named = dict[str, Tensor]


def fits(model: NamedModel) -> bool:
    """Whether a model's training step depends on the weights and the bag alone, and not on earlier weights."""
    return getattr(type(model), "end_step", None) in (None, TrainingHooks.end_step)


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
        self.model: Any = copy.deepcopy(models[0])
        self.follower: Any = copy.deepcopy(models[0]).eval()
        self.hooks = self.model if isinstance(self.model, TrainingHooks) else TrainingHooks()
        self.bags, self.labels, self.trains, self.config, self.seed = bags, labels, trains, config, seed
        self.names = [name for name, _ in models[0].named_parameters()]
        self.shapes = [value.shape for _, value in models[0].named_parameters()]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        # one block for all runs, so that a step gathers nothing; the optimizer sees its rows
        self.stacked = torch.stack([nn.utils.parameters_to_vector(model.parameters()).detach() for model in models])
        self.weights = [nn.Parameter(row) for row in self.stacked]
        taken = [dict(model.named_buffers()) for model in models]
        self.buffers = {name: torch.stack([each[name] for each in taken]) for name in taken[0]}
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        late = anchor is not None and (anchor.start_epoch > 1 or anchor.ramp or anchor.update_every > 1)
        if late or (anchor is not None and anchor.init != "copy"):
            raise ValueError("in lockstep an anchor starts as the model and follows it from the first step on")
        self.anchor = anchor if anchor and anchor.mode != "none" and self.model.anchor_parameters() else None
        # the whole model is kept as anchor, of which only what is upstream of the attention is used
        self.anchors = self.stacked.clone()
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

        def one(weights: Tensor, buffers: _Named, features: Tensor) -> tuple[Tensor, Tensor]:
            logits, attention = functional_call(self.model, self._named(weights) | buffers, (features,))
            return logits.softmax(-1), attention.softmax(-1).flatten(0, -2)

        places = torch.from_numpy(runs)
        # what is random here (the division of DTFD) is drawn from a fixed seed, the same for all
        buffers = {name: rows[places] for name, rows in self.buffers.items()}
        probabilities, attention = vmap(one, randomness="same")(self.stacked[places], buffers, self.bags[bag][places])
        return probabilities.numpy(), attention.numpy()

    @torch.no_grad()
    def scores(self, bag: int, run: int) -> NDArray[np.float32]:
        """Give one run's score of a bag's patches, [N]."""
        nn.utils.vector_to_parameters(self.weights[run].detach(), self.follower.parameters())
        for name, buffer in self.follower.named_buffers():
            buffer.copy_(self.buffers[name][run])
        return np.asarray(self.follower.score(self.bags[bag][run]).numpy())

    def _named(self, flat: Tensor) -> _Named:
        parts = zip(self.names, torch.split(flat, self.sizes), self.shapes, strict=True)
        return {name: part.view(shape) for name, part, shape in parts}

    def _step(self, bag: int, progress: float) -> Tensor:
        runs = np.flatnonzero(self.trains[:, bag])
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate_at(progress)
        self.hooks.begin_step(progress)
        self.optimizer.zero_grad(set_to_none=True)  # a weight without a gradient is left alone, its moments too
        # all runs are computed, also the few that leave this step out: to gather the others costs more
        everything = self.stacked.detach().requires_grad_()

        def one(weights: Tensor, anchor: Tensor, buffers: _Named, features: Tensor) -> tuple[Tensor, Tensor]:
            own = {f"model.{name}": value for name, value in (self._named(weights) | buffers).items()}
            loss, attention = functional_call(_Loss(self.model), own, (features, self.labels[bag]))
            if self.anchor is None:
                return loss, loss.new_full((), math.nan)
            target = self._log_target(self._named(anchor) | buffers, features, attention.detach())
            aligned = alignment_loss(target, log_softmax(attention), reduction=self.anchor.reduction)
            return loss + self.anchor.beta * aligned, relative_entropy(target).mean()

        together = vmap(one, randomness="different")
        losses, entropies = together(everything, self.anchors, self.buffers, self.bags[bag])
        (gradients,) = torch.autograd.grad(losses.sum(), everything)
        norms = gradients.norm(dim=1, keepdim=True)  # each run by its own
        if bool((norms > self.config.gradient_clip).any()):
            gradients *= (self.config.gradient_clip / (norms + 1e-6)).clamp(max=1)
        for run in runs:
            self.weights[run].grad = gradients[run]
        self.optimizer.step()
        self._follow(runs)
        return entropies.detach()[torch.from_numpy(runs)].mean()

    def _log_target(self, weights: _Named, features: Tensor, online: Tensor) -> Tensor:
        assert self.anchor is not None
        if self.anchor.mode == "uniform":
            return log_softmax(torch.zeros_like(online), online > -torch.inf)
        call = _AttentionLogits(self.follower)
        own = {f"model.{name}": value for name, value in weights.items()}
        logits = functional_call(call, own, (features, self.model.context)).detach()
        logits = center_logits(logits, center=self.anchor.center, quantile=self.anchor.quantile)
        if self.anchor.target == "softmax":
            return log_softmax(logits / self.anchor.temperature)
        return log_nsf(logits, temperature=self.anchor.temperature)

    def _follow(self, runs: NDArray[np.intp]) -> None:
        """Move the anchors of the runs that took a step."""
        if self.anchor is None or self.anchor.mode != "ema":
            return
        half_life = self.anchor.half_life_epochs
        with torch.no_grad():
            for run in runs:
                momentum = self.anchor.momentum
                if half_life is not None:
                    momentum = 0.5 ** (1 / (half_life * int(self.trains[run].sum())))
                self.anchors[run].lerp_(self.weights[run], 1 - momentum)


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


class _AttentionLogits(nn.Module):
    """A model whose forward pass gives the attention logits alone, for `functional_call`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, context: Any) -> Tensor:
        """Give the attention logits of one bag."""
        logits: Tensor = self.model.attention_logits(features, None, context)
        return logits
