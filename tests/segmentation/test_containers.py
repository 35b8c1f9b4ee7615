"""One image in nine containers, each written with the tool that people use: its segmentations are the same bytes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import mrcfile
import numpy as np
import pytest
import tensorstore as ts
import tifffile
import zarr
from PIL import Image

pytestmark = pytest.mark.slow

SHAPE = (8, 96, 528)
VOXEL_SIZE_NM = (30.0, 6.0, 6.0)
START = (-40, 20, -64)  # voxels
OFFSET_NM = (-1200.0, 120.0, -384.0)
OPTIONS = "?voxel_size_nm=30,6,6&offset_nm=-1200,120,-384"
CUT = ("--shard", "4,64,128", "--block", "4,64,256", "--chunk", "2,32,64", "--actors", 1)
CLOUDVOLUME = """
import sys
import numpy as np
from cloudvolume import CloudVolume
path, image = sys.argv[1], np.load(sys.argv[2]).transpose(2, 1, 0)
info = CloudVolume.create_new_info(
    num_channels=1, layer_type="image", data_type="uint8", encoding="raw", resolution=(6, 6, 30),
    voxel_offset=(-64, 20, -40), chunk_size=(32, 32, 4), volume_size=image.shape)
volume = CloudVolume(f"file://{path}", info=info, progress=False)
volume.commit_info()
volume[-64:464, 20:116, -40:-32] = image[..., None]
"""


def write_zarr_2(path: Path, image: np.ndarray) -> str:
    array = zarr.create_array(path, data=image, chunks=(3, 40, 50), zarr_format=2)
    array.attrs.update({"voxel_size": VOXEL_SIZE_NM, "offset": OFFSET_NM})
    return str(path)


def write_zarr_3(path: Path, image: np.ndarray) -> str:
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    transformations = [
        {"type": "scale", "scale": [length / 1000 for length in VOXEL_SIZE_NM]},
        {"type": "translation", "translation": [length / 1000 for length in OFFSET_NM]},
    ]
    datasets = [{"path": "0", "coordinateTransformations": transformations}]
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    zarr.create_group(path, attributes={"ome": ome}).create_array(
        "0", data=image, chunks=(2, 32, 32), shards=(4, 64, 64)
    )
    return str(path)


def write_n5(path: Path, image: np.ndarray) -> str:
    metadata = {"blockSize": [48, 30, 2], "compression": {"type": "gzip"}}
    kvstore = {"driver": "file", "path": f"{path}/"}
    spec = {"driver": "n5", "kvstore": kvstore, "metadata": metadata, "dtype": "uint8", "create": True}
    ts.open(spec, shape=SHAPE[::-1]).result()[...] = image.transpose(2, 1, 0)
    attributes = path / "attributes.json"
    more = {"resolution": VOXEL_SIZE_NM[::-1], "offset": OFFSET_NM[::-1]}
    attributes.write_text(json.dumps(json.loads(attributes.read_text()) | more))
    return str(path)


def write_precomputed(path: Path, image: np.ndarray) -> str:
    np.save(f"{path}.npy", image)
    subprocess.run([sys.executable, "-c", CLOUDVOLUME, str(path), f"{path}.npy"], check=True, timeout=120)
    return str(path)


def write_hdf5(path: Path, image: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("volumes/raw", data=image, chunks=(2, 32, 32), compression="gzip")
        dataset.attrs.update({"resolution": VOXEL_SIZE_NM, "offset": OFFSET_NM})
    return f"{path}:volumes/raw"


def write_imagej(path: Path, image: np.ndarray) -> str:
    origin = {f"{axis}origin": -start for axis, start in zip("zyx", START, strict=True)}
    metadata = {"axes": "ZYX", "unit": "nm", "spacing": 30, **origin}
    tifffile.imwrite(path, image, imagej=True, resolution=(1 / 6, 1 / 6), metadata=metadata)
    return str(path)


def write_mrc(path: Path, image: np.ndarray) -> str:
    with mrcfile.new(path) as file:
        file.set_data(image.view(np.int8))
        file.voxel_size = tuple(10 * length for length in VOXEL_SIZE_NM[::-1])
        file.header.origin = tuple(10 * length for length in OFFSET_NM[::-1])
    return f"{path}?dtype=uint8"


def write_tiffs(path: Path, image: np.ndarray) -> str:
    path.mkdir()
    for z, section in enumerate(image):
        tifffile.imwrite(path / f"s{z}.tif", section, compression="zlib")
    return f"{path}{OPTIONS}"


def write_pngs(path: Path, image: np.ndarray) -> str:
    path.mkdir()
    for z, section in enumerate(image):
        Image.fromarray(section).save(path / f"s{z}.png")
    return f"{path}{OPTIONS}"


CONTAINERS: dict[str, Callable[[Path, np.ndarray], str]] = {
    "em2.zarr": write_zarr_2,
    "em3.zarr": write_zarr_3,
    "em.n5": write_n5,
    "precomputed": write_precomputed,
    "em.h5": write_hdf5,
    "em.tif": write_imagej,
    "em.mrc": write_mrc,
    "tiffs": write_tiffs,
    "pngs": write_pngs,
}


@pytest.fixture(scope="module")
def image(stores) -> np.ndarray:
    """Return grey levels of which one corner is blank."""
    image = stores.image(SHAPE)
    image[:4, 30:, :300] = 0
    return image


@pytest.fixture(scope="module")
def segmented(tmp_path_factory, local_ray, run_segment, image, read_files) -> dict[str, SimpleNamespace]:
    """Segment the image in each container; return the files of the arrays, the metadata and the URI of the image."""
    folder = tmp_path_factory.mktemp("containers")
    results = {}
    for name, write in CONTAINERS.items():
        uri, output = write(folder / name, image), folder / f"{name}.out.zarr"
        assert run_segment("--image", uri, "--output", output, *CUT) == 0, name
        files = {path: content for path, content in read_files(output).items() if path.startswith("s")}
        results[name] = SimpleNamespace(
            files=files, attributes=dict(zarr.open_group(output).attrs), uri=uri, path=output
        )
    return results


def test_the_image_is_segmented_with_its_blank_corner_left_out(segmented, image, tiny_network, one_pass):
    s0 = np.asarray(zarr.open_group(segmented["em3.zarr"].path, mode="r")["s0"])
    expected = 255 * one_pass(tiny_network(), image)
    assert not s0[:, :2, 64:, :64].any()
    assert expected[:, :2, 64:, :64].max() > 1
    assert np.abs(s0 - expected)[:, 4:].max() <= 1


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_arrays_of_a_segmentation_do_not_depend_on_the_container_of_the_image(segmented, name):
    files, expected = segmented[name].files, segmented["em3.zarr"].files
    assert {path.split("/")[0] for path in expected} == {"s0", "s1"}
    assert sorted(files) == sorted(expected)
    assert [path for path, content in files.items() if content != expected[path]] == []


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_segmentation_lies_where_its_image_does(segmented, name):
    attributes = segmented[name].attributes
    (multiscale,) = attributes["ome"]["multiscales"]
    assert [axis.get("unit") for axis in multiscale["axes"]] == [None, "nanometer", "nanometer", "nanometer"]
    scale, translation = multiscale["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == [1, *VOXEL_SIZE_NM]
    assert translation["translation"] == [0, *OFFSET_NM]
    assert attributes["kasthuri_ray"]["image"] == segmented[name].uri
