"""Every setting once: what a task, a network and a training run can be told, checked and with its default.

Where they come from, and which of two wins, is in `layers.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_serializer, field_validator, model_validator

from kasthuri_ray.config.task import (
    LOSSES,
    METRICS,
    BelowOne,
    Count,
    NotNegative,
    NotNegativeInt,
    SettingsSection,
    Share,
    TaskSettings,
)
from kasthuri_ray.storage.uris import redact_secrets

MIN_BATCH_SIZE = 2  # tiles, where a network file leaves it open


def default_batch_size(num_workers: int) -> int:
    """Return the batch size where a network file leaves it open: a tile for each worker, at least MIN_BATCH_SIZE.

    Parameters
    ----------
    num_workers : int
        The most workers that share a batch.

    Returns
    -------
    int
        Tiles of a batch, those of all workers together.
    """
    return max(MIN_BATCH_SIZE, num_workers)


DEFAULT_CHECK_IMAGE = "bossdb://Kasthuri/ac4/em"


DEFAULT_THRESHOLD = 0.5  # where neither the command line nor the provenance says one


class NetworkSettings(SettingsSection):
    """The network and how it learns. The defaults are what the Kasthuri Challenge's own files leave unsaid."""

    model: str = "UNet"  # with a dot an import path, else a label that nothing checks
    model_args: dict[str, Any] = Field(default={})
    model_type: Literal["unet", "attention", "residual", "depth"] = "unet"
    in_channels: Literal[1] = 1
    classes: Annotated[int, Field(ge=2, le=254)] = 2
    n_blocks: Annotated[int, Field(ge=1, le=8)] | None = None  # None: 4, and 5 for depth
    start_filters: Annotated[int, Field(ge=1, le=65536)] = 32
    activation: Literal["relu", "leaky", "elu", "gelu", "silu"] = "relu"
    normalization: Literal["batch", "instance", "group", "none"] = "batch"
    conv_mode: Literal["same"] = "same"
    dim: Literal[2, 3] = 2
    pool_z: NotNegativeInt = 0  # from which level z is pooled too

    optimizer: Literal["Adam", "AdamW", "SGD"] = "Adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999
    momentum: Share = 0.9
    weight_decay: NotNegative = 0.0
    scheduler: Literal["constant", "plateau", "cosine", "one_cycle"] = "plateau"
    warmup: Share = 0.0  # the share of all steps in which the learning rate rises
    plateau_patience: Count = 5  # epochs
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    early_stopping: NotNegativeInt = 10  # epochs without improvement; 0 is never
    early_stopping_delta: NotNegative = 0.001  # what counts as improvement of the validation loss
    gradient_clip: NotNegative = 0.0  # highest norm; 0 is none
    ema: BelowOne = 0.0  # decay of the averaged weights; 0 is none
    loss: LOSSES = "cross_entropy"
    class_weights: list[NotNegative] | None = None  # for weighted_cross_entropy; None: from each batch
    augmentations: Literal["none", "basic", "em"] = "basic"
    epochs: Count = 10
    batch_size: Count | None = 8  # of all workers together; null: 2, which learns most of few tiles, or one a worker
    tiles_per_epoch: Count | None = None  # None: the grid tiles of the training boxes, at most 4096
    precision: Literal["auto", "float32", "bf16"] = "auto"
    metric: METRICS = "val.average_precision"  # by which the best epoch is the best, and of a sweep the best trial
    outweightfilename: str = "network"
    seed: NotNegativeInt = 0

    @property
    def batch(self) -> int:
        """The batch size of a run that has begun."""
        assert self.batch_size is not None
        return self.batch_size

    @field_validator("augmentations", mode="before")
    @classmethod
    def _zero_is_basic(cls, value: Any) -> Any:
        # The challenge's files say 0 and flip and rotate all the same.
        return "basic" if value == 0 and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _weights_fit(self) -> NetworkSettings:
        if self.class_weights is not None and len(self.class_weights) != self.classes:
            raise ValueError(f"class_weights has {len(self.class_weights)} values for {self.classes} classes")
        return self


def _number_or_range(value: Any) -> Any:
    """What `N` or `MIN-MAX` stands for: a number, or the text of a range."""
    low, dash, high = (str(value) if value is not None else "1").partition("-")
    whole = all(re.fullmatch("[0-9]+", part) for part in ([low, high] if dash else [low]))
    if not whole or not 1 <= int(low) <= int(high or low):
        raise ValueError("expected N or MIN-MAX, such as 4 or 2-8")
    return value if value is None or dash else int(low)


def _fewest_and_most(given: int | str | None) -> tuple[int, int] | None:
    if given is None or isinstance(given, int):
        return None if given is None else (given, given)
    low, _, high = given.partition("-")
    return int(low), int(high)


class TrainSettings(SettingsSection):
    """How and where a training run works; none of it changes what is learnt, save weights and compile."""

    storage: str = "outputs"
    name: str | None = None
    weights: str | None = None
    num_workers: Count | str | None = None  # N or MIN-MAX; None: all GPUs, else 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    boss: str | None = None  # a file; its token is never written anywhere
    cache: str | None = None  # None: KASTHURI_CACHE or ~/.cache/kasthuri_ray
    cache_size: str = "20GB"
    wait_for_resources: NotNegative | None = None  # seconds
    mlflow: str | None = None  # tracking URI
    wandb: str | None = None  # project
    verbose: bool = False

    @field_serializer("weights", "mlflow")
    def _without_secrets(self, url: str | None) -> str | None:
        # Of a signed URL the signature, of a server the password: neither is written anywhere.
        return None if url is None else redact_secrets(url)

    _num_workers = field_validator("num_workers", mode="before")(_number_or_range)

    @property
    def workers(self) -> tuple[int, int] | None:
        """The fewest and the most workers; None where the cluster decides."""
        return _fewest_and_most(self.num_workers)


def _split(value: Any) -> Any:
    """A flag's `64,512,512` as a list of numbers; what is no text as it is."""
    parts = value.split(",") if isinstance(value, str) else None
    if parts is not None and not (len(parts) == 3 and all(map(_is_number, parts))):
        raise ValueError("expected three numbers z,y,x, none below 0, such as 64,512,512")
    return value if parts is None else [json.loads(part) for part in parts]


ThreeCounts = Annotated[list[Count], Field(min_length=3, max_length=3), BeforeValidator(_split)]
ThreeNotNegative = Annotated[list[NotNegativeInt], Field(min_length=3, max_length=3), BeforeValidator(_split)]
ThreeLengths = Annotated[
    list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3), BeforeValidator(_split)
]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*(0|[1-9][0-9]*)(\.[0-9]+)?\s*", text) is not None


class SegmentSettings(SettingsSection):
    """What is segmented by which weights, and how. Boxes, blocks and the like are z, y, x, in voxels."""

    weights: str | None = None
    image: str | None = None  # None: the one that the task trained on
    output: str | None = None
    box: str | None = None  # None: all
    mip: NotNegativeInt | None = None  # None: nearest to the training's voxel size
    voxel_size: ThreeLengths | None = None  # nm, where the image does not say it
    mask: str | None = None
    block: ThreeCounts | None = None  # None, here and below: by a rule
    halo: ThreeNotNegative | None = None
    tile: ThreeCounts | None = None
    batch: Count | None = None
    shard: ThreeCounts | None = None
    chunk: ThreeCounts | None = None
    threshold: Share | None = None  # None: the run's, 0.5 for a bare .pt
    tta: bool = False
    save_mask: bool = False
    objects: bool = False
    precomputed: str | None = None
    skip_blank: bool = True
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    actors: Count | str | None = None  # N or MIN-MAX; None: what the cluster holds
    gpus_per_actor: Annotated[float, Field(gt=0, le=1)] = 1.0
    wait_for_resources: NotNegative | None = None  # seconds
    dry_run: bool = False
    price_per_hour: NotNegative | None = None
    overwrite: bool = False
    boss: str | None = None  # a file; its token is never written anywhere
    cache: str | None = None  # None: KASTHURI_CACHE or ~/.cache/kasthuri_ray
    cache_size: str = "20GB"
    verbose: bool = False

    _actors = field_validator("actors", mode="before")(_number_or_range)

    @property
    def crew(self) -> tuple[int, int] | None:
        """The fewest and the most actors; None where the cluster decides."""
        return _fewest_and_most(self.actors)


def _in_list(value: Any) -> Any:
    """One name as a list of it."""
    return [value] if isinstance(value, str) else value


class TuneSettings(SettingsSection):
    """What a sweep looks for, and how. Where and how its trials train is said in `train`."""

    networks: Annotated[list[str], Field(min_length=1), BeforeValidator(_in_list)] | None = (
        None  # None: the four of 2D, or of 3D the one
    )
    space: str | None = None  # a JSON file; None: the default space
    samples: Count | None = None  # trials; None: 20, or all of a grid
    search: Literal["random", "grid", "optuna"] = "optuna"
    scheduler: Literal["asha", "median", "none"] = "asha"
    grace: Count | None = None  # epochs that every trial has; None: a ninth of network.epochs
    concurrent: Count | None = None  # trials at once; None: one on each GPU, or on each node
    hours: Annotated[float, Field(gt=0)] | None = None  # of work, in all sittings together
    keep: Count = 3  # trials whose weights stay
    seed: NotNegativeInt = 0


SECTIONS: dict[str, type[SettingsSection]] = {
    "task": TaskSettings,
    "network": NetworkSettings,
    "train": TrainSettings,
    "segment": SegmentSettings,
    "tune": TuneSettings,
}


class Settings(SettingsSection):
    """All settings of a job. kept: keys of the files that are carried along and nothing reads. notes: what a person
    should know of where they come from, by section; no setting, and not written."""

    task: TaskSettings
    network: NetworkSettings
    train: TrainSettings = TrainSettings()
    segment: SegmentSettings = SegmentSettings()
    tune: TuneSettings = TuneSettings()
    kept: dict[str, Any] = Field(default={})
    notes: dict[str, str] = Field(default={}, exclude=True)

    def of_training(self) -> dict[str, Any]:
        """What a training run leaves of them, as JSON has it."""
        return self.model_dump(mode="json", exclude={"segment", "tune"})


@dataclass(frozen=True)
class CheckSettings:
    """What `jobs/check.py` was told. image: None is BossDB's, "none" leaves it out. gpus: that there must be."""

    address: str | None = None
    storage: str = "outputs"
    image: str | None = None
    boss: str | None = None
    cache: str | None = None
    cache_size: str = "20GB"
    gpus: int = 0
    wait_for_resources: float | None = None
    verbose: bool = False


@dataclass(frozen=True)
class EvaluateSettings:
    """What `jobs/evaluate.py` is told, as its flags.

    out: None stands for `<prediction>.evaluation`. threshold, task: None takes those of the prediction's provenance.
    """

    prediction: str
    annotation: str
    task: str | None = None
    instances: str | None = None
    threshold: float | None = None
    box: str | None = None
    out: str | None = None
    boss: str | None = None
    cache: str | None = None
    cache_size: str = "20GB"
    wait_for_resources: float | None = None
    verbose: bool = False
