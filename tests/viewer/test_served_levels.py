"""Resolutions of the viewer: those of the source, and coarser ones that are made."""

import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.viewer import served_levels
from kasthuri_ray.viewer.chunk_memory import ChunkMemory
from kasthuri_ray.viewer.served_levels import choose_chunk, find_levels, reduce_cells, serve_levels
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.place import Place


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("content", ["image", "labels"])
def test_a_cell_is_the_mean_or_the_highest_label_of_its_voxels(dtype, content):
    voxels = np.random.default_rng(0).integers(0, 200, (4, 6, 8)).astype(dtype)
    cells = voxels.reshape(2, 2, 3, 2, 4, 2)
    expected = cells.max((1, 3, 5)) if content == "labels" else cells.mean((1, 3, 5))
    found = reduce_cells(voxels, (2, 2, 2), content)
    assert found.dtype == dtype
    assert np.abs(found.astype(float) - expected).max() <= (0 if content == "labels" else 0.5)


def test_made_levels_halve_thick_sections_in_the_plane_alone_and_equal_the_reduced_whole(array_volume):
    voxels = np.random.default_rng(0).integers(0, 255, (3, 1100, 700), np.uint8)
    levels = serve_levels([array_volume(voxels, chunk=(1, 256, 256), offset=(2, 4, 6))], ChunkMemory(), "image")
    assert [level.volume.shape for level in levels] == [(3, 1100, 700), (3, 550, 350), (3, 275, 175)]
    assert [level.size for level in levels] == [(30, 6, 6), (30, 12, 12), (30, 24, 24)]
    assert len({level.corner for level in levels}) == 1
    half = reduce_cells(voxels, (1, 2, 2), "image")
    np.testing.assert_array_equal(levels[1].volume[:], half)
    np.testing.assert_array_equal(levels[2].volume[:], reduce_cells(half, (1, 2, 2), "image"))


def test_nothing_is_made_of_a_volume_of_512_million_voxels(array_volume, monkeypatch):
    voxels = np.zeros((1, 1024, 1024), np.uint8)
    monkeypatch.setattr(served_levels, "MAX_MADE_FROM_VOXELS", voxels.size)
    assert len(serve_levels([array_volume(voxels)], ChunkMemory(), "image")) == 1
    monkeypatch.setattr(served_levels, "MAX_MADE_FROM_VOXELS", voxels.size + 1)
    assert len(serve_levels([array_volume(voxels)], ChunkMemory(), "image")) == 2


def test_the_resolutions_of_a_pyramid_are_served_as_they_are(make_ome_pyramid):
    path, arrays = make_ome_pyramid([(4, 800, 600), (4, 400, 300), (4, 200, 150)])
    opener = VolumeOpener(None, "none", "1GB")
    volumes = list(find_levels(path, opener.open(path), opener, "image"))
    levels = serve_levels(volumes, ChunkMemory(), "image")
    assert [level.volume.shape for level in levels] == [array.shape for array in arrays]
    assert [level.size for level in levels] == [(30, 6, 6), (30, 12, 12), (30, 24, 24)]
    for level, array in zip(levels, arrays, strict=True):
        np.testing.assert_array_equal(level.volume[:], array)
    coarse = f"{path}#mip=1"
    assert [v.shape for v in find_levels(coarse, opener.open(coarse), opener, "image")] == [
        (4, 400, 300),
        (4, 200, 150),
    ]


@pytest.mark.parametrize("stated", [True, False])
def test_a_voxel_size_that_is_given_is_multiplied_by_the_ratio_of_the_stated_sizes_else_of_the_shapes(
    array_volume, stated
):
    shapes = [(10, 5000, 5000), (10, 2500, 2500), (5, 625, 625), (3, 313, 313)]
    sizes = [(30, 6, 6), (30, 12, 12), (60, 48, 48), (120, 96, 96)]
    volumes = [
        array_volume(np.broadcast_to(np.uint8(0), shape), voxel_size_nm=size if stated or shape[1] == 5000 else None)
        for shape, size in zip(shapes, sizes, strict=True)
    ]
    levels = serve_levels(volumes, ChunkMemory(), "image", size_is_given=True)
    by_shape = [*sizes[:3], (90, 96, 96)]
    assert [level.size for level in levels] == (sizes if stated else by_shape)
    assert len({level.corner for level in levels}) == 1


def test_one_voxel_size_that_the_options_state_for_all_resolutions_is_that_of_the_finest(array_volume):
    volumes = [array_volume(np.zeros((2, n, n), np.uint8), voxel_size_nm=(40.0, 8.0, 8.0)) for n in (600, 300, 150)]
    levels = serve_levels(volumes, ChunkMemory(), "image", size_is_given=True)
    assert [level.size for level in levels] == [(40, 8, 8), (40, 16, 16), (40, 32, 32)]


def test_a_place_in_nm_is_the_corner_of_the_first_voxel(array_volume):
    voxels = np.zeros((2, 8, 8), np.uint8)
    corner = array_volume(voxels, offset=(1, 2, 3), place=Place((300.0, 60.0, 0.0), "corner", "offset"))
    middle = array_volume(voxels, place=Place((300.0, 60.0, 0.0), "middle", "OME translation"))
    assert serve_levels([corner], ChunkMemory(), "image")[0].corner == (330, 72, 18)
    assert serve_levels([middle], ChunkMemory(), "image")[0].corner == (285, 57, -3)


@pytest.mark.parametrize(
    ("chunk", "shape", "expected"),
    [
        ((1, 256, 256), (100, 1024, 1024), (1, 256, 256)),
        ((64, 256, 256), (128, 2048, 2048), (64, 128, 128)),
        ((1, 4096, 4096), (10, 4096, 4096), (1, 1024, 1024)),
        ((16, 16, 16), (100, 100, 100), (32, 32, 32)),
        ((1, 8, 8), (2, 8, 8), (2, 8, 8)),
    ],
)
def test_the_viewer_asks_for_parts_of_large_chunks_and_for_several_small_ones(chunk, shape, expected):
    assert choose_chunk(chunk, shape) == expected


def test_a_chunk_of_the_source_is_read_once_for_all_parts_that_are_asked_for(array_volume):
    source = array_volume(np.zeros((64, 256, 256), np.uint8), chunk=(64, 256, 256))
    level = serve_levels([source], ChunkMemory(), "image")[0]
    for cell in Box.at((0, 0, 0), (64, 256, 256)).cells(level.chunk):
        level.volume.read(cell)
    assert source.reads == [Box.at((0, 0, 0), (64, 256, 256))]
