"""One epoch in plain torch: tiles in, a network that has learnt, counts of what it gets right. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kasthuri_ray import hardware
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts
from kasthuri_ray.models.losses import make_loss
from kasthuri_ray.tiles.augmentation import Augment
from kasthuri_ray.training.optimizer import (
    OptimizerSettings,
    PlateauSchedule,
    WeightAverage,
    clip_gradient_norm,
    learning_rate_factor,
    make_optimizer,
    set_learning_rate,
)


class TileBatchLike(Protocol):
    """A batch: image and label uint8 N, z, y, x, and the number of each tile."""

    image: np.ndarray
    label: np.ndarray
    number: np.ndarray


@dataclass(frozen=True)
class LearnerSettings(OptimizerSettings):
    """What is learned and how; the fields are the settings of task and network files with the same names.

    Parameters
    ----------
    batch : int
        Tiles of a step, those of all ranks together.
    """

    task_type: str
    dim: int
    classes: int
    loss: str
    class_weights: list[float] | None
    augmentations: str
    seed: int
    epochs: int
    batch: int


@dataclass(frozen=True)
class ComputePlan:
    """What a run decides once and keeps: a run that is continued computes the same.

    precision: float32 or bf16. compile: whether torch.compile builds the training step.
    """

    precision: str
    compile: bool
    steps_per_epoch: int


@dataclass
class StepProgress:
    """How far a step has got, for whoever shows it."""

    number: int
    loss: Any  # a scalar tensor; taking its value waits for the device
    tiles: int


class Learner:
    """A network with all that its training changes; `train_epoch` and `evaluate` are what it can do.

    network: on `device`; its weights are changed in place.
    """

    def __init__(self, network: nn.Module, settings: LearnerSettings, device: torch.device, plan: ComputePlan) -> None:
        self.settings, self.device, self.plan = settings, device, plan
        self.network = network.to(device, memory_format=hardware.memory_format(settings.dim, device))  # type: ignore[call-overload]
        self.loss = make_loss(
            settings.loss, classes=settings.classes, class_weights=settings.class_weights, ignore_index=IGNORE_LABEL
        )
        self.augment = Augment(settings.augmentations, dim=settings.dim, task_type=settings.task_type)
        self.optimizer = make_optimizer(settings, self.network.parameters())
        self.average = WeightAverage(self.network, settings.ema) if settings.ema else None
        self.plateau = PlateauSchedule(settings)
        self.learning = self._prepare()

    def _prepare(self) -> nn.Module:
        """The network as a training step calls it: compiled, and summing gradients over the ranks."""
        learning: Any = torch.compile(self.network, dynamic=False) if self.plan.compile else self.network
        if world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # Running statistics are made one where they are used: in `evaluate`.
            learning = nn.parallel.DistributedDataParallel(
                learning, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        return learning

    def train_epoch(
        self,
        epoch: int,
        batches: Iterable[TileBatchLike],
        val_losses: list[float],
        on_step: Callable[[StepProgress], None] = lambda step: None,
    ) -> float:
        """Learn from one epoch's batches; gives the mean loss over them, the same on all ranks.

        epoch: 0-based. val_losses: of the epochs before, for the plateau. Every rank must bring equally many batches.
        Raises FloatingPointError when the loss is no longer finite.
        """
        # Whatever a network of one's own draws (dropout) follows from seed, epoch and rank, so that it can be resumed.
        torch.manual_seed(_seed(self.settings.seed, epoch, process_rank()))
        self.learning.train()
        total, count = torch.zeros(2, device=self.device, dtype=torch.float64), 0
        plateau = self.plateau.share(val_losses)
        for number, batch in enumerate(batches):
            step = epoch * self.plan.steps_per_epoch + number
            share = learning_rate_factor(self.settings, step, self.settings.epochs * self.plan.steps_per_epoch)
            set_learning_rate(self.optimizer, self.settings.learning_rate * share * plateau)
            loss = self._step(epoch, batch)
            total += torch.stack([loss.double() * len(batch.number), loss.new_tensor(len(batch.number)).double()])
            count += len(batch.number)
            on_step(StepProgress(number, loss, count))
        sums = sum_over_ranks(total)
        mean = float(sums[0] / sums[1])
        if not np.isfinite(mean):
            raise FloatingPointError(
                f"the loss is {mean} in epoch {epoch + 1}: training diverged; lower network.learning_rate "
                f"({self.settings.learning_rate}) or set network.gradient_clip=1"
            )
        return mean

    @property
    def learning_rate(self) -> float:
        """The rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def _step(self, epoch: int, batch: TileBatchLike) -> Tensor:
        seeds = [_seed(self.settings.seed, epoch, int(number)) for number in batch.number]
        images, labels = self.load(batch)
        images, labels = self.augment(images, labels, seeds)
        with hardware.autocast(self.plan.precision, self.device):
            logits = self.learning(images)
        loss = self.loss(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        # DDP takes the mean over ranks; a rank with one tile more counts for more.
        (loss * (len(seeds) * world_size() / self.settings.batch)).backward()
        clip_gradient_norm(self.network.parameters(), self.settings.gradient_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.network)
        return loss.detach()

    def load(self, batch: TileBatchLike) -> tuple[Tensor, Tensor]:
        """A batch on the device: images float32 N, 1, [z], y, x in 0..1, labels uint8 N, [z], y, x."""
        image, label = _to_device(batch.image, self.device), _to_device(batch.label, self.device)
        if self.settings.dim == 2:
            image, label = image[:, 0], label[:, 0]
        images = image.unsqueeze(1).to(memory_format=hardware.memory_format(self.settings.dim, self.device))
        return images.float().div_(255), label.contiguous()

    @torch.no_grad()
    def evaluate(
        self,
        batches: Iterable[TileBatchLike],
        on_batch: Callable[[TileBatchLike, Tensor, Tensor], None] = lambda *_: None,
    ) -> tuple[VoxelCounts, float]:
        """What the network gets right, and its mean loss over the voxels that count; the same on all ranks.

        on_batch: sees each batch with its logits and labels.
        """
        counts, loss_sum, voxels = VoxelCounts.zeros(self.settings.classes), 0.0, 0
        broadcast_statistics(self.network, self.average)
        with self.judged():
            for batch in batches:
                images, labels = self.load(batch)
                logits = self.logits(images)
                on_batch(batch, logits, labels)
                counts = counts + count_batch_voxels(logits, labels)
                valid = int((labels != IGNORE_LABEL).sum())
                loss_sum += float(self.loss(logits, labels)) * valid if valid else 0.0
                voxels += valid
        vector = np.concatenate([counts.to_array().astype(np.float64), [loss_sum, voxels]])
        summed = sum_over_ranks(torch.from_numpy(vector).to(self.device)).cpu().numpy()
        total = VoxelCounts.from_array(summed[:-2].astype(np.int64))
        return total, float(summed[-2] / max(1.0, summed[-1]))

    def logits(self, images: Tensor) -> Tensor:
        """The network's answer, eager and without gradients, at the precision of the run."""
        with torch.no_grad(), hardware.autocast(self.plan.precision, self.device):
            return self.network(images)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """The network as it is judged and saved: in eval mode, with the averaged weights if there are any."""
        own = {name: value.clone() for name, value in self.network.state_dict().items()} if self.average else None
        if self.average is not None:
            self.network.load_state_dict(self.average.weights)
        self.network.eval()
        try:
            yield
        finally:
            if own is not None:
                self.network.load_state_dict(own)

    def judged_weights(self) -> dict[str, Tensor]:
        """The weights that `evaluate` judges, on the CPU."""
        with self.judged():
            return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs of the learner."""
        return {
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def count_batch_voxels(logits: Tensor, labels: Tensor) -> VoxelCounts:
    """Counts of a batch, taken on its device. logits N, classes, ...; labels N, ...; ignored voxels count nowhere.

    Raises FloatingPointError for logits that are not finite.
    """
    classes = logits.shape[1]
    if not torch.isfinite(logits).all():
        raise FloatingPointError(
            "the network answers with numbers that are not finite: training diverged; lower network.learning_rate or "
            "set network.gradient_clip=1"
        )
    probabilities = torch.softmax(logits.float(), dim=1)
    foreground = foreground_probability(probabilities)
    predicted = probabilities.argmax(dim=1)
    valid = labels != IGNORE_LABEL
    truth = labels[valid].long()
    bins = (foreground[valid] * BINS).long().clamp_(max=BINS - 1)
    histogram = torch.bincount((truth > 0) * BINS + bins, minlength=2 * BINS).reshape(2, BINS)
    confusion = torch.bincount(truth * classes + predicted[valid], minlength=classes**2).reshape(classes, classes)
    return VoxelCounts(confusion.cpu().numpy(), histogram.cpu().numpy())


def foreground_probability(probabilities: Tensor) -> Tensor:
    """The probability of any class but the background, N, ...; in 0..1."""
    if probabilities.shape[1] == 2:
        return probabilities[:, 1]
    return (1 - probabilities[:, 0]).clamp_(0, 1)


def process_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of what the ranks hold, on every rank."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def broadcast_statistics(network: nn.Module, average: WeightAverage | None) -> None:
    """Give every rank the running statistics of rank 0, which are the ones that are saved."""
    if world_size() > 1:
        for name, buffer in network.named_buffers():
            dist.broadcast(buffer, 0)
            if average is not None and name in average.weights:
                dist.broadcast(average.weights[name], 0)


def gather_over_ranks(found: Any) -> list[Any]:
    """What each rank found, in their order, on every rank."""
    if world_size() == 1:
        return [found]
    each: list[Any] = [None] * world_size()
    dist.all_gather_object(each, found)
    return each


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.array(array))  # a copy: Ray's arrays are read-only
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _seed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)
