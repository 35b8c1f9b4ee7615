"""Optimizers, learning-rate schedules, gradient clipping, averaged weights and early stopping."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kasthuri_ray.config.network import NetworkSettings
from kasthuri_ray.training import optimizer
from kasthuri_ray.training.learner import LearnerSettings
from kasthuri_ray.training.muon import Muon
from kasthuri_ray.training.optimizer import PlateauSchedule, WeightAverage
from kasthuri_ray.training.training_job import make_learner_settings


def learner_settings(**settings) -> LearnerSettings:
    return make_learner_settings(NetworkSettings(**settings), "synapse")


def rate_factors(total: int, **settings) -> list[float]:
    return [optimizer.learning_rate_factor(learner_settings(**settings), step, total) for step in range(total)]


def test_a_constant_rate_and_that_of_a_plateau_schedule_stay_after_the_warm_up():
    for scheduler in ("constant", "plateau"):
        assert rate_factors(10, scheduler=scheduler) == [1.0] * 10
        assert rate_factors(10, scheduler=scheduler, warmup=0.4) == [0.25, 0.5, 0.75, 1.0] + [1.0] * 6


def test_cosine_falls_like_the_schedule_of_torch():
    parameter = nn.Parameter(torch.zeros(1))
    torch_optimizer = torch.optim.SGD([parameter], lr=1.0)
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(torch_optimizer, T_max=50, eta_min=1e-4)
    expected = []
    for _ in range(50):
        expected.append(torch_optimizer.param_groups[0]["lr"])
        torch_optimizer.step()
        torch_schedule.step()
    assert rate_factors(50, scheduler="cosine") == pytest.approx(expected, abs=1e-9)


def test_cosine_rises_in_the_warm_up():
    factors = rate_factors(100, scheduler="cosine", warmup=0.1)
    assert factors[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx((1 + 1e-4) / 2)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize(("settings", "peak"), [({}, 30), ({"warmup": 0.25}, 25)])
def test_one_cycle_rises_and_falls(settings, peak):
    factors = rate_factors(100, scheduler="one_cycle", **settings)
    assert max(factors) == factors[peak - 1] == 1.0
    assert 0.04 < factors[0] < 0.05
    assert all(a < b for a, b in itertools.pairwise(factors[:peak]))
    assert all(a >= b for a, b in itertools.pairwise(factors[peak - 1 :]))
    assert factors[-1] < 1e-3
    # Half of the way down after half of the steps.
    assert factors[peak + (100 - peak) // 2] == pytest.approx(0.5, abs=0.03)


def test_a_schedule_is_stretched_over_another_number_of_steps():
    settings = learner_settings(scheduler="cosine")
    assert optimizer.learning_rate_factor(settings, 50, 100) == pytest.approx(
        optimizer.learning_rate_factor(settings, 100, 200)
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_plateau_schedule_equals_that_of_torch(seed):
    rng = np.random.default_rng(seed)
    losses = (np.exp(-np.arange(60) / 20) + rng.normal(0, 0.1, 60)).round(2).tolist()
    losses[10] = math.nan
    settings = learner_settings(scheduler="plateau", plateau_patience=int(rng.integers(1, 6)), plateau_factor=0.3)
    torch_optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torch_schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torch_optimizer, patience=settings.plateau_patience, factor=settings.plateau_factor, eps=0
    )
    for epoch in range(60):
        assert PlateauSchedule(settings).factor(losses[:epoch]) == pytest.approx(torch_optimizer.param_groups[0]["lr"])
        torch_schedule.step(losses[epoch])
    assert PlateauSchedule(settings).factor(losses) < 1
    assert PlateauSchedule(replace(settings, scheduler="cosine")).factor(losses) == 1


def test_training_stops_early_when_the_validation_loss_no_longer_falls():
    assert not optimizer.should_stop_early([], 3, 0.001)
    assert not optimizer.should_stop_early([1.0, 0.9995, 0.9995], 3, 0.001)
    assert optimizer.should_stop_early([1.0, 0.9995, 0.9995, 0.9991], 3, 0.001)
    # Small decreases that add up are an improvement.
    assert not optimizer.should_stop_early([1.0, 0.9995, 0.9995, 0.998], 3, 0.001)
    assert not optimizer.should_stop_early([1.0, 2.0, 2.0, 0.5, 2.0, 2.0], 3, 0.001)
    assert optimizer.should_stop_early([1.0, 2.0, 2.0, 0.5, 2.0, 2.0, math.nan], 3, 0.001)
    assert not optimizer.should_stop_early([1.0] * 100, 0, 0.001)


def test_optimizers_are_those_of_torch_with_the_values_of_the_settings():
    frozen, trainable = nn.Parameter(torch.zeros(1), requires_grad=False), nn.Parameter(torch.zeros(1))

    def make(**settings) -> tuple[type, dict]:
        torch_optimizer = optimizer.make_optimizer(learner_settings(**settings), [frozen, trainable])
        (group,) = torch_optimizer.param_groups
        assert [id(parameter) for parameter in group["params"]] == [id(trainable)]
        return type(torch_optimizer), group

    kind, group = make(optimizer="SGD", learning_rate=0.5, momentum=0.8, weight_decay=0.1)
    assert kind is torch.optim.SGD
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.8, 0.1)
    for name, expected in (("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW)):
        kind, group = make(optimizer=name, learning_rate=0.5, beta1=0.7, beta2=0.9, weight_decay=0.1)
        assert kind is expected
        assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.7, 0.9), 0.1)
    kind, group = make(optimizer="Muon", learning_rate=0.5, beta1=0.7, beta2=0.9, weight_decay=0.1)
    assert kind is Muon
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.7, 0.9), 0.1)
    torch_optimizer = optimizer.make_optimizer(learner_settings(), [trainable])
    optimizer.set_learning_rate(torch_optimizer, 0.25)
    assert torch_optimizer.param_groups[0]["lr"] == 0.25


def test_the_average_soon_loses_the_first_weights_and_then_changes_slowly():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(network, decay=0.9)
    expected = {name: value.detach().double().clone() for name, value in network.state_dict().items()}
    for step in range(1, 200):
        with torch.no_grad():
            for value in network.state_dict().values():
                value += 1
        average.update(network)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            # A count of batches is copied, not averaged.
            expected[name] = (
                decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.double()
            )
    for name, value in average.weights.items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-3, rtol=0)
    # At a decay of 0.9 it lags nine steps behind.
    assert float((network[0].weight - average.weights["0.weight"]).detach().mean()) == pytest.approx(9, abs=0.01)


def test_an_average_is_resumed_from_its_state():
    network = nn.Linear(2, 2)
    average, resumed = WeightAverage(network, 0.9), WeightAverage(nn.Linear(2, 2), 0.9)
    average.update(network)
    resumed.load_state_dict(average.state_dict())
    nn.init.ones_(network.weight)
    average.update(network)
    resumed.update(network)
    assert resumed.step == 2
    assert all(torch.equal(resumed.weights[name], value) for name, value in average.weights.items())


def test_gradients_are_clipped_to_the_largest_norm():
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = torch.tensor([2.0, 0, 2.0]), torch.tensor([1.0])
    assert optimizer.clip_gradient_norm(parameters, 0.0) is None
    assert parameters[1].grad.item() == 1.0
    assert optimizer.clip_gradient_norm(parameters, 1.0).item() == pytest.approx(3.0)
    assert parameters[1].grad.item() == pytest.approx(1 / 3, abs=1e-5)
