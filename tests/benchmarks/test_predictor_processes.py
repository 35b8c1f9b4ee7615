"""The work of a network is counted as torch counts it, for the network that a job runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kasthuri_ray.benchmarks import predictor_processes, predictor_speed
from kasthuri_ray.config.network import NetworkSettings
from kasthuri_ray.models.unet import build_network


@pytest.mark.parametrize("name", ["UNet_2D", "UNet_2D_attention", "UNet_3D"])
def test_flop_are_counted_as_torch_counts_them(name: str) -> None:
    dim = 3 if name == "UNet_3D" else 2
    network = predictor_processes.make_network(name)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, *(32,) * dim))
    assert predictor_processes.flop_per_voxel(network, dim) == pytest.approx(counter.get_total_flops() / 32**dim)


def test_unet_2d_has_its_known_number_of_flop_a_voxel() -> None:
    assert predictor_processes.flop_per_voxel(predictor_processes.make_network("UNet_2D"), 2) == 280_256


def test_the_file_of_a_network_builds_the_network_that_a_job_runs() -> None:
    for name in predictor_speed.NETWORKS:
        settings = NetworkSettings(**predictor_processes.network_settings(name)).model_dump()
        network = predictor_processes.make_network(name)
        assert str(build_network(settings).eval()) == str(network)
