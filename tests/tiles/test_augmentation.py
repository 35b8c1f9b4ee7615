from __future__ import annotations

import math

import pytest
import torch

from kasthuri_ray.tiles.augmentation import Augment
from kasthuri_ray.tiles.transforms import EM_STRENGTH, PROBABILITIES, AugmentationStrength, augmentation_strength

ALL = AugmentationStrength(**dict.fromkeys(PROBABILITIES, 1.0))
PLACE = ("flip_x", "flip_y", "flip_z", "transpose", "rotate", "elastic", "shift")
GREY = ("blur", "light", "region", "section", "noise", "missing", "cutout")
IGNORE = 255


def only(*names: str, **strength: float) -> AugmentationStrength:
    return AugmentationStrength(**dict.fromkeys(names, 1.0), **strength)


def batch(dim: int, num_tiles: int = 6, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random images, and as labels where they are bright: any change of place keeps the two together."""
    coarse = torch.rand(num_tiles, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    images = images.clamp(0, 1)[:, : 4 if dim == 3 else 1]
    labels = (images > 0.5).to(torch.uint8)
    return (images[:, None], labels) if dim == 3 else (images, labels[:, 0])


def section(images: torch.Tensor) -> torch.Tensor:
    return images[:, 0]


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", PLACE)
def test_image_and_label_move_together(name, dim):
    images, labels = batch(dim)
    moved, moved_labels = Augment(dim=dim, strength=only(name))(images, labels, 1)
    changed = not torch.equal(moved, images)
    assert changed == (dim == 3 or name not in ("flip_z", "shift"))
    near = (section(moved) - 0.5).abs() < 0.1  # there the nearest and the interpolated voxel may disagree
    assert near.float().mean() < 0.4
    assert torch.equal((section(moved) > 0.5)[~near], moved_labels.bool()[~near])


@pytest.mark.parametrize("dim", [2, 3])
def test_all_at_once_keep_labels_whole_and_images_in_range(dim):
    images, labels = batch(dim)
    labels[:, ..., 10:20, 10:20] = IGNORE
    for seed in range(5):
        changed, changed_labels = Augment(dim=dim, strength=ALL)(images, labels, seed)
        assert set(changed_labels.unique().tolist()) == {0, 1, IGNORE}
        assert torch.isfinite(changed).all()
        assert 0 <= changed.min() < changed.max() <= 1
        assert 0.5 < (changed_labels == IGNORE).sum() / (labels == IGNORE).sum() < 2


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", GREY)
def test_changes_of_grey_value_leave_labels_alone(name, dim):
    images, labels = batch(dim)
    changed, same = Augment(dim=dim, strength=only(name))(images, labels, 1)
    assert torch.equal(same, labels)
    assert torch.equal(changed, images) == (dim == 2 and name == "section")


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.uint8), (torch.bfloat16, torch.int64)])
def test_dtypes_shapes_and_the_callers_tensors_are_kept(dtypes, dim):
    images, labels = (value.to(dtype) for value, dtype in zip(batch(dim), dtypes, strict=True))
    before = images.clone(), labels.clone()
    changed, changed_labels = Augment(dim=dim, strength=ALL)(images, labels, 1)
    assert (changed.dtype, changed_labels.dtype) == dtypes
    assert (changed.shape, changed_labels.shape) == (images.shape, labels.shape)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("name", ["transpose", "flip_x", "rotate"])
def test_strides_are_kept_so_that_nothing_compiles_again(name):
    images, labels = batch(2)
    images = images.to(memory_format=torch.channels_last)
    changed, changed_labels = Augment(strength=only(name))(images, labels, 0)
    assert changed.stride() == images.stride()
    assert changed_labels.stride() == labels.stride()


def test_none_changes_nothing():
    images, labels = batch(2)
    changed, changed_labels = Augment("none")(images, labels, 1)
    assert torch.equal(changed, images)
    assert torch.equal(changed_labels, labels)


def test_the_same_seed_gives_the_same_tiles_and_another_seed_others():
    images, labels = batch(3)
    augment = Augment("em", dim=3)
    once, again, other = (augment(images, labels, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(once[0], again[0])
    assert torch.equal(once[1], again[1])
    assert not torch.equal(once[0], other[0])
    assert torch.equal(augment(images, labels, 5)[0], once[0])


def test_a_tile_changes_alike_in_whatever_batch_it_comes():
    images, labels = batch(2)
    augment = Augment(strength=ALL)
    together = augment(images, labels, [7, 8, 9, 10, 11, 12])
    apart = augment(images[2:4], labels[2:4], [9, 10])
    torch.testing.assert_close(apart[0], together[0][2:4], rtol=0, atol=1e-6)
    assert torch.equal(apart[1], together[1][2:4])


def test_another_strength_of_one_change_leaves_the_others_as_they_were():
    images, labels = batch(2)
    flips = only("flip_x", "flip_y")
    darker = AugmentationStrength(flip_x=1, flip_y=1, light=1.0)
    assert torch.equal(Augment(strength=flips)(images, labels, 3)[1], Augment(strength=darker)(images, labels, 3)[1])


def test_flips_and_turns_reach_all_eight_ways_to_lay_a_tile_and_keep_every_value():
    tile = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
    images, labels = tile.repeat(200, 1, 1, 1), (tile[0] * 16).long().repeat(200, 1, 1)
    turns = AugmentationStrength(flip_x=0.5, flip_y=0.5, transpose=0.5)
    changed, changed_labels = Augment(strength=turns)(images, labels, 0)
    ways, counts = changed.flatten(1).unique(dim=0, return_counts=True)
    assert len(ways) == 8
    assert counts.min() > 10
    assert torch.equal((changed[:, 0] * 16).long(), changed_labels)


def test_tiles_that_are_not_square_are_flipped_and_not_turned():
    images, labels = torch.rand(4, 1, 16, 32), torch.zeros(4, 16, 32, dtype=torch.uint8)
    assert Augment(strength=only("transpose", "flip_x"))(images, labels, 0)[0].shape == images.shape


def test_a_rotation_turns_about_the_centre_by_no_more_than_the_greatest_angle():
    size = 65
    images = torch.zeros(40, 1, size, size)
    images[:, :, 32, 52] = images[:, :, 32, 32] = 1
    labels = (images[:, 0] > 0).to(torch.uint8)
    turned, _ = Augment("basic", task_type="membrane")(images, labels, 0)
    assert torch.allclose(turned[:, 0, 32, 32], torch.ones(40), atol=1e-3)
    turned[:, 0, 30:35, 30:35] = 0
    mass = turned[:, 0] / turned[:, 0].sum((1, 2), keepdim=True)
    axis = torch.arange(size) - 32.0
    dy, dx = (mass.sum(2) * axis).sum(1), (mass.sum(1) * axis).sum(1)
    degrees = torch.rad2deg(torch.atan2(dy, dx.abs()))
    assert degrees.abs().max() <= 10.3
    assert degrees.abs().max() > 7
    assert degrees.min() < 0 < degrees.max()
    assert torch.allclose(torch.hypot(dx, dy), torch.full((40,), 20.0), atol=0.5)
    assert 8 < (dx < 0).sum() < 32  # the horizontal flip of every second tile


def test_basic_turns_every_second_synapse_tile_by_up_to_30_degrees():
    membrane, synapse = augmentation_strength("basic", "membrane"), augmentation_strength("basic", "synapse")
    assert (membrane.flip_x, membrane.rotate, membrane.max_degrees) == (0.5, 1.0, 10.0)
    assert (synapse.flip_x, synapse.rotate, synapse.max_degrees) == (0.5, 0.5, 30.0)
    assert not any(getattr(synapse, name) for name in PROBABILITIES if name not in ("flip_x", "rotate"))


def test_what_a_rotation_pulls_in_is_the_tile_mirrored_at_its_edge():
    images, labels = batch(2)
    images = 0.5 + images / 2  # nothing is black, so black could only come from outside
    turned, _ = Augment(strength=only("rotate", max_degrees=45))(images, labels, 0)
    assert turned.min() >= images.min() - 1e-6


def test_elastic_bending_is_smooth_and_stays_within_its_strength():
    size = 128
    ramp = torch.linspace(0.25, 0.75, size).expand(8, 1, size, size)
    labels = torch.zeros(8, size, size, dtype=torch.uint8)
    bent, _ = Augment(strength=only("elastic", elastic_pixels=6))(ramp, labels, 0)
    pixels = ((bent - ramp) * 2 * (size - 1))[..., 24:-24, 24:-24]
    assert 1 < pixels.abs().max() < 24  # four deviations
    assert pixels.diff(dim=-1).abs().max() < 0.7  # never folded
    assert pixels.diff(dim=-1).diff(dim=-1).abs().max() < 0.05


def test_a_shift_moves_whole_sections_by_whole_pixels():
    images, labels = batch(3)
    moved, moved_labels = Augment(dim=3, strength=only("shift", max_shift=3))(images, labels, 2)
    seen = set()
    for tile, new in zip(images[:, 0], moved[:, 0], strict=True):
        stays = [torch.equal(a, b) for a, b in zip(tile, new, strict=True)]
        seen.add(tuple(stays))
        for a, b in zip(tile, new, strict=True):
            shifts = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
            inner = b[3:-3, 3:-3]
            assert any(torch.equal(a[3 + dy : 45 + dy, 3 + dx : 45 + dx], inner) for dy, dx in shifts)
    assert any(stays.count(False) == 1 for stays in seen)
    assert any(stays.count(False) > 1 and not stays[-1] for stays in seen)
    assert torch.equal(moved[:, 0] > 0.5, moved_labels.bool())


def test_a_missing_section_is_black_or_grey_and_its_label_stays():
    images, labels = batch(3)
    gone, same = Augment(dim=3, strength=only("missing"))(images, labels, 0)
    flat = gone[:, 0].flatten(2)
    empty = flat.std(2) < 1e-6
    assert (empty.sum(1) == 1).all()
    greys = flat.mean(2)[empty]
    assert (greys == 0).any()
    means = images.mean((1, 2, 3, 4))
    assert torch.allclose(greys[greys > 0], means[greys > 0])
    assert torch.equal(same, labels)


def test_in_2d_a_missing_section_is_a_faint_one():
    images, labels = batch(2)
    faint, _ = Augment(strength=only("missing", min_faint=0.4))(images, labels, 0)
    kept = faint.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.4 <= kept.min() < kept.max() <= 1


def test_a_cutout_is_a_small_grey_rectangle():
    images, labels = batch(2)
    cut, _ = Augment(strength=only("cutout", max_cutout=0.5))(images, labels, 0)
    share = (cut != images).float().mean((1, 2, 3))
    assert share.min() > 0
    assert share.max() <= 0.26


def test_blur_keeps_the_mean_and_takes_from_fine_detail():
    images = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    blurred, _ = Augment(strength=only("blur"))(images, torch.zeros(6, 64, 64, dtype=torch.uint8), 0)
    assert torch.allclose(blurred.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=5e-3)
    assert (blurred.std((1, 2, 3)) < 0.9 * images.std((1, 2, 3))).all()


def test_noise_has_the_strength_that_was_asked_for():
    images = torch.full((50, 1, 32, 32), 0.5)
    noisy, _ = Augment(strength=only("noise", max_noise=0.1))(images, torch.zeros(50, 32, 32, dtype=torch.uint8), 0)
    sigma = (noisy - 0.5).std((1, 2, 3))
    assert sigma.max() < 0.105
    assert sigma.mean() == pytest.approx(0.05, abs=0.015)


def test_each_tile_draws_for_itself_as_often_as_the_probability_says():
    images = torch.full((400, 1, 8, 8), 0.5)
    changed, _ = Augment(strength=AugmentationStrength(noise=0.25))(
        images, torch.zeros(400, 8, 8, dtype=torch.uint8), 0
    )
    share = (changed != images).flatten(1).any(1).float().mean()
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 400))


def test_em_is_mild_and_all_of_it_can_happen():
    assert all(getattr(EM_STRENGTH, name) > 0 for name in PROBABILITIES)
    assert all(
        getattr(EM_STRENGTH, name) <= 0.2 for name in PROBABILITIES if not name.startswith(("flip", "trans", "light"))
    )


@pytest.mark.parametrize("size", [1, 2, 5])
def test_tiny_tiles_do_not_fail(size):
    images, labels = torch.rand(3, 1, size, size), torch.zeros(3, size, size, dtype=torch.uint8)
    changed, _ = Augment(strength=ALL)(images, labels, 0)
    assert torch.isfinite(changed).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Augment("strong"), "'strong'; it can be none, basic, em"),
        (lambda: AugmentationStrength(noise=1.5), "strength noise is 1.5; it can be 0 to 1.0"),
        (lambda: AugmentationStrength(max_noise=-1), "strength max_noise is -1; it can be 0 to inf"),
        (lambda: AugmentationStrength(blur=math.nan), "strength blur is nan"),
        (lambda: Augment()(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8), 0), r"images N, 1, y, x.*\(2, 3, 8, 8\)"),
        (lambda: Augment()(torch.zeros(2, 1, 8, 8), torch.zeros(2, 9, 8), 0), r"and \(2, 9, 8\)"),
        (lambda: Augment()(torch.zeros(2, 1, 8, 8).byte(), torch.zeros(2, 8, 8), 0), "divide by 255"),
        (lambda: Augment()(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8), [1]), "1 seeds for 2 tiles"),
    ],
)
def test_bad_arguments_are_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
