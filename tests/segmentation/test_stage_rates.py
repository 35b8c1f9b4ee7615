"""What a segmentation waits for."""

import pytest

from kasthuri_ray.segmentation.io_rates import (
    READING_MVOXELS_PER_S,
    WRITING_MVOXELS_PER_S,
    reading_rate,
    writing_rate,
)
from kasthuri_ray.segmentation.stage_rates import StageRates, describe_stages


def make_rates(**given):
    rates = {"computing": 400.0, "network": None, "decoding": 800.0, "writing": 800.0, "cores": 8.0}
    return StageRates(**(rates | {"shares_cores": False} | given))


def test_stages_on_the_same_cores_take_the_sum_of_their_times():
    rates = make_rates(computing=10.0, decoding=40.0, writing=100.0, shares_cores=True)
    assert rates.mvoxels_per_second == pytest.approx(1 / (1 / 10 + 1 / 40 + 1 / 100))
    assert rates.waits_for == "computing"
    assert make_rates(computing=10.0, decoding=5.0, shares_cores=True).waits_for == "decoding"
    assert rates.cores_needed is None


def test_beside_gpus_the_slowest_of_them_the_cores_and_the_network_decides():
    assert (make_rates().mvoxels_per_second, make_rates().waits_for) == (400.0, "computing")
    slow_reading = make_rates(decoding=200.0)
    assert slow_reading.mvoxels_per_second == pytest.approx(1 / (1 / 200 + 1 / 800))
    assert slow_reading.waits_for == "decoding"
    assert make_rates(writing=100.0).waits_for == "writing"
    slow_network = make_rates(network=50.0)
    assert (slow_network.mvoxels_per_second, slow_network.waits_for) == (50.0, "network")
    assert make_rates(network=50.0, computing=1.0, shares_cores=True).waits_for == "computing"


def test_a_stage_that_is_not_known_does_not_count():
    rates = make_rates(decoding=None, writing=None)
    assert (rates.mvoxels_per_second, rates.waits_for) == (400.0, "computing")
    assert make_rates(decoding=None, writing=None, shares_cores=True).mvoxels_per_second == pytest.approx(400.0)
    assert "decoding of this format was not measured" in describe_stages(make_rates(decoding=None))


def test_the_line_names_what_it_waits_for_and_the_cores_that_gpus_need():
    line = describe_stages(make_rates(decoding=200.0))
    assert line.startswith("it will wait for decoding: decoding 200, computing 400, writing 800 Mvoxels/s on 8 cores")
    # 400 Mvoxels/s need 400 / 25 cores for decoding and 400 / 100 for writing.
    assert line.endswith("20 cores would keep the GPUs busy")
    assert "would keep" not in describe_stages(make_rates(decoding=8000.0, writing=8000.0))


@pytest.mark.parametrize(
    ("volume_format", "key"),
    [
        ("BossDB", "BossDB$"),
        ("BossDB, Neuroglancer precomputed, jpeg", "Neuroglancer precomputed, jpeg"),
        ("Neuroglancer precomputed, raw", "Neuroglancer precomputed, raw"),
        ("OME-Zarr, zarr 3", "zarr"),
        ("TIFF sections", "TIFF"),
        ("OME-TIFF", "TIFF"),
    ],
)
def test_formats_have_the_rate_that_was_measured(volume_format, key):
    assert reading_rate(volume_format) == READING_MVOXELS_PER_S[key]
    assert reading_rate(volume_format, itemsize=2) == READING_MVOXELS_PER_S[key] / 2


def test_a_format_that_was_not_measured_has_no_rate_and_several_classes_take_longer_to_write():
    assert reading_rate("phantom") is None
    assert reading_rate("Neuroglancer precomputed, compressed_segmentation") is None
    assert writing_rate(2) == WRITING_MVOXELS_PER_S / 2
