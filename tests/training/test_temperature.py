"""Logits are divided by a power of two, until no probability is close to 1 any more."""

import numpy as np
import pytest
import torch

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.metrics.voxel_scores import split_metrics
from kasthuri_ray.models.checkpoints import Checkpoint, checkpoint_bytes, read_checkpoint
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.training.learner import count_batch_voxels
from kasthuri_ray.training.temperature import (
    TEMPERATURES,
    choose_temperature,
    divide_logits,
    saturated_share,
    temperature_lines,
    with_temperature,
)


class Sure:
    """Stands for a learner whose logits are the labels, times `sureness`; one voxel in ten is wrong."""

    def __init__(self, sureness, classes=2):
        self.settings, self.sureness = type("Settings", (), {"classes": classes})(), sureness

    def evaluate(self, batches, on_batch):
        counts = VoxelCounts.zeros(self.settings.classes)
        for batch in batches:
            labels = torch.from_numpy(batch)
            shown = torch.where(torch.arange(labels.numel()).reshape(labels.shape) % 10 == 0, 1 - labels % 2, labels)
            one_hot = torch.nn.functional.one_hot(shown.long() % self.settings.classes, self.settings.classes)
            logits = self.sureness * one_hot.movedim(-1, 1).float()
            on_batch(None, logits, labels)
            counts = counts + count_batch_voxels(logits, labels)
        return counts, 0.0


def batches(classes=2):
    labels = np.random.default_rng(0).integers(0, classes, (3, 2, 16, 16), dtype=np.uint8)
    labels[0, 0, 0] = IGNORE_LABEL
    return list(labels)


@pytest.mark.parametrize(("sureness", "expected"), [(1, 1), (3.8, 1), (4, 2), (7.7, 2), (8, 4), (30, 8), (1000, 16)])
def test_the_lowest_temperature_is_taken_at_which_no_probability_is_close_to_1(sureness, expected):
    temperature, counts = choose_temperature(Sure(sureness), batches())
    assert temperature == expected
    assert 1 / (1 + np.exp(-sureness / temperature)) < 0.98 or temperature == TEMPERATURES[-1]
    assert counts.num_voxels == 3 * 2 * 16 * 16 - 16


def test_of_several_classes_the_most_saturated_one_decides():
    logits = torch.zeros(1, 3, 8, 8)
    logits[:, 1, :4], logits[:, 2, 4:] = 3, 20
    labels = logits.argmax(1).to(torch.uint8)
    assert saturated_share(count_batch_voxels(logits, labels)) == 1
    assert saturated_share(count_batch_voxels(logits / 8, labels)) == 0
    assert saturated_share(VoxelCounts.zeros(3)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_division_of_the_weights_is_exact(dtype):
    torch.manual_seed(0)
    network = build_network({"n_blocks": 2, "start_filters": 4}).eval().to(dtype)
    image = torch.rand(1, 1, 32, 32, dtype=dtype)
    with torch.no_grad():
        before = network(image)
        network.load_state_dict(divide_logits(network.state_dict(), 4))
        assert torch.equal(network(image), before / 4)


def test_a_checkpoint_has_the_threshold_of_the_divided_logits():
    temperature, counts = choose_temperature(Sure(20), batches())
    weights = build_network({"n_blocks": 2, "start_filters": 4}).state_dict()
    best = Checkpoint(weights, best={"epoch": 3, "average_precision": 0.5, "threshold": 0.99, "val": {}})
    divided = with_temperature(best, temperature, counts, ["synapse"])
    assert divided.best["epoch"] == 3
    assert divided.best["threshold"] < 0.99
    expected = split_metrics(counts, [divided.best["threshold"]], ["synapse"])
    assert divided.best["val"]["foreground_f1"] == expected["foreground_f1"]
    read = read_checkpoint(checkpoint_bytes(divided), "best.pt")
    assert read.temperature == temperature
    assert torch.equal(read.weights["conv_final.weight"], weights["conv_final.weight"] / temperature)
    assert best.temperature is None
    assert "divided by 4" in temperature_lines(4)[0]
    assert temperature_lines(1) == temperature_lines(None) == []
