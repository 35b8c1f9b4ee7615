from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from kasthuri_ray.hardware import Machine, choose_actor_threads
from kasthuri_ray.inference.inference_settings import choose_inference_settings
from kasthuri_ray.inference.memory import (
    InferenceSettings,
    _activations,
    activation_bytes_per_voxel,
    actor_memory_bytes,
    inference_memory_bytes,
)
from kasthuri_ray.models.receptive_field import find_receptive_field
from kasthuri_ray.models.unet import UNet

NETWORK = UNet(start_filters=4, n_blocks=3)
REACH = find_receptive_field(NETWORK, 2)
BLOCK = (64, 2048, 2048)
LAPTOP = Machine("cpu", "x86_64", 16 << 30, 8, True, True)
CARD = Machine("cuda", "a card", 80 << 30, 16, True, True)


def decided(machine=LAPTOP, network=NETWORK, dim=2, block=BLOCK, voxels=10**6, **settings):
    return choose_inference_settings(
        network, dim, find_receptive_field(network, dim), machine, block=block, voxels=voxels, **settings
    )


def test_a_decision_is_json_and_comes_back_as_it_was():
    arithmetic = decided(tta=True)
    assert InferenceSettings(**json.loads(json.dumps(asdict(arithmetic)))) == arithmetic


def test_precision_and_threads_follow_the_machine(monkeypatch):
    monkeypatch.delenv("KASTHURI_THREADS", raising=False)
    assert decided().precision == "bf16"
    assert decided(replace(LAPTOP, bf16=False)).precision == "float32"
    assert decided(precision="float32").precision == "float32"
    assert [choose_actor_threads(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 11, 16)] == [1, 2, 3, 4, 4, 3, 3, 4, 3, 4]
    monkeypatch.setenv("KASTHURI_THREADS", "5")
    assert decided().threads == 5


def test_compiling_follows_the_work_and_the_machine():
    assert not decided().compile
    assert decided(compile="on").compile
    much = 10**15
    assert decided(voxels=much).compile
    assert not decided(voxels=much, compile="off").compile
    assert not decided(replace(LAPTOP, compiler=False), voxels=much).compile


def test_tiles_on_a_cpu_are_wide_and_one_at_a_time():
    arithmetic = decided()
    assert arithmetic.batch == 1
    assert math.prod(arithmetic.tile) <= 5_000_000
    assert arithmetic.tile == (1, 2048 + 2 * REACH.margin[1], 2048 + 2 * REACH.margin[2])
    assert inference_memory_bytes(NETWORK, 2, decided(replace(LAPTOP, memory_bytes=1 << 30))) < 0.25 * (1 << 30)


def test_a_batch_on_a_card_fits_its_share_of_the_memory():
    assert decided(CARD).batch > 1
    for memory, share in ((80 << 30, 1.0), (8 << 30, 1.0), (8 << 30, 0.25), (1 << 28, 1.0)):
        arithmetic = decided(replace(CARD, memory_bytes=memory), share=share)
        assert inference_memory_bytes(NETWORK, 2, arithmetic) <= memory * share
    assert decided(CARD, batch=3).batch == 3


def test_a_tile_of_ones_own_is_taken_or_refused():
    assert decided(tile=(1, 512, 256)).tile == (1, 512, 256)
    with pytest.raises(ValueError, match=r"tile .* has 510 voxels along y"):
        decided(tile=(1, 510, 256))
    deep = UNet(start_filters=2, n_blocks=3, dim=3)
    with pytest.raises(ValueError, match="more than the margins"):
        decided(network=deep, dim=3, tile=(8, 128, 128))


def test_a_smaller_halo_makes_smaller_margins():
    assert decided(halo=(0, 8, 8)).tile == (1, 2048 + 16, 2048 + 16)


def test_activations_are_counted_at_their_peak():
    network = UNet(start_filters=8, n_blocks=1, normalization="none", classes=2).eval()
    live, largest = _activations(network, "float32", 2)
    # Image, first convolution, its activation, the second convolution's: 1 + 8 + 8 (+ 8) numbers of 4 bytes.
    assert 4 * 16 <= live <= 4 * 26
    assert largest == 8
    assert activation_bytes_per_voxel(network, "float32", 2) == live
    half, _ = _activations(network, "bf16", 2)
    assert half < 0.7 * live


MEASURED = r"""
import re
from pathlib import Path
import numpy as np
from kasthuri_ray.geometry import Box
from kasthuri_ray.models.receptive_field import find_receptive_field
from kasthuri_ray.models.unet import UNet
from kasthuri_ray.inference.memory import InferenceSettings, inference_memory_bytes
from kasthuri_ray.inference.predictor import Predictor, prepare_process

def peak():
    # Not ru_maxrss, which begins with that of the process that started this one.
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])

arithmetic = InferenceSettings("cpu", "float32", False, 1, (1, 704, 704), 1)
prepare_process(arithmetic)
network = UNet(n_blocks=2)
expected = inference_memory_bytes(network, 2, arithmetic)
predictor = Predictor(network, 2, 2, find_receptive_field(network, 2), arithmetic)
bounds = Box.at((0, 0, 0), (1, 680, 680))
before = peak()
for _ in range(2):
    predictor.predict(np.zeros(bounds.shape, np.uint8), bounds, bounds, bounds)
print((peak() - before) / expected)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is told in other units elsewhere")
def test_the_network_takes_the_memory_that_was_foreseen():
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) <= 1


def test_an_actors_memory_grows_with_what_it_holds():
    arithmetic = decided()
    small = actor_memory_bytes(NETWORK, 2, arithmetic, (64, 512, 512), (0, 16, 16), 2)
    large = actor_memory_bytes(NETWORK, 2, arithmetic, BLOCK, (0, 16, 16), 2)
    assert large - small >= 2 * 2 * (math.prod(BLOCK) - 64 * 512 * 512)
    assert small > inference_memory_bytes(NETWORK, 2, arithmetic)


def test_this_machine_is_found_and_a_card_that_is_not_there_is_told(monkeypatch):
    machine = Machine.here("cpu")
    assert machine.device == "cpu"
    assert machine.cpus >= 1
    assert machine.memory_bytes >= 1 << 30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Machine.here().device == "cpu"
    with pytest.raises(ValueError, match="torch finds no CUDA card here; use cpu"):
        Machine.here("cuda")
