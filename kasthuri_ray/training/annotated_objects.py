"""Count the objects of the annotation of the training boxes, with which those of predictions are compared later."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.components import CLASS, Components, label_block_components
from kasthuri_ray.metrics.object_comparison import object_classes
from kasthuri_ray.metrics.object_density import AnnotatedObjects
from kasthuri_ray.metrics.objects import join_objects
from kasthuri_ray.tiles.sampling import TileSource

MAX_VOXELS = 16_000_000  # that are read; of larger boxes only a part is counted
BLOCK: Zyx = (16, 512, 512)


def count_annotated_objects(
    sources: Sequence[TileSource], class_names: Sequence[str], max_voxels: int = MAX_VOXELS
) -> AnnotatedObjects | None:
    """Count the objects of an annotation.

    Parameters
    ----------
    sources : sequence of TileSource
        Boxes with annotation.
    class_names : sequence of str
        Names of the foreground classes.
    max_voxels : int
        About how many voxels are read.

    Returns
    -------
    AnnotatedObjects or None
        None if no class has objects.
    """
    numbers = object_classes(class_names)
    if not numbers:
        return None
    counted, num_voxels = Counter[int](), 0
    for source in sources:
        box = _first_part(source.box, max_voxels // len(sources))
        labelled = list[int]()
        table = join_objects(_find_components(source, box, numbers, labelled))
        counted.update(table.stats[:, CLASS].tolist())
        num_voxels += sum(labelled)
    size = sources[0].image.voxel_size_nm
    return AnnotatedObjects(
        {class_names[number - 1]: counted[number] for number in numbers}, num_voxels, list(size) if size else None
    )


def whole_object_sizes(sources: Sequence[TileSource], number: int, max_voxels: int = MAX_VOXELS) -> np.ndarray:
    """Return the sizes of the whole objects of a class in an annotation, those that touch no face of what is read.

    Parameters
    ----------
    sources : sequence of TileSource
        Boxes with annotation.
    number : int
        The class.
    max_voxels : int
        About how many voxels are read.

    Returns
    -------
    ndarray of int64
        In voxels.
    """
    sizes = [np.zeros(0, np.int64)]
    for source in sources:
        box = _first_part(source.box, max_voxels // len(sources))
        table = join_objects(_find_components(source, box, [number], []))
        sizes.append(table.size_voxels[~table.is_cut(box)])
    return np.concatenate(sizes)


def _first_part(box: Box, max_voxels: int) -> Box:
    """Return the first part of a box that has about so many voxels: whole sections, or a part of the first one."""
    depth, height, width = box.shape
    sections = min(depth, max(1, max_voxels // (height * width)))
    side = math.isqrt(max(1, max_voxels // sections))
    whole = sections * height * width <= max_voxels
    shape = (sections, height, width) if whole else (sections, min(height, side), min(width, side))
    return Box.at(box.start, shape)


def _find_components(source: TileSource, box: Box, numbers: Sequence[int], labelled: list[int]) -> Iterator[Components]:
    """Yield the components of each block, and add the number of its labelled voxels to `labelled`."""
    for block in box.cells(BLOCK, box.start):
        with_shell = Box(block.start, per_axis(lambda stop: stop + 1, block.stop)).intersect(box)
        classes = source.read_labels(with_shell)
        labelled.append(int((classes[block.slices(block.start)] != IGNORE_LABEL).sum()))
        yield label_block_components(np.where(np.isin(classes, numbers), classes, 0), block)[0]
