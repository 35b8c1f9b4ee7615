"""How weights move: the optimizer, the learning rate over the steps, averaged weights, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ONE_CYCLE_START = 1 / 25  # of the highest learning rate
ONE_CYCLE_RISE = 0.3  # of all steps, where `warmup` says nothing
FINAL_FACTOR = 1e-4  # of the highest learning rate, at the end of a schedule that falls


@dataclass(frozen=True)
class OptimizerSettings:
    """How weights change; the fields are the settings of a network file with the same names."""

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


def make_optimizer(settings: OptimizerSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that a network file names, over the parameters that learn; one pass over each of them a step."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "SGD":
        return torch.optim.SGD(learning, lr=rate, momentum=settings.momentum, weight_decay=decay, fused=True)
    kind = torch.optim.AdamW if settings.optimizer == "AdamW" else torch.optim.Adam
    return kind(learning, lr=rate, betas=(settings.beta1, settings.beta2), weight_decay=decay, fused=True)


def learning_rate_factor(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """The share of `learning_rate` that holds at `step` of `total_steps` (0-based).

    `cosine` rises linearly through `warmup` and falls as half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983);
    `one_cycle` rises and falls as half cosines (Smith & Topin 2018, arXiv:1708.07120); `constant` and `plateau` stay
    at 1 after the warm-up. A function of the step alone: another total lays the schedule out anew.
    """
    rise = settings.warmup or (ONE_CYCLE_RISE if settings.scheduler == "one_cycle" else 0.0)
    rising = round(rise * total_steps)
    if step < rising:
        part = (step + 1) / rising
        return _half_cosine(ONE_CYCLE_START, 1.0, part) if settings.scheduler == "one_cycle" else part
    if settings.scheduler in ("cosine", "one_cycle"):
        return _half_cosine(1.0, FINAL_FACTOR, (step - rising) / max(1, total_steps - rising))
    return 1.0


def _half_cosine(start: float, stop: float, part: float) -> float:
    return stop + (start - stop) * (1 + math.cos(math.pi * min(1.0, part))) / 2


class PlateauSchedule:
    """Multiplies the rate by `plateau_factor` when the validation loss has not improved for `plateau_patience` epochs.

    As torch's ReduceLROnPlateau with its defaults (relative threshold 1e-4); a function of the history, so that it
    needs no state of its own.
    """

    THRESHOLD = 1e-4

    def __init__(self, settings: OptimizerSettings) -> None:
        self.settings = settings

    def share(self, losses: Sequence[float]) -> float:
        """The factor that holds after epochs with these validation losses."""
        if self.settings.scheduler != "plateau":
            return 1.0
        share, best, bad = 1.0, math.inf, 0
        for loss in losses:
            if loss < best * (1 - self.THRESHOLD):
                best, bad = loss, 0
            else:
                bad += 1
            if bad > self.settings.plateau_patience:
                share, bad = share * self.settings.plateau_factor, 0
        return share


def should_stop_early(losses: Sequence[float], patience: int, delta: float) -> bool:
    """Return whether training no longer helps.

    Parameters
    ----------
    losses : sequence of float
        The validation loss of each epoch.
    patience : int
        Epochs without an improvement after which to stop; 0 never stops.
    delta : float
        By how much the loss must fall to count as an improvement.

    Returns
    -------
    bool
    """
    best, bad = math.inf, 0
    for loss in losses:
        if loss < best - delta:
            best, bad = loss, 0
        else:
            bad += 1
    return 0 < patience <= bad


class WeightAverage:
    """An exponential moving average of a network's weights (Polyak averaging), statistics of its norms included.

    The decay grows with the steps, min(decay, (1 + step) / (10 + step)), so that the first weights are soon forgotten
    (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.step = 0
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights after a step."""
        self.step += 1
        keep = min(self.decay, (1 + self.step) / (10 + self.step))
        state = network.state_dict()
        floats = [name for name, value in self.weights.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[n] for n in floats], [state[n] for n in floats], 1 - keep)
        for name in self.weights.keys() - set(floats):
            self.weights[name].copy_(state[name])

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradient_norm(parameters: Iterable[nn.Parameter], highest: float) -> Tensor | None:
    """Clip the gradients to a norm of `highest`; 0 leaves them."""
    if highest <= 0:
        return None
    return nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], highest)
