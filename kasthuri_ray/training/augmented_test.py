"""The test of a run with test-time augmentation, whose figures stand beside those of the default segmentation.

Each test tile goes through the network in eight views, as `segment.py --tta` does. The thresholds and the object
settings are those of the run, which were chosen without augmentation: so does a segmentation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.inference.predictor import IDENTITY, VIEWS, apply_view, undo_view
from kasthuri_ray.training.learner import Learner, TileBatchLike
from kasthuri_ray.training.training_job import TrainingJob

MAX_SHARE = 0.05  # of the work of a run, by default
TRAINING_PASSES = 3  # what a training step costs: forward, and backward about twice that


def should_test_augmented(job: TrainingJob, context: Zyx = (0, 0, 0)) -> bool:
    """Return whether the test box is predicted with test-time augmentation too.

    Parameters
    ----------
    job : TrainingJob
        The run.
    context : tuple of int
        Of the test tiles, see `GridTiles`.

    Returns
    -------
    bool
        As `train.test_tta` says; if that is auto, whether it is cheap and cannot fail.
    """
    if job.tiles.test is None:
        return False
    asked = job.settings.train.test_tta
    if asked != "auto":
        return asked == "on"
    *_, height, width = job.tiles.test.tile
    may_fail = "." in job.settings.network.model and height != width  # a network of one's own, on a transposed tile
    return augmented_share(job, context) <= MAX_SHARE and not may_fail


def augmented_share(job: TrainingJob, context: Zyx = (0, 0, 0)) -> float:
    """Return what the augmented test costs, as a share of the rest of the run.

    Parameters
    ----------
    job : TrainingJob
        A run with a test box.
    context : tuple of int
        Of the test tiles, see `GridTiles`.

    Returns
    -------
    float
        By the number of voxels that go through the network.
    """
    assert job.tiles.test is not None
    epoch = TRAINING_PASSES * job.tiles.train.tiles_per_epoch + len(job.tiles.val)
    growth = math.prod(1 + 2 * around / length for length, around in zip(job.tiles.test.tile, context, strict=True))
    test = len(job.tiles.test) * growth
    return (len(VIEWS) - 1) * test / (job.settings.network.epochs * epoch + test)


def augmented_logits(learner: Learner, batch: TileBatchLike, logits: Tensor) -> Tensor:
    """Return logits whose softmax is the mean of the probabilities over all views.

    Parameters
    ----------
    learner : Learner
        In its evaluation mode.
    batch : TileBatchLike
        The tiles.
    logits : Tensor
        Their logits, N, classes, [z], y, x.

    Returns
    -------
    Tensor
        float32, of the same shape.
    """
    images, _ = learner.load(batch)
    total = torch.softmax(logits.float(), dim=1)
    for view in VIEWS:
        if view != IDENTITY:
            viewed = apply_view(images, view).contiguous(memory_format=learner.memory_format)
            total += torch.softmax(undo_view(learner.logits(viewed), view).float(), dim=1)
    return (total / len(VIEWS)).clamp_(min=torch.finfo(torch.float32).tiny).log_()
