"""The training, validation and test tiles of a task: open its volumes and check that they fit and share no voxels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kasthuri_ray.config.settings import Settings, TrainSettings
from kasthuri_ray.config.task import SPLITS, Region, TaskSettings, region_box
from kasthuri_ray.errors import InputError, named_input
from kasthuri_ray.geometry import Box, TileGrid, per_axis
from kasthuri_ray.labels import LabelRule
from kasthuri_ray.metrics.sanity import missing_class_warnings
from kasthuri_ray.tiles.label_census import LabelCensus, class_counts, take_census
from kasthuri_ray.tiles.labelled_blocks import LabelledBlocks
from kasthuri_ray.tiles.sampling import GridTiles, SplitSources, TileSource, TrainTiles
from kasthuri_ray.tiles.voxel_values import check_training_range, choose_intensity, choose_label_rule
from kasthuri_ray.volumes.absent_chunks import absent_text, check_any_chunk, count_absent_before
from kasthuri_ray.volumes.alignment import align_volumes, both_places_text
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.resampled_volume import Resampling
from kasthuri_ray.volumes.volume import Volume
from kasthuri_ray.volumes.voxel_grid import box_nm

MAX_TILES_PER_EPOCH = 4096
SMALLER_TILES = (256, 128, 64, 32)  # voxels along y and x, which every network can halve
MIN_SPARSE_TILES_PER_EPOCH = 64  # where few tiles hold a label: each is drawn at several places around it


@dataclass(frozen=True)
class TaskTiles:
    """The tiles of a task's splits.

    Parameters
    ----------
    train, val, test : TrainTiles, GridTiles
        Tiles of each split; `test` is None if the task has no test box.
    absent_chunks : mapping
        For `image` and `annotation`: how many chunks of all boxes are not stored, and how many there are.
    census : LabelCensus, optional
        Labelled voxels of the training boxes.
    """

    train: TrainTiles
    val: GridTiles
    test: GridTiles | None
    absent_chunks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    census: LabelCensus | None = None

    @property
    def label_rule(self) -> LabelRule:
        """What the labels of all boxes mean."""
        return self.train.sources[0].label_rule


def open_task_tiles(settings: Settings, add_note: Callable[[str], None], *, is_new: bool = True) -> TaskTiles:
    """Open the volumes of a task, and check everything that can be checked before training.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    add_note : callable
        Receives lines that a person should read.
    is_new : bool
        Whether nothing was learnt from these tiles before. Only then are labels that mean "no object" found out, and
        grey levels compared with their range.

    Returns
    -------
    TaskTiles
        Tiles of all splits.

    Raises
    ------
    InputError
        If boxes, volumes and tiles do not fit; the message names the split, the volume and the numbers.
    InputNotFound, InputDenied, VolumeError
        If a volume cannot be opened or read.
    """
    task = settings.task
    opened = _open_sources(settings, add_note)
    _check_annotations(opened)
    intensity = choose_intensity(opened["train"], task, settings.network.seed)
    if is_new:
        check_training_range(opened["train"], intensity, settings, add_note)
    annotation = opened["train"][0].annotation
    name = "" if task.boxes is not None or annotation is None else settings.name_of("task.annotation_chan")
    with named_input(name, annotation.uri if annotation else ""):
        rule = choose_label_rule(opened, settings, add_note, is_new=is_new)
    sources = {
        split: tuple(TileSource(s.image, s.annotation, s.box, intensity, rule) for s in opened[split])
        for split in SPLITS
    }
    if sources["train"][0].image.voxel_size_nm is None:
        add_note(f"{sources['train'][0].image.uri} does not state its voxel size; lengths are in voxels")
    skips_unlabelled = is_new if task.labelled_tiles is None else task.labelled_tiles
    with named_input(name, annotation.uri if annotation else ""):
        census, labelled = take_census(sources["train"], task.tile, settings.network.seed, settings.network.classes)
        train = _train_tiles(sources["train"], settings, census, labelled if skips_unlabelled else None)
        notes = _census_notes(census, train, settings.class_names)
    for note in notes:
        add_note(note)
    if not any(source.annotation for source in sources["test"]):
        add_note(
            "there is no annotation for test: the metrics will be those of the validation box, which also selects the "
            "best epoch"
        )
    test = GridTiles(sources["test"], task.tile) if sources["test"] else None
    absent = _count_absent(opened, add_note)
    return TaskTiles(train, GridTiles(sources["val"], task.tile), test, absent, census)


def _check_annotations(sources: SplitSources) -> None:
    """Raise an InputError if an annotation is the image itself: its grey levels would be taken for labels."""
    for source in itertools.chain.from_iterable(sources.values()):
        if source.annotation is not None and source.annotation.identity == source.image.identity:
            raise InputError(f"the annotation is the image itself, {source.image.uri}: give labels (--annotation)")


def _count_absent(sources: SplitSources, add_note: Callable[[str], None]) -> dict[str, tuple[int, int]]:
    """Count the chunks of all boxes that are not stored, and note those that are absent."""
    totals: dict[str, tuple[int, int]] = {}
    for split, each in sources.items():
        for source in each:
            for kind, volume in (("image", source.image), ("annotation", source.annotation)):
                found = None if volume is None else count_absent_before(volume, source.box)
                if volume is None or found is None:
                    continue
                absent, chunks = totals.get(kind, (0, 0))
                totals[kind] = absent + found[0], chunks + found[1]
                if found[0]:
                    meaning = f"the label {volume.fill_value:g}" if kind == "annotation" else "its fill value"
                    add_note(f"{split}: {absent_text(volume.uri, *found, meaning)}")
    return totals


def check_splits_disjoint(sources: SplitSources, task: TaskSettings) -> None:
    """Raise an InputError if two splits share voxels, or if two boxes of val or of test do."""
    for split in ("val", "test"):
        for (i, a), (j, b) in itertools.combinations(enumerate(sources[split]), 2):
            if overlap := describe_overlap(a, b):
                keys = _box_keys(task, (split, i), (split, j))
                raise InputError(
                    f"two boxes of {split} share voxels, which would count twice: {overlap}; change {keys}"
                )
    for (split_a, sources_a), (split_b, sources_b) in itertools.combinations(sources.items(), 2):
        for (i, a), (j, b) in itertools.product(enumerate(sources_a), enumerate(sources_b)):
            if overlap := describe_overlap(a, b):
                raise InputError(
                    f"{split_a} and {split_b} share voxels: {overlap}; a network must not be evaluated on voxels that "
                    f"it was trained on: change {_box_keys(task, (split_a, i), (split_b, j))}"
                )


def describe_overlap(a: TileSource, b: TileSource) -> str:
    """Return a description of the voxels that two boxes share; "" if they share none.

    Boxes of two resolutions of one volume are compared in nm. An overlap of less than half a voxel of the coarser one
    does not count: metadata may omit the offset between the voxel centres of two resolutions, which is less than that.
    """
    if a.image.identity == b.image.identity:
        overlap = f"{a.box} and {b.box} of {a.image.uri} overlap in {a.box.intersect(b.box)}"
        return overlap if a.box.overlaps(b.box) else ""
    size_a, size_b = a.image.voxel_size_nm, b.image.voxel_size_nm
    if a.image.pyramid is None or a.image.pyramid != b.image.pyramid or size_a is None or size_b is None:
        return ""
    shared_nm = per_axis(
        lambda p, q: (max(p[0], q[0]), min(p[1], q[1])), box_nm(a.image, a.box), box_nm(b.image, b.box)
    )
    half_voxel_nm = per_axis(lambda m, n: max(m, n) / 2, size_a, size_b)
    if any(stop - start <= half * 1.001 for (start, stop), half in zip(shared_nm, half_voxel_nm, strict=True)):
        return ""
    ranges = ",".join(f"{start:g}:{stop:g}" for start, stop in shared_nm)
    boxes = f"{a.box} of {a.image.uri} and {b.box} of {b.image.uri}"
    return f"{boxes}, two resolutions of one volume, overlap in {ranges} nm (z,y,x)"


def _open_sources(settings: Settings, add_note: Callable[[str], None]) -> dict[str, tuple[TileSource, ...]]:
    """Open the boxes of all splits, each volume once; raise an InputError if they do not fit."""
    task, train = settings.task, settings.train
    opener = VolumeOpener(train.boss, train.cache, train.cache_size)
    notes: dict[str, None] = {}  # each once, in their order
    sources = {
        split: tuple(
            _open_source(opener, settings, (split, number), notes) for number in range(len(task.regions(split)))
        )
        for split in SPLITS
    }
    for note in (*opener.notes, *notes):
        add_note(note)
    check_splits_disjoint(sources, task)
    for split in SPLITS:
        for number, source in enumerate(sources[split]):
            _check_tile_fits(task, split, number, source)
    _check_data_types(sources, task)
    return sources


@dataclass(frozen=True)
class RegionVolumes:
    """The volumes of a region, on the voxels of its image.

    Parameters
    ----------
    image, annotation : Volume, Volume or None
        The annotation counts the voxels of the image.
    notes : tuple of str
        Lines that a person should read about how they lie on each other.
    places : str
        Where both are, for a message.
    """

    image: Volume
    annotation: Volume | None
    notes: tuple[str, ...] = ()
    places: str = ""

    @property
    def overlap(self) -> Box:
        """Voxels of the image that the annotation covers; all without an annotation."""
        return self.image.bounds if self.annotation is None else self.image.bounds.intersect(self.annotation.bounds)


def open_region_volumes(
    opener: VolumeOpener, region: Region, train: TrainSettings, image_name: str = "", annotation_name: str = ""
) -> RegionVolumes:
    """Open the image and the annotation of a region.

    Parameters
    ----------
    opener : VolumeOpener
        Opens each volume once.
    region : Region
        Names the volumes.
    train : TrainSettings
        Voxel size of the image, and whether the annotation may be resampled.
    image_name, annotation_name : str
        What a person typed to give them, such as `--image`, for messages.

    Returns
    -------
    RegionVolumes
        The volumes.

    Raises
    ------
    InputError
        If they do not lie on each other.
    InputNotFound, InputDenied, VolumeError
        If a volume cannot be opened.
    """
    assert region.image is not None
    size = per_axis(float, train.voxel_size) if train.voxel_size else None
    image = opener.open(region.image, voxel_size_nm=size, name=image_name)
    if region.annotation is None:
        return RegionVolumes(image, None)
    annotation = opener.open(region.annotation, labels=True, name=annotation_name)
    resample: Resampling | None = "nearest" if train.resample else None
    aligned = align_volumes(image, annotation, opener.open, resample=resample)
    return RegionVolumes(aligned.fixed, aligned.moving, aligned.notes, both_places_text(image, annotation))


def _open_source(
    opener: VolumeOpener, settings: Settings, place: tuple[str, int], notes: dict[str, None]
) -> TileSource:
    """Open one box; its annotation counts the voxels of its image."""
    task, train, (split, number) = settings.task, settings.train, place
    region = task.regions(split)[number]
    image_name, annotation_name = (
        settings.name_of(task.volume_key(split, number, kind)) for kind in ("image", "annotation")
    )
    volumes = open_region_volumes(opener, region, train, image_name, annotation_name)
    image, annotation = volumes.image, volumes.annotation
    notes |= dict.fromkeys(volumes.notes)
    box = region_box(region, image.bounds, _settings_outside(settings, split, number, region, image.bounds), image.uri)
    check_any_chunk(image, box, f"the {split} box", train.allow_empty)
    if annotation is not None and not annotation.bounds.contains(box):
        covered = box.intersect(annotation.bounds)
        raise InputError(
            f"{annotation.uri} covers {f'only {covered}' if covered.num_voxels else 'nothing'} of the {split} box "
            f"{box} of {image.uri}; it covers {volumes.overlap} of the image (z,y,x): change "
            f"{' or '.join(dict.fromkeys(task.range_keys(split, number)))}. {volumes.places}"
        )
    return TileSource(image, annotation, box)


def _settings_outside(settings: Settings, split: str, number: int, region: Region, bounds: Box) -> str:
    """Return what a person typed to set the ranges that are outside a volume."""
    keys = settings.task.range_keys(split, number)
    if isinstance(region.box, str) or settings.task.boxes is not None:
        return f"{keys[0]}: the box"
    ranges = zip(keys, region.box, bounds.start, bounds.stop, strict=True)
    names = [settings.name_of(key) for key, (a, b), low, high in ranges if a < low or b > high]
    return f"{', '.join(names)}: the {split} box"


def _box_keys(task: TaskSettings, *regions: tuple[str, int]) -> str:
    return " or ".join(task.range_keys(split, number)[0] for split, number in regions)


def _check_tile_fits(task: TaskSettings, split: str, number: int, source: TileSource) -> None:
    try:
        TileGrid(source.box, task.tile)
    except ValueError as error:
        size_keys = ("task.volume_z", "task.tile_size", "task.tile_size")
        axis = next(axis for axis in range(3) if source.box.shape[axis] < task.tile[axis])
        box_key = task.range_keys(split, number)[axis]
        fitting = next((size for size in SMALLER_TILES if size <= min(source.box.shape[1:])), None)
        smaller = f" (--set task.tile_size={fitting},{fitting} fits)" if axis > 0 and fitting else ""
        raise InputError(f"{split}: {error}; change {size_keys[axis]}{smaller} or {box_key}") from None


def _check_data_types(sources: SplitSources, task: TaskSettings) -> None:
    """Raise an InputError for images of several data types, unless the task sets the range of grey levels."""
    uris = {str(source.image.dtype): source.image.uri for split in sources.values() for source in split}
    if len(uris) > 1 and not isinstance(task.image_intensity, list):
        images = ", ".join(f"{uri} {dtype}" for dtype, uri in uris.items())
        raise InputError(
            f"the images have different data types, and no single range of grey levels fits them: {images}; give "
            "task.image_intensity as [low, high], or convert one of them"
        )


def _train_tiles(
    sources: tuple[TileSource, ...], settings: Settings, census: LabelCensus, labelled: LabelledBlocks | None
) -> TrainTiles:
    network, task = settings.network, settings.task
    num_tiles = sum(len(TileGrid(source.box, task.tile)) for source in sources)
    if labelled is not None:
        num_tiles = min(num_tiles, max(census.num_labelled_tiles, MIN_SPARSE_TILES_PER_EPOCH))
    tiles_per_epoch = network.tiles_per_epoch or min(num_tiles, MAX_TILES_PER_EPOCH)
    return TrainTiles(sources, task.tile, network.seed, task.share_on_foreground, tiles_per_epoch, labelled)


def _census_notes(census: LabelCensus, train: TrainTiles, names: Sequence[str]) -> list[str]:
    """Return lines about labels that are sparse, and about classes that the training boxes lack."""
    warnings = missing_class_warnings({census.train_name: class_counts(census, names)})
    if census.is_complete:
        return warnings
    labelled, voxels = sum(census.counts), census.num_read
    of_sample = f" of a sample of {census.num_voxels:,}" if census.is_sample else ""
    note = f"train: {labelled:,} of {voxels:,} voxels{of_sample} are labelled ({labelled / voxels:.2%})"
    if train.labelled is None:
        return [note, *warnings]
    return [
        f"{note}; only tiles that hold a labelled voxel are drawn, {train.tiles_per_epoch:,} in an epoch "
        "(network.tiles_per_epoch)",
        *warnings,
    ]
