"""Every setting once: what a task, a network and a training run can be told, checked and with its default.

Where they come from, and which of two wins, is in `layers.py`.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from kasthuri_ray.geometry import Box, Zyx, parse_box
from kasthuri_ray.storage import without_secrets

SMALLEST_BATCH = 2  # tiles, where a network file leaves it open
SPLITS = ("train", "val", "test")
RANGES = ("xrange_vol", "yrange_vol", "z_train", "z_val", "z_test")  # of a task that names no boxes


def _rising(limits: list[int]) -> list[int]:
    if limits[0] >= limits[1]:
        raise ValueError("it holds no voxels; a range is [start, stop], stop not included")
    return limits


NotNegativeInt = Annotated[int, Field(ge=0)]
Range = Annotated[list[NotNegativeInt], Field(min_length=2, max_length=2), AfterValidator(_rising)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
LOSSES = Literal["cross_entropy", "weighted_cross_entropy", "dice_ce", "focal", "tversky"]
METRICS = Literal["val.average_precision", "val.foreground_f1", "val.loss"]  # columns of history.csv


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Region(Section):
    """A box of one volume that a split trains or is judged on.

    What is left out is the task's own; `annotation: null` (or "") is a test box that has none.
    """

    image: str | None = None  # left out: the task's image_chan
    annotation: str | None = None  # left out: the task's annotation_chan
    box: str | Annotated[list[Range], Field(min_length=3, max_length=3)]

    def completed(self, image: str | None, annotation: str | None) -> Region:
        """This region with what was left out filled in."""
        own = self.annotation or None
        return Region(
            image=self.image or image,
            annotation=own if "annotation" in self.model_fields_set else annotation,
            box=self.box,
        )

    @model_serializer(mode="wrap")
    def _as_given(self, write: Any) -> dict[str, Any]:
        # An annotation that was left out and one that is null differ, also when read back.
        given = {key: value for key, value in write(self).items() if key in self.model_fields_set}
        return {key: without_secrets(value) if isinstance(value, str) else value for key, value in given.items()}


class Boxes(Section):
    """Regions of any volumes, instead of the four ranges of a task file."""

    train: Annotated[list[Region], Field(min_length=1)]
    val: Annotated[list[Region], Field(min_length=1)]
    test: list[Region] = []


class Task(Section):
    """What is to be found, in which volumes, and where each split lies. Ranges are half-open, in voxels."""

    name: str = "task"
    task_type: str = "membrane"
    image_chan: str | None = None
    annotation_chan: str | None = None
    xrange_vol: Range | None = None
    yrange_vol: Range | None = None
    z_train: Range | None = None
    z_val: Range | None = None
    z_test: Range | None = None  # None: no test
    boxes: Boxes | None = None
    z_gap: NotNegativeInt = 0  # sections left out between the splits
    volume_z: Count = 1  # sections in a tile; 1 is 2D
    tile_size: Annotated[list[Count], Field(min_length=2, max_length=2)] = [256, 256]  # x, y
    threshold: bool = False
    threshold_value: float = 0.0  # annotation > value becomes 1
    ignore_label: int | None = None
    image_intensity: Annotated[list[float], Field(min_length=2, max_length=2)] | dict[str, list[float]] | None = None
    foreground_share: Share | None = None  # None: half for synapses, else none
    loss: LOSSES | None = None  # wins over the network file's

    @field_serializer("image_chan", "annotation_chan")
    def _shown(self, uri: str | None) -> str | None:
        return None if uri is None else without_secrets(uri)

    @property
    def tile(self) -> Zyx:
        """The shape of a tile, z, y, x."""
        return (self.volume_z, self.tile_size[1], self.tile_size[0])

    @property
    def share_on_foreground(self) -> float:
        """The share of an epoch's tiles that are drawn so that they hold foreground."""
        if self.foreground_share is not None:
            return self.foreground_share
        return 0.5 if self.task_type == "synapse" else 0.0

    def regions(self, split: str) -> list[Region]:
        """The regions of a split; images named, annotations named or None where the test has none."""
        if self.boxes is not None:
            named = getattr(self.boxes, split)
        else:
            z = self._z_ranges()[split]
            named = [] if z is None else [Region(box=[z, self.yrange_vol, self.xrange_vol])]  # type: ignore[list-item]
        return [region.completed(self.image_chan, self.annotation_chan) for region in named]

    def keys_of(self, split: str, number: int = 0) -> tuple[str, str, str]:
        """The settings that say where region `number` of a split lies along z, y and x."""
        if self.boxes is not None:
            return (f"task.boxes.{split}.{number}.box",) * 3
        return f"task.z_{split}", "task.yrange_vol", "task.xrange_vol"

    def _z_ranges(self) -> dict[str, list[int] | None]:
        """The three z ranges, cut at the start where one follows another by less than `z_gap` sections."""
        given = {"train": self.z_train, "val": self.z_val, "test": self.z_test}
        ranges = {split: list(z) if z else None for split, z in given.items()}
        in_order = sorted(filter(None, ranges.values()))
        for (_, end), after in itertools.pairwise(in_order):
            # Ranges that overlap stay as they are, and are refused where they are opened.
            if after[0] >= end:
                after[0] = max(after[0], end + self.z_gap)
        return ranges

    @model_validator(mode="after")
    def _complete(self) -> Task:
        ranges = [key for key in RANGES if getattr(self, key) is not None]
        if self.boxes is not None and ranges:
            raise ValueError(f"boxes and {', '.join(ranges)} are both given; boxes stand instead of the ranges")
        missing = [key for key in RANGES if key not in (*ranges, "z_test")]
        if self.boxes is None and missing:
            raise ValueError(f"needs {', '.join(missing)} (or boxes)")
        self._check_gap()
        for split in SPLITS:
            for region in self.regions(split):
                if region.image is None or (region.annotation is None and split != "test"):
                    raise ValueError(f"needs image_chan and annotation_chan for {split} (or --image and --annotation)")
        return self

    def _check_gap(self) -> None:
        if self.boxes is not None:
            if self.z_gap:
                raise ValueError("z_gap goes with z_train, z_val and z_test; leave the gap between the boxes yourself")
            return
        for split, z in self._z_ranges().items():
            if z is not None and z[0] >= z[1]:
                raise ValueError(f"z_gap {self.z_gap} leaves nothing of z_{split} {getattr(self, f'z_{split}')}")


class Network(Section):
    """The network and how it learns. The defaults are what the Kasthuri Challenge's own files leave unsaid."""

    model: str = "UNet"  # with a dot an import path, else a label that nothing checks
    model_args: dict[str, Any] = {}
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
    def _weights_fit(self) -> Network:
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


class Train(Section):
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
        return None if url is None else without_secrets(url)

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


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*(0|[1-9][0-9]*)(\.[0-9]+)?\s*", text) is not None


ThreeCounts = Annotated[list[Count], Field(min_length=3, max_length=3), BeforeValidator(_split)]
ThreeNotNegative = Annotated[list[NotNegativeInt], Field(min_length=3, max_length=3), BeforeValidator(_split)]
ThreeLengths = Annotated[
    list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3), BeforeValidator(_split)
]


class Segment(Section):
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


class Tune(Section):
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


class Settings(Section):
    """All settings of a job. kept: keys of the files that are carried along and nothing reads. notes: what a person
    should know of where they come from, by section; no setting, and not written."""

    task: Task
    network: Network
    train: Train = Train()
    segment: Segment = Segment()
    tune: Tune = Tune()
    kept: dict[str, Any] = {}
    notes: dict[str, str] = Field(default={}, exclude=True)

    def of_training(self) -> dict[str, Any]:
        """What a training run leaves of them, as JSON has it."""
        return self.model_dump(mode="json", exclude={"segment", "tune"})


SECTIONS: dict[str, type[Section]] = {
    "task": Task,
    "network": Network,
    "train": Train,
    "segment": Segment,
    "tune": Tune,
}


def region_box(region: Region, bounds: Box, what: str) -> Box:
    """The box that a region names, inside `bounds` of its image; `what` opens the message of the ValueError if not."""
    text = region.box if isinstance(region.box, str) else ",".join(f"{a}:{b}" for a, b in region.box)
    try:
        return parse_box(text, bounds)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
