"""Opening volumes with the options of a job."""

import h5py
import numpy as np
import pytest
import zarr

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.opening import VolumeOpener, open_volume, read_boss_options


def test_a_file_of_boss_options_is_read_and_its_token_never_shown(tmp_path):
    file = tmp_path / "boss.json"
    assert read_boss_options(None) is None
    file.write_text('{"protocol": "https", "host": "api.bossdb.io", "token": "secret"}')
    assert read_boss_options(str(file))["host"] == "api.bossdb.io"
    malformed = {'{"token": "secret",}': "is not readable as JSON", '["secret"]': "does not hold a JSON object"}
    for text, message in malformed.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            read_boss_options(str(file))
        assert "secret" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"--boss none\.json: there is no /"):
        read_boss_options("none.json")


def test_a_volume_is_opened_once_for_each_combination_of_parameters(tmp_path):
    opener = VolumeOpener(None, str(tmp_path), "1GB")
    uri = "phantom://em?shape=4,64,64&seed=1"
    assert opener.open(uri) is opener.open(uri)
    other = opener.open(uri, voxel_size_nm=(40.0, 4.0, 4.0))
    assert other.voxel_size_nm == (40.0, 4.0, 4.0)
    box = Box.at((0, 0, 0), (1, 64, 64))
    np.testing.assert_array_equal(other.read(box), opener.open(uri).read(box))


@pytest.mark.parametrize("shape", [(0, 40, 50), (12, 40, 0)])
def test_an_empty_array_is_refused_when_it_is_opened(tmp_path, shape):
    zarr.create_array(tmp_path / "x.zarr", shape=shape, dtype="uint8", chunks=(4, 16, 16))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["em"] = np.zeros(shape, np.uint8)
    for uri in (f"{tmp_path}/x.zarr", f"{tmp_path}/x.h5:em"):
        with pytest.raises(
            InputError, match=r"x\.(zarr|h5:em) is empty: its shape is \((0, 40, 50|12, 40, 0)\) \(z,y,x\)"
        ):
            open_volume(uri)
