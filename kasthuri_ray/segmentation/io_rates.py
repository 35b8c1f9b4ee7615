"""How fast one core reads and writes voxels: measured figures, by which a plan says what a segmentation waits for.

`python jobs/benchmark.py io` measures them.
"""

from __future__ import annotations

import re

# Million voxels that one core decodes in a second of CPU time: 8-bit EM, by a pattern of the format of a volume.
READING_MVOXELS_PER_S = {
    "BossDB$": 100.0,
    "Neuroglancer precomputed, jpeg": 100.0,
    "Neuroglancer precomputed, raw": 100.0,
    "TIFF": 100.0,
    "zarr": 100.0,
}
WRITING_MVOXELS_PER_S = 100.0  # probabilities of one class, written to OME-Zarr
MEASURED_ON = "not yet"


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
