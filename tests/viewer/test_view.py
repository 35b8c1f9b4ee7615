"""What the viewer shows first, as the command starts it, without a browser."""

import numpy as np
import pytest
import zarr

from kasthuri_ray.config.view_settings import ViewSettings
from kasthuri_ray.progress import Reporter
from kasthuri_ray.viewer.view import view

SHAPE = (4, 600, 1200)


@pytest.fixture
def output(tmp_path, make_output, write_table):
    """Return the path of an output whose most confident object is voxel 2, 1, 1190 of its image, near two edges."""
    stored = zarr.create_array(tmp_path / "em.zarr", data=np.ones(SHAPE, np.uint8), chunks=SHAPE)
    stored.attrs["voxel_size_nm_zyx"] = [30, 6, 6]
    output = make_output(str(tmp_path / "em.zarr"), SHAPE)
    rows = [
        {"id": number, "centroid_z_nm": 60, "centroid_y_nm": 6 * y, "centroid_x_nm": 6 * x, "size_voxels": 40}
        for number, (y, x) in enumerate(((300, 600), (1, 1190)), 1)
    ]
    write_table(output, [{**row, "mean_probability": f"0.{4 + row['id']}"} for row in rows])
    return output.path


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1200 - 200, 150, 2.5]),
        ({"layout": "4panel"}, [1200 - 100, 75, 2.5]),
        ({"position": "2,1,1190"}, [1190.5, 1.5, 2.5]),
    ],
)
def test_the_first_view_of_an_object_at_the_edge_is_moved_into_the_image_unless_a_position_is_given(
    output, settings, expected
):
    viewing = view(ViewSettings(output=output, size="400,300", **settings), Reporter(), opens_browser=False)
    state = viewing.server.viewer.state.to_json()
    viewing.close()
    assert (state["position"], state["crossSectionScale"]) == (expected, 1)
