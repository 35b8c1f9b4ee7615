"""Training and evaluation of one epoch: resumed equals uninterrupted, and several ranks equal one."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kasthuri_ray.config.network import NetworkSettings
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.models.checkpoints import Checkpoint, checkpoint_bytes, read_checkpoint
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.training.compute_plan import ComputePlan
from kasthuri_ray.training.learner import Learner, StepProgress, count_batch_voxels
from kasthuri_ray.training.training_job import make_learner_settings

CPU = torch.device("cpu")
SETTINGS = NetworkSettings(
    start_filters=2, n_blocks=2, optimizer="AdamW", learning_rate=0.01, weight_decay=0.01, scheduler="one_cycle",
    loss="dice_ce", augmentations="em", ema=0.9, gradient_clip=1.0, batch_size=3, epochs=4,
)  # fmt: skip
STEPS = 3
PLAN = ComputePlan("float32", False, STEPS)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Use one thread, which is faster for such small tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_learner(seed: int = 0, plan: ComputePlan = PLAN, **changes) -> Learner:
    settings = SETTINGS.model_copy(update=changes)
    torch.manual_seed(seed)
    network = build_network(settings.model_dump())
    return Learner(network, make_learner_settings(settings, "synapse"), CPU, plan)


def batch(*numbers: int, shape=(1, 16, 16)) -> SimpleNamespace:
    """Return tiles of noise with labels where they are bright, some ignored; each depends on its number alone."""
    images = np.stack([np.random.default_rng(n).integers(0, 256, shape, dtype=np.uint8) for n in numbers])
    labels = (images > 180).astype(np.uint8)
    labels[..., :2] = IGNORE_LABEL
    return SimpleNamespace(image=images, label=labels, number=np.array(numbers))


def epoch(number: int) -> list[SimpleNamespace]:
    return [batch(*range(start, start + 3)) for start in range(number * 9, number * 9 + 9, 3)]


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def copied_state(learner: Learner) -> dict:
    return torch.load(io.BytesIO(checkpoint_bytes({"state": learner.state_dict()})), weights_only=True)["state"]


def flatten(state: object) -> list:
    if isinstance(state, dict):
        return [leaf for key in sorted(state, key=str) for leaf in flatten(state[key])]
    if isinstance(state, list):
        return [leaf for item in state for leaf in flatten(item)]
    return [state.tolist() if isinstance(state, torch.Tensor) else state]


@pytest.mark.parametrize("precision", ["float32", "bf16", "float16"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("changes", [{}, {"optimizer": "Muon", "start_filters": 16}])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(precision, channels_last, changes):
    plan = ComputePlan(precision, False, STEPS, channels_last)
    whole, losses = make_learner(plan=plan, **changes), []
    for number in range(4):
        losses.append(whole.train_epoch(number, epoch(number), losses))
        if number == 1:
            saved = checkpoint_bytes(Checkpoint(whole.evaluation_weights(), resume={"learner": whole.state_dict()}))
    state = read_checkpoint(saved, "last.pt").resume["learner"]
    resumed = make_learner(seed=99, plan=plan, **changes)
    resumed.load_state_dict(state)
    torch.manual_seed(12345)
    resumed_losses = losses[:2]
    for number in range(2, 4):
        resumed_losses.append(resumed.train_epoch(number, epoch(number), resumed_losses))
    assert resumed_losses == losses
    assert equal(resumed.network.state_dict(), whole.network.state_dict())
    assert equal(resumed.evaluation_weights(), whole.evaluation_weights())
    assert resumed.learning_rate == whole.learning_rate


@pytest.mark.parametrize("changes", [{}, {"optimizer": "Muon", "start_filters": 16}])
def test_gradients_in_float16_are_scaled_and_a_step_that_overflows_is_left_out(changes):
    learner, other = (make_learner(plan=ComputePlan(name, False, STEPS), **changes) for name in ("float16", "float32"))
    losses = [each.train_epoch(0, epoch(0), []) for each in (learner, other)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    scale = learner.state_dict()["scaler"]["scale"]
    assert scale >= 1024
    assert other.state_dict()["scaler"] == {}
    learner.scaler.load_state_dict({**learner.scaler.state_dict(), "scale": 1e38})
    before = {name: value.clone() for name, value in learner.network.named_parameters()}
    learner.train_epoch(1, epoch(1)[:1], [])
    assert equal(dict(learner.network.named_parameters()), before)
    assert learner.state_dict()["scaler"]["scale"] < 1e38


def test_random_numbers_of_a_network_depend_on_the_epoch_alone():
    def with_dropout() -> Learner:
        learner = make_learner(ema=0.0)
        learner.network.conv_final = nn.Sequential(nn.Dropout2d(0.5), learner.network.conv_final)
        return learner

    one, other = with_dropout(), with_dropout()
    torch.manual_seed(5)
    assert one.train_epoch(1, epoch(1), []) == other.train_epoch(1, epoch(1), [])
    assert equal(one.network.state_dict(), other.network.state_dict())


def test_evaluation_does_not_change_the_training():
    plain, evaluated = make_learner(), make_learner()
    for number in range(2):
        plain.train_epoch(number, epoch(number), [])
        evaluated.train_epoch(number, epoch(number), [])
        before = flatten(copied_state(evaluated))
        evaluated.evaluate([batch(100, 101)])
        evaluated.evaluation_weights()
        assert flatten(copied_state(evaluated)) == before
    assert equal(plain.network.state_dict(), evaluated.network.state_dict())


def test_the_averaged_weights_are_evaluated_and_saved():
    learner = make_learner()
    learner.train_epoch(0, epoch(0), [])
    assert equal(learner.evaluation_weights(), learner.weight_average.weights)
    assert not equal(learner.evaluation_weights(), learner.network.state_dict())
    twin = make_learner(ema=0.0)
    twin.network.load_state_dict(learner.evaluation_weights())
    assert twin.evaluate([batch(100, 101)]) == learner.evaluate([batch(100, 101)])


def test_evaluation_does_not_depend_on_the_batches():
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
def test_voxels_of_a_batch_are_counted_like_those_of_an_array(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, 1, 30, 40, generator=generator) * 4
    labels = torch.randint(0, classes, (2, 1, 30, 40), generator=generator).to(torch.uint8)
    labels[:, :, :5] = IGNORE_LABEL
    probabilities = torch.softmax(logits, 1)
    expected = VoxelCounts.zeros(classes)
    foreground = probabilities[:, 1:].transpose(0, 1).numpy()
    expected.add(foreground, probabilities.argmax(1).numpy(), labels.numpy())
    counts = count_batch_voxels(logits, labels)
    assert counts == expected
    assert counts.num_voxels == 2 * 25 * 40


def test_probabilities_of_0_and_1_are_in_the_first_and_the_last_bin():
    logits = torch.zeros(1, 2, 1, 1, 2)
    logits[0, 1, 0, 0] = torch.tensor([100.0, -100.0])
    counts = count_batch_voxels(logits, torch.ones(1, 1, 1, 2, dtype=torch.uint8))
    assert counts.histograms[0, 1, [0, -1]].tolist() == [1, 1]


def test_a_training_that_diverges_is_stopped_with_advice():
    learner = make_learner(optimizer="SGD", learning_rate=1e30, gradient_clip=0.0, scheduler="constant")
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 1: training diverged; lower network"):
        learner.train_epoch(0, epoch(0), [])
    with pytest.raises(FloatingPointError, match=r"not finite: training diverged; lower network\.learning_rate"):
        count_batch_voxels(torch.full((1, 2, 4, 4), float("nan")), torch.zeros(1, 4, 4, dtype=torch.uint8))


def test_training_lowers_the_loss_and_reports_every_step():
    learner, steps = make_learner(augmentations="none", ema=0.0, learning_rate=0.05, scheduler="constant"), []
    first = learner.train_epoch(0, epoch(0), [], steps.append)
    for number in range(1, 12):
        last = learner.train_epoch(number, epoch(number), [])
    assert last < 0.7 * first
    assert [(step.number, step.num_tiles) for step in steps] == [(0, 3), (1, 6), (2, 9)]
    assert all(isinstance(step, StepProgress) for step in steps)
    assert first == pytest.approx(np.mean([float(step.loss) for step in steps]), rel=1e-6)


def test_the_learning_rate_follows_warm_up_and_plateau():
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
    """The results of training one, two and three ranks on the same tiles, one result for each rank."""
    out = tmp_path_factory.mktemp("ranks") / "results"
    program = Path(__file__).with_name("train_ranks.py")
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, str(program), "1,2,3", str(out)], cwd=root, check=True, timeout=240)
    return {size: torch.load(f"{out}.{size}", weights_only=False) for size in (1, 2, 3)}


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_with_unequal_batches_train_like_a_single_rank(ranks, size):
    (alone,) = ranks[1]
    for result in ranks[size]:
        for name, value in alone["weights"].items():
            torch.testing.assert_close(result["weights"][name], value, atol=1e-5, rtol=1e-4)
        assert result["train"] == pytest.approx(alone["train"], rel=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_with_unequal_numbers_of_labelled_voxels_train_like_a_single_rank(ranks, size):
    (alone,) = ranks[1]
    for result in ranks[size]:
        for name, value in alone["sparse_weights"].items():
            torch.testing.assert_close(result["sparse_weights"][name], value, atol=1e-5, rtol=1e-4)
        assert result["sparse_train"] == pytest.approx(alone["sparse_train"], rel=1e-5)
    assert not equal(alone["sparse_weights"], alone["weights"])


def test_ranks_agree_to_the_last_bit(ranks):
    first, second = ranks[2]
    assert equal(first["weights"], second["weights"])
    assert (first["train"], first["val"]) == (second["train"], second["val"])
    assert (first["counts"] == second["counts"]).all()


def test_two_ranks_together_count_the_voxels_of_a_single_rank(ranks):
    (alone,) = ranks[1]
    for result in ranks[2]:
        counts = VoxelCounts.from_array(result["counts"])
        assert counts.num_voxels == VoxelCounts.from_array(alone["counts"]).num_voxels == 7 * 256
        assert np.abs(counts.confusion - VoxelCounts.from_array(alone["counts"]).confusion).max() <= 3
        assert result["val"] == pytest.approx(alone["val"], rel=1e-4)


LOADED = """
import sys, torch
if {first}:
    import torch._dynamo
from kasthuri_ray.training.optimizer import OptimizerSettings, leave_dynamo_unloaded, make_optimizer

leave_dynamo_unloaded()
torch.manual_seed(0)
weights = [torch.nn.Parameter(torch.randn(16, 16)), torch.nn.Parameter(torch.randn(3))]
settings = OptimizerSettings({name!r}, 0.1, 0.01, 0.9, 0.9, 0.99, "constant", 0, 1, 1, 0, 0)
optimizer = make_optimizer(settings, weights)
for _ in range(3):
    optimizer.zero_grad()
    sum((weight**2).sum() for weight in weights).backward()
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules, [weight.requires_grad for weight in weights])
print(*(value.hex() for weight in weights for value in weight.flatten().tolist()))
"""


@pytest.mark.parametrize("name", ["Muon", "AdamW", "Adam", "SGD"])
def test_a_training_that_is_not_compiled_does_not_import_dynamo_and_steps_as_before(name):
    def run(code: str) -> list[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()

    loaded, weights = run(LOADED.format(first=False, name=name))
    assert loaded == "False [True, True]"
    as_in_torch = LOADED.format(first=True, name=name).replace("\nleave_dynamo_unloaded()\n", "\n")
    assert run(as_in_torch)[1] == weights
