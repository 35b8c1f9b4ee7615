from __future__ import annotations

import subprocess
import sys

import pytest

from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.inference.memory import actor_memory_bytes, inference_memory_bytes
from kasthuri_ray.models.unet import UNet

MEASURE_PEAK = r"""
import re
from pathlib import Path
import numpy as np
from kasthuri_ray.geometry import Box
from kasthuri_ray.models.receptive_field import find_receptive_field
from kasthuri_ray.models.unet import UNet
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.inference.memory import inference_memory_bytes
from kasthuri_ray.inference.predictor import Predictor, prepare_process

def peak():
    # Not ru_maxrss, which starts with that of the parent process.
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])

settings = InferenceSettings("cpu", "float32", False, 1, (1, 704, 704), 1)
prepare_process(settings)
network = UNet(n_blocks=2)
expected = inference_memory_bytes(network, 2, settings)
predictor = Predictor(network, 2, 2, find_receptive_field(network, 2), settings)
bounds = Box.at((0, 0, 0), (1, 680, 680))
before = peak()
for _ in range(2):
    predictor.predict(np.zeros(bounds.shape, np.uint8), bounds, bounds, bounds)
print((peak() - before) / expected)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is reported by Linux alone")
def test_the_network_takes_the_estimated_memory():
    done = subprocess.run([sys.executable, "-c", MEASURE_PEAK], capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) <= 1


def test_the_memory_of_an_actor_grows_with_its_blocks():
    network = UNet(start_filters=4, n_blocks=3)
    settings = InferenceSettings("cpu", "bf16", False, 4, (1, 2080, 2080), 1)
    small = actor_memory_bytes(network, 2, settings, (64, 512, 512), (0, 16, 16), 2)
    large = actor_memory_bytes(network, 2, settings, (64, 2048, 2048), (0, 16, 16), 2)
    assert large - small >= 2 * 2 * 64 * (2048 * 2048 - 512 * 512)
    assert small > inference_memory_bytes(network, 2, settings)
