"""How fast one core reads and writes voxels: measured figures, by which a plan says what a segmentation waits for.

`python jobs/benchmark.py io` measures them.
"""

from __future__ import annotations

import re

# Measured in November 2026 on an Intel Xeon with AMX (family 6, model 207): VNC, mirrored to 32 x 2048 x 2048 voxels,
# in files in memory or served on the loopback. Million voxels of uint8 in a second of CPU time of one core.
READING_MVOXELS_PER_S = {  # by a pattern of the format of a volume
    "BossDB$": 205.0,  # blosc
    "Neuroglancer precomputed, jpeg": 140.0,  # chunks of 64 x 64 x 64
    "Neuroglancer precomputed, raw": 320.0,
    "TIFF": 1900.0,  # sections, uncompressed
    "zarr": 490.0,  # zarr 3, sharded, zstd
}
WRITING_MVOXELS_PER_S = 245.0  # probabilities of one class, like those of membranes, to OME-Zarr


def reading_rate(volume_format: str, itemsize: int = 1) -> float | None:
    """Return how fast a core reads a format.

    Parameters
    ----------
    volume_format : str
        `Volume.format`.
    itemsize : int
        Bytes of a voxel; a voxel of two bytes takes twice as long.

    Returns
    -------
    float or None
        Million voxels per second of CPU time; None if the format was not measured.
    """
    rates = (rate for pattern, rate in READING_MVOXELS_PER_S.items() if re.search(pattern, volume_format))
    rate = next(rates, None)
    return None if rate is None else rate / itemsize


def writing_rate(num_channels: int) -> float:
    """Return how fast a core writes the finest level of an output.

    Parameters
    ----------
    num_channels : int
        Number of classes that are written.

    Returns
    -------
    float
        Million voxels of the image per second of CPU time.
    """
    return WRITING_MVOXELS_PER_S / num_channels
