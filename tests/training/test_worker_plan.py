"""The number of workers and the batch size that they share, of runs and of trials."""

import pytest

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.training.worker_plan import WorkerPlan, plan_workers, uses_gpus


def settings_of(network: str = "UNet_2D_attention", **train):
    return resolve_settings(GivenSettings("membrane", network, flags={"train": train}))


@pytest.mark.parametrize(
    ("train", "gpus", "recorded", "batch_size", "num_workers"),
    [
        ({}, 0, None, 2, 1),
        ({"num_workers": 4}, 0, None, 4, 4),
        ({"num_workers": "2-8"}, 0, None, 8, 8),
        ({}, 6, None, 6, 6),
        ({}, 8, 4, 4, 4),  # started on four GPUs
        ({"device": "cuda"}, 0, None, 2, 1),  # refused later, with the numbers
    ],
)
def test_a_batch_size_that_is_not_set_has_a_tile_for_every_worker(train, gpus, recorded, batch_size, num_workers):
    settings = settings_of(**train)
    use_gpu = uses_gpus(settings, ClusterResources(16, gpus, 1))
    planned, workers = plan_workers(settings, use_gpu, gpus, recorded)
    assert (planned.network.batch, workers.most) == (batch_size, num_workers)
    assert settings.network.batch_size is None


def test_a_batch_size_that_is_set_stays_and_limits_the_workers():
    settings = resolve_settings(GivenSettings("membrane", assignments=["network.batch_size=3"]))
    planned, workers = plan_workers(settings, use_gpu=True, num_gpus=8, recorded_batch_size=4)
    assert planned == settings
    assert workers == WorkerPlan(3, 3, use_gpu=True)


def test_a_batch_size_below_the_number_of_workers_is_refused():
    given = GivenSettings("phantom_synapse", assignments=["network.batch_size=2", "train.num_workers=3"])
    with pytest.raises(ValueError, match=r"network.batch_size 2 is smaller than the 3 workers that share it"):
        plan_workers(resolve_settings(given), use_gpu=False)


def test_a_trial_has_one_worker_unless_the_number_is_set():
    assert plan_workers(settings_of(), use_gpu=True)[1] == WorkerPlan(1, 1, use_gpu=True)
    assert plan_workers(settings_of(num_workers="2-4"), use_gpu=False)[1] == WorkerPlan(2, 4)


def test_the_fewest_workers_of_several_trainings_are_needed_at_once():
    demand = WorkerPlan(2, 4, use_gpu=True).demand(3)
    assert (demand.num_processes, demand.gpus, demand.cpus) == (6, 6, 3.75)
