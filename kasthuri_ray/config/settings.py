"""Every setting of a network and of a job, once, with its type, its default and what it means.

The settings of a task are in `task.py`. `loading.py` says where values come from and which one wins. None is `null` in
a JSON file. Lengths are in voxels, in the order z, y, x, unless a comment says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from kasthuri_ray.config import defaults
from kasthuri_ray.config.field_types import (
    BelowOne,
    Compile,
    Count,
    Device,
    LossName,
    MetricName,
    Names,
    NotNegative,
    NotNegativeInt,
    Positive,
    Precision,
    SettingsSection,
    Share,
    ThreeCounts,
    ThreeLengths,
    ThreeNotNegative,
    Thresholds,
    check_number_range,
    parse_number_range,
)
from kasthuri_ray.config.task import TaskSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.uris import redact_secrets


class NetworkSettings(SettingsSection):
    """The network and how it is trained.

    The defaults listed here apply only where a network file does not set the value; the built-in files set most of
    them. They are those of the Kasthuri Challenge, whose files leave such values out.
    """

    # Import path of your own torch.nn.Module, such as my_package.MyNet. A name without a dot means our U-Net.
    model: str = "UNet"
    model_args: dict[str, Any] = Field(default={})  # arguments of your own network
    # attention: a U-Net with attention gates on its skip connections; residual: with residual blocks; depth: with one
    # resolution level more.
    model_type: Literal["unet", "attention", "residual", "depth"] = "unet"
    in_channels: Literal[1] = 1  # the image is gray
    classes: Annotated[int, Field(ge=2, le=254)] = 2  # background included
    n_blocks: Annotated[int, Field(ge=1, le=8)] | None = None  # resolution levels; None: 4, for depth 5
    start_filters: Annotated[int, Field(ge=1, le=65536)] = 32  # filters of the finest level; doubled at each level
    activation: Literal["relu", "leaky", "elu", "gelu", "silu"] = "relu"
    # instance and group normalize each tile by itself, so that the size of tiles changes the result a little.
    normalization: Literal["batch", "instance", "group", "none"] = "batch"
    conv_mode: Literal["same"] = "same"  # convolutions keep the size of the image
    dim: Literal[2, 3] = 2  # 2: each section by itself; 3: several sections at once
    pool_z: NotNegativeInt = 0  # 3D: the first pool_z poolings leave z as it is, for sections thicker than a pixel

    optimizer: Literal["Adam", "AdamW", "SGD"] = "Adam"
    learning_rate: Positive = 1e-4  # the highest that the scheduler reaches
    beta1: BelowOne = 0.9  # Adam and AdamW: decay of the average gradient
    beta2: BelowOne = 0.999  # Adam and AdamW: decay of the average squared gradient
    momentum: Share = 0.9  # of SGD
    weight_decay: NotNegative = 0.0  # strength of the pull of all weights toward 0
    # Course of the learning rate. plateau: reduced when the validation loss stops falling; cosine and one_cycle: it
    # rises, then falls until the last epoch.
    scheduler: Literal["constant", "plateau", "cosine", "one_cycle"] = "plateau"
    warmup: Share = 0.0  # fraction of all training steps in which the learning rate rises; 0 for one_cycle: 0.3
    plateau_patience: Count = 5  # epochs without a lower validation loss before the learning rate is reduced
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5  # factor by which it is reduced
    early_stopping: NotNegativeInt = 10  # epochs without improvement after which training stops; 0: never
    early_stopping_delta: NotNegative = 0.001  # least decrease of the validation loss that is an improvement
    gradient_clip: NotNegative = 0.0  # largest norm of the gradient; 0: no limit
    ema: BelowOne = 0.0  # decay of a moving average of the weights, which is then the result; 0: no average
    # dice_ce: Dice plus cross entropy; focal: voxels that are hard to classify count more; tversky: missed foreground
    # counts more than false foreground; weighted_cross_entropy: each class has a weight.
    loss: LossName = "cross_entropy"
    class_weights: list[NotNegative] | None = None  # one for each class; None: from the class fractions of a batch
    # basic: flips and small rotations; em: also faults of electron microscopy, such as a missing section.
    augmentations: Literal["none", "basic", "em"] = "basic"
    epochs: Count = 10  # one epoch is `tiles_per_epoch` tiles and a validation
    # Tiles in a step, those of all workers together. None: one for each worker and at least 2, a small batch that
    # learns most from few tiles.
    batch_size: Count | None = 8
    tiles_per_epoch: Count | None = None  # None: as many as cover the training boxes once, at most 4096
    precision: Precision = defaults.AUTO  # of the arithmetic; auto: bf16 if the hardware computes with it, else float32
    metric: MetricName = defaults.METRIC  # chooses the best epoch of a run and the best trial of a sweep
    outweightfilename: str = "network"  # the weights are saved as OUTWEIGHTFILENAME_TASKTYPE.pt
    seed: NotNegativeInt = 0  # of the initial weights, the tiles and their augmentation

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


class TrainSettings(SettingsSection):
    """How and where a training runs. Only `weights`, `compile`, `voxel_size` and `resample` change what is learned."""

    changeable: ClassVar[frozenset[str]] = frozenset(
        {
            *("storage", "name", "num_workers", "device", "boss", "cache", "cache_size", "wait_for_resources"),
            *("mlflow", "wandb", "verbose", "allow_empty"),
        }
    )

    storage: str = defaults.STORAGE  # folder or s3:// URL that holds all runs
    name: str | None = None  # folder of the run in storage; an existing run is resumed; None: TASK_NETWORK_TIME
    weights: str | None = None  # initial weights: run folder or .pt file; path, https:// or s3://; None: random
    voxel_size: ThreeLengths | None = None  # of the images, nm along z, y, x; None: from their metadata
    resample: bool = False  # read an annotation of another voxel size on the voxels of its image
    allow_empty: bool = False  # train on an image of which nothing is stored in a box
    num_workers: Count | str | None = None  # training processes, N or MIN-MAX; None: one for each GPU, else 1
    device: Device = defaults.AUTO  # auto: GPUs if there are any
    compile: Compile = defaults.AUTO  # torch.compile; auto: if the run is long enough to gain time
    boss: str | None = None  # JSON file with protocol, host and token of a BossDB; its token is never written anywhere
    # Folder for chunks of remote volumes, or "none" for no cache. None: KASTHURI_CACHE or ~/.cache/kasthuri_ray.
    cache: str | None = None
    cache_size: str = defaults.CACHE_SIZE  # disk space that the cache may take on each node
    wait_for_resources: NotNegative | None = None  # seconds to wait until the cluster is large enough; None: an error
    mlflow: str | None = None  # URI of an MLflow server or file that logs the run
    wandb: str | None = None  # project of Weights & Biases that logs the run
    verbose: bool = False  # show tracebacks and Ray's own messages

    @field_serializer("weights", "mlflow")
    def _without_secrets(self, url: str | None) -> str | None:
        # Neither the signature of a signed URL nor the password of a server is written anywhere.
        return None if url is None else redact_secrets(url)

    _check_num_workers = field_validator("num_workers", mode="before")(check_number_range)

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Smallest and largest number of workers; None if the cluster decides."""
        return parse_number_range(self.num_workers)


class SegmentSettings(SettingsSection):
    """What is segmented with which weights, and how."""

    # Compared when an output is resumed, as they are; `SegmentationInputs.make_record` adds what follows from others.
    recorded: ClassVar[tuple[str, ...]] = ("save_mask", "skip_blank")

    weights: str | None = None  # run folder or .pt file; path, https:// or s3://; required
    image: str | None = None  # URI of the volume; None: the one that the run was trained on
    output: str | None = None  # path or s3:// URL of the OME-Zarr of probabilities; required
    box: str | None = None  # half-open region in voxels, such as 0:100,1000:3000,: ; None: the whole image
    mip: NotNegativeInt | None = None  # resolution level, 0 is finest; None: nearest to the training's voxel size
    voxel_size: ThreeLengths | None = None  # nm along z, y, x; None: from the image's metadata
    resample: bool = False  # read the image with voxels of the size that the network was trained at
    mask: str | None = None  # URI of a volume; blocks where it is 0 are skipped; None: no mask
    allow_empty: bool = False  # segment a box in which nothing of the image is stored

    # Shapes in voxels, z, y, x. None: chosen from the network, the image and the machine.
    block: ThreeCounts | None = None  # what an actor segments and writes at once, in whole shards
    halo: ThreeNotNegative | None = None  # context around a block, discarded; None: the network's receptive field
    tile: ThreeCounts | None = None  # what the network sees at once, margins included
    batch: Count | None = None  # tiles (a number) that go through the network together
    shard: ThreeCounts | None = None  # what is one file of the output; None: at most 64,1024,1024
    chunk: ThreeCounts | None = None  # what a reader of the output decodes at once; None: at most 64,256,256

    # Probability from which a voxel is foreground, or one for each class; None: the run's, else 0.5.
    threshold: Thresholds | None = None
    tta: bool = False  # test-time augmentation: average over flips and rotations
    save_mask: bool = False  # write a label image of the thresholded probabilities too
    objects: bool = False  # write a CSV table of the objects above the threshold too
    precomputed: str | None = None  # path or s3:// URL of a copy as Neuroglancer precomputed; None: no copy
    export: str | None = None  # path of a TIFF or HDF5 file that is written when all is segmented; None: no file
    export_box: str | None = None  # region that it holds, half-open, in voxels of the image; None: all
    export_what: Literal["probabilities", "mask", "objects"] = defaults.EXPORT_WHAT  # objects: by the ids of the table
    skip_blank: bool = True  # do not segment chunks of the image that hold nothing
    precision: Precision = defaults.AUTO  # of the arithmetic; auto: bf16 if the hardware computes with it, else float32
    compile: Compile = defaults.AUTO  # torch.compile; auto: if the job is long enough to gain time
    device: Device = defaults.AUTO  # auto: GPUs if there are any
    actors: Count | str | None = None  # processes that segment, N or MIN-MAX; None: as many as the cluster holds
    gpus_per_actor: Annotated[float, Field(gt=0, le=1)] = defaults.GPUS_PER_ACTOR  # 0.5: two actors share a GPU
    wait_for_resources: NotNegative | None = None  # seconds to wait until the cluster is large enough; None: an error
    dry_run: bool = False  # estimate time, memory and cost, and write only OUTPUT.plan.json
    price_per_hour: NotNegative | None = None  # of one GPU-hour; on CPUs: hourly machine price / actors on it
    overwrite: bool = False  # delete an existing output and start over
    boss: str | None = None  # JSON file with protocol, host and token of a BossDB; its token is never written anywhere
    cache: str | None = None  # folder for chunks of remote volumes, or "none"; None: as in `train`
    cache_size: str = defaults.CACHE_SIZE  # disk space that the cache may take on each node
    verbose: bool = False  # show tracebacks and Ray's own messages

    _check_actors = field_validator("actors", mode="before")(check_number_range)

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """Smallest and largest number of actors; None if the cluster decides."""
        return parse_number_range(self.actors)


class TuneSettings(SettingsSection):
    """What a sweep searches, and how. The section `train` says where and how its trials are trained."""

    # How long a sweep runs and on how much. Networks and space are compared by their content.
    changeable: ClassVar[frozenset[str]] = frozenset({"samples", "hours", "keep", "concurrent", "networks", "space"})

    networks: Names | None = None  # names or files of networks to compare; None: the four 2D networks, or UNet_3D
    # JSON file of the search space, or its content; None: the settings that matter most.
    space: str | dict[str, Any] | None = None
    samples: Count | None = None  # number of trials; None: 20, or all of a grid, or as many as `hours` allows
    search: Literal["random", "grid", "optuna"] = defaults.SEARCH  # how trials are proposed; optuna: by Optuna's TPE
    scheduler: Literal["asha", "median", "none"] = defaults.SCHEDULER  # how poor trials are stopped early
    grace: Count | None = None  # epochs before a trial may be stopped; None: a ninth of network.epochs
    concurrent: Count | None = None  # trials at the same time; None: one for each GPU, else one for each node
    hours: Positive | None = None  # hours of work, those before a resume included; None: no limit
    keep: Count = defaults.KEEP  # best trials whose weights are kept
    seed: NotNegativeInt = 0  # of the search


class EvaluateSettings(SettingsSection):
    """What is compared with what, and how."""

    prediction: str  # URI of the probabilities
    annotation: str  # URI of the ground truth
    # Name, file or content of the task that says what the labels mean; None: the provenance's. Settings of the section
    # `task`, such as task.threshold, win over it.
    task: str | dict[str, Any] | None = None
    instances: str | None = None  # URI of a volume of cell ids, for scores of the cells that membranes enclose
    # Probability from which a voxel is foreground, or one for each class; None: the provenance's, else 0.5.
    threshold: Thresholds | None = None
    box: str | None = None  # half-open region in voxels of the annotation; None: all of the overlap
    voxel_size: ThreeLengths | None = None  # of prediction and annotation, nm along z, y, x; None: from their metadata
    resample: bool = False  # read a prediction and instances of another voxel size on the voxels of the annotation
    out: str | None = None  # folder or s3:// URL of the results; None: PREDICTION.evaluation
    boss: str | None = None  # JSON file with protocol, host and token of a BossDB; its token is never written anywhere
    cache: str | None = None  # folder for chunks of remote volumes, or "none"; None: as in `train`
    cache_size: str = defaults.CACHE_SIZE  # disk space that the cache may take on each node
    wait_for_resources: NotNegative | None = None  # seconds to wait until the cluster is large enough; None: an error
    verbose: bool = False  # show tracebacks and Ray's own messages


class CheckSettings(SettingsSection):
    """What a cluster must be fit for, or which volume is checked."""

    address: str | None = None  # of Ray, HOST:PORT; None: RAY_ADDRESS, else this machine alone
    storage: str = defaults.STORAGE  # folder or s3:// URL that will hold all runs
    image: str = defaults.CHECK_IMAGE  # URI of a volume that every node must be able to read; "none": not checked
    boss: str | None = None  # JSON file with protocol, host and token of a BossDB; its token is never written anywhere
    cache: str | None = None  # folder for chunks of remote volumes, or "none"; None: as in `train`
    cache_size: str = defaults.CACHE_SIZE  # disk space that the cache must have on each node
    gpus: NotNegativeInt = 0  # GPUs that the cluster must have
    wait_for_resources: NotNegative | None = None  # seconds to wait until the cluster is large enough; None: do not
    report: str | None = None  # file for a fault report, instead of a check; None: check
    volume: str | None = None  # URI of an image that is checked instead of a cluster, without Ray
    annotation: str | None = None  # URI of its annotation
    task: str | None = None  # name or file of the task that says what the labels mean; None: labels above 0
    mip: NotNegativeInt | None = None  # resolution level of the image, 0 is finest; None: the URI's, else 0
    voxel_size: ThreeLengths | None = None  # of the image, nm along z, y, x; None: from its metadata
    out: str = defaults.VOLUME_CHECK  # folder or s3:// URL of the page about the volume
    verbose: bool = False  # show tracebacks and Ray's own messages

    of_a_cluster: ClassVar[tuple[str, ...]] = ("address", "storage", "image", "gpus", "wait_for_resources", "report")
    of_a_volume: ClassVar[tuple[str, ...]] = ("annotation", "task", "mip", "voxel_size", "out")

    @model_validator(mode="after")
    def _check_one_subject(self) -> CheckSettings:
        others = self.of_a_volume if self.volume is None else self.of_a_cluster
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in others if key in self.model_fields_set)
        if flags and self.volume is None:
            raise InputError(f"{flags}: there is no volume; give the image with --volume URI")
        if flags:
            raise InputError(f"{flags}: not with --volume, which checks a volume alone")
        return self


SECTIONS: dict[str, type[SettingsSection]] = {
    "task": TaskSettings,
    "network": NetworkSettings,
    "train": TrainSettings,
    "segment": SegmentSettings,
    "tune": TuneSettings,
    "evaluate": EvaluateSettings,
    "check": CheckSettings,
}


class Settings(SettingsSection):
    """All settings of a job that trains, tunes or segments."""

    task: TaskSettings
    network: NetworkSettings
    train: TrainSettings = TrainSettings()
    segment: SegmentSettings = SegmentSettings()
    tune: TuneSettings = TuneSettings()
    kept: dict[str, Any] = Field(default={})  # unused keys of the files, which are written to settings.json again
    notes: dict[str, str] = Field(default={}, exclude=True)  # notes for the user, by section; not a setting
    # What the command line gives, as section.key, and no file; not a setting.
    typed: frozenset[str] = Field(default=frozenset(), exclude=True)

    def training_record(self) -> dict[str, Any]:
        """Return the settings of a training as JSON values, without secrets."""
        return self.model_dump(mode="json", exclude={"segment", "tune"})
