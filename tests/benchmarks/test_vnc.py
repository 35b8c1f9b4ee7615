"""VNC, from files as its repository has them to a zarr."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from kasthuri_ray.benchmarks import vnc
from kasthuri_ray.benchmarks.accuracy import find_store
from kasthuri_ray.volumes.opening import open_volume

SHAPE = (12, 64, 80)  # more than ten sections: their numbers need two digits


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 32, 64, 96, 128, 159, 191, 223, 255], np.uint8), SHAPE)
    em = rng.integers(0, 256, SHAPE).astype(np.uint8)
    masks = {name: np.isin(labels, values).astype(np.uint8) for name, values in vnc.CLASSES.items()}
    return {"em": em, "labels": labels, **masks}


@pytest.fixture
def checkout(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """stack1 with the files' names of the repository; membranes drawn in black, synapses in white and in colour."""
    stack = tmp_path / "checkout" / "stack1"
    for folder in vnc.FOLDERS.values():
        (stack / folder).mkdir(parents=True)
    for z in range(SHAPE[0]):
        tifffile.imwrite(stack / f"raw/{z:02}.tif", arrays["em"][z])
        Image.fromarray(arrays["labels"][z]).save(stack / f"labels/labels{z:08}.png")
        Image.fromarray(255 - 255 * arrays["membrane"][z]).save(stack / f"membranes/{z:02}.png")
        Image.fromarray(255 * arrays["mitochondria"][z]).save(stack / f"mitochondria/{z:02}.png")
        Image.fromarray(255 * arrays["synapse"][z]).convert("RGB").save(stack / f"synapses/{z:02}.png")
    return stack.parent


def test_every_array_comes_out_as_it_was_drawn(
    checkout: Path, arrays: dict[str, np.ndarray], tmp_path: Path, capsys
) -> None:
    output = tmp_path / "vnc.zarr"
    vnc.convert_vnc(str(checkout), str(output))
    for name, expected in arrays.items():
        volume = open_volume(f"{output}/{name}")
        np.testing.assert_array_equal(volume.read(volume.bounds), expected, err_msg=name)
        assert volume.voxel_size_nm == (45, 4.6, 4.6)
        assert volume.dtype == np.uint8
    assert capsys.readouterr().out == f"{output}\n"
    assert find_store(str(tmp_path)) == find_store(str(output)) == str(output)


def test_what_was_converted_before_is_left_alone(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "vnc.zarr").mkdir()
    with pytest.raises(ValueError, match="is already there; give another --output"):
        vnc.convert_vnc(str(checkout), str(tmp_path / "vnc.zarr"))


def test_a_missing_folder_says_where_vnc_is_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no sections.*git clone.*groundtruth-drosophila-vnc"):
        vnc.convert_vnc(str(tmp_path), str(tmp_path / "vnc.zarr"))
    with pytest.raises(FileNotFoundError, match=r"holds no vnc\.zarr.*CC BY-NC-SA 3\.0; cite Gerhard"):
        find_store(str(tmp_path))


def test_a_section_of_another_size_is_refused(checkout: Path, tmp_path: Path) -> None:
    tifffile.imwrite(checkout / "stack1/raw/03.tif", np.zeros((64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"different sizes: \(64, 64\), \(64, 80\)"):
        vnc.convert_vnc(str(checkout), str(tmp_path / "vnc.zarr"))


def test_an_annotation_of_something_else_is_refused(checkout: Path, tmp_path: Path) -> None:
    for z, file in enumerate(sorted((checkout / "stack1/membranes").iterdir())):
        noise = np.random.default_rng(z).integers(0, 2, SHAPE[1:])
        Image.fromarray((255 * noise).astype(np.uint8)).save(file)
    with pytest.raises(ValueError, match="do not belong together"):
        vnc.convert_vnc(str(checkout), str(tmp_path / "vnc.zarr"))


def test_a_pointer_in_place_of_an_image_is_named(checkout: Path, tmp_path: Path) -> None:
    (checkout / "stack1/synapses/05.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"05\.png is not an image; is it a pointer of Git LFS"):
        vnc.convert_vnc(str(checkout), str(tmp_path / "vnc.zarr"))
