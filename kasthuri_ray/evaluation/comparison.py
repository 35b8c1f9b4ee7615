"""What is compared: a prediction and its annotation on one grid, what their values mean, and how they are divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from kasthuri_ray.config import defaults
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, ceil_div, per_axis
from kasthuri_ray.labels import IGNORE_LABEL, LabelRule, is_any_of, to_classes
from kasthuri_ray.metrics.class_map import lowest_value
from kasthuri_ray.metrics.object_comparison import object_classes
from kasthuri_ray.metrics.object_detection import select_objects
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.metrics.objects import ObjectTable
from kasthuri_ray.metrics.voxel_counts import BINS, probability_bins
from kasthuri_ray.volumes.learnt_from import LearntPart
from kasthuri_ray.volumes.volume import Volume

MAX_BLOCK: Zyx = (64, 512, 512)
MAX_BLOCK_VOXELS = 1 << 23  # a block takes about 25 bytes a voxel
SAMPLE: Zyx = (1, 256, 256)  # read before the work
MAX_WINDOW = 1024  # voxels along y and x of the part of a section that is scored and shown as one picture
MAX_TILE = 256  # voxels along y and x of the part of a section that intervals draw again


@dataclass(frozen=True)
class Comparison:
    """The volumes to compare, and how.

    Parameters
    ----------
    predictions : tuple of Volume
        Probability of each foreground class, on the voxels of the annotation; see `read_probability`.
    annotation : Volume
        Labels, see `read_classes`.
    box : Box
        What is compared, in voxels of the annotation.
    thresholds : tuple of float
        A voxel can be of a class from this probability; one for each foreground class.
    labels : LabelRule
        What the values of the annotation mean.
    instances : Volume, optional
        Ids of cells, on the voxels of the annotation.
    no_instance : tuple of int
        Ids that mean "no cell", as 0 does.
    class_names : tuple of str
        Names of the foreground classes.
    is_complete : bool
        Whether the prediction is our own output, which stores no blocks of zeros.
    learnt : LearntPart
        The part of `box` that the network learnt from, in voxels of the annotation.
    centroid_radius_nm : float
        See `object_criteria.ObjectCriteria`.
    object_settings : ObjectSettings, optional
        How objects are found in the prediction; by default every connected piece above the thresholds is one.
    object_ids : Volume, optional
        The label image of objects of the prediction, on the voxels of the annotation: its ids are the objects.
    """

    predictions: tuple[Volume, ...]
    annotation: Volume
    box: Box
    thresholds: tuple[float, ...]
    labels: LabelRule = field(default_factory=LabelRule)
    instances: Volume | None = None
    no_instance: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ("foreground",)
    is_complete: bool = False
    learnt: LearntPart = field(default_factory=LearntPart)
    centroid_radius_nm: float = defaults.CENTROID_RADIUS_NM
    object_settings: ObjectSettings | None = None
    object_ids: Volume | None = None

    @property
    def prediction(self) -> Volume:
        """Probability of the first class; those of the others have the same voxels and the same source."""
        return self.predictions[0]

    @property
    def voxel_size_nm(self) -> Sequence[float] | None:
        """Size of a voxel, z, y, x; None if neither volume states one."""
        return self.annotation.voxel_size_nm or self.prediction.voxel_size_nm

    @property
    def object_classes(self) -> list[int]:
        """Numbers of the classes whose objects are matched."""
        return object_classes(self.class_names)

    @property
    def found_by(self) -> ObjectSettings:
        """How objects are found in the prediction."""
        return self.object_settings or ObjectSettings.of_thresholds(self.thresholds)

    def select_objects(self, candidates: ObjectTable) -> ObjectTable:
        """Keep the candidates of the whole box that are objects."""
        if self.object_settings is None or self.object_ids is not None:
            return candidates
        return select_objects(candidates, self.object_settings, self.box, self.voxel_size_nm)

    @cached_property
    def binned_thresholds(self) -> list[float]:
        """Thresholds at which binned counts are those of the comparison's own thresholds.

        For bytes they are the lower edges of the bins of the lowest values; for floats the thresholds themselves.
        """
        if self.prediction.dtype.kind == "f":
            return list(self.thresholds)
        lowest = np.array([min(lowest_value(threshold), 255) for threshold in self.thresholds])
        return (probability_bins(lowest / 255) / BINS).tolist()

    def count_absent(self, block: Box, probability: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the chunks that begin in a block: absent ones and all, of prediction and annotation."""
        prediction = (0, 0) if self.is_complete else self.prediction.count_absent(block, probability, self.box)
        return np.array([prediction, self.annotation.count_absent(block, classes, self.box)])

    def read_probability(self, box: Box) -> np.ndarray:
        """Return the probability of each foreground class, c, z, y, x, as uint8 (255 is 1) or float.

        `box` is in voxels of the annotation. Raise an InputError for floats that are no probabilities.
        """
        voxels = np.stack([volume.read(box) for volume in self.predictions])
        if voxels.dtype.kind == "f" and not (voxels.min() >= 0 and voxels.max() <= 1 + 1e-6):
            raise InputError(
                f"{self.prediction.uri} {box} holds {voxels.min():.4g} to {voxels.max():.4g}; expected "
                "probabilities: floats from 0 to 1, or uint8 where 255 is 1"
            )
        return voxels * np.uint8(255) if voxels.dtype == bool else voxels

    def read_classes(self, box: Box) -> np.ndarray:
        """Return the class of each voxel, or IGNORE_LABEL; uint8, z, y, x."""
        return to_classes(self.annotation.read(box), self.labels, f"{self.annotation.uri} {box}")

    def check_sample(self) -> None:
        """Raise an InputError if the middle of the box shows that the volumes are no prediction and no annotation."""
        shape = per_axis(min, self.box.shape, SAMPLE)
        corner = per_axis(lambda start, n, size: start + (n - size) // 2, self.box.start, self.box.shape, shape)
        sample = Box.at(corner, shape)
        self.read_probability(sample)
        self.read_classes(sample)

    def hide_learnt(self, classes: np.ndarray, box: Box) -> np.ndarray:
        """Return classes, z, y, x, of a box, with IGNORE_LABEL where the network learnt; the same array if nowhere."""
        learnt = self.learnt.within(box).boxes
        if not learnt:
            return classes
        unseen = classes.copy()
        for each in learnt:
            unseen[each.slices(box.start)] = IGNORE_LABEL
        return unseen

    def read_instances(self, box: Box, classes: np.ndarray) -> np.ndarray:
        """Return the ids of cells, z, y, x; 0 where there is none, or where the annotation's class is ignored."""
        assert self.instances is not None
        ids = self.instances.read(box)
        without = classes == IGNORE_LABEL
        if self.no_instance:
            without |= is_any_of(ids, self.no_instance)
        return np.where(without, 0, ids)

    def window_starts(self) -> list[np.ndarray]:
        """Return where windows start along y and x; they divide a section into equal parts of at most MAX_WINDOW."""
        return self._divide_section(MAX_WINDOW)

    def tile_starts(self) -> list[np.ndarray]:
        """Return where tiles start along y and x; they divide a section into equal parts of at most MAX_TILE."""
        return self._divide_section(MAX_TILE)

    def _divide_section(self, max_size: int) -> list[np.ndarray]:
        starts = []
        for axis in (1, 2):
            extent = self.box.shape[axis]
            size = ceil_div(extent, ceil_div(extent, max_size))
            starts.append(np.arange(0, extent, size) + self.box.start[axis])
        return starts

    def blocks(self, block_shape: Zyx | None = None) -> list[Box]:
        """Return the blocks of the box, z slowest, on the grid of the prediction's chunks.

        Their default shape is `comparison_block_shape`.
        """
        shape = block_shape or comparison_block_shape(self.prediction.chunk, self.box.shape)
        return list(self.box.cells(shape, self.prediction.chunk_origin))


def comparison_block_shape(chunk: Zyx, shape: Zyx) -> Zyx:
    """Return the shape of blocks for a volume of this chunk and shape.

    Small chunks are doubled along x, y and z in turn; large ones are cut.
    """
    block = list(per_axis(min, chunk, MAX_BLOCK))
    for axis in (2, 1, 0):
        while (
            2 * block[axis] <= MAX_BLOCK[axis] and 2 * np.prod(block) <= MAX_BLOCK_VOXELS and block[axis] < shape[axis]
        ):
            block[axis] *= 2
    return per_axis(int, block)
