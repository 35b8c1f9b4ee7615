"""Do two boxes hold the same tissue: what is judged must not have been learnt, nor be counted twice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import SPLITS, Region, TaskSettings, region_box
from kasthuri_ray.geometry import Box, TileGrid
from kasthuri_ray.labels import intensity_window
from kasthuri_ray.tiles.sampling import GridTiles, LabelRule, TileSource, TrainTiles
from kasthuri_ray.volumes.alignment import box_nm
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.volume import Volume

MAX_TILES_PER_EPOCH = 4096
INTENSITY_SAMPLES = 32  # tiles looked at for percentiles
SAME_SIZE = 0.01  # two voxel sizes that differ by less are one, written with fewer digits


def check_splits_disjoint(sources: Mapping[str, tuple[TileSource, ...]], task: TaskSettings) -> None:
    """Raise a ValueError where two splits share voxels, or where one that is judged holds a voxel twice.

    sources: of each split, in the order of the task's regions.
    """
    for split in ("val", "test"):
        for (i, a), (j, b) in itertools.combinations(enumerate(sources[split]), 2):
            if shared := overlap_text(a, b):
                keys = _keys(task, (split, i), (split, j))
                raise ValueError(f"two boxes of {split} share voxels, which would count twice: {shared}; change {keys}")
    for (one, some), (other, more) in itertools.combinations(sources.items(), 2):
        for (i, a), (j, b) in itertools.product(enumerate(some), enumerate(more)):
            if shared := overlap_text(a, b):
                raise ValueError(
                    f"{one} and {other} share voxels: {shared}; what is judged must not have been learnt: change "
                    f"{_keys(task, (one, i), (other, j))}"
                )


def _keys(task: TaskSettings, *regions: tuple[str, int]) -> str:
    return " or ".join(task.keys_of(split, number)[0] for split, number in regions)


def overlap_text(a: TileSource, b: TileSource) -> str:
    """Where two boxes meet, in words; empty where they do not.

    Two resolutions of one volume are held against each other in nm; that they meet by less than half of a coarser voxel
    may be how its rows were numbered, and is none.
    """
    if a.image.identity == b.image.identity:
        meet = f"{a.box} and {b.box} of {a.image.uri} meet in {a.box.intersect(b.box)}"
        return meet if a.box.overlaps(b.box) else ""
    sizes = (a.image.voxel_size_nm, b.image.voxel_size_nm)
    if a.image.pyramid is None or a.image.pyramid != b.image.pyramid or None in sizes:
        return ""
    half = [max(pair) / 2 for pair in zip(*sizes, strict=True)]  # type: ignore[arg-type]
    places = zip(box_nm(a.image, a.box), box_nm(b.image, b.box), half, strict=True)
    meet_nm = [(max(p[0], q[0]), min(p[1], q[1]), least) for p, q, least in places]
    if any(stop - start <= least * 1.001 for start, stop, least in meet_nm):
        return ""
    shown = ",".join(f"{start:g}:{stop:g}" for start, stop, _ in meet_nm)
    boxes = f"{a.box} of {a.image.uri} and {b.box} of {b.image.uri}"
    return f"{boxes}, two resolutions of one volume, meet in {shown} nm (z,y,x)"


@dataclass(frozen=True)
class TaskTiles:
    """The tiles of a task's splits; test is None where the task has none."""

    train: TrainTiles
    val: GridTiles
    test: GridTiles | None


def open_task_tiles(settings: Settings, say: Callable[[str], None]) -> TaskTiles:
    """Open a task's volumes and check all that can be checked before training.

    Raises ValueError that names the split, the volume and the numbers for whatever does not fit.
    """
    task = settings.task
    train = settings.train
    opener = VolumeOpener(train.boss, train.cache, train.cache_size)
    sources = {
        split: tuple(_source(opener, task, split, number) for number in range(len(task.regions(split))))
        for split in SPLITS
    }
    check_splits_disjoint(sources, task)
    for split, found in sources.items():
        for number, source in enumerate(found):
            _check_tile(task, split, number, source)
    _check_types(sources, task)
    intensity = task_intensity(sources["train"], task, settings.network.seed)
    labelling = LabelRule(task.threshold_value if task.threshold else None, settings.network.classes, task.ignore_label)
    sources = {
        split: tuple(TileSource(s.image, s.annotation, s.box, intensity, labelling) for s in found)
        for split, found in sources.items()
    }
    if sources["train"][0].image.voxel_size_nm is None:
        say(f"{sources['train'][0].image.uri} does not say how large its voxels are; lengths are in voxels")
    tiles = _train_tiles(sources["train"], settings)
    tiles.check_foreground()
    if not any(source.annotation for source in sources["test"]):
        say("there is no annotation for test: the figures will be those of the validation box, which chose the best")
    test = GridTiles(sources["test"], task.tile) if sources["test"] else None
    return TaskTiles(tiles, GridTiles(sources["val"], task.tile), test)


def _train_tiles(sources: tuple[TileSource, ...], settings: Settings) -> TrainTiles:
    network, task = settings.network, settings.task
    grid = sum(len(TileGrid(source.box, task.tile)) for source in sources)
    tiles = network.tiles_per_epoch or min(grid, MAX_TILES_PER_EPOCH)
    return TrainTiles(sources, task.tile, network.seed, task.share_on_foreground, tiles)


def _source(opener: VolumeOpener, task: TaskSettings, split: str, number: int) -> TileSource:
    region = task.regions(split)[number]
    assert region.image is not None
    image = opener.open(region.image)
    annotation = None if region.annotation is None else opener.open(region.annotation)
    if annotation is not None:
        check_same_grid(image, annotation)
    try:
        return TileSource(image, annotation, region_box(region, image.bounds, f"the {split} box of {image.uri}"))
    except ValueError as error:
        raise ValueError(f"{_outside_settings(task, split, number, region, image.bounds)}: {error}") from None


def _outside_settings(task: TaskSettings, split: str, number: int, region: Region, bounds: Box) -> str:
    """The settings that lead out of a volume, with what they are."""
    keys = task.keys_of(split, number)
    if isinstance(region.box, str):
        return f"{keys[0]} is {region.box!r}"
    if task.boxes is not None:
        return f"{keys[0]} is {region.box}"
    ranges = zip(keys, region.box, bounds.start, bounds.stop, strict=True)
    return ", ".join(f"{key} is [{a}, {b}]" for key, (a, b), low, high in ranges if a < low or b > high)


def check_same_grid(image: Volume, annotation: Volume) -> None:
    """Raise a ValueError if image and annotation are not on the same grid of voxels."""
    if image.bounds != annotation.bounds:
        raise ValueError(
            f"image and annotation have different shapes: {image.uri} is {image.bounds}, "
            f"{annotation.uri} is {annotation.bounds} (z,y,x)"
        )
    one, other = image.voxel_size_nm, annotation.voxel_size_nm
    if one and other and not np.allclose(one, other, rtol=SAME_SIZE):
        raise ValueError(
            f"image and annotation have different voxel sizes: {image.uri} {tuple(one)} nm, "
            f"{annotation.uri} {tuple(other)} nm (z,y,x)"
        )


def _check_tile(task: TaskSettings, split: str, number: int, source: TileSource) -> None:
    try:
        TileGrid(source.box, task.tile)
    except ValueError as error:
        sizes = ("task.volume_z", "task.tile_size", "task.tile_size")
        axis = next(axis for axis in range(3) if source.box.shape[axis] < task.tile[axis])
        raise ValueError(f"{split}: {error}; change {sizes[axis]} or {task.keys_of(split, number)[axis]}") from None


def _check_types(sources: Mapping[str, tuple[TileSource, ...]], task: TaskSettings) -> None:
    """Raise a ValueError for images of several types of numbers, unless the task says which grey levels count."""
    types = {str(source.image.dtype): source.image.uri for found in sources.values() for source in found}
    if len(types) > 1 and not isinstance(task.image_intensity, list):
        named = ", ".join(f"{uri} {name}" for name, uri in types.items())
        raise ValueError(
            f"the images hold different types of numbers, which no one range fits: {named}; give task.image_intensity "
            "as [low, high], or convert one of them"
        )


def task_intensity(sources: tuple[TileSource, ...], task: TaskSettings, seed: int) -> tuple[float, float]:
    """The grey levels that become 0 and 255, one pair for all volumes, from random tiles of the training boxes."""
    image = sources[0].image
    explicit = isinstance(task.image_intensity, list)
    if explicit or (task.image_intensity is None and image.dtype == np.uint8):
        return intensity_window(np.empty(0, image.dtype), image.dtype, task.image_intensity)
    tiles = TrainTiles(sources, task.tile, seed, 0.0, INTENSITY_SAMPLES)
    addresses = [tiles.address(0, index) for index in range(INTENSITY_SAMPLES)]
    sample = np.concatenate([sources[a.source].image.read(a.box).ravel() for a in addresses])
    return intensity_window(sample, image.dtype, task.image_intensity)
