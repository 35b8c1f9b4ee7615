"""The recipe that ours is held against."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from kasthuri_ray.benchmarks import seed_recipe
from kasthuri_ray.benchmarks.seed_recipe import ArrayTiles, SeedRecipe, augment_seed_tile


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tiles on a busy machine: threads would wait for each other far longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_image_and_label_are_turned_and_flipped_together() -> None:
    torch.manual_seed(0)
    image = torch.zeros(1, 64, 64)
    image[0, 20:30, 8:40] = 1
    moved = 0
    for _ in range(10):
        turned, label = augment_seed_tile(image, (image > 0).long(), degrees=30.0, likely=0.5)
        assert ((turned > 0.5) == (label > 0)).float().mean() > 0.98
        moved += not torch.equal(turned, image)
    assert 3 <= moved <= 10


def test_tiles_are_the_grid_unchanged_without_learning() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 96)).astype(np.uint8)
    tiles = ArrayTiles(image, image // 128, 32)
    assert len(tiles) == 2 * 2 * 3
    first, label = tiles[5]
    np.testing.assert_allclose(first[0] * 255, image[0, 32:64, 64:96], atol=1e-3)
    np.testing.assert_array_equal(label, image[0, 32:64, 64:96] // 128)


def test_it_learns_what_is_bright_and_its_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(seed_recipe.NETWORK, "start_filters", 4)
    monkeypatch.setitem(seed_recipe.ROTATION, "membrane", (0.0, 1.0))
    rng = np.random.default_rng(0)
    label = (rng.random((8, 8, 8)) < 0.5).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    pair = (label * 200, label)
    recipe = SeedRecipe("membrane", pair, pair, pair, size=32, batch_size=2)
    for group in recipe.optimizer.param_groups:
        group["lr"] = 1e-2
    found = recipe.run(epochs=10)
    assert found["foreground_f1"] > 0.9
    assert found["seconds"] > 0
    assert len(recipe.time_steps(2)) == 2
    assert recipe.time_judging() > 0
    assert recipe.judged_batches(8) == 9 * 4
