"""Every setting once: what a task, a network and a training run can be told, checked and with its default.

`resolve` merges the layers (flags over `--set` over `--config` over the task and network files over the defaults)
and gives `Settings`, or a ValueError that names the file, the key, what was given and what is allowed.
"""

from __future__ import annotations

import difflib
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kasthuri_ray.geometry import Box, Zyx, parse_box

HERE = Path(__file__).parent
SPLITS = ("train", "val", "test")
# Keys that the Kasthuri Challenge's files carry and that nothing has ever read.
UNREAD = {"encoder_name", "encoder_weights", "outputdir", "eval_threshold", "eval_reduction"}
# What settings.json holds beside the sections, so that it is itself a file for --config.
RECORDS = {"versions", "git_commit", "seed", "kept"}

Range = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
LOSSES = Literal["cross_entropy", "weighted_cross_entropy", "dice_ce", "focal", "tversky"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Region(Section):
    """A box of one volume that a split trains or is judged on."""

    image: str | None = None  # None: the task's image_chan
    annotation: str | None = None  # None: the task's annotation_chan
    box: str | list[Range]


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
    z_gap: Annotated[int, Field(ge=0)] = 0  # sections left out between the splits
    volume_z: Count = 1  # sections in a tile; 1 is 2D
    tile_size: Annotated[list[Count], Field(min_length=2, max_length=2)] = [256, 256]  # x, y
    threshold: bool = False
    threshold_value: float = 0.0  # annotation > value becomes 1
    ignore_label: int | None = None
    image_intensity: Annotated[list[float], Field(min_length=2, max_length=2)] | dict[str, list[float]] | None = None
    foreground_share: Share | None = None  # None: half for synapses, else none
    loss: LOSSES | None = None  # wins over the network file's

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
        return [
            Region(image=r.image or self.image_chan, annotation=r.annotation or self.annotation_chan, box=r.box)
            for r in named
        ]

    def _z_ranges(self) -> dict[str, list[int] | None]:
        """The three z ranges, `z_gap` sections cut from the start of whichever follows too closely on another."""
        ranges = {"train": self.z_train, "val": self.z_val, "test": self.z_test}
        found = {split: list(z) for split, z in ranges.items() if z}
        order = sorted(found, key=lambda split: found[split])
        for before, after in itertools.pairwise(order):
            found[after][0] = max(found[after][0], found[before][1] + self.z_gap)
        return {split: found.get(split) for split in SPLITS} if self.z_gap else ranges  # type: ignore[return-value]

    @model_validator(mode="after")
    def _complete(self) -> Task:
        if self.boxes is None:
            needed = ["xrange_vol", "yrange_vol", "z_train", "z_val"]
            missing = [key for key in needed if getattr(self, key) is None]
            if missing:
                raise ValueError(f"needs {', '.join(missing)} (or boxes)")
        for key in ("xrange_vol", "yrange_vol", "z_train", "z_val", "z_test"):
            limits = getattr(self, key)
            if limits is not None and limits[0] >= limits[1]:
                raise ValueError(f"{key} {limits} holds no voxels: it is start, stop")
        for split in SPLITS:
            for region in self.regions(split):
                if region.image is None or (region.annotation is None and split != "test"):
                    raise ValueError(f"needs image_chan and annotation_chan for {split} (or --image and --annotation)")
        return self


class Network(Section):
    """The network and how it learns. The defaults are what the Kasthuri Challenge's own files leave unsaid."""

    model: str = "UNet"  # with a dot an import path, else a label that nothing checks
    model_args: dict[str, Any] = {}
    model_type: Literal["unet", "attention", "residual", "depth"] = "unet"
    in_channels: Literal[1] = 1
    classes: Annotated[int, Field(ge=2, le=254)] = 2
    n_blocks: Annotated[int, Field(ge=1, le=8)] | None = None  # None: 4, and 5 for depth
    start_filters: Count = 32
    activation: Literal["relu", "leaky", "elu"] = "relu"
    normalization: Literal["batch", "instance", "group", "none"] = "batch"
    conv_mode: Literal["same"] = "same"
    dim: Literal[2, 3] = 2
    pool_z: Annotated[int, Field(ge=0)] = 0  # from which level z is pooled too

    optimizer: Literal["Adam", "AdamW", "SGD"] = "Adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    beta1: Share = 0.9
    beta2: Share = 0.999
    momentum: Share = 0.9
    weight_decay: NotNegative = 0.0
    scheduler: Literal["constant", "plateau", "cosine", "one_cycle"] = "plateau"
    warmup: Share = 0.0  # the share of all steps in which the learning rate rises
    plateau_patience: Count = 5  # epochs
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    early_stopping: Annotated[int, Field(ge=0)] = 10  # epochs without improvement; 0 is never
    early_stopping_delta: NotNegative = 0.001  # what counts as improvement of the validation loss
    gradient_clip: NotNegative = 0.0  # highest norm; 0 is none
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of the averaged weights; 0 is none
    loss: LOSSES = "cross_entropy"
    class_weights: list[NotNegative] | None = None  # for weighted_cross_entropy; None: from each batch
    augmentations: Literal["none", "basic", "em"] = "basic"
    epochs: Count = 10
    batch_size: Count = 8  # of all workers together
    tiles_per_epoch: Count | None = None  # None: the grid tiles of the training boxes, at most 4096
    precision: Literal["auto", "float32", "bf16"] = "auto"
    outweightfilename: str = "network"
    seed: Annotated[int, Field(ge=0)] = 0

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

    @field_validator("num_workers", mode="before")
    @classmethod
    def _workers(cls, value: Any) -> Any:
        if isinstance(value, str) and value.isdigit():
            value = int(value)
        if isinstance(value, str):
            low, dash, high = value.partition("-")
            if not (dash and low.isdigit() and high.isdigit() and 1 <= int(low) <= int(high)):
                raise ValueError("expected N or MIN-MAX, such as 4 or 2-8")
        return value

    @property
    def workers(self) -> tuple[int, int] | None:
        """The fewest and the most workers; None where the cluster decides."""
        if self.num_workers is None or isinstance(self.num_workers, int):
            return None if self.num_workers is None else (self.num_workers, self.num_workers)
        low, _, high = self.num_workers.partition("-")
        return int(low), int(high)


class Settings(Section):
    """All settings of a training run, and `kept`: keys of the files that are carried along and nothing reads."""

    task: Task
    network: Network
    train: Train
    kept: dict[str, Any] = {}


SECTIONS: dict[str, type[Section]] = {"task": Task, "network": Network, "train": Train}
Layer = dict[str, dict[str, Any]]


def region_box(region: Region, bounds: Box, what: str) -> Box:
    """The box that a region names, inside `bounds` of its image."""
    if isinstance(region.box, str):
        return parse_box(region.box, bounds)
    return parse_box(",".join(f"{a}:{b}" for a, b in region.box), bounds)


def find_file(name: str, kind: str) -> Path:
    """The task or network file (`kind`) that `name` means: an existing path, else one of ours."""
    if Path(name).is_file():
        return Path(name)
    folder = HERE / f"{kind}config"
    stem = Path(name).name.removesuffix(".json").removesuffix("_task" if kind == "task" else "")
    own = {path.stem.removesuffix("_task" if kind == "task" else ""): path for path in sorted(folder.glob("*.json"))}
    if stem in own and (Path(name).name == name):
        return own[stem]
    raise ValueError(f"no {kind} {name!r}: it is neither a file nor one of {', '.join(own)}{_nearest(stem, own)}")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or a ValueError that says where it breaks."""
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error.msg} in line {error.lineno}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object but {type(found).__name__}")
    return found


def read_config(path: Path) -> Layer:
    """A `--config` file: sections of settings; settings.json and best.json are such files."""
    layer = {key: value for key, value in read_json(path).items() if key not in RECORDS}
    for section, values in layer.items():
        if section not in SECTIONS:
            raise ValueError(f"{path}: no section {section!r}; there are {', '.join(SECTIONS)}")
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {section} is not an object of settings")
    return layer


def parse_assignment(text: str) -> Layer:
    """One `--set section.key=value`; the value is JSON if it parses, else a comma list, else a string."""
    target, equals, value = text.partition("=")
    section, dot, key = target.strip().partition(".")
    if not (equals and dot and key):
        raise ValueError(f"--set {text}: expected section.key=value, such as network.epochs=30")
    if section not in SECTIONS:
        raise ValueError(f"--set {text}: no section {section!r}; there are {', '.join(SECTIONS)}")
    return {section: {key: _parse_value(value.strip())}}


def _parse_value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [_parse_value(part.strip()) for part in text.split(",")] if "," in text else text


def resolve(
    task: str | None,
    network: str | None,
    *,
    config: str | None = None,
    assignments: list[str] | None = None,
    flags: Layer | None = None,
) -> Settings:
    """The settings that the layers add up to; see the module's first lines for which wins.

    task, network: names or paths of their files. config: a file of sections. assignments: `section.key=value`.
    flags: what flags of their own set. Raises ValueError for whatever is not allowed.
    """
    layers: list[tuple[str, Layer]] = []
    above: list[tuple[str, Layer]] = []
    if config is not None:
        above.append((config, read_config(Path(config))))
    above += [(f"--set {text}", parse_assignment(text)) for text in assignments or []]
    above.append(("the command line", flags or {}))
    if network is None and not any("network" in layer for _, layer in above[:1] if config is not None):
        network = "UNet_2D"
    if network is not None:
        path = find_file(network, "network")
        layers.append((str(path), {"network": {"outweightfilename": path.stem, **read_json(path)}}))
    if task is not None:
        path = find_file(task, "task")
        layers.append((str(path), {"task": read_json(path)}))
    elif not any("task" in layer for _, layer in above):
        raise ValueError(f"no task: give --task, one of {', '.join(own_tasks())} or a file of your own")
    return _merge(layers, above)


def own_tasks() -> list[str]:
    """The names of the task files that come with the package."""
    return sorted(path.stem.removesuffix("_task") for path in (HERE / "taskconfig").glob("*.json"))


def _merge(files: list[tuple[str, Layer]], above: list[tuple[str, Layer]]) -> Settings:
    values: Layer = {section: {} for section in SECTIONS}
    origins: dict[str, str] = {}
    kept: dict[str, Any] = {}
    for origin, layer in files + above:
        for section, entries in layer.items():
            for key, value in entries.items():
                if key in UNREAD:
                    kept[key] = value
                    continue
                _check_key(section, key, origin)
                values[section][key] = value
                origins[f"{section}.{key}"] = origin
        # A task's own loss wins over the network file's, but not over what is said above the files.
        if layer.get("task", {}).get("loss") is not None and "loss" not in layer.get("network", {}):
            values["network"]["loss"] = layer["task"]["loss"]
            origins["network.loss"] = origin
    sections = {section: _build(section, values[section], origins) for section in SECTIONS}
    return Settings(kept=kept, **sections)  # type: ignore[arg-type]


def _check_key(section: str, key: str, origin: str) -> None:
    known = SECTIONS[section].model_fields
    if key not in known:
        raise ValueError(f"{origin}: no setting {section}.{key}{_nearest(key, known)}")


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _build(section: str, values: dict[str, Any], origins: dict[str, str]) -> Section:
    try:
        return SECTIONS[section].model_validate(values)
    except ValidationError as error:
        raise ValueError("\n".join(_in_words(section, entry, origins) for entry in error.errors())) from None


def _in_words(section: str, entry: Any, origins: dict[str, str]) -> str:
    """One of pydantic's errors as file, key, what was given and what is allowed."""
    path = [str(part) for part in entry["loc"]]
    message = entry["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if not path:
        return f"{section}: {message}"
    origin = origins.get(f"{section}.{path[0]}", "defaults")
    given = json.dumps(entry["input"], default=str)
    return f"{origin}: {section}.{'.'.join(path)} is {given}: {message}"
