"""Phases of a job: their order and their names."""

import pytest

from kasthuri_ray.segmentation.phases import job_phases, phase_label, phase_level


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((3, 110, 170))


def test_phases_run_in_the_order_network_pyramid_objects_copy(run, em, make_job, tmp_path):
    job = make_job(run, tmp_path / "out.zarr", image=em, objects=True, copy=str(tmp_path / "copy"))
    assert job_phases(job) == ["s0", "objects", "precomputed-s0"]


def test_phases_of_the_pyramid_and_of_the_copy_are_named_after_their_level():
    assert phase_level("s3") == phase_level("precomputed-s3") == 3
    labels = [phase_label(phase) for phase in ("s0", "s1", "objects", "precomputed-s0")]
    assert labels == ["segmenting", "pyramid s1", "objects", "precomputed s0"]
