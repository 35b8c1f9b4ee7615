"""The grey levels that become black and white, compared with plain percentiles."""

import numpy as np
import pytest

from kasthuri_ray.volumes.intensity import intensity_window


def test_the_intensity_window_is_the_whole_range_for_uint8_and_percentiles_for_other_types():
    sample = np.arange(1001, dtype=np.uint16)
    assert intensity_window(sample, np.dtype("uint8"), None) == (0, 255)
    assert intensity_window(sample, np.dtype("uint16"), None) == pytest.approx((5, 995))
    assert intensity_window(sample, np.dtype("uint8"), {"percentiles": [1, 99]}) == pytest.approx((10, 990))
    assert intensity_window(sample, np.dtype("uint16"), [100, 4000.5]) == (100, 4000.5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (5, r"is not two numbers"),
        ([5], r"is not two numbers \[low, high\]"),
        (["a", 3], r"is not two numbers"),
        ([3, 3], "the low value is not below the high one"),
        ({"percentile": [1, 2]}, r'is neither \[low, high\] nor \{"percentiles"'),
        ({"percentiles": [-1, 50]}, "are not two rising numbers from 0 to 100"),
    ],
)
def test_a_malformed_intensity_window_is_an_error_that_shows_it(setting, message):
    with pytest.raises(ValueError, match=message):
        intensity_window(np.arange(10), np.dtype("uint16"), setting)


def test_images_without_an_intensity_window_are_refused():
    floats = np.dtype("float32")
    with pytest.raises(ValueError, match=r"the image holds float32, whose range is not known; give the grey values of"):
        intensity_window(np.zeros(3, np.float32), floats, None)
    assert intensity_window(np.zeros(3, np.float32), floats, [-1, 1]) == (-1, 1)
    with pytest.raises(ValueError, match="the image holds bool"):
        intensity_window(np.zeros(3, bool), np.dtype(bool), [0, 1])
    with pytest.raises(ValueError, match="are both 7: the sample has no contrast; give the grey values"):
        intensity_window(np.full(9, 7), np.dtype("uint16"), None)


def test_nan_counts_for_no_percentile():
    image = np.array([0, np.nan, 10, np.nan], np.float32)
    assert intensity_window(image, image.dtype, {"percentiles": [0, 100]}) == (0, 10)


def test_infinity_counts_for_no_percentile():
    sample = np.r_[np.linspace(0, 1, 971), [np.inf] * 20, [-np.inf] * 9].astype(np.float32)
    window = intensity_window(sample, sample.dtype, {"percentiles": [1, 99]})
    assert window == pytest.approx((0.01, 0.99), abs=1e-6)
