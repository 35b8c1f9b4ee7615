"""`TileDataset` has the tiles, the classes and the augmentation of training, and works with a `DataLoader`."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.tiles.augmentation import Augment, tile_seed
from kasthuri_ray.tiles.dataset import TileDataset
from kasthuri_ray.tiles.sampling import read_tile
from kasthuri_ray.tiles.splits import open_task_tiles
from kasthuri_ray.volumes.opening import open_volume

SETTINGS = {"network.tiles_per_epoch": 6, "network.seed": 3}


@pytest.fixture
def make(tiny_task):
    """Return a function that makes a dataset of the tiny task."""

    def make_dataset(split="train", **more):
        return TileDataset(tiny_task, split, settings=SETTINGS, **more)

    return make_dataset


def test_an_item_is_the_augmented_tile_that_training_draws(make, tiny_task):
    dataset = make()
    dataset.set_epoch(2)
    image, label = dataset[4]
    given = GivenSettings(tiny_task, assignments=[f"{key}={value}" for key, value in SETTINGS.items()])
    tiles = open_task_tiles(resolve_settings(given), lambda note: None).train
    voxels, classes, _ = read_tile(tiles.sources, tiles.address(2, 4))
    expected = Augment("em", dim=2)(
        torch.from_numpy(voxels)[None].float() / 255, torch.from_numpy(classes), [tile_seed(3, 2, 4)]
    )
    torch.testing.assert_close(image, expected[0][0], rtol=0, atol=0)
    torch.testing.assert_close(label, expected[1][0].long(), rtol=0, atol=0)
    assert (image.shape, image.dtype, label.shape, label.dtype) == ((1, 64, 64), torch.float32, (64, 64), torch.int64)
    assert 0 <= image.min() < image.max() <= 1


def test_each_epoch_has_other_tiles_and_the_same_epoch_the_same(make):
    dataset = make()
    first = dataset[0][0]
    dataset.set_epoch(1)
    assert not torch.equal(dataset[0][0], first)
    dataset.set_epoch(0)
    assert torch.equal(dataset[0][0], first)
    assert torch.equal(dataset[-6][0], first)


def test_without_augmentation_an_item_holds_the_voxels_of_the_volume(make):
    dataset = make(augment=False)
    address = dataset.tiles.address(0, 1)
    voxels = dataset.tiles.sources[0].image.read(address.box)
    np.testing.assert_array_equal((dataset[1][0] * 255).round().numpy(), voxels)


def test_the_tiles_of_val_cover_their_box_once(make):
    dataset = make("val")
    assert sum(int((label != IGNORE_LABEL).sum()) for _, label in dataset) == 3 * 128 * 128


@pytest.mark.parametrize(("num_workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_a_data_loader_returns_batches_also_from_spawned_processes(make, num_workers, context):
    dataset = make()
    loader = DataLoader(dataset, batch_size=4, num_workers=num_workers, multiprocessing_context=context)
    batches = list(loader)
    assert [tuple(image.shape) for image, _ in batches] == [(4, 1, 64, 64), (2, 1, 64, 64)]
    assert torch.equal(batches[1][0][1], dataset[5][0])


def test_an_unknown_split_and_an_index_past_the_end_are_refused(make):
    with pytest.raises(InputError, match="it can be train, val, test"):
        make("training")
    with pytest.raises(IndexError, match="tile 6 of 6"):
        make()[6]


def test_arrays_are_the_volumes_of_the_task(make, tiny_task, tmp_path):
    volumes = [open_volume(tiny_task[key])[:] for key in ("image_chan", "annotation_chan")]
    task = {key: value for key, value in tiny_task.items() if not key.endswith("_chan")}
    dataset = TileDataset(
        task, image=volumes[0], annotation=volumes[1], voxel_size=(30, 6, 6), storage=tmp_path, settings=SETTINGS
    )
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "arrays").iterdir()) == ["annotation", "image"]
    for (image, label), (expected_image, expected_label) in zip(dataset, make(), strict=True):
        assert torch.equal(image, expected_image)
        assert torch.equal(label, expected_label)


def test_an_unknown_argument_is_refused_with_the_list(make):
    with pytest.raises(TypeError, match="did you mean 'annotation'"):
        make(labels="x.zarr")
    with pytest.raises(TypeError, match="it takes annotation, augment, boss, cache, cache_size, image"):
        make(xyz=1)


def test_tiles_of_a_3d_network_have_sections(tiny_task):
    image, label = TileDataset({**tiny_task, "volume_z": 2}, network="UNet_3D")[0]
    assert (image.shape, label.shape) == ((1, 2, 64, 64), (2, 64, 64))


def test_a_missing_task_file_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        TileDataset(str(tmp_path / "nowhere.json"))
