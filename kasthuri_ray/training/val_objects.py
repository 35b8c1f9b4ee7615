"""The choice of object settings at the end of a run: on the objects of val, else from the annotation of train.

val is predicted once more, tile by tile with the context that a segmentation has: without it objects are cut and specks
appear at the edges of tiles. `TileVolume` joins the tiles block by block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.object_choice import MIN_OBJECTS, ClassChoice, ObjectChoice
from kasthuri_ray.metrics.object_comparison import ObjectComparison
from kasthuri_ray.metrics.object_search import (
    BoxObjects,
    highest_seed_of_all,
    judge_objects,
    search_extents,
    search_object_settings,
)
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.tiles.sampling import GridTiles, TileSource
from kasthuri_ray.training.annotated_objects import whole_object_sizes
from kasthuri_ray.training.grid_stream import open_grid_stream, with_context
from kasthuri_ray.training.learner import Learner
from kasthuri_ray.training.process_group import gather_over_ranks
from kasthuri_ray.training.tested_objects import (
    LOWEST_KEPT,
    PackedTiles,
    TileVolume,
    add_block,
    compare_tile_objects,
    pack_tile,
)
from kasthuri_ray.training.tile_results import TileResults, foreground_probabilities

if TYPE_CHECKING:  # it needs pydantic, and the choice of settings does not
    from kasthuri_ray.training.training_job import TrainingJob, WorkerContext

MAX_VOXELS = 64_000_000  # of val that are searched; of larger boxes only the first sections
MIN_SEED_OBJECTS = 5  # of val, from which a seed follows where they are too few to choose on
MIN_SIZE_PERCENTILE, MIN_SIZE_SHARE = 5, 0.5  # of the sizes of annotated objects


def choose_object_settings(
    val: GridTiles,
    packed: PackedTiles,
    train: Sequence[TileSource],
    class_names: Sequence[str],
    class_numbers: Sequence[int],
    thresholds: Sequence[float],
) -> ObjectChoice:
    """Choose how objects are found with a network.

    Parameters
    ----------
    val : GridTiles
        The validation boxes.
    packed : mapping
        Their tiles, as `tested_objects.pack_tile` returned them.
    train : sequence of TileSource
        The training boxes.
    class_names : sequence of str
        Names of the foreground classes.
    class_numbers : sequence of int
        Classes that have objects.
    thresholds : sequence of float
        Threshold of the voxels of each foreground class.

    Returns
    -------
    ObjectChoice
        Of classes with at least MIN_OBJECTS objects in val their best settings there. Else the extent is the
        threshold, the smallest size is half of the 5th percentile of the sizes of whole objects of train, and the seed
        is the highest that loses no object of val; with less than MIN_SEED_OBJECTS it is the threshold.
    """
    size = val.sources[0].image.voxel_size_nm
    chosen = {each: _choose_for_class(val, packed, train, each, thresholds) for each in class_numbers}
    settings = ObjectSettings.of_thresholds(thresholds)
    for class_number, of_class in chosen.items():
        settings = _with_class(settings, class_number, of_class.seed, of_class.extent, of_class.min_voxels)
    if size is not None:
        sizes_nm3 = tuple(voxels * math.prod(size) for voxels in settings.min_size)
        settings = replace(settings, min_size=sizes_nm3, is_nm3=True)
    by_name = {class_names[class_number - 1]: class_number for class_number in class_numbers}
    return ObjectChoice(settings, _judge_choice(val, packed, settings, chosen, by_name), by_name, size)


@dataclass(frozen=True)
class _ClassSettings:
    """The settings of one class, and on what they rest, see `ClassChoice`."""

    seed: float
    extent: float
    min_voxels: float
    source: str
    num_annotated: int = 0


def _choose_for_class(
    val: GridTiles, packed: PackedTiles, train: Sequence[TileSource], class_number: int, thresholds: Sequence[float]
) -> _ClassSettings:
    """Return the best settings of a class on val, or if it holds few objects, those that follow from train."""
    threshold = thresholds[class_number - 1]
    boxes = _candidates(val, packed, class_number, thresholds)
    num_true = sum(len(each.joined.true) for each in boxes[threshold])
    found = search_object_settings(boxes, threshold) if num_true >= MIN_OBJECTS else None
    if found is not None:
        return _ClassSettings(found.seed, found.extent, found.min_voxels, "val")
    sizes = whole_object_sizes(train, class_number)
    smallest = MIN_SIZE_SHARE * float(np.percentile(sizes, MIN_SIZE_PERCENTILE)) if len(sizes) else 0.0
    is_seeded = num_true >= MIN_SEED_OBJECTS
    seed = highest_seed_of_all(boxes[threshold], threshold, smallest) if is_seeded else threshold
    source = "annotation" if len(sizes) else "threshold"
    return _ClassSettings(seed, threshold, smallest, source, len(sizes))


def _judge_choice(
    val: GridTiles,
    packed: PackedTiles,
    settings: ObjectSettings,
    chosen: Mapping[int, _ClassSettings],
    by_name: Mapping[str, int],
) -> dict[str, ClassChoice]:
    """Return what the settings of each class rest on, and how right the objects are that they find in val."""
    joined = compare_tile_objects(val, packed, list(chosen), settings)
    classes = {}
    for name, class_number in by_name.items():
        boxes, of_class = [each.of_class(class_number) for each in joined], chosen[class_number]
        scores, verdicts = judge_objects(boxes)
        num_true = sum(len(each.true) for each in boxes)
        classes[name] = ClassChoice(of_class.source, num_true, of_class.num_annotated, scores, verdicts)
    return classes


def predict_val_objects(
    job: TrainingJob, context: WorkerContext, learner: Learner, tested: TileResults, thresholds: Sequence[float]
) -> tuple[GridTiles, dict[int, bytes]]:
    """Predict the tiles of val with context, on all ranks, and return them packed.

    Parameters
    ----------
    job : TrainingJob
        The run.
    context : WorkerContext
        The worker.
    learner : Learner
        With the best weights.
    tested : TileResults
        What was tested; if that was val, its tiles are returned as they are.
    thresholds : sequence of float
        Threshold of each foreground class.

    Returns
    -------
    tiles : GridTiles
        The tiles.
    packed : dict
        As of `tested_objects.pack_tile`, by number of the tile; of all ranks.
    """
    if job.tiles.test is None:
        return tested.tiles, tested.packed
    tiles = with_context(job.tiles.val, learner.network)
    packed: dict[int, bytes] = {}

    def pack(batch: Any, logits: Tensor, labels: Tensor) -> None:
        each = zip(batch.number, foreground_probabilities(logits), labels.cpu().numpy(), strict=True)
        for number, probability, truth in each:
            lowest = min(LOWEST_KEPT, *thresholds)
            packed[int(number)] = pack_tile(probability, truth, tiles.address(int(number)), lowest)

    with closing(open_grid_stream(tiles, job, context)) as stream:
        learner.evaluate(stream.batches(), pack)
    return tiles, {number: data for each in gather_over_ranks(packed) for number, data in each.items()}


def choice_lines(choice: ObjectChoice | None) -> list[str]:
    """Return how objects are found, and on what that rests, as a line for each class."""
    if choice is None:
        return []
    settings, lines = choice.settings, []
    for name, of_class in choice.classes.items():
        index = choice.numbers[name] - 1
        unit = "nm^3" if settings.is_nm3 else "voxels"
        values = (
            f"seed {settings.seed[index]:.3g}, extent {settings.extent[index]:.3g}, smallest size "
            f"{settings.min_size[index]:,.0f} {unit}"
        )
        lines.append(f"objects of the class {name}: {values}; {choice_reason(of_class)}")
    return lines


def choice_reason(choice: ClassChoice) -> str:
    """Return on what the settings of a class rest."""
    if choice.source == "val":
        return f"chosen on the {choice.num_true} objects of val (F1 {choice.outcome['f1']:.3f} by overlap)"
    few = f"val holds {choice.num_true} objects, too few to choose on, so"
    if choice.num_true >= MIN_SEED_OBJECTS:
        few += " the seed is the highest that loses none of them, and"
    if choice.source == "annotation":
        size = f"half of the 5th percentile of {choice.num_annotated} objects of the training boxes"
        return f"{few} the size is {size}"
    return f"{few} there is no smallest size, since the training boxes hold no whole object"


def _with_class(
    settings: ObjectSettings, class_number: int, seed: float, extent: float, min_voxels: float
) -> ObjectSettings:
    """Return settings with other values for one class."""

    def changed(values: tuple[float, ...], new: float) -> tuple[float, ...]:
        return (*values[: class_number - 1], new, *values[class_number:])

    return replace(
        settings,
        seed=changed(settings.seed, seed),
        extent=changed(settings.extent, extent),
        min_size=changed(settings.min_size, min_voxels),
    )


def _candidates(
    val: GridTiles, packed: PackedTiles, class_number: int, thresholds: Sequence[float]
) -> Mapping[float, list[BoxObjects]]:
    """Return the candidates of a class in each box at every extent; those of other classes are at their threshold."""
    plain = ObjectSettings.of_thresholds(thresholds)
    extents = search_extents(thresholds[class_number - 1])
    by_extent = {extent: _with_class(plain, class_number, extent, extent, 0.0) for extent in extents}
    found: dict[float, list[BoxObjects]] = {extent: [] for extent in by_extent}
    for volume in _limited(TileVolume.of_boxes(val, packed, len(thresholds))):
        comparisons = {extent: ObjectComparison() for extent in by_extent}
        for voxels in volume.blocks(plain):  # decompressed once for all extents
            for extent, settings in by_extent.items():
                add_block(comparisons[extent], settings, [class_number], volume.box, voxels)
        for extent, comparison in comparisons.items():
            found[extent].append(BoxObjects(comparison.joined(), volume.box))
    return found


def _limited(volumes: Sequence[TileVolume]) -> Iterator[TileVolume]:
    """Yield volumes cut to their first sections, so that all together have about MAX_VOXELS voxels at the most."""
    for volume in volumes:
        (z, y0, x0), (stop, y1, x1) = volume.box.start, volume.box.stop
        num_sections = max(1, MAX_VOXELS // len(volumes) // ((y1 - y0) * (x1 - x0)))
        yield replace(volume, box=Box((z, y0, x0), (min(stop, z + num_sections), y1, x1)))
