"""What is shown of an output: its image in register, and the annotation of its task, hidden until a person wants it."""

import numpy as np
import pytest
import zarr

from kasthuri_ray.output.object_image import complete_object_image, create_object_image
from kasthuri_ray.viewer.layer_maker import LayerMaker, extent_of
from kasthuri_ray.viewer.output_scene import _annotation_layer, open_output_parts
from kasthuri_ray.viewer.output_volumes import objects_volumes
from kasthuri_ray.volumes.opening import VolumeOpener

IMAGE, ANNOTATION = (f"phantom://{name}?shape=4,64,64&seed=1" for name in ("em", "membrane"))


@pytest.fixture
def maker():
    return LayerMaker(VolumeOpener(None, "none", "1GB"))


@pytest.fixture
def write_hdf5(tmp_path):
    """Return `write_hdf5(voxels, name)`, which writes an image without a voxel size and returns its URI."""
    import h5py

    def write(voxels, name="em.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["em"] = voxels
        return f"{tmp_path / name}:em"

    return write


def first_levels(parts):
    """Return the finest level of the image, and of the probabilities."""
    image, probabilities = parts.voxel_layers[:2]
    assert (image.name, probabilities.name) == ("image", "synapse")
    return image.levels[0], probabilities.levels[0]


@pytest.mark.parametrize("given", [None, "em.h5:em", "copy.h5:em"])
def test_an_image_without_a_voxel_size_is_shown_with_the_one_that_the_output_records(
    make_output, write_hdf5, maker, tmp_path, given
):
    uri = write_hdf5(np.ones((4, 64, 64), np.uint8))
    write_hdf5(np.ones((4, 64, 64), np.uint8), "copy.h5")
    output = make_output(uri, (4, 64, 64))
    parts = open_output_parts(output.path, given and str(tmp_path / given), None, maker)
    image, probabilities = first_levels(parts)
    assert parts.image.voxel_size_nm == image.size == (30, 6, 6)
    assert extent_of(image) == extent_of(probabilities)
    assert maker.notes == []


def test_a_voxel_size_that_the_person_gives_wins(make_output, write_hdf5, maker):
    uri = write_hdf5(np.ones((4, 64, 64), np.uint8))
    output = make_output(uri, (4, 64, 64))
    parts = open_output_parts(output.path, f"{uri}?voxel_size_nm=40,8,8", None, maker)
    assert first_levels(parts)[0].size == (40, 8, 8)


def test_the_recorded_size_wins_over_the_one_that_the_image_states_at_all_its_levels(
    make_output, make_ome_pyramid, maker
):
    path, _ = make_ome_pyramid([(10, 600, 600), (10, 300, 300), (5, 150, 150), (3, 75, 75)], chunks=(10, 600, 600))
    output = make_output(path, (10, 600, 600), (60.0, 12.0, 12.0))
    image, probabilities = open_output_parts(output.path, None, None, maker).voxel_layers[:2]
    assert extent_of(image.levels[0]) == extent_of(probabilities.levels[0])
    assert [level.size for level in image.levels] == [(60, 12, 12), (60, 24, 24), (120, 48, 48)]


def test_another_resolution_of_the_image_keeps_the_voxel_size_that_it_states(make_output, make_ome_pyramid, maker):
    path, _ = make_ome_pyramid([(4, 600, 600), (4, 300, 300)], chunks=(4, 600, 600))
    output = make_output(f"{path}#mip=1", (4, 300, 300), (30.0, 12.0, 12.0))
    image, probabilities = first_levels(open_output_parts(output.path, path, None, maker))
    assert (image.size, probabilities.size) == ((30, 6, 6), (30, 12, 12))


def test_the_image_of_a_resampled_output_keeps_its_own_voxel_size(make_output, tmp_path, maker):
    stored = zarr.create_array(tmp_path / "em.zarr", data=np.ones((4, 64, 64), np.uint8), chunks=(4, 64, 64))
    stored.attrs["voxel_size_nm_zyx"] = [30, 3, 3]
    output = make_output(str(tmp_path / "em.zarr"), (4, 32, 32), resample=True)
    image, probabilities = first_levels(open_output_parts(output.path, None, None, maker))
    assert image.size == (30, 3, 3)
    assert extent_of(image) == extent_of(probabilities)


def test_the_annotation_of_the_task_is_hidden_and_one_that_is_given_is_shown(maker):
    image, _ = maker.image_layer(IMAGE)
    record = {"image": IMAGE, "task": {"annotation_chan": ANNOTATION}}
    assert not _annotation_layer(record, image, None, maker).is_visible
    assert _annotation_layer(record, image, ANNOTATION, maker).is_visible


def test_a_label_image_of_objects_is_shown_only_if_all_of_them_are_written(make_output, maker):
    output = make_output(IMAGE, (4, 64, 64))
    create_object_image(output, 1)
    assert objects_volumes(output, maker.opener) == []
    complete_object_image(output, 1)
    assert [volume.shape for volume in objects_volumes(output, maker.opener)] == [(4, 64, 64)]
