"""What the tests of stores share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.volume import Volume


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 250, (12, 40, 50), dtype=np.uint8)


@pytest.fixture(scope="session")
def check():
    """Return a function that checks that a volume holds exactly some voxels."""

    def check_voxels(volume: Volume, voxels: np.ndarray) -> None:
        """Read all voxels at once, and a box that crosses chunks."""
        assert volume.bounds.shape == voxels.shape
        np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
        box = Box(tuple(a + 3 for a in volume.bounds.start), tuple(b - 2 for b in volume.bounds.stop))
        cut = volume.read(box)
        np.testing.assert_array_equal(cut, voxels[3:-2, 3:-2, 3:-2])
        assert cut.flags.c_contiguous
        assert cut.dtype == volume.dtype

    return check_voxels


@pytest.fixture(scope="session")
def check_file():
    """Return a function that checks that a volume in files holds exactly some voxels."""

    def check_voxels(volume: Volume, voxels: np.ndarray) -> None:
        """Read all voxels at once, and a part of all sections."""
        assert volume.bounds == Box((0, 0, 0), voxels.shape)
        assert volume.dtype == voxels.dtype
        assert volume.dtype.isnative
        np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
        box = Box((0, 2, 3), (voxels.shape[0], voxels.shape[1] - 1, voxels.shape[2] - 2))
        cut = volume.read(box)
        np.testing.assert_array_equal(cut, voxels[box.slices()])
        assert cut.flags.c_contiguous
        assert not volume.remote

    return check_voxels


@pytest.fixture(scope="session")
def write_pages() -> Callable[..., None]:
    """Return a function that writes the pages of a TIFF stack one by one."""

    def write(path: Path, voxels: np.ndarray, **more: object) -> None:
        with tifffile.TiffWriter(path) as file:
            for page in voxels:
                file.write(page, contiguous=False, **more)

    return write
