"""The single changes of augmentation: what each does to images and labels, how often and how strongly."""

import math

import pytest
import torch

from kasthuri_ray.tiles.augmentation import Augment
from kasthuri_ray.tiles.transforms import EM_STRENGTH, PROBABILITIES, AugmentationStrength, make_strength

SPATIAL = ("flip_x", "flip_y", "flip_z", "transpose", "rotate", "elastic", "shift")
IMAGE_ONLY = ("blur", "intensity", "patch", "section_brightness", "noise", "missing_section", "cutout")


def only(*names: str, **strength: float) -> AugmentationStrength:
    return AugmentationStrength(**dict.fromkeys(names, 1.0), **strength)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", SPATIAL)
def test_a_spatial_change_moves_image_and_label_together(make_batch, name, dim):
    images, labels = make_batch(dim)
    moved, moved_labels = Augment(dim=dim, strength=only(name))(images, labels, 1)
    is_changed = not torch.equal(moved, images)
    assert is_changed == (dim == 3 or name not in ("flip_z", "shift"))
    near_edge = (moved[:, 0] - 0.5).abs() < 0.1  # there the nearest and the interpolated voxel may disagree
    assert near_edge.float().mean() < 0.4
    assert torch.equal((moved[:, 0] > 0.5)[~near_edge], moved_labels.bool()[~near_edge])


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", IMAGE_ONLY)
def test_a_change_of_grey_values_leaves_labels_as_they_are(make_batch, name, dim):
    images, labels = make_batch(dim)
    changed, same_labels = Augment(dim=dim, strength=only(name))(images, labels, 1)
    assert torch.equal(same_labels, labels)
    assert torch.equal(changed, images) == (dim == 2 and name == "section_brightness")


def test_flips_and_transposes_reach_all_eight_orientations_and_keep_every_value():
    tile = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
    images, labels = tile.repeat(200, 1, 1, 1), (tile[0] * 16).long().repeat(200, 1, 1)
    strength = AugmentationStrength(flip_x=0.5, flip_y=0.5, transpose=0.5)
    changed, changed_labels = Augment(strength=strength)(images, labels, 0)
    orientations, counts = changed.flatten(1).unique(dim=0, return_counts=True)
    assert len(orientations) == 8
    assert counts.min() > 10
    assert torch.equal((changed[:, 0] * 16).long(), changed_labels)


def test_tiles_that_are_not_square_are_flipped_and_not_transposed():
    images, labels = torch.rand(4, 1, 16, 32), torch.zeros(4, 16, 32, dtype=torch.uint8)
    assert Augment(strength=only("transpose", "flip_x"))(images, labels, 0)[0].shape == images.shape


def test_a_rotation_turns_about_the_centre_by_at_most_the_largest_angle():
    size = 65
    images = torch.zeros(40, 1, size, size)
    images[:, :, 32, 52] = images[:, :, 32, 32] = 1
    labels = (images[:, 0] > 0).to(torch.uint8)
    rotated, _ = Augment("basic", task_type="membrane")(images, labels, 0)
    assert torch.allclose(rotated[:, 0, 32, 32], torch.ones(40), atol=1e-3)
    rotated[:, 0, 30:35, 30:35] = 0
    mass = rotated[:, 0] / rotated[:, 0].sum((1, 2), keepdim=True)
    axis = torch.arange(size) - 32.0
    dy, dx = (mass.sum(2) * axis).sum(1), (mass.sum(1) * axis).sum(1)
    degrees = torch.rad2deg(torch.atan2(dy, dx.abs()))
    assert degrees.abs().max() <= 10.3
    assert degrees.abs().max() > 7
    assert degrees.min() < 0 < degrees.max()
    assert torch.allclose(torch.hypot(dx, dy), torch.full((40,), 20.0), atol=0.5)
    assert 8 < (dx < 0).sum() < 32  # half of the tiles are flipped horizontally


def test_a_rotation_fills_the_corners_with_the_tile_mirrored_at_its_edge(make_batch):
    images, labels = make_batch(2)
    images = 0.5 + images / 2  # nothing is black, so black could only come from outside
    rotated, _ = Augment(strength=only("rotate", max_degrees=45))(images, labels, 0)
    assert rotated.min() >= images.min() - 1e-6


def test_an_elastic_deformation_is_smooth_and_stays_within_its_strength():
    size = 128
    ramp = torch.linspace(0.25, 0.75, size).expand(8, 1, size, size)
    labels = torch.zeros(8, size, size, dtype=torch.uint8)
    bent, _ = Augment(strength=only("elastic", elastic_pixels=6))(ramp, labels, 0)
    pixels = ((bent - ramp) * 2 * (size - 1))[..., 24:-24, 24:-24]
    assert 1 < pixels.abs().max() < 24  # four standard deviations
    assert pixels.diff(dim=-1).abs().max() < 0.7  # never folded
    assert pixels.diff(dim=-1).diff(dim=-1).abs().max() < 0.05


def test_a_shift_moves_whole_sections_by_whole_pixels(make_batch):
    images, labels = make_batch(3)
    moved, moved_labels = Augment(dim=3, strength=only("shift", max_shift=3))(images, labels, 2)
    patterns = set()
    for tile, new in zip(images[:, 0], moved[:, 0], strict=True):
        patterns.add(tuple(torch.equal(a, b) for a, b in zip(tile, new, strict=True)))
        for a, b in zip(tile, new, strict=True):
            shifts = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
            inner = b[3:-3, 3:-3]
            assert any(torch.equal(a[3 + dy : 45 + dy, 3 + dx : 45 + dx], inner) for dy, dx in shifts)
    assert any(stays.count(False) == 1 for stays in patterns)
    assert any(stays.count(False) > 1 and not stays[-1] for stays in patterns)
    assert torch.equal(moved[:, 0] > 0.5, moved_labels.bool())


def test_blur_keeps_the_mean_and_removes_fine_detail():
    images = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    blurred, _ = Augment(strength=only("blur"))(images, torch.zeros(6, 64, 64, dtype=torch.uint8), 0)
    assert torch.allclose(blurred.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=5e-3)
    assert (blurred.std((1, 2, 3)) < 0.9 * images.std((1, 2, 3))).all()


def test_noise_has_the_requested_strength():
    images = torch.full((50, 1, 32, 32), 0.5)
    noisy, _ = Augment(strength=only("noise", max_noise=0.1))(images, torch.zeros(50, 32, 32, dtype=torch.uint8), 0)
    sigma = (noisy - 0.5).std((1, 2, 3))
    assert sigma.max() < 0.105
    assert sigma.mean() == pytest.approx(0.05, abs=0.015)


def test_each_tile_is_changed_with_the_probability_of_the_change():
    images = torch.full((400, 1, 8, 8), 0.5)
    changed, _ = Augment(strength=AugmentationStrength(noise=0.25))(
        images, torch.zeros(400, 8, 8, dtype=torch.uint8), 0
    )
    share = (changed != images).flatten(1).any(1).float().mean()
    assert share == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 400))


def test_a_missing_section_of_a_volume_is_black_or_grey_and_keeps_its_label(make_batch):
    images, labels = make_batch(3)
    changed, same_labels = Augment(dim=3, strength=only("missing_section"))(images, labels, 0)
    sections = changed[:, 0].flatten(2)
    is_empty = sections.std(2) < 1e-6
    assert (is_empty.sum(1) == 1).all()
    greys = sections.mean(2)[is_empty]
    assert (greys == 0).any()
    means = images.mean((1, 2, 3, 4))
    assert torch.allclose(greys[greys > 0], means[greys > 0])
    assert torch.equal(same_labels, labels)


def test_a_missing_section_in_2d_is_a_faint_one(make_batch):
    images, labels = make_batch(2)
    faint, _ = Augment(strength=only("missing_section", min_faint_contrast=0.4))(images, labels, 0)
    contrast = faint.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.4 <= contrast.min() < contrast.max() <= 1


def test_a_cutout_is_a_small_rectangle(make_batch):
    images, labels = make_batch(2)
    cut, _ = Augment(strength=only("cutout", max_cutout=0.5))(images, labels, 0)
    share = (cut != images).float().mean((1, 2, 3))
    assert share.min() > 0
    assert share.max() <= 0.26


def test_basic_rotates_half_of_the_synapse_tiles_by_up_to_30_degrees():
    membrane, synapse = make_strength("basic", "membrane"), make_strength("basic", "synapse")
    assert (membrane.flip_x, membrane.rotate, membrane.max_degrees) == (0.5, 1.0, 10.0)
    assert (synapse.flip_x, synapse.rotate, synapse.max_degrees) == (0.5, 0.5, 30.0)
    assert not any(getattr(synapse, name) for name in PROBABILITIES if name not in ("flip_x", "rotate"))


def test_em_can_make_every_change_and_makes_most_of_them_rarely():
    assert all(getattr(EM_STRENGTH, name) > 0 for name in PROBABILITIES)
    frequent = ("flip", "trans", "intensity")
    assert all(getattr(EM_STRENGTH, name) <= 0.2 for name in PROBABILITIES if not name.startswith(frequent))


@pytest.mark.parametrize(
    ("strength", "text"),
    [
        ({"noise": 1.5}, "strength noise is 1.5; it can be 0 to 1.0"),
        ({"max_noise": -1}, "strength max_noise is -1; it can be 0 to inf"),
        ({"blur": math.nan}, "strength blur is nan"),
    ],
)
def test_a_strength_out_of_range_is_refused_with_the_range(strength, text):
    with pytest.raises(ValueError, match=text):
        AugmentationStrength(**strength)
