"""Every setting of a job, once, with its type, its default and, in the docstring below it, what it means.

The settings of a task are in `task.py`, those of a network in `network.py`. `setting_list.py` lists them all, for
`--settings` and for docs/settings.md. `loading.py` says where values come from and which one wins. null is None.
Lengths are in voxels, in the order z, y, x, unless a docstring says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from kasthuri_ray.config import defaults
from kasthuri_ray.config.field_types import (
    AutoOnOff,
    Count,
    Device,
    Names,
    NotNegative,
    NotNegativeInt,
    Positive,
    Precision,
    SettingsSection,
    Share,
    Sizes,
    ThreeCounts,
    ThreeLengths,
    ThreeNotNegative,
    Thresholds,
    check_number_range,
    parse_number_range,
)
from kasthuri_ray.config.network import NetworkSettings
from kasthuri_ray.config.task import TaskSettings
from kasthuri_ray.config.view_settings import ViewSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.uris import redact_secrets


class TrainSettings(SettingsSection):
    """How and where a training runs. Only `weights`, `compile`, `voxel_size` and `resample` change what is learned."""

    changeable: ClassVar[frozenset[str]] = frozenset(
        {
            *("storage", "name", "num_workers", "device", "boss", "cache", "cache_size", "wait_for_resources"),
            *("mlflow", "wandb", "verbose", "allow_empty", "test_tta"),
        }
    )

    storage: str = defaults.STORAGE
    """Folder or s3:// URL that holds all runs."""
    name: str | None = None
    """Name of the run's folder in storage; an existing run is resumed; null: TASK_NETWORK_TIME."""
    folds: Count | None = None
    """Number of parts of the volume, each of which is tested by a network that did not see it: one run for each; null:
    a single run."""
    fold_axes: Literal["yx", "z"] = "yx"
    """How the volume is divided into folds: yx, four quadrants over all sections; z, parts along z."""
    weights: str | None = None
    """Initial weights: run folder or .pt file; path, https:// or s3://; null: random."""
    voxel_size: ThreeLengths | None = None
    """Voxel size of the images, nm along z, y, x; null: from their metadata."""
    resample: bool = False
    """Read an annotation of another voxel size on the voxels of its image."""
    allow_empty: bool = False
    """Train on an image of which nothing is stored in a box."""
    num_workers: Count | str | None = None
    """Number of training processes, N or MIN-MAX; null: one for each GPU, else 1."""
    device: Device = defaults.AUTO
    """Device that computes; auto: GPUs if there are any."""
    compile: AutoOnOff = defaults.AUTO
    """Whether torch.compile is used; auto: if it saves time on the processor, and the run is long enough."""
    test_tta: AutoOnOff = defaults.AUTO
    """Whether the test box is measured with test-time augmentation too, as test_tta in metrics.json; auto: if it takes
    at most a twentieth of the run."""
    boss: str | None = None
    """JSON file with protocol, host and token of a BossDB; its token is never written anywhere; null: public data."""
    cache: str | None = None
    """Folder for chunks of remote volumes and of the phantom, or "none" for no cache; null: KASTHURI_CACHE or
    ~/.cache/kasthuri_ray."""
    cache_size: str = defaults.CACHE_SIZE
    """Disk space that the cache may take on each node."""
    wait_for_resources: NotNegative | None = None
    """Seconds to wait until the cluster is large enough; null: fail at once if it is too small."""
    mlflow: str | None = None
    """URI of an MLflow server or file that logs the run; null: none."""
    wandb: str | None = None
    """Project of Weights & Biases that logs the run; null: none."""
    verbose: bool = False
    """Show tracebacks and Ray's own messages."""

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

    weights: str | None = None
    """Trained weights: run folder or .pt file; path, https:// or s3://; required."""
    more_weights: Names | None = None
    """Weights of further runs of the same network and task; the probabilities are the mean over all. null: none."""
    image: str | None = None
    """URI of the volume; null: the one that the run was trained on."""
    output: str | None = None
    """Path or s3:// URL of the OME-Zarr of probabilities; required."""
    box: str | None = None
    """Half-open region in voxels, such as 0:100,1000:3000,: ; null: the whole image."""
    mip: NotNegativeInt | None = None
    """Resolution level, 0 is finest; null: nearest to the training's voxel size."""
    voxel_size: ThreeLengths | None = None
    """Voxel size of the image, nm along z, y, x; null: from its metadata."""
    resample: bool = False
    """Read the image with voxels of the size that the network was trained at."""
    mask: str | None = None
    """URI of a volume; blocks where it is 0 are skipped; null: no mask."""
    allow_empty: bool = False
    """Segment a box in which nothing of the image is stored."""

    block: ThreeCounts | None = None
    """Shape of what an actor segments and writes at once, in whole shards; null: chosen from the network, the image and
    the machine."""
    halo: ThreeNotNegative | None = None
    """Context around a block, which is discarded; null: the network's receptive field."""
    tile: ThreeCounts | None = None
    """Shape of what the network sees at once, margins included; null: chosen from the network and the machine."""
    batch: Count | None = None
    """Number of tiles that go through the network together; null: chosen from the network and the machine."""
    shard: ThreeCounts | None = None
    """Shape of one file of the output; null: at most 64,1024,1024."""
    chunk: ThreeCounts | None = None
    """Shape of what a reader of the output decodes at once; null: at most 64,256,256."""

    threshold: Thresholds | None = None
    """Probability from which a voxel is foreground, or one for each class; null: the run's, else 0.5."""
    tta: bool = False
    """Test-time augmentation: average over flips and rotations of each tile."""
    save_mask: bool = False
    """Write a label image of the thresholded probabilities too."""
    objects: bool = False
    """Write a table of objects too, as CSV and Parquet."""
    save_objects: bool = False
    """Write a label image of the objects too, whose voxels have the ids of the table."""
    object_threshold: Thresholds | None = None
    """Probability that an object reaches somewhere, or one for each class; null: the run's, else the threshold."""
    object_extent: Thresholds | None = None
    """Probability from which a voxel can belong to an object, or one for each class; null: the run's, else the
    threshold."""
    min_size_nm3: Sizes | None = None
    """Smallest size of an object in nm^3, or one for each class; in voxels if the image has no voxel size; null: the
    run's, else none. Objects that the box cuts are kept."""
    min_sections: Count | None = None
    """Smallest number of sections of an object; null: 1. Objects that the box cuts are kept."""
    bridge_sections: NotNegativeInt | None = None
    """Sections of a gap along z across which objects are joined; null: 0."""
    object_precision: Share | None = None
    """Share of right objects that the lowest score ensures on the validation box of the run; null: no lowest score."""
    precomputed: str | None = None
    """Path or s3:// URL of a copy as Neuroglancer precomputed; null: no copy."""
    export: str | None = None
    """Path of a TIFF or HDF5 file that is written when all is segmented; null: no file."""
    export_box: str | None = None
    """Region that the exported file holds, half-open, in voxels of the image; null: all of the box."""
    export_what: Literal["probabilities", "mask", "objects"] = defaults.EXPORT_WHAT
    """What the exported file holds; objects: their ids in the table."""
    skip_blank: bool = True
    """Do not segment chunks of the image that hold nothing."""
    precision: Precision = defaults.AUTO
    """Number format of the arithmetic; auto: the fastest of the processor."""
    compile: AutoOnOff = defaults.AUTO
    """Whether torch.compile is used; auto: if the job is long enough to save time."""
    fold: AutoOnOff = defaults.AUTO
    """Whether batch norms are folded into convolutions, which is faster; auto: for plain U-Nets with a whole halo."""
    device: Device = defaults.AUTO
    """Device that computes; auto: GPUs if there are any."""
    actors: Count | str | None = None
    """Number of processes that segment, N or MIN-MAX; null: as many as the cluster holds."""
    gpus_per_actor: Annotated[float, Field(gt=0, le=1)] = defaults.GPUS_PER_ACTOR
    """GPUs of an actor; 0.5: two actors share a GPU."""
    wait_for_resources: NotNegative | None = None
    """Seconds to wait until the cluster is large enough; null: fail at once if it is too small."""
    dry_run: bool = False
    """Estimate time, memory and cost, and write only OUTPUT.plan.json."""
    price_per_hour: NotNegative | None = None
    """Price of one GPU-hour, for the cost that is estimated; on CPUs: hourly machine price / actors on it; null: no
    cost."""
    overwrite: bool = False
    """Delete an existing output and start over."""
    boss: str | None = None
    """JSON file with protocol, host and token of a BossDB; its token is never written anywhere; null: public data."""
    cache: str | None = None
    """Folder for chunks of remote volumes and of the phantom, or "none" for no cache; null: KASTHURI_CACHE or
    ~/.cache/kasthuri_ray."""
    cache_size: str = defaults.CACHE_SIZE
    """Disk space that the cache may take on each node."""
    verbose: bool = False
    """Show tracebacks and Ray's own messages."""

    _check_actors = field_validator("actors", mode="before")(check_number_range)

    @property
    def actor_range(self) -> tuple[int, int] | None:
        """Smallest and largest number of actors; None if the cluster decides."""
        return parse_number_range(self.actors)


class TuneSettings(SettingsSection):
    """What a sweep searches, and how. The section `train` says where and how its trials are trained."""

    # How long a sweep runs and on how much. Networks and space are compared by their content.
    changeable: ClassVar[frozenset[str]] = frozenset({"samples", "hours", "keep", "concurrent", "networks", "space"})

    networks: Names | None = None
    """Names or files of networks to compare; null: the four 2D networks, or UNet_3D."""
    space: str | dict[str, Any] | None = None
    """JSON file of the search space, or its content; null: the settings that matter most."""
    samples: Count | None = None
    """Number of trials; null: 20, or all of a grid, or as many as `hours` allows."""
    search: Literal["random", "grid", "optuna"] = defaults.SEARCH
    """How trials are proposed; optuna: by Optuna's TPE."""
    scheduler: Literal["asha", "median", "none"] = defaults.SCHEDULER
    """How poor trials are stopped early."""
    grace: Count | None = None
    """Epochs before a trial may be stopped; null: a ninth of network.epochs."""
    concurrent: Count | None = None
    """Number of trials at the same time; null: one for each GPU, else one for each node."""
    hours: Positive | None = None
    """Time limit in hours of work, those before a resume included; null: no limit."""
    keep: Count = defaults.KEEP
    """Number of the best trials whose weights are kept."""
    seed: NotNegativeInt = 0
    """Seed of the search."""


class EvaluateSettings(SettingsSection):
    """What is compared with what, and how."""

    prediction: str
    """URI of the probabilities."""
    annotation: str = ""
    """URI of the ground truth; empty only with `reviewed`, which takes its place."""
    reviewed: str | None = None
    """CSV file of the verdicts of a review, from which the precision is estimated."""
    task: str | dict[str, Any] | None = None
    """Name, file or content of the task that says what the labels mean; null: the provenance's. Settings of the section
    `task`, such as task.threshold, win over it."""
    instances: str | None = None
    """URI of a volume of cell ids, for scores of the cells that membranes enclose."""
    threshold: Thresholds | None = None
    """Probability from which a voxel is foreground, or one for each class; null: the provenance's, else 0.5."""
    box: str | None = None
    """Half-open region in voxels of the annotation; null: all of the overlap."""
    voxel_size: ThreeLengths | None = None
    """Voxel size of prediction and annotation, nm along z, y, x; null: from their metadata."""
    resample: bool = False
    """Read a prediction and instances of another voxel size on the voxels of the annotation."""
    centroid_radius_nm: Positive = defaults.CENTROID_RADIUS_NM
    """Largest distance between the centroids of a true and a predicted object that are partners by centroids, in nm."""
    out: str | None = None
    """Folder or s3:// URL of the results; null: PREDICTION.evaluation."""
    overwrite: bool = False
    """Replace an evaluation of other volumes or settings in the same folder."""
    boss: str | None = None
    """JSON file with protocol, host and token of a BossDB; its token is never written anywhere; null: public data."""
    cache: str | None = None
    """Folder for chunks of remote volumes and of the phantom, or "none" for no cache; null: KASTHURI_CACHE or
    ~/.cache/kasthuri_ray."""
    cache_size: str = defaults.CACHE_SIZE
    """Disk space that the cache may take on each node."""
    wait_for_resources: NotNegative | None = None
    """Seconds to wait until the cluster is large enough; null: fail at once if it is too small."""
    verbose: bool = False
    """Show tracebacks and Ray's own messages."""

    @model_validator(mode="after")
    def _check_one_truth(self) -> EvaluateSettings:
        if bool(self.annotation) == (self.reviewed is not None):
            wrong = "--annotation and --reviewed: give one of them" if self.annotation else "--annotation is missing"
            raise InputError(f"{wrong}: a prediction is compared with an annotation, or with the verdicts of a review")
        return self


class CheckSettings(SettingsSection):
    """What a cluster must be fit for, or which volume is checked."""

    address: str | None = None
    """Address of Ray, HOST:PORT; null: RAY_ADDRESS, else this machine alone."""
    storage: str = defaults.STORAGE
    """Folder or s3:// URL that will hold all runs."""
    image: str = defaults.CHECK_IMAGE
    """URI of a volume that every node must be able to read; "none": not checked."""
    boss: str | None = None
    """JSON file with protocol, host and token of a BossDB; its token is never written anywhere; null: public data."""
    cache: str | None = None
    """Folder for chunks of remote volumes and of the phantom, or "none" for no cache; null: KASTHURI_CACHE or
    ~/.cache/kasthuri_ray."""
    cache_size: str = defaults.CACHE_SIZE
    """Disk space that the cache must have on each node."""
    gpus: NotNegativeInt = 0
    """GPUs that the cluster must have."""
    wait_for_resources: NotNegative | None = None
    """Seconds to wait until the cluster is large enough; null: do not wait."""
    report: str | None = None
    """File for a fault report, instead of a check; null: check."""
    volume: str | None = None
    """URI of an image that is checked instead of a cluster, without Ray."""
    annotation: str | None = None
    """URI of its annotation."""
    task: str | None = None
    """Name or file of the task that says what the labels mean; null: labels above 0."""
    mip: NotNegativeInt | None = None
    """Resolution level of the image, 0 is finest; null: the URI's, else 0."""
    voxel_size: ThreeLengths | None = None
    """Voxel size of the image, nm along z, y, x; null: from its metadata."""
    out: str = defaults.VOLUME_CHECK
    """Folder or s3:// URL of the page about the volume."""
    verbose: bool = False
    """Show tracebacks and Ray's own messages."""

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
    "view": ViewSettings,
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
    # What gave a value, by section.key: a flag such as `--image`, a `--set`, or a file; not a setting.
    origins: dict[str, str] = Field(default={}, exclude=True)

    def name_of(self, key: str) -> str:
        """Return what a person typed to give the setting `section.key`: a flag, a `--set`, or the key and its file."""
        origin = self.origins.get(key, "")
        if origin.startswith("--"):
            return origin.partition("=")[0]
        return f"{key} of {origin}" if origin not in ("", "{...}") else key  # {...}: the content of a file

    @property
    def class_names(self) -> list[str]:
        """Names of the foreground classes of the network."""
        return self.task.class_names(self.network.classes)

    def training_record(self) -> dict[str, Any]:
        """Return the settings of a training as JSON values, without secrets."""
        return self.model_dump(mode="json", exclude={"segment", "tune"})
