"""Grey levels of an image compared with a range: by values, never by type, and without what is blank."""

import numpy as np
import pytest

from kasthuri_ray.errors import InputError, VolumeError
from kasthuri_ray.volumes.grey_range import check_grey_range, sample_grey_levels

BYTES = (0.0, 255.0)


def grey(shape=(4, 60, 80), low=20, high=220, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.float64)


@pytest.fixture
def check(array_volume):
    """Return `check(voxels, intensity, is_stated=False, **volume)`: the notes about an image with these voxels."""

    def run(voxels, intensity, is_stated=False, **more):
        volume = array_volume(voxels, **more)
        return check_grey_range(volume, [volume.bounds], intensity, "that the network was trained on", is_stated)

    return run


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_values_that_fit_are_accepted_in_any_type(check, dtype):
    assert check(grey().astype(dtype), BYTES) == []
    assert check(grey().astype(dtype), (0.0, 1500.0)) == []


@pytest.mark.parametrize(
    ("voxels", "intensity", "message"),
    [
        (grey().astype(np.uint8), (0.0, 1.0), "100% of its voxels lie outside the grey levels 0 to 1 that the network"),
        (grey().astype(np.uint8), (0.0, 1.0), r"trained on: they hold 2\d to 21\d \(percentiles 1 and 99"),
        ((grey() / 255).astype(np.float32), BYTES, r"its voxels span 0\.3% of the grey levels 0 to 255 that the"),
        (200 * grey().astype(np.uint16), BYTES, "100% of its voxels lie outside the grey levels 0 to 255 that"),
        (grey().astype(np.uint8), (1000.0, 40_000.0), "outside the grey levels 1000 to 40000 that the network"),
        (grey().astype(np.uint8), (0.0, 65_535.0), r"its voxels span 0\.3% of the grey levels 0 to 65535"),
        (np.full((4, 60, 80), 9, np.uint8), BYTES, r"its voxels span 0\.0% of .* they hold 9 to 9"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_both_ranges_unless_a_person_stated_them(
    check, voxels, intensity, message
):
    with pytest.raises(InputError, match=message) as caught:
        check(voxels, intensity)
    assert str(caught.value).startswith("array://em 0:4,0:60,0:80: ")
    assert "give their range with --set task.image_intensity=LOW,HIGH" in str(caught.value)
    (note,) = check(voxels, intensity, is_stated=True)
    assert note in str(caught.value)


@pytest.mark.parametrize(
    ("outside", "span", "fits"), [(0.49, 60, True), (0.51, 60, False), (0, 14, True), (0, 11, False)]
)
def test_the_limits_are_half_of_the_voxels_and_a_twentieth_of_the_range(check, outside, span, fits):
    voxels = np.linspace(100, 100 + span, 4 * 60 * 80)
    voxels[: int(outside * voxels.size)] = 300
    voxels = voxels.reshape(4, 60, 80)
    if fits:
        assert check(voxels, BYTES) == []
    else:
        with pytest.raises(InputError):
            check(voxels, BYTES)


@pytest.mark.parametrize("blank", [0, np.nan, 250])
def test_blank_voxels_do_not_count(check, blank):
    voxels = grey(low=2000, high=3000).astype(np.float32)
    voxels[:, :50] = blank
    more = {"fill_value": blank}
    assert check(voxels, (1500.0, 4000.0), **more) == []
    with pytest.raises(InputError, match="100% of its voxels lie outside the grey levels 0 to 1 "):
        check(voxels, (0.0, 1.0), **more)


@pytest.mark.parametrize("blank", [0, np.nan])
def test_a_box_that_is_all_blank_is_a_line(check, blank):
    lines = check(np.full((4, 60, 80), blank, np.float32), BYTES)
    assert lines == ["array://em 0:4,0:60,0:80 is blank, or nearly so, in a sample: its grey levels are not checked"]


def test_an_image_that_cannot_be_read_is_a_line(array_volume, monkeypatch):
    def fail(box):
        raise VolumeError(f"no answer for {box}")

    volume = array_volume(np.zeros((4, 60, 80), np.uint8))
    monkeypatch.setattr(volume, "read", fail)
    (line,) = check_grey_range(volume, [volume.bounds], BYTES, "of uint8", False)
    assert line.startswith("the grey levels of array://em are not checked, since a sample could not be read: no answer")


def test_nothing_is_said_about_a_few_voxels(check):
    assert check(np.full((1, 20, 20), 9, np.uint8), BYTES) == []


def test_more_of_an_image_is_read_if_most_of_it_is_blank(array_volume):
    voxels = np.zeros((16, 1024, 1024), np.uint8)
    volume = array_volume(voxels, chunk=(2, 64, 64))
    assert not sample_grey_levels(volume, [volume.bounds]).size
    assert len(volume.reads) == 32 + 128
    voxels[:, 300:700, 100:400] = grey((16, 400, 300)).astype(np.uint8)
    few = array_volume(voxels, chunk=(2, 64, 64))
    assert sample_grey_levels(few, [few.bounds]).size > 50_000
