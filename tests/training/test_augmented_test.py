"""The test with test-time augmentation: the mean over eight views, and when it is cheap enough to be measured."""

from types import SimpleNamespace

import pytest
import torch

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.training.augmented_test import augmented_logits, augmented_share, should_test_augmented


class Bright:
    """Stands for a learner whose network depends on the direction: its logit is the voxel on the left."""

    memory_format = torch.contiguous_format

    def load(self, batch):
        return batch, None

    def logits(self, images):
        return torch.cat([torch.zeros_like(images), images.roll(1, -1) * 4], 1)


def make_job(num_test: int, epochs: int = 4, setting: str = "auto", model: str = "UNet", tile=(1, 64, 64)):
    """Return what the decision depends on: 20 tiles an epoch, 10 of val."""
    settings = resolve_settings(
        GivenSettings("phantom_synapse", flags={"network": {"epochs": epochs}, "train": {"test_tta": setting}})
    )
    network = settings.network.model_copy(update={"model": model})
    test = type("Tiles", (), {"tile": tile, "__len__": lambda self: num_test})() if num_test else None
    tiles = SimpleNamespace(train=SimpleNamespace(tiles_per_epoch=20), val=[None] * 10, test=test)
    return SimpleNamespace(settings=settings.model_copy(update={"network": network}), tiles=tiles)


def test_the_mean_is_over_the_eight_turns_and_mirror_images_of_a_tile():
    torch.manual_seed(0)
    images, learner = torch.rand(2, 1, 8, 8), Bright()
    expected = torch.zeros(2, 2, 8, 8)
    for turns in range(4):
        for mirrored in (False, True):
            view = torch.rot90(images.flip(-1) if mirrored else images, turns, (-2, -1))
            back = torch.rot90(torch.softmax(learner.logits(view), 1), -turns, (-2, -1))
            expected += back.flip(-1) if mirrored else back
    found = torch.softmax(augmented_logits(learner, images, learner.logits(images)), 1)
    torch.testing.assert_close(found, expected / 8)
    assert not torch.allclose(found, torch.softmax(learner.logits(images), 1), atol=0.01)


def test_a_class_that_no_view_finds_has_a_finite_logit():
    learner = Bright()
    learner.logits = lambda images: torch.cat([images * 0 + 500, images * 0 - 500], 1)
    images = torch.zeros(1, 1, 4, 4)
    assert torch.isfinite(augmented_logits(learner, images, learner.logits(images))).all()


def test_the_cost_is_counted_in_forward_passes():
    assert augmented_share(make_job(6)) == pytest.approx(7 * 6 / (4 * (3 * 20 + 10) + 6))
    with_context = 7 * 6 * 1.5**2
    assert augmented_share(make_job(6), (0, 16, 16)) == pytest.approx(
        with_context / (4 * (3 * 20 + 10) + with_context / 7)
    )


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (make_job(1), True),
        (make_job(6), False),
        (make_job(6, epochs=20), True),
        (make_job(0, setting="on"), False),
        (make_job(6, setting="on"), True),
        (make_job(1, setting="off"), False),
        (make_job(1, model="my.Net"), True),
        (make_job(1, model="my.Net", tile=(1, 64, 48)), False),
        (make_job(1, tile=(1, 64, 48)), True),
    ],
)
def test_by_default_it_is_measured_where_it_costs_a_twentieth_of_the_run_at_most(job, expected):
    assert should_test_augmented(job) == expected
