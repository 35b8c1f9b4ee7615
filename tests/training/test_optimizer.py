"""Learning rates over the steps, averaged weights, and when training ends."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kasthuri_ray.config.settings import NetworkSettings
from kasthuri_ray.training.learner import LearnerSettings
from kasthuri_ray.training.optimizer import (
    PlateauSchedule,
    WeightAverage,
    clip_gradient_norm,
    learning_rate_factor,
    make_optimizer,
    set_learning_rate,
    should_stop_early,
)
from kasthuri_ray.training.training_job import learner_settings


def of(**settings) -> LearnerSettings:
    return learner_settings(NetworkSettings(**settings), "synapse")


def shares(total: int, **settings) -> list[float]:
    return [learning_rate_factor(of(**settings), step, total) for step in range(total)]


def test_a_constant_rate_and_a_plateaus_stay_after_the_warm_up():
    for scheduler in ("constant", "plateau"):
        assert shares(10, scheduler=scheduler) == [1.0] * 10
        assert shares(10, scheduler=scheduler, warmup=0.4) == [0.25, 0.5, 0.75, 1.0] + [1.0] * 6


def test_cosine_falls_as_torchs_does():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-4)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert shares(50, scheduler="cosine") == pytest.approx(expected, abs=1e-9)


def test_cosine_rises_in_the_warm_up():
    found = shares(100, scheduler="cosine", warmup=0.1)
    assert found[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert found[10] == 1.0
    assert found[55] == pytest.approx((1 + 1e-4) / 2)
    assert all(a > b for a, b in itertools.pairwise(found[10:]))


@pytest.mark.parametrize(("settings", "top"), [({}, 30), ({"warmup": 0.25}, 25)])
def test_one_cycle_rises_and_falls(settings, top):
    found = shares(100, scheduler="one_cycle", **settings)
    assert max(found) == found[top - 1] == 1.0
    assert 0.04 < found[0] < 0.05
    assert all(a < b for a, b in itertools.pairwise(found[:top]))
    assert all(a >= b for a, b in itertools.pairwise(found[top - 1 :]))
    assert found[-1] < 1e-3
    # Half way down by half the steps.
    assert found[top + (100 - top) // 2] == pytest.approx(0.5, abs=0.03)


def test_another_total_lays_the_schedule_out_anew():
    settings = of(scheduler="cosine")
    assert learning_rate_factor(settings, 50, 100) == pytest.approx(learning_rate_factor(settings, 100, 200))


@pytest.mark.parametrize("seed", range(8))
def test_a_plateau_is_torchs(seed):
    rng = np.random.default_rng(seed)
    losses = (np.exp(-np.arange(60) / 20) + rng.normal(0, 0.1, 60)).round(2).tolist()
    losses[10] = math.nan
    settings = of(scheduler="plateau", plateau_patience=int(rng.integers(1, 6)), plateau_factor=0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=settings.plateau_patience, factor=settings.plateau_factor, eps=0
    )
    for epoch in range(60):
        assert PlateauSchedule(settings).share(losses[:epoch]) == pytest.approx(optimizer.param_groups[0]["lr"])
        theirs.step(losses[epoch])
    assert PlateauSchedule(settings).share(losses) < 1
    assert PlateauSchedule(replace(settings, scheduler="cosine")).share(losses) == 1


def test_training_stops_when_nothing_is_gained():
    assert not should_stop_early([], 3, 0.001)
    assert not should_stop_early([1.0, 0.9995, 0.9995], 3, 0.001)
    assert should_stop_early([1.0, 0.9995, 0.9995, 0.9991], 3, 0.001)
    # Small steps that add up are a gain.
    assert not should_stop_early([1.0, 0.9995, 0.9995, 0.998], 3, 0.001)
    assert not should_stop_early([1.0, 2.0, 2.0, 0.5, 2.0, 2.0], 3, 0.001)
    assert should_stop_early([1.0, 2.0, 2.0, 0.5, 2.0, 2.0, math.nan], 3, 0.001)
    assert not should_stop_early([1.0] * 100, 0, 0.001)


def test_optimizers_are_torchs_with_the_files_values():
    frozen, free = nn.Parameter(torch.zeros(1), requires_grad=False), nn.Parameter(torch.zeros(1))

    def made(**settings) -> tuple[type, dict]:
        optimizer = make_optimizer(of(**settings), [frozen, free])
        (group,) = optimizer.param_groups
        assert [id(parameter) for parameter in group["params"]] == [id(free)]
        return type(optimizer), group

    kind, group = made(optimizer="SGD", learning_rate=0.5, momentum=0.8, weight_decay=0.1)
    assert kind is torch.optim.SGD
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.8, 0.1)
    for name, expected in (("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW)):
        kind, group = made(optimizer=name, learning_rate=0.5, beta1=0.7, beta2=0.9, weight_decay=0.1)
        assert kind is expected
        assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.7, 0.9), 0.1)
    optimizer = make_optimizer(of(), [free])
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_the_average_forgets_the_first_weights_and_then_moves_slowly():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(network, decay=0.9)
    expected = {name: value.detach().double().clone() for name, value in network.state_dict().items()}
    for step in range(1, 200):
        with torch.no_grad():
            for value in network.state_dict().values():
                value += 1
        average.update(network)
        keep = min(0.9, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            # A count of batches is no average.
            expected[name] = keep * expected[name] + (1 - keep) * value if value.is_floating_point() else value.double()
    for name, value in average.weights.items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-3, rtol=0)
    # At a decay of 0.9 it lags nine steps behind.
    assert float((network[0].weight - average.weights["0.weight"]).detach().mean()) == pytest.approx(9, abs=0.01)


def test_an_average_goes_on_where_it_was():
    network = nn.Linear(2, 2)
    average, again = WeightAverage(network, 0.9), WeightAverage(nn.Linear(2, 2), 0.9)
    average.update(network)
    again.load_state_dict(average.state_dict())
    nn.init.ones_(network.weight)
    average.update(network)
    again.update(network)
    assert again.step == 2
    assert all(torch.equal(again.weights[name], value) for name, value in average.weights.items())


def test_gradients_are_clipped_to_a_norm():
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = torch.tensor([2.0, 0, 2.0]), torch.tensor([1.0])
    assert clip_gradient_norm(parameters, 0.0) is None
    assert parameters[1].grad.item() == 1.0
    assert clip_gradient_norm(parameters, 1.0).item() == pytest.approx(3.0)
    assert parameters[1].grad.item() == pytest.approx(1 / 3, abs=1e-5)
