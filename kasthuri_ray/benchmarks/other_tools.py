"""How fast the same network segments in other ways: as the seed does, in MONAI, and in chunkflow. Parts of a benchmark.

`PartRunner` starts them as `python -m kasthuri_ray.benchmarks.other_tools PART GIVEN.json FOUND.json`. All use the
default allocator and all threads. A tool that is not installed has no rates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kasthuri_ray import hardware, process_resources
from kasthuri_ray.benchmarks import chunkflow_model
from kasthuri_ray.benchmarks.harness import run_as_part
from kasthuri_ray.benchmarks.predictor_processes import make_network, time_runs

NETWORK = "UNet_2D"
CPU = torch.device("cpu")
BATCHES = (1, 4)  # of MONAI, whichever is faster


def time_seed_segmentation(size: int, seconds: float) -> dict[str, Any]:
    """Segment as the seed does: float32, eager, one tile of size x size at a time; return voxels/s of each tile."""
    threads, network = process_resources.set_threads(1), make_network(NETWORK)
    images = iter(np.random.default_rng(0).integers(0, 256, (1 << 12, size, size), np.uint8))

    def segment_tile() -> np.ndarray:
        image = next(images)
        with torch.no_grad():
            logits = network(torch.from_numpy(image.astype(np.float32) / 255)[None, None])
            return torch.softmax(logits, dim=1)[0, 1].numpy()

    segment_tile()
    return {"rates": _rates(segment_tile, size * size, seconds), "threads": threads}


def time_monai(size: int, overlap: float, shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Time MONAI's sliding window, gaussian weights, on a section of `shape`; return unique voxels/s of each run.

    The number format is that of this processor, as in our job.
    """
    try:
        from monai.inferers import sliding_window_inference
    except ImportError:
        return {"rates": None}
    threads, network, image = process_resources.set_threads(1), make_network(NETWORK), torch.rand(1, 1, *shape)
    precision = _precision()

    def segment_section(batch: int) -> Any:
        with torch.inference_mode(), hardware.autocast(precision, CPU):
            logits = sliding_window_inference(image, (size, size), batch, network, overlap=overlap, mode="gaussian")
            return torch.softmax(logits.float(), dim=1)  # type: ignore[union-attr]

    seconds_of = {}
    for batch in BATCHES:
        segment_section(batch)
        start = time.perf_counter()
        segment_section(batch)
        seconds_of[batch] = time.perf_counter() - start
    best = min(BATCHES, key=lambda batch: seconds_of[batch])
    rates = _rates(lambda: segment_section(best), math.prod(shape), seconds)
    return {"rates": rates, "threads": threads, "precision": precision}


def time_chunkflow(size: int, overlap: int, shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Time chunkflow's inference of a section of `shape` in patches, blended; return unique voxels/s of each run.

    The number format is that of this processor, in the model that chunkflow is given: it has none of its own.
    """
    try:
        from chunkflow.chunk import Chunk
        from chunkflow.flow.divid_conquer.inferencer import Inferencer
    except ImportError as error:
        return {"rates": None, "missing": str(error)}
    threads = process_resources.set_threads(1)
    inferencer = Inferencer(
        chunkflow_model.__file__,
        NETWORK,
        input_patch_size=(1, size, size),
        output_patch_overlap=(0, overlap, overlap),
        num_output_channels=1,
        framework="pytorch",
        mask_output_chunk=True,
    )
    image = Chunk(np.random.default_rng(0).random((1, *shape), np.float32))
    inferencer(image)
    rates = _rates(lambda: inferencer(image), math.prod(shape), seconds)
    return {"rates": rates, "threads": threads, "precision": _precision()}


def _precision() -> str:
    return hardware.RULES[hardware.processor_kind(CPU)].precision


def _rates(run: Callable[[], Any], num_voxels: int, seconds: float) -> list[float]:
    return [num_voxels / each for each in time_runs(run, seconds, "cpu")]


if __name__ == "__main__":
    run_as_part({"seed": time_seed_segmentation, "monai": time_monai, "chunkflow": time_chunkflow})
