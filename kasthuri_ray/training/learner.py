"""One epoch of training or evaluation in plain torch, without Ray: batches of tiles in, loss and voxel counts out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kasthuri_ray import hardware
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.voxel_counts import BINS, VoxelCounts
from kasthuri_ray.models.compilation import compile_network
from kasthuri_ray.models.losses import make_loss
from kasthuri_ray.models.unet import load_weights
from kasthuri_ray.tiles.augmentation import Augment, tile_seed
from kasthuri_ray.training.compute_plan import ComputePlan
from kasthuri_ray.training.optimizer import (
    OptimizerSettings,
    PlateauSchedule,
    WeightAverage,
    clip_gradient_norm,
    learning_rate_factor,
    leave_dynamo_unloaded,
    make_optimizer,
    set_learning_rate,
)
from kasthuri_ray.training.process_group import broadcast_statistics, process_rank, sum_over_ranks, world_size

# Takes and returns images and labels of tiles; the seed of each tile comes last.
Augmentation = Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor]]


class TileBatchLike(Protocol):
    """A batch: image and label, uint8 N, z, y, x, and the number of each tile; see `tiles.streaming.TileBatch`."""

    image: np.ndarray
    label: np.ndarray
    number: np.ndarray


@dataclass(frozen=True)
class LearnerSettings(OptimizerSettings):
    """The settings of task and network files that a learner needs; the fields have the same names there.

    Parameters
    ----------
    batch : int
        Tiles of a step of all ranks together.
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


@dataclass
class StepProgress:
    """A finished step of an epoch.

    Parameters
    ----------
    number : int
        Number of the step in its epoch, from 0.
    loss : Tensor
        A scalar; reading its value waits for the device.
    num_tiles : int
        Tiles that this rank has trained on in this epoch.
    """

    number: int
    loss: Any
    num_tiles: int


class Learner:
    """A network and everything that its training changes: optimizer, schedules and averaged weights.

    Parameters
    ----------
    network : nn.Module
        Moved to `device`; its weights are changed in place.
    settings : LearnerSettings
        Settings of network and training.
    device : torch.device
        Device of this process.
    plan : ComputePlan
        Number format, memory format and compilation.
    """

    def __init__(self, network: nn.Module, settings: LearnerSettings, device: torch.device, plan: ComputePlan) -> None:
        self.settings, self.device, self.plan = settings, device, plan
        self.memory_format = hardware.memory_format(settings.dim, device, plan.channels_last)
        self.network = network.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.loss = make_loss(
            settings.loss, classes=settings.classes, class_weights=settings.class_weights, ignore_index=IGNORE_LABEL
        )
        self.augment: Augmentation = Augment(settings.augmentations, dim=settings.dim, task_type=settings.task_type)
        if not plan.compile:
            leave_dynamo_unloaded()
        self.optimizer = make_optimizer(settings, self.network.parameters())
        self.weight_average = WeightAverage(self.network, settings.ema) if settings.ema else None
        self.plateau = PlateauSchedule(settings)
        # Gradients in float16 are scaled up, so that small ones do not become 0. In other formats this does nothing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "float16")
        self.training_network = self._wrap_network()

    def _wrap_network(self) -> nn.Module:
        """Return the network that a training step calls: compiled, and with gradients that are summed over ranks."""
        wrapped: Any = compile_network(self.network) if self.plan.compile else self.network
        if world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # Running statistics are only synchronized where they are used, in `evaluate`.
            wrapped = nn.parallel.DistributedDataParallel(
                wrapped, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        return wrapped

    def train_epoch(
        self,
        epoch: int,
        batches: Iterable[TileBatchLike],
        val_losses: list[float],
        on_step: Callable[[StepProgress], None] = lambda step: None,
    ) -> float:
        """Train on the batches of one epoch.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 0.
        batches : iterable of TileBatchLike
            Every rank must have equally many.
        val_losses : list of float
            Validation losses of the epochs before, for the scheduler `plateau`.
        on_step : callable
            Called after every step.

        Returns
        -------
        float
            Mean loss of all tiles, with sparse labels of all labelled voxels; the same on all ranks.

        Raises
        ------
        FloatingPointError
            If the loss is no longer finite.
        """
        # Random numbers of a user's network (dropout) depend on seed, epoch and rank alone, so that a run can resume.
        torch.manual_seed(tile_seed(self.settings.seed, epoch, process_rank()))
        self.training_network.train()
        total, num_tiles = torch.zeros(2, device=self.device, dtype=torch.float64), 0
        plateau_factor = self.plateau.factor(val_losses)
        for number, batch in enumerate(batches):
            step = epoch * self.plan.steps_per_epoch + number
            factor = learning_rate_factor(self.settings, step, self.settings.epochs * self.plan.steps_per_epoch)
            set_learning_rate(self.optimizer, self.settings.learning_rate * factor * plateau_factor)
            loss, weight = self._step(epoch, batch)
            total += torch.stack([loss.double() * weight, loss.new_tensor(weight).double()])
            num_tiles += len(batch.number)
            on_step(StepProgress(number, loss, num_tiles))
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
        """Learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def _step(self, epoch: int, batch: TileBatchLike) -> tuple[Tensor, int]:
        """Train on one batch; return its loss, and the tiles or labelled voxels by which it counts."""
        seeds = [tile_seed(self.settings.seed, epoch, int(number)) for number in batch.number]
        images, labels = self.load(batch)
        images, labels = self.augment(images, labels, seeds)
        with hardware.autocast(self.plan.precision, self.device):
            logits = self.training_network(images)
        loss = self.loss(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        weight, total = self._weight(labels)
        # DDP averages over ranks; a rank with one tile more, or with more labels, must have a larger weight.
        self.scaler.scale(loss * (weight * world_size() / max(1, total))).backward()
        self.scaler.unscale_(self.optimizer)
        clip_gradient_norm(self.network.parameters(), self.settings.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.weight_average is not None:
            self.weight_average.update(self.network)
        return loss.detach(), weight

    def _weight(self, labels: Tensor) -> tuple[int, int]:
        """Return by how much the batch of this rank counts, and those of all ranks together."""
        if not self.plan.by_labelled_voxels:
            return len(labels), self.settings.batch
        num_labelled = (labels != IGNORE_LABEL).sum()
        return int(num_labelled), int(sum_over_ranks(num_labelled.clone()))

    def load(self, batch: TileBatchLike) -> tuple[Tensor, Tensor]:
        """Return a batch on the device: images float32 N, 1, [z], y, x in 0..1, labels uint8 N, [z], y, x."""
        image, label = _to_device(batch.image, self.device), _to_device(batch.label, self.device)
        if self.settings.dim == 2:
            image, label = image[:, 0], label[:, 0]
        images = image.unsqueeze(1).to(memory_format=self.memory_format)
        return images.float().div_(255), label.contiguous()

    @torch.no_grad()
    def evaluate(
        self,
        batches: Iterable[TileBatchLike],
        on_batch: Callable[[TileBatchLike, Tensor, Tensor], None] | None = None,
    ) -> tuple[VoxelCounts, float]:
        """Compare the network's predictions with the labels.

        Parameters
        ----------
        batches : iterable of TileBatchLike
            Ranks may have different numbers of them.
        on_batch : callable
            Receives each batch with its logits, which are finite, and its labels. Without it, batches that hold no
            labelled voxel are skipped.

        Returns
        -------
        counts : VoxelCounts
            Counts of all ranks together, the same on all ranks.
        loss : float
            Mean loss over the voxels that are not ignored, the same on all ranks.
        """
        counts, loss_sum, num_voxels = VoxelCounts.zeros(self.settings.classes), 0.0, 0
        broadcast_statistics(self.network, self.weight_average)
        with self.evaluation_mode():
            for batch in batches:
                images, labels = self.load(batch)
                num_valid = int((labels != IGNORE_LABEL).sum())
                if not num_valid and on_batch is None:
                    continue
                logits = self.logits(images)
                counts = counts + count_batch_voxels(logits, labels)
                if on_batch is not None:
                    on_batch(batch, logits, labels)
                loss_sum += float(self.loss(logits, labels)) * num_valid if num_valid else 0.0
                num_voxels += num_valid
        vector = np.concatenate([counts.to_array().astype(np.float64), [loss_sum, num_voxels]])
        summed = sum_over_ranks(torch.from_numpy(vector).to(self.device)).cpu().numpy()
        total = VoxelCounts.from_array(summed[:-2].astype(np.int64))
        return total, float(summed[-2] / max(1.0, summed[-1]))

    def logits(self, images: Tensor) -> Tensor:
        """Return the network's output, uncompiled and without gradients, at the precision of the run."""
        with torch.no_grad(), hardware.autocast(self.plan.precision, self.device):
            return self.network(images)

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Put the network into eval mode, with the averaged weights if there are any, as it is evaluated and saved."""
        own = None
        if self.weight_average is not None:
            own = {name: value.clone() for name, value in self.network.state_dict().items()}
            self.network.load_state_dict(self.weight_average.weights)
        self.network.eval()
        try:
            yield
        finally:
            if own is not None:
                self.network.load_state_dict(own)

    def evaluation_weights(self) -> dict[str, Tensor]:
        """Return the weights that `evaluate` uses, on the CPU."""
        with self.evaluation_mode():
            return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def load_evaluation_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights that `evaluation_weights` returned, to be evaluated as they are: no average continues."""
        load_weights(self.network, weights)
        self.weight_average = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs of the learner."""
        return {
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.weight_average.state_dict() if self.weight_average else None,
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler", {}))
        if self.weight_average is not None:
            self.weight_average.load_state_dict(state["average"])


def count_batch_voxels(logits: Tensor, labels: Tensor) -> VoxelCounts:
    """Count the voxels of a batch by label and prediction, on its device; ignored voxels do not count.

    Parameters
    ----------
    logits : Tensor
        N, classes, [z], y, x.
    labels : Tensor
        Integers N, [z], y, x.

    Returns
    -------
    VoxelCounts
        Confusion matrix, and a histogram of each foreground class.

    Raises
    ------
    FloatingPointError
        If a logit is not finite.
    """
    if not torch.isfinite(logits).all():
        raise FloatingPointError(
            "the network's output is not finite: training diverged; lower network.learning_rate or set "
            "network.gradient_clip=1"
        )
    return count_labelled_voxels(*select_labelled(logits, labels))


def select_labelled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Select the voxels that are not ignored.

    Parameters
    ----------
    logits : Tensor
        N, classes, [z], y, x.
    labels : Tensor
        Integers N, [z], y, x.

    Returns
    -------
    logits : Tensor
        Classes, voxels.
    labels : Tensor
        Of each voxel.
    """
    by_class, truth = logits.movedim(1, 0).reshape(logits.shape[1], -1), labels.reshape(-1)
    valid = truth != IGNORE_LABEL
    if valid.all():
        return by_class, truth
    index = valid.nonzero().squeeze(1)  # selecting by index is several times faster than by mask
    return by_class.index_select(1, index), truth.index_select(0, index)


def count_labelled_voxels(logits: Tensor, labels: Tensor) -> VoxelCounts:
    """Count voxels by label and prediction, on their device.

    Parameters
    ----------
    logits : Tensor
        Classes, voxels; finite.
    labels : Tensor
        Integers below the number of classes, of each voxel.

    Returns
    -------
    VoxelCounts
        Confusion matrix, and a histogram of each foreground class.
    """
    probabilities = torch.softmax(logits.float(), dim=0)
    classes, truth = len(probabilities), labels.to(torch.int32)
    highest, predicted, histograms = probabilities[0], torch.zeros_like(truth), []
    for number in range(1, classes):
        probability = probabilities[number]
        predicted = torch.where(probability > highest, number, predicted)
        highest = torch.maximum(probability, highest)
        bins = (probability * BINS).to(torch.int32).clamp_(max=BINS - 1)
        histograms.append(torch.bincount((truth == number) * BINS + bins, minlength=2 * BINS).reshape(2, BINS))
    confusion = torch.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return VoxelCounts(confusion.cpu().numpy(), torch.stack(histograms).cpu().numpy())


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.array(array))  # a copy: Ray's arrays are read-only
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
