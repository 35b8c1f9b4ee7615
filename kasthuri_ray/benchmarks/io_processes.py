"""Parts of the benchmark of reading and writing: how many voxels a core decodes and encodes in a second of CPU time.

CPU time counts all threads of the process, and nothing that other processes do: it hardly depends on how busy the
machine is. `PartRunner` starts the parts as
`python -m kasthuri_ray.benchmarks.io_processes PART GIVEN.json FOUND.json`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kasthuri_ray.benchmarks.harness import run_as_part
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.output.layout import plan_layout
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec, compression_ratio
from kasthuri_ray.output.pyramid import plan_levels
from kasthuri_ray.volumes.opening import open_volume

CHUNK: Zyx = (16, 256, 256)
SHARD: Zyx = (32, 1024, 1024)
PRECOMPUTED_CHUNK: Zyx = (64, 64, 64)
VOXEL_SIZE_NM = (30.0, 6.0, 6.0)
MIN_RUNS = 2


def write_stores(em: str, folder: str) -> dict[str, str]:
    """Write an array (.npy, uint8 z, y, x) in each format; return the URIs by the names of `FORMATS`."""
    voxels = np.load(em)
    return {
        "zarr3 zstd": _write_zarr(voxels, f"{folder}/sharded.zarr"),
        "precomputed jpeg": _write_precomputed(voxels, f"{folder}/jpeg", "jpeg"),
        "precomputed raw": _write_precomputed(voxels, f"{folder}/raw", "raw"),
        "TIFF sections": _write_sections(voxels, f"{folder}/sections"),
    }


def _write_zarr(voxels: np.ndarray, path: str) -> str:
    import zarr
    from zarr.codecs import ZstdCodec

    chunks, shards = (per_axis(min, shape, voxels.shape) for shape in (CHUNK, SHARD))
    array = zarr.create_array(
        path, shape=voxels.shape, chunks=chunks, shards=shards, dtype="uint8", compressors=ZstdCodec(level=1)
    )
    array[:] = voxels
    return path


def _write_precomputed(voxels: np.ndarray, path: str, encoding: str) -> str:
    import tensorstore as ts

    z, y, x = voxels.shape
    scale = {"size": [x, y, z], "resolution": list(VOXEL_SIZE_NM[::-1]), "chunk_size": list(PRECOMPUTED_CHUNK[::-1])}
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
            "scale_metadata": scale | {"encoding": encoding},
        },
        create=True,
    ).result()
    store[..., 0].write(voxels.T).result()
    return path


def _write_sections(voxels: np.ndarray, path: str) -> str:
    import tifffile

    Path(path).mkdir()
    for z, section in enumerate(voxels):
        tifffile.imwrite(f"{path}/section_{z:04}.tif", section)
    return path


def time_reading(uri: str, boss: dict[str, str] | None, block: Zyx, seconds: float) -> dict[str, Any]:
    """Read all blocks of a volume; return voxels a second of CPU time, of each run over the volume."""
    volume = open_volume(uri, boss=boss)
    boxes = list(volume.bounds.cells(per_axis(min, block, volume.bounds.shape), volume.bounds.start))

    def read_all() -> int:
        for box in boxes:
            volume.read(box)
        return sum(box.num_voxels for box in boxes)

    volume.read(boxes[0])
    return {"rates": _cpu_rates(read_all, seconds), "format": volume.format}


def time_writing(probabilities: str, output: str, block: Zyx, seconds: float) -> dict[str, Any]:
    """Write blocks of probabilities (.npy, uint8 z, y, x) as a segmentation does; return rates as `time_reading`."""
    voxels = np.load(probabilities)
    levels, block = tuple(plan_levels(voxels.shape, VOXEL_SIZE_NM)[:1]), per_axis(min, block, voxels.shape)
    layout = plan_layout(voxels.shape, block)
    spec = OutputSpec(
        levels=levels, layout=layout, nanometers=True, channels=("synapse",), name="synapse", mask=None, record={}
    )
    array = OmeZarrOutput.create(output, spec).probabilities
    boxes = list(Box.at((0, 0, 0), voxels.shape).cells(block, (0, 0, 0)))

    def write_all() -> int:
        for box in boxes:
            array.write_block(0, box, np.ascontiguousarray(voxels[box.slices()])[None])
        return math.prod(voxels.shape)

    write_all()
    return {"rates": _cpu_rates(write_all, seconds), "compression": compression_ratio(voxels)}


def _cpu_rates(run: Callable[[], int], seconds: float) -> list[float]:
    """Return voxels a second of CPU time of each run: as many as fit into `seconds`, and at least MIN_RUNS."""
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < MIN_RUNS:
        start = time.process_time()
        voxels = run()
        rates.append(voxels / (time.process_time() - start))
    return rates


if __name__ == "__main__":
    run_as_part({"stores": write_stores, "read": time_reading, "write": time_writing})
