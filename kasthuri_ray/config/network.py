"""Settings of a network: its architecture, and how it is trained. Defaults apply where a network file sets no value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from kasthuri_ray.config import defaults
from kasthuri_ray.config.field_types import (
    BelowOne,
    Count,
    LossName,
    MetricName,
    NotNegative,
    NotNegativeInt,
    Positive,
    Precision,
    SettingsSection,
    Share,
)
from kasthuri_ray.errors import InputError

# Settings of our U-Nets, which a network of one's own does not have.
UNET_SETTINGS = ("model_type", "n_blocks", "start_filters", "activation", "normalization", "conv_mode", "pool_z")


class NetworkSettings(SettingsSection):
    """The network and how it is trained: the keys of a network file.

    The defaults listed here apply only where a network file does not set the value; the built-in files set most of
    them. They are those of the Kasthuri Challenge, whose files leave such values out.
    """

    model: str = "UNet"
    """Import path of your own torch.nn.Module, such as my_package.MyNet; a name without a dot means our U-Net."""
    model_args: dict[str, Any] = Field(default={})
    """Arguments of your own network."""
    model_type: Literal["unet", "attention", "residual", "depth"] = "unet"
    """Kind of U-Net: plain; with attention gates on its skip connections; with residual blocks; or with one resolution
    level more."""
    in_channels: Literal[1] = 1
    """Channels of the image, which is gray."""
    classes: Annotated[int, Field(ge=2, le=254)] = 2
    """Number of classes, the background included."""
    n_blocks: Annotated[int, Field(ge=1, le=8)] | None = None
    """Resolution levels; null: 4, for depth 5."""
    start_filters: Annotated[int, Field(ge=1, le=65536)] = 32
    """Filters of the finest level; their number doubles at each level."""
    activation: Literal["relu", "leaky", "elu", "gelu", "silu"] = "relu"
    """Activation function."""
    normalization: Literal["batch", "instance", "group", "none"] = "batch"
    """Normalization of the features; instance and group normalize each tile by itself, so that the size of tiles
    changes the result a little."""
    conv_mode: Literal["same"] = "same"
    """Padding of the convolutions, which keep the size of the image."""
    dim: Literal[2, 3] = 2
    """Dimensions of the convolutions; 2: each section by itself; 3: several sections at once."""
    pool_z: NotNegativeInt = 0
    """Number of poolings of a 3D network, from the first, that leave z as it is, for sections thicker than a pixel."""

    optimizer: Literal["Adam", "AdamW", "SGD", "Muon"] = "Adam"
    """Optimizer; Muon: steps of convolutions that change all directions alike, and AdamW for all other weights."""
    learning_rate: Positive = 1e-4
    """Highest learning rate that the scheduler reaches."""
    beta1: BelowOne = 0.9
    """Decay of the average gradient, for Adam and AdamW, and for what AdamW does in Muon."""
    beta2: BelowOne = 0.999
    """Decay of the average squared gradient, for Adam, AdamW and what AdamW does in Muon."""
    momentum: Share = 0.9
    """Momentum, for SGD and Muon."""
    weight_decay: NotNegative = 0.0
    """Strength of the pull of all weights toward 0."""
    scheduler: Literal["constant", "plateau", "cosine", "one_cycle"] = "plateau"
    """Course of the learning rate; plateau: reduced when the validation loss stops falling; cosine and one_cycle: it
    rises, then falls until the last epoch."""
    warmup: Share = 0.0
    """Fraction of all training steps in which the learning rate rises; 0 for one_cycle: 0.3."""
    plateau_patience: Count = 5
    """Epochs without a lower validation loss before the learning rate is reduced."""
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor by which the learning rate is reduced."""
    early_stopping: NotNegativeInt = 10
    """Epochs without improvement after which training stops; 0: never."""
    early_stopping_delta: NotNegative = 0.001
    """Least decrease of the validation loss that is an improvement."""
    gradient_clip: NotNegative = 0.0
    """Largest norm of the gradient; 0: no limit."""
    ema: BelowOne = 0.0
    """Decay of a moving average of the weights, which is then the result; 0: no average."""
    loss: LossName = "cross_entropy"
    """Loss; dice_ce: Dice plus cross entropy; focal: voxels that are hard to classify count more; tversky: missed
    foreground counts more than false foreground; weighted_cross_entropy: each class has a weight."""
    class_weights: list[NotNegative] | None = None
    """Weights of weighted_cross_entropy, one for each class; null: from the class fractions of a batch."""
    augmentations: Literal["none", "basic", "em"] = "basic"
    """Random changes of training tiles; basic: flips and small rotations; em: also faults of electron microscopy, such
    as a missing section."""
    epochs: Count = 10
    """Number of epochs; an epoch is tiles_per_epoch tiles and a validation."""
    batch_size: Count | None = 8
    """Tiles in a step, those of all workers together; null: one for each worker and at least 2, a small batch that
    learns most from few tiles."""
    tiles_per_epoch: Count | None = None
    """Tiles in an epoch; null: as many as cover the training boxes once, at most 4096."""
    precision: Precision = defaults.AUTO
    """Number format of the arithmetic; auto: the fastest of the processor."""
    metric: MetricName = defaults.METRIC
    """Figure that chooses the best epoch of a run and the best trial of a sweep."""
    outweightfilename: str = "network"
    """Name of the network; the weights are saved as OUTWEIGHTFILENAME_TASKTYPE.pt. That of the file by default."""
    seed: NotNegativeInt = 0
    """Seed of the initial weights, the tiles and their augmentation."""

    @property
    def batch(self) -> int:
        """Batch size of a run that has started, which is never None."""
        assert self.batch_size is not None
        return self.batch_size

    @field_validator("augmentations", mode="before")
    @classmethod
    def _read_zero_as_basic(cls, value: Any) -> Any:
        # The challenge's files have 0, and its code flips and rotates all the same.
        return "basic" if value == 0 and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check_class_weights(self) -> NetworkSettings:
        if self.class_weights is not None and len(self.class_weights) != self.classes:
            raise InputError(f"class_weights has {len(self.class_weights)} values for {self.classes} classes")
        return self


def default_batch_size(num_workers: int) -> int:
    """Return the batch size where `batch_size` is None: a tile for each worker, at least two.

    Parameters
    ----------
    num_workers : int
        Largest number of workers that share a batch.

    Returns
    -------
    int
        Tiles in a batch, those of all workers together.
    """
    return max(defaults.MIN_BATCH_SIZE, num_workers)
