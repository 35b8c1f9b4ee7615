"""The viewer's state: axes in nm, layers at their places, and a limit on what it holds."""

import numpy as np
import pytest

from kasthuri_ray.viewer.layers import BoxLayer, Point, PointLayer
from kasthuri_ray.viewer.viewer_state import MAX_POINTS, viewer_state
from kasthuri_ray.volumes.place import Place

URL = "http://127.0.0.1:1/data/token"


def test_a_position_times_the_unit_of_the_axes_is_the_place_in_nm(array_volume, make_layer, make_scene):
    layer = make_layer(array_volume(np.ones((2, 40, 40), np.uint8)))
    state = viewer_state(make_scene(layer, position=(315.0, 123.0, 606.0)), URL)
    assert state["dimensions"] == {"x": [6e-9, "m"], "y": [6e-9, "m"], "z": [3e-8, "m"]}
    places = [at * state["dimensions"][axis][0] * 1e9 for at, axis in zip(state["position"], "xyz", strict=True)]
    np.testing.assert_allclose(places, (606, 123, 315))


def test_a_volume_between_the_voxels_of_its_own_grid_is_moved_by_the_rest(array_volume, make_layer, make_scene):
    volume = array_volume(np.ones((2, 40, 40), np.uint8), place=Place((0.0, 1.5, 0.0), "corner", "offset"))
    layer = viewer_state(make_scene(make_layer(volume)), URL)["layers"][0]
    assert layer["source"]["transform"]["matrix"] == [[1, 0, 0, 0], [0, 1, 0, 0.25], [0, 0, 1, 0]]


def test_without_a_voxel_size_the_axes_have_no_unit(array_volume, make_layer, make_scene):
    layer = make_layer(array_volume(np.ones((2, 40, 40), np.uint8), voxel_size_nm=None))
    state = viewer_state(make_scene(layer, voxel_size=(1.0, 1.0, 1.0), has_size=False, position=(1.5, 2.5, 3.5)), URL)
    assert state["dimensions"] == {axis: [1, ""] for axis in "xyz"}
    assert state["position"] == [3.5, 2.5, 1.5]
    assert state["layers"][0]["source"]["transform"]["inputDimensions"] == state["dimensions"]


@pytest.mark.parametrize("number", [MAX_POINTS, MAX_POINTS + 1])
def test_the_state_holds_up_to_20_000_points_and_names_where_more_are_served(
    array_volume, make_layer, make_scene, number
):
    points = [Point(n + 1, (0.0, 0.0, float(n)), properties={"p": 0.5}) for n in range(number)]
    scene = make_scene(make_layer(array_volume(np.ones((2, 4, 4), np.uint8))), points=[PointLayer("synapses", points)])
    layer = viewer_state(scene, URL)["layers"][-1]
    if number > MAX_POINTS:
        assert layer["source"] == f"precomputed://{URL}/synapses"
        assert "annotations" not in layer
    else:
        assert len(layer["annotations"]) == number
        assert layer["annotations"][6]["point"] == [1, 0, 0]
        assert layer["annotationProperties"] == [{"id": "p", "type": "float32"}]


def test_boxes_are_drawn_from_corner_to_corner(array_volume, make_layer, make_scene):
    scene = make_scene(
        make_layer(array_volume(np.ones((2, 4, 4), np.uint8))),
        box_layers=(BoxLayer("boxes", [("test", (30.0, 0.0, 12.0), (60.0, 24.0, 24.0))]),),
    )
    (box,) = viewer_state(scene, URL)["layers"][-1]["annotations"]
    assert (box["pointA"], box["pointB"], box["description"]) == ([2, 0, 1], [4, 4, 2], "test")


def test_in_a_review_lines_cross_at_the_object_and_the_others_are_faint(array_volume, make_layer, make_scene):
    objects = make_layer(array_volume(np.ones((2, 40, 40), np.uint32)), "objects", "segmentation", "labels")
    usual, review = (viewer_state(make_scene(objects, selected=(1,), is_review=each), URL) for each in (False, True))
    assert (usual["showAxisLines"], review["showAxisLines"]) == (False, True)
    assert review["layers"][0]["notSelectedAlpha"] < usual["layers"][0]["notSelectedAlpha"] < 0.45
