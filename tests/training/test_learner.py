"""Learning from batches: equal whatever the number of ranks, and whether or not it was cut off."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kasthuri_ray.config.settings import NetworkSettings
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.models.checkpoints import Checkpoint, checkpoint_bytes, read_checkpoint
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.training.learner import ComputePlan, Learner, StepProgress, count_batch_voxels, foreground_probability
from kasthuri_ray.training.training_job import learner_settings

CPU = torch.device("cpu")
SETTINGS = NetworkSettings(
    start_filters=2, n_blocks=2, optimizer="AdamW", learning_rate=0.01, weight_decay=0.01, scheduler="one_cycle",
    loss="dice_ce", augmentations="em", ema=0.9, gradient_clip=1.0, batch_size=3, epochs=4,
)  # fmt: skip
STEPS = 3


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors as small as these are computed sooner by one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_learner(seed: int = 0, **changes) -> Learner:
    settings = SETTINGS.model_copy(update=changes)
    torch.manual_seed(seed)
    network = build_network(settings.model_dump())
    return Learner(network, learner_settings(settings, "synapse"), CPU, ComputePlan("float32", False, STEPS))


def batch(*numbers: int, shape=(1, 16, 16)) -> SimpleNamespace:
    """Tiles of noise with a label where it is bright, some of it ignored; each follows from its number."""
    images = np.stack([np.random.default_rng(n).integers(0, 256, shape, dtype=np.uint8) for n in numbers])
    labels = (images > 180).astype(np.uint8)
    labels[..., :2] = IGNORE_LABEL
    return SimpleNamespace(image=images, label=labels, number=np.array(numbers))


def epoch(number: int) -> list[SimpleNamespace]:
    return [batch(*range(start, start + 3)) for start in range(number * 9, number * 9 + 9, 3)]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def copy_of(learner: Learner) -> dict:
    return torch.load(io.BytesIO(checkpoint_bytes({"state": learner.state_dict()})), weights_only=True)["state"]


def flat(state: object) -> list:
    if isinstance(state, dict):
        return [leaf for key in sorted(state, key=str) for leaf in flat(state[key])]
    if isinstance(state, list):
        return [leaf for item in state for leaf in flat(item)]
    return [state.tolist() if isinstance(state, torch.Tensor) else state]


def test_a_run_that_was_cut_off_ends_with_the_same_bits():
    whole, losses = make_learner(), []
    for number in range(4):
        losses.append(whole.train_epoch(number, epoch(number), losses))
        if number == 1:
            saved = checkpoint_bytes(Checkpoint(whole.judged_weights(), None, {"learner": whole.state_dict()}))
    state = read_checkpoint(saved, "last.pt").about["learner"]
    resumed = make_learner(seed=99)
    resumed.load_state_dict(state)
    torch.manual_seed(12345)
    again = losses[:2]
    for number in range(2, 4):
        again.append(resumed.train_epoch(number, epoch(number), again))
    assert again == losses
    assert same(resumed.network.state_dict(), whole.network.state_dict())
    assert same(resumed.judged_weights(), whole.judged_weights())
    assert resumed.learning_rate == whole.learning_rate


def test_what_a_network_draws_follows_from_the_epoch():
    def with_dropout() -> Learner:
        learner = make_learner(ema=0.0)
        learner.network.conv_final = nn.Sequential(nn.Dropout2d(0.5), learner.network.conv_final)
        return learner

    one, other = with_dropout(), with_dropout()
    torch.manual_seed(5)
    assert one.train_epoch(1, epoch(1), []) == other.train_epoch(1, epoch(1), [])
    assert same(one.network.state_dict(), other.network.state_dict())


def test_judging_changes_nothing_of_the_training():
    plain, judged = make_learner(), make_learner()
    for number in range(2):
        plain.train_epoch(number, epoch(number), [])
        judged.train_epoch(number, epoch(number), [])
        before = flat(copy_of(judged))
        judged.evaluate([batch(100, 101)])
        judged.judged_weights()
        assert flat(copy_of(judged)) == before
    assert same(plain.network.state_dict(), judged.network.state_dict())


def test_what_is_judged_and_saved_are_the_averaged_weights():
    learner = make_learner()
    learner.train_epoch(0, epoch(0), [])
    assert same(learner.judged_weights(), learner.average.weights)
    assert not same(learner.judged_weights(), learner.network.state_dict())
    twin = make_learner(ema=0.0)
    twin.network.load_state_dict(learner.judged_weights())
    assert twin.evaluate([batch(100, 101)]) == learner.evaluate([batch(100, 101)])


def test_judging_does_not_depend_on_how_tiles_are_batched():
    learner = make_learner()
    learner.train_epoch(0, epoch(0), [])
    counts, _ = learner.evaluate([batch(1, 2, 3, 4)])
    parts, _ = learner.evaluate([batch(1), batch(2, 3, 4)])
    assert counts.num_voxels == parts.num_voxels == 4 * 16 * 14
    assert np.abs(counts.confusion - parts.confusion).max() <= 1
    ignored = batch(5)
    ignored.label[:] = IGNORE_LABEL
    with_ignored, loss = learner.evaluate([batch(1, 2, 3, 4), ignored])
    assert with_ignored == counts
    assert loss == pytest.approx(learner.evaluate([batch(1, 2, 3, 4)])[1])
    nothing, loss = learner.evaluate([])
    assert (nothing.num_voxels, loss) == (0, 0.0)


@pytest.mark.parametrize("classes", [2, 3])
def test_voxels_are_counted_as_the_metrics_count_them(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, 1, 30, 40, generator=generator) * 4
    labels = torch.randint(0, classes, (2, 1, 30, 40), generator=generator).to(torch.uint8)
    labels[:, :, :5] = IGNORE_LABEL
    probabilities = torch.softmax(logits, 1)
    expected = VoxelCounts.zeros(classes)
    expected.add(foreground_probability(probabilities).numpy(), probabilities.argmax(1).numpy(), labels.numpy())
    found = count_batch_voxels(logits, labels)
    assert found == expected
    assert found.num_voxels == 2 * 25 * 40


def test_certain_answers_fall_into_the_last_bin():
    logits = torch.zeros(1, 2, 1, 1, 2)
    logits[0, 1, 0, 0] = torch.tensor([100.0, -100.0])
    assert count_batch_voxels(logits, torch.ones(1, 1, 1, 2, dtype=torch.uint8)).histogram[1][[0, -1]].tolist() == [
        1,
        1,
    ]


def test_a_training_that_diverges_says_what_to_do():
    learner = make_learner(optimizer="SGD", learning_rate=1e30, gradient_clip=0.0, scheduler="constant")
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 1: training diverged; lower network"):
        learner.train_epoch(0, epoch(0), [])
    with pytest.raises(FloatingPointError, match=r"not finite: training diverged; lower network\.learning_rate"):
        count_batch_voxels(torch.full((1, 2, 4, 4), float("nan")), torch.zeros(1, 4, 4, dtype=torch.uint8))


def test_learning_learns_and_tells_every_step():
    learner, told = make_learner(augmentations="none", ema=0.0, learning_rate=0.05, scheduler="constant"), []
    first = learner.train_epoch(0, epoch(0), [], told.append)
    for number in range(1, 12):
        last = learner.train_epoch(number, epoch(number), [])
    assert last < 0.7 * first
    assert [(step.number, step.tiles) for step in told] == [(0, 3), (1, 6), (2, 9)]
    assert all(isinstance(step, StepProgress) for step in told)
    assert first == pytest.approx(np.mean([float(step.loss) for step in told]), rel=1e-6)


def test_the_rate_follows_schedule_and_plateau():
    learner = make_learner(scheduler="plateau", plateau_patience=1, plateau_factor=0.5, warmup=0.25)
    learner.train_epoch(0, epoch(0)[:1], [])
    assert learner.learning_rate == pytest.approx(0.01 / 3)
    learner.train_epoch(3, epoch(3), [1.0, 1.0, 1.0])
    assert learner.learning_rate == pytest.approx(0.005)


def test_images_are_scaled_and_shaped_for_the_network():
    tiles = batch(1, 2, shape=(4, 16, 16))
    images, labels = make_learner(dim=3).load(tiles)
    assert (images.shape, labels.shape) == ((2, 1, 4, 16, 16), (2, 4, 16, 16))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.uint8)
    torch.testing.assert_close(images[:, 0], torch.from_numpy(tiles.image) / 255)
    flat_tiles = batch(1, 2)
    flat_tiles.image.setflags(write=False)
    images, labels = make_learner().load(flat_tiles)
    assert (images.shape, labels.shape) == ((2, 1, 16, 16), (2, 16, 16))
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> dict[int, list[dict]]:
    """What one, two and three ranks made of the same tiles, rank by rank."""
    out = tmp_path_factory.mktemp("ranks") / "found"
    program = Path(__file__).with_name("ranks.py")
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, str(program), "1,2,3", str(out)], cwd=root, check=True, timeout=240)
    return {size: torch.load(f"{out}.{size}", weights_only=False) for size in (1, 2, 3)}


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_with_unequal_batches_learn_what_one_learns(ranks, size):
    (alone,) = ranks[1]
    for found in ranks[size]:
        for name, value in alone["weights"].items():
            torch.testing.assert_close(found["weights"][name], value, atol=1e-5, rtol=1e-4)
        assert found["train"] == pytest.approx(alone["train"], rel=1e-5)


def test_ranks_agree_to_the_last_bit(ranks):
    first, second = ranks[2]
    assert same(first["weights"], second["weights"])
    assert (first["train"], first["val"]) == (second["train"], second["val"])
    assert (first["counts"] == second["counts"]).all()


def test_ranks_sum_the_same_counts(ranks):
    (alone,) = ranks[1]
    for found in ranks[2]:
        counts = VoxelCounts.from_array(found["counts"])
        assert counts.num_voxels == VoxelCounts.from_array(alone["counts"]).num_voxels == 7 * 256
        assert np.abs(counts.confusion - VoxelCounts.from_array(alone["counts"]).confusion).max() <= 3
        assert found["val"] == pytest.approx(alone["val"], rel=1e-4)
