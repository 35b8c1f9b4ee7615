"""The volumes of a task, opened and held against each other before any work."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.config import SPLITS, Region, Settings, Task, region_box
from kasthuri_ray.geometry import TileGrid
from kasthuri_ray.tiles.sampling import GridTiles, Labelling, Source, TrainTiles
from kasthuri_ray.volumes import Volume
from kasthuri_ray.volumes.labels import intensity_window
from kasthuri_ray.volumes.opener import Opener

MOST_TILES_PER_EPOCH = 4096
INTENSITY_SAMPLES = 32  # tiles looked at for percentiles
SAME_SIZE = 0.01  # two voxel sizes that differ by less are one, written with fewer digits


@dataclass(frozen=True)
class TaskTiles:
    """The tiles of a task's splits; test is None where the task has none."""

    train: TrainTiles
    val: GridTiles
    test: GridTiles | None


def open_task(settings: Settings, say: Callable[[str], None]) -> TaskTiles:
    """Open a task's volumes and check all that can be checked before training.

    Raises ValueError that names the split, the volume and the numbers for whatever does not fit.
    """
    task = settings.task
    train = settings.train
    opener = Opener(train.boss, train.cache, train.cache_size)
    sources = {split: tuple(_source(opener, split, region) for region in task.regions(split)) for split in SPLITS}
    _check_apart(sources)
    for split, found in sources.items():
        for source in found:
            _check_tile(split, source, task)
    _check_types(sources, task)
    intensity = intensity_of(sources["train"], task, settings.network.seed)
    labelling = Labelling(task.threshold_value if task.threshold else None, settings.network.classes, task.ignore_label)
    sources = {
        split: tuple(Source(s.image, s.annotation, s.box, intensity, labelling) for s in found)
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


def _train_tiles(sources: tuple[Source, ...], settings: Settings) -> TrainTiles:
    network, task = settings.network, settings.task
    grid = sum(len(TileGrid(source.box, task.tile)) for source in sources)
    tiles = network.tiles_per_epoch or min(grid, MOST_TILES_PER_EPOCH)
    return TrainTiles(sources, task.tile, network.seed, task.share_on_foreground, tiles)


def _source(opener: Opener, split: str, region: Region) -> Source:
    assert region.image is not None
    image = opener.open(region.image)
    annotation = None if region.annotation is None else opener.open(region.annotation)
    if annotation is not None:
        check_alike(image, annotation)
    return Source(image, annotation, region_box(region, image.bounds, f"the {split} box of {image.uri}"))


def check_alike(image: Volume, annotation: Volume) -> None:
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


def _check_apart(sources: Mapping[str, tuple[Source, ...]]) -> None:
    """Raise a ValueError where two splits share voxels, or where one that is judged holds a voxel twice."""
    for split in ("val", "test"):
        for a, b in itertools.combinations(sources[split], 2):
            if a.image.identity == b.image.identity and a.box.overlaps(b.box):
                raise ValueError(
                    f"two boxes of {split} share voxels, which would count twice: {a.box} and {b.box} of {a.image.uri} "
                    f"meet in {a.box.intersect(b.box)}"
                )
    for (one, some), (other, more) in itertools.combinations(sources.items(), 2):
        for a, b in itertools.product(some, more):
            if a.image.identity == b.image.identity and a.box.overlaps(b.box):
                raise ValueError(
                    f"{one} and {other} share voxels: {a.box} and {b.box} of {a.image.uri} meet in "
                    f"{a.box.intersect(b.box)}; what is judged must not have been learnt"
                )


def _check_tile(split: str, source: Source, task: Task) -> None:
    try:
        TileGrid(source.box, task.tile)
    except ValueError as error:
        raise ValueError(f"{split}: {error}; change task.tile_size, task.volume_z or the ranges") from None


def _check_types(sources: Mapping[str, tuple[Source, ...]], task: Task) -> None:
    """Raise a ValueError for images of several types of numbers, unless the task says which grey levels count."""
    types = {str(source.image.dtype): source.image.uri for found in sources.values() for source in found}
    if len(types) > 1 and not isinstance(task.image_intensity, list):
        named = ", ".join(f"{uri} {name}" for name, uri in types.items())
        raise ValueError(
            f"the images hold different types of numbers, which no one range fits: {named}; give task.image_intensity "
            "as [low, high], or convert one of them"
        )


def intensity_of(sources: tuple[Source, ...], task: Task, seed: int) -> tuple[float, float]:
    """The grey levels that become 0 and 255, one pair for all volumes, from random tiles of the training boxes."""
    image = sources[0].image
    explicit = isinstance(task.image_intensity, list)
    if explicit or (task.image_intensity is None and image.dtype == np.uint8):
        return intensity_window(np.empty(0, image.dtype), image.dtype, task.image_intensity)
    tiles = TrainTiles(sources, task.tile, seed, 0.0, INTENSITY_SAMPLES)
    addresses = [tiles.address(0, index) for index in range(INTENSITY_SAMPLES)]
    sample = np.concatenate([sources[a.source].image.read(a.box).ravel() for a in addresses])
    return intensity_window(sample, image.dtype, task.image_intensity)
