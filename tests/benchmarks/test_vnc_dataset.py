"""Conversion of VNC, from the files of its repository to a zarr."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from kasthuri_ray.benchmarks import vnc_dataset
from kasthuri_ray.benchmarks.accuracy import find_store
from kasthuri_ray.volumes.opening import open_volume

SHAPE = (12, 64, 80)  # more than ten sections: their numbers need two digits


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.choice(np.array([0, 32, 64, 96, 128, 159, 191, 223, 255], np.uint8), SHAPE)
    em = rng.integers(0, 256, SHAPE).astype(np.uint8)
    masks = {name: np.isin(labels, values).astype(np.uint8) for name, values in vnc_dataset.CLASSES.items()}
    return {"em": em, "labels": labels, **masks}


@pytest.fixture
def checkout(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """Write stack1 as the repository has it, membranes in black, synapses in white as RGB; return its parent."""
    stack = tmp_path / "checkout" / "stack1"
    for folder in vnc_dataset.FOLDERS.values():
        (stack / folder).mkdir(parents=True)
    for z in range(SHAPE[0]):
        tifffile.imwrite(stack / f"raw/{z:02}.tif", arrays["em"][z])
        Image.fromarray(arrays["labels"][z]).save(stack / f"labels/labels{z:08}.png")
        Image.fromarray(255 - 255 * arrays["membrane"][z]).save(stack / f"membranes/{z:02}.png")
        Image.fromarray(255 * arrays["mitochondria"][z]).save(stack / f"mitochondria/{z:02}.png")
        Image.fromarray(255 * arrays["synapse"][z]).convert("RGB").save(stack / f"synapses/{z:02}.png")
    return stack.parent


def test_every_array_of_the_zarr_equals_the_drawing(
    checkout: Path, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    output = tmp_path / "vnc.zarr"
    vnc_dataset.convert_vnc(str(checkout), str(output))
    for name, expected in arrays.items():
        volume = open_volume(f"{output}/{name}")
        np.testing.assert_array_equal(volume.read(volume.bounds), expected, err_msg=name)
        assert volume.voxel_size_nm == (45, 4.6, 4.6)
        assert volume.dtype == np.uint8
    assert find_store(str(tmp_path)) == find_store(str(output)) == str(output)


def test_an_existing_output_is_not_overwritten(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "vnc.zarr").mkdir()
    with pytest.raises(ValueError, match="already exists; give another --output"):
        vnc_dataset.convert_vnc(str(checkout), str(tmp_path / "vnc.zarr"))


def test_the_error_of_a_missing_folder_says_where_to_get_vnc(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no sections.*git clone.*groundtruth-drosophila-vnc"):
        vnc_dataset.convert_vnc(str(tmp_path), str(tmp_path / "vnc.zarr"))
    with pytest.raises(FileNotFoundError, match=r"holds no vnc\.zarr.*CC BY-NC-SA 3\.0; cite Gerhard"):
        find_store(str(tmp_path))


def test_sections_of_different_sizes_are_an_error(checkout: Path, tmp_path: Path) -> None:
    tifffile.imwrite(checkout / "stack1/raw/03.tif", np.zeros((64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"different sizes: \(64, 64\), \(64, 80\)"):
        vnc_dataset.convert_vnc(str(checkout), str(tmp_path / "vnc.zarr"))


def test_an_annotation_that_does_not_match_the_labels_is_an_error(checkout: Path, tmp_path: Path) -> None:
    for z, file in enumerate(sorted((checkout / "stack1/membranes").iterdir())):
        noise = np.random.default_rng(z).integers(0, 2, SHAPE[1:])
        Image.fromarray((255 * noise).astype(np.uint8)).save(file)
    with pytest.raises(ValueError, match="do not belong together"):
        vnc_dataset.convert_vnc(str(checkout), str(tmp_path / "vnc.zarr"))


def test_the_error_names_a_git_lfs_pointer_in_place_of_an_image(checkout: Path, tmp_path: Path) -> None:
    (checkout / "stack1/synapses/05.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"05\.png is not an image; is it a pointer of Git LFS"):
        vnc_dataset.convert_vnc(str(checkout), str(tmp_path / "vnc.zarr"))
