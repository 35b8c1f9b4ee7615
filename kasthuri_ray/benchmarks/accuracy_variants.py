"""What the accuracy study compares: ways to train, each a change of the defaults as plain values.

The network files of the package are read as JSON, so that neither Ray nor pydantic is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.models.losses import Loss, make_loss
from kasthuri_ray.models.unet import UNet, build_network
from kasthuri_ray.models.unet_blocks import CONV
from kasthuri_ray.tiles.augmentation import Augment
from kasthuri_ray.tiles.transforms import EM_STRENGTH
from kasthuri_ray.training.compute_plan import ComputePlan
from kasthuri_ray.training.learner import Learner, LearnerSettings, TileBatchLike

NETWORK_FOLDER = Path(__file__).resolve().parents[1] / "networkconfig"
# Settings that the network files leave out.
UNSET = {"plateau_factor": 0.5, "plateau_patience": 5, "class_weights": None}
# The recipe that the variants change. Files that have adopted a variant since then do not change the others.
BASELINE = {"optimizer": "AdamW", "momentum": 0.9, "ema": 0.0}
ADOPTED = "muon_ema"  # the variant that is the default now
SMALLEST_BATCH = 2
TILE = 256
HEAD_WEIGHTS = (1.0, 0.5, 0.25)  # of deep supervision, from the finest level on


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Parameters
    ----------
    name : str
        Its name in the table.
    base : str
        The network file that it starts from.
    network : mapping
        Values that replace those of the file.
    foreground_share : float or None
        Share of the tiles that are drawn around foreground; None: that of the task.
    strength : mapping
        Values that replace those of the augmentation `em`.
    tile : int
        Side of the training tiles; an epoch has as many voxels with any.
    sections : int
        Sections that the network sees as channels; the middle one is segmented.
    deep_supervision : bool
        Whether coarser levels have outputs of their own while training.
    losses : tuple of str
        Losses that are summed in place of that of the file.
    border : int
        Pixels on each side of the border of a class that do not count while training.
    """

    name: str
    base: str = "UNet_2D"
    network: Mapping[str, Any] = field(default_factory=dict)
    foreground_share: float | None = None
    strength: Mapping[str, Any] = field(default_factory=dict)
    tile: int = TILE
    sections: int = 1
    deep_supervision: bool = False
    losses: tuple[str, ...] = ()
    border: int = 0

    def settings(self) -> dict[str, Any]:
        """Return the values of the network file as they were, with the changes."""
        file = json.loads((NETWORK_FOLDER / f"{self.base}.json").read_text())
        merged = {**UNSET, **file, **BASELINE, **self.network, "in_channels": self.sections}
        return {**merged, "batch_size": merged["batch_size"] or SMALLEST_BATCH}

    def share_on_foreground(self, task: str) -> float:
        """Return the share of the tiles that are drawn around foreground."""
        if self.foreground_share is not None:
            return self.foreground_share
        return 0.5 if task == "synapse" else 0.0


class StudyLearner(Learner):
    """A learner that also trains with several sections as channels, and with outputs of coarser levels."""

    def __init__(self, variant: Variant, task: str, seed: int, epochs: int, plan: ComputePlan) -> None:
        values = {**variant.settings(), "task_type": task, "seed": seed, "epochs": epochs}
        settings = LearnerSettings(
            **{each.name: values[each.name] for each in fields(LearnerSettings) if each.name != "batch"},
            batch=values["batch_size"],
        )
        network = build_network(values)
        if variant.deep_supervision:
            network = SupervisedUNet(cast(UNet, network), values["start_filters"])
        super().__init__(network, settings, torch.device("cpu"), plan)
        self.variant = variant
        self.loss = self._study_loss(self.loss)
        strength = replace(EM_STRENGTH, **variant.strength) if variant.strength else None
        if variant.sections > 1:
            self.augment = SectionAugment(strength)
        elif strength is not None:
            self.augment = Augment("em", strength=strength)

    def _study_loss(self, loss: Loss) -> Loss:
        variant, classes = self.variant, self.settings.classes
        if variant.losses:
            parts = [make_loss(name, classes=classes, ignore_index=IGNORE_LABEL) for name in variant.losses]
            loss = partial(_summed_loss, parts)
        if variant.border:
            loss = partial(self._loss_without_border, loss)
        return partial(supervised_loss, loss) if variant.deep_supervision else loss

    def _loss_without_border(self, loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, ignore_border(labels, self.variant.border) if self.network.training else labels)

    def load(self, batch: TileBatchLike) -> tuple[Tensor, Tensor]:
        if self.variant.sections == 1:
            return super().load(batch)
        images = torch.from_numpy(batch.image).to(memory_format=self.memory_format)
        return images.float().div_(255), torch.from_numpy(batch.label[:, 0]).contiguous()


class SectionAugment:
    """Augmentation of tiles whose sections are channels: all sections move together, or one is out of place."""

    def __init__(self, strength: Any = None) -> None:
        self.augment = Augment("em", dim=3, strength=strength)

    def __call__(self, images: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        depth = images.shape[1]
        stack, moved = self.augment(images[:, None], labels[:, None].repeat(1, depth, 1, 1), seeds)
        # Of the middle section: where it alone is out of place, its label has moved with it.
        return stack[:, 0].contiguous(memory_format=torch.channels_last), moved[:, depth // 2].contiguous()


class SupervisedUNet(nn.Module):
    """A U-Net that while training returns the logits of its finest levels, each from a convolution of its own."""

    def __init__(self, network: UNet, start_filters: int) -> None:
        super().__init__()
        self.network, self.factors = network, network.factors
        sizes = [start_filters * 2**level for level in range(1, len(HEAD_WEIGHTS))]
        self.heads = nn.ModuleList(CONV[network.dim](size, network.classes, 1) for size in sizes)

    def forward(self, x: Tensor) -> Any:
        if not self.training:
            return self.network(x)
        skips, levels = [], []
        for down in self.network.down_blocks:
            x, skip = down(x)
            skips.append(skip)
        for up, skip in zip(self.network.up_blocks, reversed(skips[:-1]), strict=True):
            x = up(x, skip)
            levels.append(x)
        coarse = [head(level) for head, level in zip(self.heads, reversed(levels[:-1]), strict=False)]
        return [self.network.conv_final(x), *coarse]


def supervised_loss(loss: Any, outputs: Any, labels: Tensor) -> Tensor:
    """Return the loss of all levels; the labels of coarser ones are those of the nearest voxels."""
    if isinstance(outputs, Tensor):
        return loss(outputs, labels)
    losses = []
    for logits in outputs:
        small = interpolate(labels[:, None].float(), logits.shape[2:], mode="nearest")[:, 0].to(labels.dtype)
        losses.append(loss(logits, small))
    total = sum(weight * each for weight, each in zip(HEAD_WEIGHTS, losses, strict=True))
    return cast(Tensor, total) / sum(HEAD_WEIGHTS)


def _summed_loss(losses: Sequence[Loss], logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([loss(logits, labels) for loss in losses]).sum()


def ignore_border(labels: Tensor, width: int) -> Tensor:
    """Return labels N, y, x in which the pixels on both sides of a border of the foreground are ignored."""
    mask = (labels[:, None] == 1).float()
    size, padding = 2 * width + 1, width
    outer = max_pool2d(mask, size, 1, padding)
    inner = -max_pool2d(-mask, size, 1, padding)
    return torch.where((outer != inner)[:, 0], IGNORE_LABEL, labels)


def neighbour_sections(image: np.ndarray, z: int, num_sections: int) -> np.ndarray:
    """Return the numbers of the sections around one; beyond the ends the nearest is repeated."""
    half = num_sections // 2
    return np.clip(np.arange(z - half, z + half + 1), 0, len(image) - 1)


MUON = {"optimizer": "Muon", "momentum": 0.95}

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("baseline"),
        Variant("ema", network={"ema": 0.99}),
        Variant("lr_0.004", network={"learning_rate": 0.004}),
        Variant("lr_0.001", network={"learning_rate": 0.001}),
        Variant("batch_4", network={"batch_size": 4}),
        Variant("muon", network=MUON),
        Variant("muon_0.004", network={**MUON, "learning_rate": 0.004}),
        Variant("muon_ema", network={**MUON, "ema": 0.99}),
        Variant("muon_ce", network={**MUON, "loss": "cross_entropy"}),
        Variant("muon_weighted", network={**MUON, "loss": "weighted_cross_entropy"}),
        Variant("muon_focal", network={**MUON, "loss": "focal"}),
        Variant("muon_border", network=MUON, border=1),
        Variant("muon_sections_3", network=MUON, sections=3),
        Variant("muon_intensity", network=MUON, strength={"intensity": 0.5, "blur": 0.1, "noise": 0.2}),
        Variant("muon_rotate", network=MUON, strength={"rotate": 0.3, "max_degrees": 45.0}),
        Variant("muon_deep_supervision", network=MUON, deep_supervision=True),
        Variant("muon_depth", base="UNet_2D_depth", network=MUON),
        Variant("muon_residual", base="UNet_2D_residual", network=MUON),
        Variant("muon_share_0.25", network=MUON, foreground_share=0.25),
        Variant("depth", base="UNet_2D_depth"),
        Variant("residual", base="UNet_2D_residual"),
        Variant("narrow_6", network={"n_blocks": 6, "start_filters": 24}),
        Variant("instance_norm", network={"normalization": "instance"}),
        Variant("group_norm", network={"normalization": "group"}),
        Variant("leaky", network={"activation": "leaky"}),
        Variant("silu", network={"activation": "silu"}),
        Variant("weighted", network={"loss": "weighted_cross_entropy"}),
        Variant("focal", network={"loss": "focal"}),
        Variant("tversky", network={"loss": "tversky"}),
        Variant("cross_entropy", network={"loss": "cross_entropy"}),
        Variant("focal_dice", losses=("focal", "dice_ce")),
        Variant("tversky_ce", losses=("tversky", "cross_entropy")),
        Variant("border", border=1),
        Variant("deep_supervision", deep_supervision=True),
        Variant("sections_3", sections=3),
        Variant("sections_5", sections=5),
        Variant("foreground_0.25", foreground_share=0.25),
        Variant("foreground_0.75", foreground_share=0.75),
        Variant("foreground_1", foreground_share=1.0),
        Variant("rotate", strength={"rotate": 0.3, "max_degrees": 45.0}),
        Variant("intensity", strength={"intensity": 0.5, "blur": 0.1, "noise": 0.2}),
        Variant("tile_128", tile=128, network={"batch_size": 8}),
        Variant("tile_512", tile=512, network={"batch_size": 1}),
    )
}
