"""Which sections of an image and its annotation a page shows, and reading them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL, LabelRule, to_classes, to_uint8
from kasthuri_ray.reports.volume_page import ShownSection
from kasthuri_ray.volumes.value_sample import ValueCounts, ValueSample, best_cutout, cutout_around, split_sections
from kasthuri_ray.volumes.volume import Volume

NUM_SECTIONS = 3
ENOUGH_IMAGED = 0.99  # share of a section; more does not make it a better example
MAX_SIDE = 2048  # voxels of a section that is shown whole


@dataclass(frozen=True)
class SectionReader:
    """Reads sections of an image, of an annotation on its voxels, or of both.

    Parameters
    ----------
    image, annotation : Volume or None
        At least one of them; on the same voxels.
    intensity : tuple of float
        Grey levels that are shown black and white.
    rule : LabelRule
        What the labels mean.
    """

    image: Volume | None
    annotation: Volume | None
    intensity: tuple[float, float]
    rule: LabelRule

    def read_sections(self, region: Box, sample: ValueSample) -> list[ShownSection]:
        """Return one section of each third of a region, or a part of one.

        Parameters
        ----------
        region : Box
            Voxels that all volumes hold.
        sample : ValueSample
            Of the annotation, else of the image, on the same voxels.

        Returns
        -------
        list of ShownSection
            By z; fewer than three of a region of fewer sections.

        Raises
        ------
        VolumeError
            If a source fails.
        """
        return [self._read(self._choose(part, sample)) for part in split_sections(region, NUM_SECTIONS)]

    def _choose(self, part: Box, sample: ValueSample) -> Box:
        """Return the voxels to show of a part of the region: the best that was sampled, or something that is stored."""
        volume = self.annotation or self.image
        assert volume is not None
        sampled = best_cutout(sample, part, self._foreground_share if self.annotation else _imaged_share)
        anchor = sampled or volume.find_stored(part) or part
        section = _section_of(part, anchor)
        if max(section.shape) <= MAX_SIDE:
            return section
        if sampled is None:
            shown = cutout_around(volume, anchor)
        elif max(sampled.shape) <= MAX_SIDE:
            shown = sampled
        else:
            shown = cutout_around(volume, self._middle_of_foreground(sampled))
        return _section_of(shown, anchor).intersect(section)

    def _foreground_share(self, values: ValueCounts) -> float:
        try:
            classes = to_classes(values.values, self.rule, "")
        except InputError:
            return 0.0
        return values.share((classes > 0) & (classes != IGNORE_LABEL))

    def _middle_of_foreground(self, section: Box) -> Box:
        """Return the middle voxel of the foreground of a section; the section itself if it holds none."""
        classes = self._read_classes(section) if self.annotation else None
        if classes is None:
            return section
        found = np.flatnonzero((classes > 0) & (classes != IGNORE_LABEL))
        if not len(found):
            return section
        y, x = divmod(int(found[len(found) // 2]), section.shape[2])
        return Box.at((section.start[0], section.start[1] + y, section.start[2] + x), (1, 1, 1))

    def _read(self, box: Box) -> ShownSection:
        image = None if self.image is None else to_uint8(self.image.read(box), self.intensity)[0]
        classes = None if self.annotation is None else self._read_classes(box)
        return ShownSection(box.start[0], str(box), "image" if self.image else "annotation", image, classes)

    def _read_classes(self, box: Box) -> np.ndarray | None:
        """Return the classes of a section, y, x; None if the rule refuses its labels."""
        assert self.annotation is not None
        try:
            return to_classes(self.annotation.read(box), self.rule, self.annotation.uri)[0]
        except InputError:
            return None


def _imaged_share(values: ValueCounts) -> float:
    return min(values.share(values.values != 0), ENOUGH_IMAGED)


def _section_of(box: Box, anchor: Box) -> Box:
    """Return the part of a box in the middle section of another one."""
    z = (anchor.start[0] + anchor.stop[0]) // 2
    return Box((z, *box.start[1:]), (z + 1, *box.stop[1:]))
