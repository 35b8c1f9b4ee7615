"""The seed's recipe, with which our training is compared."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kasthuri_ray.benchmarks import seed_recipe
from kasthuri_ray.benchmarks.seed_recipe import ArrayTiles, SeedRecipe, augment_seed_tile


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread: on a busy machine threads of tiny tiles wait for each other longer than they compute."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def test_image_and_label_are_rotated_and_flipped_together() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 64, 64)
    image[0, 20:30, 8:40] = 1
    num_changed = 0
    for _ in range(10):
        augmented, label = augment_seed_tile(image, (image > 0).long(), max_degrees=30.0, probability=0.5)
        assert ((augmented > 0.5) == (label > 0)).float().mean() > 0.98
        num_changed += not torch.equal(augmented, image)
    assert 3 <= num_changed <= 10


def test_tiles_for_validation_are_the_unchanged_tiles_of_the_grid() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 96)).astype(np.uint8)
    tiles = ArrayTiles(image, image // 128, 32)
    assert len(tiles) == 2 * 2 * 3
    tile, label = tiles[5]
    np.testing.assert_allclose(tile[0] * 255, image[0, 32:64, 64:96], atol=1e-3)
    np.testing.assert_array_equal(label, image[0, 32:64, 64:96] // 128)


def test_it_learns_to_find_bright_voxels_and_measures_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seed_recipe.NETWORK, "start_filters", 4)
    monkeypatch.setitem(seed_recipe.ROTATION, "membrane", (0.0, 1.0))
    rng = np.random.default_rng(0)
    label = (rng.random((8, 8, 8)) < 0.5).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    arrays = (label * 200, label)
    recipe = SeedRecipe("membrane", arrays, arrays, arrays, size=32, batch_size=2)
    for group in recipe.optimizer.param_groups:
        group["lr"] = 1e-2
    result = recipe.run(epochs=10)
    assert result["foreground_f1"] > 0.9
    assert result["seconds"] > 0
    assert len(recipe.time_steps(2)) == 2
    assert recipe.time_validation() > 0
    assert recipe.count_validation_batches(8) == 9 * 4
