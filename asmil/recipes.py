"""Train a model by its source's own recipe instead of the shared one.

trainer = source_trainer("transmil", model, training, validation, seed=0)
while not trainer.finished:
    trainer.run_epoch()
result = trainer.finish()
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asmil.anchor import AnchorRegularizer
from asmil.bags import BagSource
from asmil.protocol import AttentionMIL
from asmil.registry import MODELS, Recipe
from asmil.tasks import Task
from asmil.training import FitConfig, Trainer

LOOKAHEAD_STEPS, LOOKAHEAD_SHARE = 6, 0.5
"""Of Lookahead as TransMIL uses it."""


class LookaheadRAdam(torch.optim.RAdam):
    """RAdam whose weights go back, every 6 steps, half way to where they were 6 steps before.

    Source: Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019, arXiv 1907.08610. The slow
    weights are part of the optimizer's state, so that a run continues from `state_dict`.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of RAdam, and every sixth time the step back."""
        learned = [value for group in self.param_groups for value in group["params"] if value.grad is not None]
        starts: dict[int, Tensor] = {
            id(value): value.clone() for value in learned if "slow" not in self.state.get(value, {})
        }
        result = super().step(closure)
        for value in learned:
            state = self.state[value]
            if id(value) in starts:  # RAdam takes a state that is not empty for one it has made
                state["slow"] = starts[id(value)]
            if int(state["step"]) % LOOKAHEAD_STEPS == 0:
                value.copy_(state["slow"].lerp_(value, LOOKAHEAD_SHARE))
        return result


def build_optimizer(model: AttentionMIL, recipe: Recipe) -> torch.optim.Optimizer:
    """Give the recipe's optimizer of all parameters that learn."""
    learned = [value for value in model.parameters() if value.requires_grad]
    spared = [] if recipe.decay_vectors else [value for value in learned if value.ndim < 2]
    decayed = [value for value in learned if not any(value is other for other in spared)]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": recipe.weight_decay}]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": partial(torch.optim.AdamW, fused=True),
        "adam": partial(torch.optim.Adam, fused=True),
        "lookahead_radam": LookaheadRAdam,
    }
    return kinds[recipe.optimizer](groups, lr=recipe.learning_rate, betas=recipe.betas)


def source_config(name: str, **changes: Any) -> FitConfig:
    """Give the options of training of a model's source, with some of them changed; the optimizer is not among them."""
    recipe = MODELS[name].recipe
    shared = {each.name for each in fields(FitConfig)} & {each.name for each in fields(Recipe)}
    return FitConfig(**{**{name: getattr(recipe, name) for name in shared}, **changes})


def source_trainer(
    name: str,
    model: AttentionMIL,
    training: BagSource,
    validation: BagSource,
    *,
    seed: int,
    anchor: AnchorRegularizer | None = None,
    task: Task | None = None,
    device: str | torch.device = "cpu",
    **changes: Any,
) -> Trainer:
    """Give a trainer that follows a source's recipe; other parameters as for `asmil.training.fit`.

    Parameters
    ----------
    name
        Whose recipe: a key of `asmil.registry.MODELS`.
    changes
        Options of `FitConfig` that are set otherwise, as `epochs`.
    """
    config = source_config(name, **changes)
    trainer = Trainer(model, training, validation, anchor=anchor, config=config, task=task, seed=seed, device=device)
    trainer.optimizer = build_optimizer(model, MODELS[name].recipe)
    return trainer
