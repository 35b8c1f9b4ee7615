"""The flags of the jobs as keyword arguments of the Python API: their names, and the settings that they set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

# Settings of flags that are not in their function's own section, by the flag.
TRAIN_TARGETS = {"image": "task.image_chan", "annotation": "task.annotation_chan", "precision": "network.precision"}
TRAIN_FLAGS_OF_TUNE = (
    *("storage", "name", "weights", "num_workers", "boss", "cache", "cache_size", "device", "compile"),
    *("wait_for_resources", "mlflow", "wandb", "verbose", "voxel_size", "resample", "allow_empty"),
)
TUNE_TARGETS = {**TRAIN_TARGETS, "metric": "network.metric", **{name: f"train.{name}" for name in TRAIN_FLAGS_OF_TUNE}}
TARGETS = {"train": TRAIN_TARGETS, "tune": TUNE_TARGETS}

# Sections of settings that a job reads.
SECTIONS_OF_JOBS = {
    "train": ("task", "network", "train"),
    "tune": ("task", "network", "train", "tune"),
    "segment": ("task", "network", "segment"),
    "evaluate": ("task", "evaluate"),
    "check": ("task", "check"),
    "view": ("view",),
}

# Flags that are not named as their setting.
OTHER_FLAGS = {
    "task.image_chan": "--image",
    "task.annotation_chan": "--annotation",
    "segment.skip_blank": "--no-skip-blank",
}


def flag_name(section: str, key: str) -> str:
    """Return the flag that sets a setting, such as `--num-workers`; the `--set` of a task, which has no other flags."""
    own = f"--set task.{key}" if section == "task" else f"--{key.replace('_', '-')}"
    return OTHER_FLAGS.get(f"{section}.{key}", own)


class DataFlags(TypedDict, total=False):
    """Flags of every function that reads voxels: BossDB options, the cache of remote chunks, time to wait, logging."""

    boss: str
    cache: str
    cache_size: str
    wait_for_resources: float
    verbose: bool


class ComputeFlags(DataFlags, total=False):
    """Flags of every function that runs a network."""

    network: str | Mapping[str, Any]
    config: str
    settings: Mapping[str, Any] | Sequence[str]
    device: str
    precision: str
    compile: str


class TrainingFlags(ComputeFlags, total=False):
    """Flags of every function that trains."""

    image: Any
    annotation: Any
    voxel_size: Any
    resample: bool
    allow_empty: bool
    weights: str
    storage: str
    name: str
    num_workers: int | str
    mlflow: str
    wandb: str


class TrainFlags(TrainingFlags, total=False):
    """Flags of `train`."""

    folds: int
    fold_axes: str


class TuneFlags(TrainingFlags, total=False):
    """Flags of `tune`."""

    networks: list[str]
    space: str | Mapping[str, Any]
    metric: str
    search: str
    scheduler: str
    grace: int
    samples: int
    hours: float
    concurrent: int
    keep: int


class SegmentFlags(ComputeFlags, total=False):
    """Flags of `segment`; shapes and sizes are tuples z, y, x."""

    task: str | Mapping[str, Any]
    image: Any
    box: str | tuple[slice, ...]
    mip: int
    voxel_size: Any
    resample: bool
    allow_empty: bool
    mask: Any
    overwrite: bool
    save_mask: bool
    objects: bool
    save_objects: bool
    object_threshold: float | Sequence[float]
    object_extent: float | Sequence[float]
    min_size_nm3: float | Sequence[float]
    min_sections: int
    bridge_sections: int
    object_precision: float
    precomputed: str
    export: str
    export_box: str | tuple[slice, ...]
    export_what: str
    threshold: float | Sequence[float]
    shard: Any
    chunk: Any
    actors: int | str
    gpus_per_actor: float
    block: Any
    halo: Any
    tile: Any
    batch: int
    tta: bool
    skip_blank: bool
    dry_run: bool
    price_per_hour: float


class EvaluateFlags(DataFlags, total=False):
    """Flags of `evaluate`."""

    task: str | Mapping[str, Any]
    config: str
    settings: Mapping[str, Any] | Sequence[str]
    instances: Any
    reviewed: str
    threshold: float | Sequence[float]
    box: str | tuple[slice, ...]
    voxel_size: Any
    resample: bool
    out: str
    overwrite: bool


class ViewFlags(TypedDict, total=False):
    """Flags of `view`."""

    boss: str
    cache: str
    cache_size: str
    verbose: bool
    run: str
    evaluation: str
    image: Any
    annotation: Any
    position: str | Sequence[float]
    size: str | Sequence[int]
    layout: str
    screenshot: str
    link: bool
    review: int
    port: int
    bind: str
    browser: str
    config: str
    settings: Mapping[str, Any] | Sequence[str]
