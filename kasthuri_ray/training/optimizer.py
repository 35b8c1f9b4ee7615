"""Optimizers, learning-rate schedules, gradient clipping, averaged weights and early stopping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from kasthuri_ray.training.muon import Muon

ONE_CYCLE_START_FACTOR = 1 / 25  # of the highest learning rate
ONE_CYCLE_WARMUP = 0.3  # share of all steps, if `warmup` is 0
FINAL_FACTOR = 1e-4  # of the highest learning rate, at the end of a schedule that falls
# They import torch._dynamo when they are called.
LAZY_METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


@dataclass(frozen=True)
class OptimizerSettings:
    """The settings of a network file that decide how weights change; the fields have the same names there."""

    optimizer: str
    learning_rate: float
    weight_decay: float
    momentum: float
    beta1: float
    beta2: float
    scheduler: str
    warmup: float
    plateau_factor: float
    plateau_patience: int
    gradient_clip: float
    ema: float


def make_optimizer(settings: OptimizerSettings, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimizer that the settings name, over the trainable parameters; fused: one pass over each a step."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "Muon":
        return Muon(trainable, rate, decay, settings.momentum, (settings.beta1, settings.beta2))
    if settings.optimizer == "SGD":
        return SGD(trainable, lr=rate, momentum=settings.momentum, weight_decay=decay, fused=True)
    kind = AdamW if settings.optimizer == "AdamW" else Adam
    return kind(trainable, lr=rate, betas=(settings.beta1, settings.beta2), weight_decay=decay, fused=True)


def leave_dynamo_unloaded() -> None:
    """Let torch's optimizers work without `torch._dynamo` in this process, whose import takes 2 to 4 s.

    They import it to keep torch.compile out of them. A training step that is not compiled has no use for that. The
    functions themselves stay as they are. Where torch wraps them in another way, nothing changes.
    """
    for kind, name in (*((Optimizer, name) for name in LAZY_METHODS), (Adam, "step"), (SGD, "step")):
        inner = getattr(getattr(kind, name), "__wrapped__", None)
        if inner is not None:
            setattr(kind, name, torch.no_grad()(inner) if name == "step" else inner)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradient_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor | None:
    """Scale the gradients down to a norm of `max_norm`; 0 leaves them as they are."""
    if max_norm <= 0:
        return None
    return nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], max_norm)


def learning_rate_factor(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """Return the factor of `learning_rate` at `step` (counted from 0) of `total_steps`.

    `cosine` rises linearly through `warmup` and falls as half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983);
    `one_cycle` rises and falls as half cosines (Smith & Topin 2018, arXiv:1708.07120); `constant` and `plateau` stay
    at 1 after the warm-up. The factor depends on the step and the total alone, so another total changes all factors.
    """
    warmup = settings.warmup or (ONE_CYCLE_WARMUP if settings.scheduler == "one_cycle" else 0.0)
    warmup_steps = round(warmup * total_steps)
    if step < warmup_steps:
        part = (step + 1) / warmup_steps
        return _half_cosine(ONE_CYCLE_START_FACTOR, 1.0, part) if settings.scheduler == "one_cycle" else part
    if settings.scheduler in ("cosine", "one_cycle"):
        return _half_cosine(1.0, FINAL_FACTOR, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1.0


class PlateauSchedule:
    """A schedule that reduces the learning rate by `plateau_factor` when the validation loss stops falling.

    It does so after more than `plateau_patience` epochs without an improvement, like torch's ReduceLROnPlateau with its
    defaults (relative threshold 1e-4). It is a function of the history and has no state of its own.
    """

    THRESHOLD = 1e-4

    def __init__(self, settings: OptimizerSettings) -> None:
        self.settings = settings

    def factor(self, val_losses: Sequence[float]) -> float:
        """Return the factor of the learning rate after epochs with these validation losses."""
        if self.settings.scheduler != "plateau":
            return 1.0
        factor, best, num_bad = 1.0, math.inf, 0
        for loss in val_losses:
            if loss < best * (1 - self.THRESHOLD):
                best, num_bad = loss, 0
            else:
                num_bad += 1
            if num_bad > self.settings.plateau_patience:
                factor, num_bad = factor * self.settings.plateau_factor, 0
        return factor


class WeightAverage:
    """An exponential moving average of a network's weights (Polyak averaging), including its normalization statistics.

    The decay grows with the steps, min(decay, (1 + step) / (10 + step)), so that the first weights soon lose their
    influence (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.step = 0
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Average in the weights after a step."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        state = network.state_dict()
        floats = [name for name, value in self.weights.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[n] for n in floats], [state[n] for n in floats], 1 - decay)
        for name in self.weights.keys() - set(floats):
            self.weights[name].copy_(state[name])

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)


def should_stop_early(val_losses: Sequence[float], patience: int, delta: float) -> bool:
    """Return whether the validation loss no longer falls.

    Parameters
    ----------
    val_losses : sequence of float
        Validation loss of each epoch.
    patience : int
        Epochs without an improvement after which to stop; 0 never stops.
    delta : float
        Amount by which the loss must fall to count as an improvement.

    Returns
    -------
    bool
    """
    best, num_bad = math.inf, 0
    for loss in val_losses:
        if loss < best - delta:
            best, num_bad = loss, 0
        else:
            num_bad += 1
    return 0 < patience <= num_bad


def _half_cosine(start: float, stop: float, part: float) -> float:
    return stop + (start - stop) * (1 + math.cos(math.pi * min(1.0, part))) / 2
