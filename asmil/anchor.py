"""The anchor: an exponential moving average of the model whose attention the online attention is drawn to.

Source: ASMIL, arXiv 2603.06658. The anchor never receives a gradient, is never in an optimizer, consumes no randomness
in training, and is not needed at inference.
"""

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_type_hints

import torch
from torch import Tensor, nn

from asmil.errors import TrainingError
from asmil.losses import Reduction, alignment_loss, kl_divergence, relative_entropy
from asmil.normalizers import Center, center_logits, log_nsf, log_softmax
from asmil.options import UNIFORM_ENTROPY, WARM_UP_EPOCHS, check_kinds
from asmil.protocol import AttentionMIL
from asmil.seeding import seeded

logger = logging.getLogger(__name__)

Mode = Literal["ema", "frozen", "uniform", "none"]
Target = Literal["nsf", "softmax"]
Init = Literal["copy", "random"]

MIN_TEMPERATURE = 1e-3
"""Below it the division of logits overflows before the target says anything new: it is one-hot long before."""

_STEPS = "anchor.steps"


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Options of the anchor; the defaults are the paper's.

    Parameters
    ----------
    beta
        Weight of the alignment loss, >= 0; published grids use 0.01 to 1.
    mode
        "ema": moving average. Controls: "frozen" (never updated), "uniform" (target 1 / N), "none" (no loss).
    target
        How the anchor's logits become the target: normalised sigmoid or softmax.
    temperature
        T > 0 of the target's sigmoid; with "softmax", of the softmax.
    center, quantile
        What is subtracted from the anchor's logits; see `asmil.normalizers.center_logits`.
    momentum
        m in [0, 1] of theta' <- m theta' + (1 - m) theta, at each update.
    half_life_epochs
        Instead of `momentum`: epochs after which half of the anchor is replaced; > 0.
    ramp
        Use min(m, (1 + t) / (10 + t)) at update t = 0, 1, ..., so that the first epochs are forgotten sooner.
    update_every
        Optimizer steps an update, >= 1.
    start_epoch
        First epoch (they count from 1) in which the loss acts; the average runs from the start.
    init
        "copy" starts from the model's own weights; "random" from an independent draw.
    reduction
        "sum" over patches, or "mean_patches".

    Raises
    ------
    ValueError
        If a value is of another kind, or out of its range.
    """

    beta: float = 0.1
    mode: Mode = "ema"
    target: Target = "nsf"
    temperature: float = 1.0
    center: Center = "none"
    quantile: float = 0.9
    momentum: float = 0.999
    half_life_epochs: float | None = None
    ramp: bool = False
    update_every: int = 1
    start_epoch: int = 1
    init: Init = "copy"
    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        check_kinds(vars(self), get_type_hints(type(self)), of="anchor ")
        ranges = {
            "beta": 0 <= self.beta < math.inf,
            "temperature": MIN_TEMPERATURE <= self.temperature < math.inf,
            "quantile": 0 <= self.quantile <= 1,
            "momentum": 0 <= self.momentum <= 1,
            "half_life_epochs": self.half_life_epochs is None or 0 < self.half_life_epochs < math.inf,
            "update_every": self.update_every >= 1,
            "start_epoch": self.start_epoch >= 1,
        }
        for name, fits in ranges.items():
            if not fits:
                raise ValueError(f"anchor {name} is {getattr(self, name)}, which is out of its range")


class AnchorRegularizer:
    """Own the anchor of one model, give the alignment loss and follow the model's steps.

    Parameters
    ----------
    model
        Any `AttentionMIL`; its parameters named by `anchor_parameters()` are copied to float32 or better.
    config
        The options; None takes the defaults.
    seed
        Of the draw for `init="random"`; nothing else is random.

    Notes
    -----
    The copy is the whole module in eval mode, in which every parameter that is not upstream of the attention logits is
    one NaN without storage of its own: a model that forgets to name one fails instead of using a stale value.

    A model that names no parameter has no attention to align: it gets no anchor and no loss, whatever the mode.
    """

    def __init__(self, model: AttentionMIL, config: AnchorConfig | None = None, *, seed: int = 0) -> None:
        self.config = config or AnchorConfig()
        if not model.anchor_parameters() and self.config.mode != "none":
            logger.info("%s has no attention to align, so it is trained without the anchor", type(model).__name__)
            self.config = replace(self.config, mode="none")
        self.model = model
        self.steps = 0
        self.epoch = 1
        self._steps_per_epoch: int | None = None
        self._sums: dict[str, tuple[Tensor | float, int]] = {}
        self._warned = self._tried = False
        self.anchor: AttentionMIL | None = None
        self._names: frozenset[str] = frozenset()
        if self.config.mode in ("ema", "frozen"):
            self.anchor = copy.deepcopy(model).eval()
            if self.config.init == "random":
                _redraw(self.anchor, seed=seed)
            self._names = _keep_upstream(self.anchor)

    @property
    def weight(self) -> float:
        """Weight of the loss in this epoch: beta, or 0 before `start_epoch` and in mode "none"."""
        active = self.config.mode != "none" and self.epoch >= self.config.start_epoch
        return self.config.beta if active else 0.0

    @property
    def momentum(self) -> float:
        """Momentum m of the next update.

        Raises
        ------
        ValueError
            If `half_life_epochs` is set and `begin_epoch` was never called, as the steps an epoch are then unknown.
        """
        config = self.config
        momentum = config.momentum
        if config.half_life_epochs is not None:
            if self._steps_per_epoch is None:
                raise ValueError("half_life_epochs needs the steps of an epoch; call begin_epoch before step")
            momentum = 0.5 ** (config.update_every / (config.half_life_epochs * self._steps_per_epoch))
        updates = self.steps // config.update_every
        return min(momentum, (1 + updates) / (10 + updates)) if config.ramp else momentum

    def begin_epoch(self, epoch: int, *, steps_per_epoch: int) -> None:
        """Say which epoch begins (they count from 1) and how many optimizer steps it has."""
        self.epoch = epoch
        self._steps_per_epoch = steps_per_epoch
        if self.steps == 0:
            self._copy_buffers()  # which a model may have filled in from the training bags since the copy was made

    def loss(
        self, attention_logits: Tensor, features: Tensor, mask: Tensor | None = None, *, context: object = None
    ) -> Tensor:
        """Give the alignment loss, a scalar not yet weighted by `weight`; its gradient reaches the logits only.

        Parameters
        ----------
        attention_logits
            The online model's, [..., N], of the same bag.
        features, mask, context
            What the online model was given, and its `context` after that forward pass.
        """
        if self.config.mode == "none":
            return attention_logits.new_zeros(())
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            log_target = self.log_target(attention_logits, features, mask, context=context)
        log_attention = log_softmax(attention_logits, _spread(mask, attention_logits))
        with torch.no_grad():
            self._add("anchor_kl", kl_divergence(log_target, log_attention))
            self._add("anchor_target_entropy", relative_entropy(log_target))
        return alignment_loss(log_target, log_attention, reduction=self.config.reduction)

    @torch.no_grad()
    def log_target(
        self, attention_logits: Tensor, features: Tensor, mask: Tensor | None = None, *, context: object = None
    ) -> Tensor:
        """Give the logarithm of the target, [..., N], float32 or better, -inf on padding; arguments as for `loss`."""
        spread = _spread(mask, attention_logits)
        if self.anchor is None:
            # over the patches that the model sees: MHIM hides some, with logits of -inf
            seen = attention_logits > -torch.inf
            return log_softmax(torch.zeros_like(attention_logits).masked_fill(~seen, -torch.inf), spread)
        dtype = next(iter(self._parameters().values())).dtype
        logits = self.anchor.attention_logits(features.to(dtype), mask, context)
        self._try_once(logits)
        self._add("anchor_positive_share", (logits > 0).sum(-1) / (logits > -torch.inf).sum(-1))
        logits = center_logits(logits, spread, center=self.config.center, quantile=self.config.quantile)
        if self.config.target == "softmax":
            return log_softmax(logits / self.config.temperature)
        return log_nsf(logits, temperature=self.config.temperature)

    @torch.no_grad()
    def step(self) -> None:
        """Follow the model; call it after every `optimizer.step()`.

        Raises
        ------
        TrainingError
            If a parameter upstream of the attention is not finite; the anchor is then unchanged.
        """
        online = dict(self.model.named_parameters())
        names = self.model.anchor_parameters()
        # two reductions a tensor and one look at the result: on a GPU that is one synchronisation a step
        extremes = [value for name in names for value in torch.aminmax(online[name])]
        if extremes and not torch.stack(extremes).isfinite().all():
            broken = next(name for name in names if not online[name].isfinite().all())
            raise TrainingError(f"{broken} is not finite after step {self.steps + 1}; lower the learning rate")
        moves = self.anchor is not None and self.config.mode != "frozen"
        momentum = self.momentum if moves else 1.0
        self.steps += 1
        if not moves or self.steps % self.config.update_every:
            return
        for name, parameter in self._parameters().items():
            parameter.lerp_(online[name].to(parameter.dtype), 1 - momentum)
        self._copy_buffers()

    def diagnostics(self) -> dict[str, float]:
        """Give the means over the bags since the last call, and forget them.

        Returns
        -------
        `anchor_kl` (nats), `anchor_target_entropy` (share of log N) and, where there is an anchor,
        `anchor_positive_share` (patches whose anchor logit, not centred, is above 0); empty where no loss was taken.
        """
        means = {name: float(total) / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        share = means.get("anchor_target_entropy", 0.0)
        judged = self.anchor is not None and self.epoch > WARM_UP_EPOCHS and not self._warned
        if judged and share > UNIFORM_ENTROPY:
            self._warned = True
            logger.warning(
                "epoch %d: the anchor's target has %.1f %% of the largest entropy, so the alignment loss only flattens "
                "attention; consider center, a lower temperature or half_life_epochs",
                self.epoch,
                100 * share,
            )
        return means

    def to(self, device: torch.device) -> "AnchorRegularizer":
        """Move the anchor to a device; the model is moved by its owner."""
        if self.anchor is not None:
            for name, parameter in self.anchor.named_parameters():
                kept = name in self._names
                parameter.data = parameter.data.to(device) if kept else _nothing_like(parameter, device)
            for _, buffer in self.anchor.named_buffers():
                buffer.data = buffer.data.to(device)
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Give the anchor's parameters and buffers by the model's names, and its step count; copies, on the CPU."""
        state = {name: value.detach().cpu().clone() for name, value in self._tensors().items()}
        return {**state, _STEPS: torch.tensor(self.steps)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave.

        Raises
        ------
        ValueError
            If the names are not this anchor's.
        """
        tensors = self._tensors()
        if differing := {_STEPS, *tensors} ^ set(state):
            raise ValueError(f"the anchor's state does not fit the model: {', '.join(sorted(differing))}")
        for name, value in tensors.items():
            value.data.copy_(state[name])
        self.steps = int(state[_STEPS])

    def _copy_buffers(self) -> None:
        buffers = dict(self.model.named_buffers())
        for name, buffer in self.anchor.named_buffers() if self.anchor is not None else ():
            buffer.copy_(buffers[name])

    def _parameters(self) -> dict[str, nn.Parameter]:
        if self.anchor is None:
            return {}
        return {name: value for name, value in self.anchor.named_parameters() if name in self._names}

    def _tensors(self) -> dict[str, Tensor]:
        buffers = {} if self.anchor is None else dict(self.anchor.named_buffers())
        return {**self._parameters(), **buffers}

    def _try_once(self, logits: Tensor) -> None:
        """Look for NaN in the first logits; not in later ones, as looking stalls a GPU."""
        if not self._tried and logits.isnan().any():
            raise ValueError("the anchor's logits are NaN; does anchor_parameters() name all that is upstream of them?")
        self._tried = True

    def _add(self, name: str, values: Tensor) -> None:
        mean = values.float().mean()  # stays on the device: reading it here would stall a GPU at every step
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = (total + mean, count + 1)


def _spread(mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """Shape a mask [N] or [B, N] so that it broadcasts against logits [..., N] or [B, ..., N]."""
    if mask is None or mask.ndim == 1:
        return mask
    return mask.view(mask.shape[0], *(1,) * (logits.ndim - 2), mask.shape[1])


def _path(name: str) -> str:
    """Give where in the model the module is that owns a parameter."""
    return name.rpartition(".")[0]


def _keep_upstream(anchor: AttentionMIL) -> frozenset[str]:
    """Make the parameters upstream of the attention constants in float32 or better, empty all others; name the kept."""
    parameters, upstream = dict(anchor.named_parameters()), set(anchor.anchor_parameters())
    if unknown := upstream - set(parameters):
        raise ValueError(f"anchor_parameters() names {', '.join(sorted(unknown))}, which the model does not have")
    for name, parameter in parameters.items():
        if name in upstream:
            value = parameter.detach().to(_wide(parameter))
        else:  # as wide, for a model that takes its features in the kind of any of its parameters
            value = _nothing_like(parameter, parameter.device)
        owner = anchor.get_submodule(_path(name))
        owner.register_parameter(name.rpartition(".")[2], nn.Parameter(value, requires_grad=False))
    for _, buffer in anchor.named_buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(_wide(buffer))
    return frozenset(upstream)


def _wide(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def _nothing_like(parameter: Tensor, device: torch.device) -> Tensor:
    """Give a tensor of NaN of a parameter's shape that takes the storage of one number."""
    return torch.full((), torch.nan, dtype=_wide(parameter), device=device).expand(parameter.shape)


def _redraw(anchor: AttentionMIL, *, seed: int) -> None:
    """Draw the modules of the upstream parameters anew, as the model's own initialisation does.

    The modules that hold them come after them: a model may draw the weights of its layers in its own way.
    """
    owners = {path: anchor.get_submodule(path) for path in map(_path, anchor.anchor_parameters())}
    for module in owners.values():
        if not hasattr(module, "reset_parameters"):
            raise ValueError(f"anchor init is 'random', but {type(module).__name__} has no reset_parameters()")
    paths = {".".join(parts[:end]) for parts in (path.split(".") for path in owners) for end in range(len(parts) + 1)}
    devices = {parameter.device for parameter in anchor.parameters()}
    with seeded(seed, device=next(iter(devices))):
        for path in sorted(paths, key=lambda path: (-len(path.split(".")) * bool(path), path)):
            reset = getattr(anchor.get_submodule(path), "reset_parameters", None)
            if reset is not None:
                reset()
