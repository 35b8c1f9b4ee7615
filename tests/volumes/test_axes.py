"""Which axis is z, y or x: by names, by lengths, and by what a person typed."""

import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.volumes.axes import choose_axes, read_zyx


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((9, 40, 52), (0, 1, 2)),
        ((9, 40, 52, 1), (0, 1, 2)),
        ((1, 9, 40, 52), (1, 2, 3)),
        ((9, 1, 40, 52), (0, 2, 3)),
        ((1, 40, 52, 1), (0, 1, 2)),
        ((1, 1, 1, 40, 52), (2, 3, 4)),
        ((1, 1, 40, 52, 1), (1, 2, 3)),
        ((40, 52, 1), (-1, 0, 1)),
        ((40, 52), (-1, 0, 1)),
        ((1, 40, 52), (0, 1, 2)),
        ((9, 1, 52), (0, 1, 2)),
    ],
)
def test_without_names_axes_of_length_1_are_dropped(shape, axes):
    assert choose_axes(shape, "x") == axes
    voxels = np.arange(np.prod(shape)).reshape(shape)
    assert read_zyx(voxels, axes).ravel().tolist() == voxels.ravel().tolist()


@pytest.mark.parametrize(
    ("shape", "names", "axes"),
    [
        ((52, 40, 9), "xyz", (2, 1, 0)),
        ((9, 40, 52, 1), "zyxc", (0, 1, 2)),
        ((9, 40, 52), "tyx", (0, 1, 2)),
        ((9, 1, 40, 52), "tzyx", (0, 2, 3)),
        ((40, 52), "yx", (-1, 0, 1)),
        ((40, 52, 1), "yxz", (2, 0, 1)),
        ((9, 40, 52), ["Z", "Y", "X"], (0, 1, 2)),
        ((9, 40, 52), ["", "", ""], (0, 1, 2)),
        ((9, 40, 52), [None, "y", "y"], (0, 1, 2)),
        ((9, 40, 52), "zyxc", (0, 1, 2)),
    ],
)
def test_names_in_the_file_are_followed_if_they_fit(shape, names, axes):
    assert choose_axes(shape, "x", names=names) == axes


def test_an_option_wins_over_names_and_must_fit():
    assert choose_axes((9, 40, 52), "x", names="zyx", option="yxz") == (2, 0, 1)
    assert choose_axes((40, 52), "x", option="xy") == (-1, 1, 0)
    with pytest.raises(InputError, match=r"axes=zy names 2 axes, but the shape is \(9, 40, 52\)"):
        choose_axes((9, 40, 52), "x", option="zy")
    with pytest.raises(InputError, match=r"the axis 't' has the length 9 in the shape"):
        choose_axes((9, 40, 52), "x", option="tyx")


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [
        ((2, 9, 40, 52), None, "2 channels, shape"),
        ((9, 40, 52, 3), "zyxc", "3 channels, shape"),
        ((4, 9, 40, 52), "tzyx", "4 axes longer than 1, shape"),
        ((5,), None, "1 axes, shape"),
    ],
)
def test_channels_and_more_than_three_long_axes_are_refused(shape, names, message):
    with pytest.raises(InputError, match=f"x has {message}"):
        choose_axes(shape, "x", names=names)
