"""Augmentation of whole batches: random numbers, data types, shapes and bad arguments."""

import pytest
import torch

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.tiles.augmentation import Augment
from kasthuri_ray.tiles.transforms import PROBABILITIES, AugmentationStrength

ALL = AugmentationStrength(**dict.fromkeys(PROBABILITIES, 1.0))


@pytest.mark.parametrize("dim", [2, 3])
def test_all_changes_at_once_keep_labels_classes_and_images_in_range(make_batch, dim):
    images, labels = make_batch(dim)
    labels[:, ..., 10:20, 10:20] = IGNORE_LABEL
    for seed in range(5):
        changed, changed_labels = Augment(dim=dim, strength=ALL)(images, labels, seed)
        assert set(changed_labels.unique().tolist()) == {0, 1, IGNORE_LABEL}
        assert torch.isfinite(changed).all()
        assert 0 <= changed.min() < changed.max() <= 1
        assert 0.5 < (changed_labels == IGNORE_LABEL).sum() / (labels == IGNORE_LABEL).sum() < 2


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.uint8), (torch.bfloat16, torch.int64)])
def test_data_types_and_shapes_stay_and_the_callers_tensors_do_not_change(make_batch, dtypes, dim):
    images, labels = (value.to(dtype) for value, dtype in zip(make_batch(dim), dtypes, strict=True))
    before = images.clone(), labels.clone()
    changed, changed_labels = Augment(dim=dim, strength=ALL)(images, labels, 1)
    assert (changed.dtype, changed_labels.dtype) == dtypes
    assert (changed.shape, changed_labels.shape) == (images.shape, labels.shape)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("name", ["transpose", "flip_x", "rotate"])
def test_strides_stay_so_that_nothing_is_compiled_again(make_batch, name):
    images, labels = make_batch(2)
    images = images.to(memory_format=torch.channels_last)
    changed, changed_labels = Augment(strength=AugmentationStrength(**{name: 1.0}))(images, labels, 0)
    assert changed.stride() == images.stride()
    assert changed_labels.stride() == labels.stride()


def test_the_kind_none_changes_nothing(make_batch):
    images, labels = make_batch(2)
    changed, changed_labels = Augment("none")(images, labels, 1)
    assert torch.equal(changed, images)
    assert torch.equal(changed_labels, labels)


def test_the_same_seed_returns_the_same_tiles_and_another_seed_returns_others(make_batch):
    images, labels = make_batch(3)
    augment = Augment("em", dim=3)
    once, again, other = (augment(images, labels, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
    assert not torch.equal(once[0], other[0])
    assert torch.equal(augment(images, labels, 5)[0], once[0])


def test_a_tile_changes_in_the_same_way_in_every_batch(make_batch):
    images, labels = make_batch(2)
    augment = Augment(strength=ALL)
    together = augment(images, labels, [7, 8, 9, 10, 11, 12])
    apart = augment(images[2:4], labels[2:4], [9, 10])
    torch.testing.assert_close(apart[0], together[0][2:4], rtol=0, atol=1e-6)
    assert torch.equal(apart[1], together[1][2:4])


def test_another_strength_of_one_change_leaves_the_other_changes_as_they_were(make_batch):
    images, labels = make_batch(2)
    flips = AugmentationStrength(flip_x=1.0, flip_y=1.0)
    darker = AugmentationStrength(flip_x=1.0, flip_y=1.0, intensity=1.0)
    assert torch.equal(Augment(strength=flips)(images, labels, 3)[1], Augment(strength=darker)(images, labels, 3)[1])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_tiny_tiles_do_not_fail(size):
    images, labels = torch.rand(3, 1, size, size), torch.zeros(3, size, size, dtype=torch.uint8)
    changed, _ = Augment(strength=ALL)(images, labels, 0)
    assert torch.isfinite(changed).all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Augment("strong"), "'strong'; it can be none, basic, em"),
        (lambda: Augment()(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8), 0), r"images N, 1, y, x.*\(2, 3, 8, 8\)"),
        (lambda: Augment()(torch.zeros(2, 1, 8, 8), torch.zeros(2, 9, 8), 0), r"and \(2, 9, 8\)"),
        (lambda: Augment()(torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2, 8, 8), 0), "divide by 255"),
        (lambda: Augment()(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8), [1]), "1 seeds for 2 tiles"),
    ],
)
def test_bad_arguments_are_refused_with_a_message(call, text):
    with pytest.raises(ValueError, match=text):
        call()
