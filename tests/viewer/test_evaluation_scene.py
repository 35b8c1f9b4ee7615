"""The objects of an evaluation as points: found, missed and wrong, at their places."""

import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.viewer.evaluation_scene import centroid_shift, match_layers, read_matches
from kasthuri_ray.volumes.place import Place

MATCHES = """kind,id,verdict,partner,centroid_z_nm,centroid_y_nm,centroid_x_nm,size_voxels,score
true,1,found,2,30.000,60.000,90.000,100,0.500000
true,2,missed,,0.000,12.000,18.000,40,0.100000
predicted,1,wrong,,60.000,0.000,0.000,30,0.700000
predicted,2,right,1,30.000,66.000,90.000,110,0.900000
"""


def test_each_verdict_is_a_layer_and_a_pair_is_shown_once(tmp_path):
    (tmp_path / "matches.csv").write_text(MATCHES)
    layers = match_layers(read_matches(str(tmp_path)), (15.0, 3.0, 3.0))
    assert [layer.name for layer in layers] == ["found", "missed", "wrong"]
    assert [[point.description for point in layer.points] for layer in layers] == [
        ["found 1, partner 2"],
        ["missed 2"],
        ["wrong 1"],
    ]
    assert layers[0].points[0].position == (45, 63, 93)


def test_an_evaluation_without_the_file_has_no_objects_and_another_file_is_refused(tmp_path):
    assert read_matches(str(tmp_path)) is None
    (tmp_path / "matches.csv").write_text("id,partner\n1,2\n")
    with pytest.raises(InputError, match="no column verdict"):
        read_matches(str(tmp_path))


def test_centroids_of_a_volume_that_states_its_corner_lie_half_a_voxel_before_the_middle(array_volume):
    voxels = np.zeros((2, 3, 4), np.uint8)
    assert centroid_shift(array_volume(voxels)) == (15, 3, 3)
    assert centroid_shift(array_volume(voxels, place=Place((0.0, 0.0, 0.0), "corner", "offset"))) == (15, 3, 3)
    assert centroid_shift(array_volume(voxels, place=Place((0.0, 0.0, 0.0), "middle", "OME"))) == (0, 0, 0)
