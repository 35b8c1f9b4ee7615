"""Where a scene is looked at: positions in voxels of the image, and an overview that fits the window."""

import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.viewer.output_scene import block_states, have_one_source
from kasthuri_ray.viewer.run_scene import middle_part
from kasthuri_ray.viewer.scene_view import check_window, fitting_zoom, move_inside, parse_position
from kasthuri_ray.viewer.view import is_remote, ssh_command
from kasthuri_ray.volumes.place import Place


def test_a_position_counts_in_voxels_of_the_image_with_its_own_offset(array_volume):
    voxels = np.zeros((4, 20, 20), np.uint8)
    image = array_volume(voxels, offset=(10, 100, 200), place=Place((0.0, 60.0, 0.0), "corner", "offset"))
    assert parse_position("11,105,210", image) == (345, 60 + 633, 1263)
    for text, message in (("11,105", "not three voxels"), ("14,105,210", "outside of .* along z"), ("a,b,c", "not")):
        with pytest.raises(InputError, match=message):
            parse_position(text, image)


def test_an_overview_shows_all_of_a_small_image_and_no_more_than_a_voxel_of_the_coarsest_level_a_pixel(
    array_volume, make_layer
):
    small = make_layer(array_volume(np.zeros((2, 400, 1200), np.uint8), chunk=(1, 256, 256)))
    assert fitting_zoom(small, (600, 800)) == 2
    flat = make_layer(array_volume(np.zeros((1, 256, 100_000), np.uint8), chunk=(1, 256, 256)))
    assert fitting_zoom(flat, (100, 100)) == flat.levels[-1].size[2] / 6


def test_a_view_of_an_object_at_the_edge_shows_more_of_the_image_than_of_what_is_outside(array_volume, make_layer):
    (level,) = make_layer(array_volume(np.zeros((2, 400, 1200), np.uint8), voxel_size_nm=(30.0, 6.0, 6.0))).levels[:1]
    low_y, low_x = level.corner[1:]
    place = (15.0, low_y + 6.0, low_x + 1190 * 6.0)
    z, y, x = move_inside(place, level, (200, 100), 1.0)
    assert (z, y, x) == (15.0, low_y + 300.0, low_x + 1100 * 6.0)
    assert move_inside((15.0, low_y + 1200.0, low_x + 3600.0), level, (200, 100), 1.0)[1:] == (
        low_y + 1200.0,
        low_x + 3600.0,
    )
    assert move_inside(place, level, (1300, 500), 1.0) == (15.0, low_y + 1200.0, low_x + 3600.0)  # all of it is seen


@pytest.mark.parametrize("text", ["1200", "1200x800", "1200,8", "1200,80000", "-1,5"])
def test_a_size_that_is_none_is_refused(text):
    assert check_window("1200, 800") == (1200, 800)
    with pytest.raises(InputError, match="--size"):
        check_window(text)


@pytest.mark.parametrize(
    ("image", "annotation", "expected"),
    [
        ("bossdb://Kasthuri/ac4/em/0", "bossdb://Kasthuri/ac4/synapse", True),
        ("bossdb://Kasthuri/ac3/em/0", "bossdb://Kasthuri/ac4/synapse", False),
        ("phantom://em?shape=9,9,9&seed=1", "phantom://synapse?shape=9,9,9&seed=1", True),
        ("phantom://em?shape=9,9,9&seed=1", "phantom://synapse?shape=9,9,9&seed=2", False),
        ("/d/vnc.zarr/em", "/d/vnc.zarr/synapse", True),
        ("/d/a.h5:em", "/d/a.h5:labels", True),
        ("/d/a.tif", "/d/labels.tif", False),
    ],
)
def test_an_annotation_is_shown_by_itself_only_if_it_surely_belongs_to_the_image(image, annotation, expected):
    assert have_one_source(image, annotation) == expected


def test_a_box_of_more_than_8_mvoxels_is_cropped_to_its_middle():
    box = Box.at((5, 0, 0), (10, 4096, 4096))
    cropped = middle_part(box)
    assert cropped == Box((5, 1536, 1536), (15, 2560, 2560)) or cropped.num_voxels <= 8 << 20
    assert box.contains(cropped)
    assert 4 << 20 < cropped.num_voxels <= 8 << 20
    assert middle_part(Box.at((0, 0, 0), (3, 9, 9))) == Box.at((0, 0, 0), (3, 9, 9))


def test_blocks_are_done_pending_or_set_aside():
    from kasthuri_ray.output.block_grid import BlockGrid, block_name

    grid = BlockGrid(Box.at((0, 0, 0), (4, 10, 15)), (4, 8, 8))
    states = block_states(grid, {block_name((0, 0, 1))}, {block_name((0, 1, 0))})
    assert states.tolist() == [[[2, 1], [3, 2]]]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"DISPLAY": ":0"}, False), ({"DISPLAY": ":0", "SSH_CONNECTION": "1 2 3 4"}, True), ({}, True)],
)
def test_a_session_of_ssh_and_a_machine_without_display_are_remote(environment, expected, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    assert is_remote(environment) == expected
    assert ssh_command(8080).startswith("ssh -L 8080:127.0.0.1:8080 ")
