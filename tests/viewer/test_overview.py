"""How much a first look at a huge volume fetches: the browser asks for coarse voxels alone."""

import dataclasses

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.viewer.chunk_memory import ChunkMemory
from kasthuri_ray.viewer.layers import Scene, VoxelLayer
from kasthuri_ray.viewer.scene_view import fitting_zoom, middle_of
from kasthuri_ray.viewer.screenshot import take_screenshot
from kasthuri_ray.viewer.served_levels import serve_levels
from kasthuri_ray.volumes.volume import Volume

SHAPE = (1850, 26624, 21504)  # that of Kasthuri et al. 2015, about 1 TB
WINDOW = (1200, 800)
CHUNK = (16, 512, 512)


@dataclasses.dataclass(kw_only=True)
class CountingVolume(Volume):
    """A volume that stores nothing, and counts the bytes that are read."""

    counted: list

    def _read(self, box: Box) -> np.ndarray:
        self.counted.append(box.num_voxels)
        y = np.arange(box.start[1], box.stop[1])[None, :, None]
        x = np.arange(box.start[2], box.stop[2])[None, None, :]
        return np.broadcast_to((y // 7 + x // 5) % 256, box.shape).astype(np.uint8)


def make_levels(number, counted):
    """Return resolutions of a huge volume, finest first."""
    return [
        CountingVolume(
            uri=f"test://{mip}",
            bounds=Box.at((0, 0, 0), (SHAPE[0], -(-SHAPE[1] >> mip), -(-SHAPE[2] >> mip))),
            dtype=np.dtype(np.uint8),
            voxel_size_nm=(30.0, 6.0 * 2**mip, 6.0 * 2**mip),
            chunk=CHUNK,
            chunk_origin=(0, 0, 0),
            counted=counted,
        )
        for mip in range(number)
    ]


@pytest.mark.browser
@pytest.mark.parametrize("number", [6, 3, 1])
def test_a_first_overview_of_a_terabyte_fetches_few_megabytes(serve, browser_program, number):
    counted = []
    levels = tuple(serve_levels(make_levels(number, counted), ChunkMemory(), "image"))
    layer = VoxelLayer("image", "image", levels, (0.0, 255.0))
    zoom = fitting_zoom(layer, WINDOW)
    scene = Scene("huge", (layer,), (), levels[0].size, True, middle_of(levels[0]), zoom)
    take_screenshot(serve(scene), browser_program, WINDOW)
    columns, rows = (length // side + 2 for length, side in zip(WINDOW, CHUNK[:0:-1], strict=True))
    # Whole chunks of the source around one section, one voxel a pixel; 16 sections are in a chunk.
    assert WINDOW[0] * WINDOW[1] / 4 < sum(counted) <= columns * rows * np.prod(CHUNK) < 60_000_000
    print(f"{number} levels: {sum(counted) / 1e6:.1f} MB")


def test_no_voxel_is_read_before_a_browser_asks():
    counted = []
    serve_levels(make_levels(6, counted), ChunkMemory(), "image")
    assert counted == []
