"""What a network learnt from: the boxes of its run, and of the runs whose weights that run started from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.geometry import Box, box_of_text, count_covered
from kasthuri_ray.volumes.recorded_image import RecordedImage
from kasthuri_ray.volumes.volume import Volume


@dataclass(frozen=True)
class LearntPart:
    """The part of a volume that a network learnt from.

    Parameters
    ----------
    boxes : tuple of Box
        In voxels of the volume, z, y, x; they may overlap.
    is_known : bool
        Whether it is known that the network learnt from nothing else.
    is_same_image : bool
        Whether a box of this image was learnt from, here or elsewhere. Otherwise the network knows other images alone,
        and this may be a changed copy of one of them.
    images : tuple of str
        URIs of all images that the network learnt from.
    """

    boxes: tuple[Box, ...] = ()
    is_known: bool = False
    is_same_image: bool = False
    images: tuple[str, ...] = ()

    def share_of(self, box: Box) -> float:
        """Return the share of a box that was learnt from."""
        return count_covered(self.boxes, box) / box.num_voxels

    def within(self, box: Box) -> LearntPart:
        """Return the part that lies in a box."""
        cut = (each.intersect(box) for each in self.boxes)
        return self.with_boxes(each for each in dict.fromkeys(cut) if each.num_voxels)

    def with_boxes(self, boxes: Iterable[Box]) -> LearntPart:
        """Return the same with other boxes, such as those in voxels of another volume."""
        return LearntPart(tuple(boxes), self.is_known, self.is_same_image, self.images)

    def to_plain(self) -> dict[str, Any]:
        """Return the part as JSON values."""
        return {
            "known": self.is_known,
            "same_image": self.is_same_image,
            "images": list(self.images),
            "boxes": [str(box) for box in self.boxes],
        }

    @classmethod
    def from_plain(cls, record: Any) -> LearntPart:
        """Return the part of a record of `to_plain`; nothing is known from any other value."""
        try:
            return cls(
                boxes=tuple(map(box_of_text, record["boxes"])),
                is_known=bool(record["known"]),
                is_same_image=bool(record["same_image"]),
                images=tuple(map(str, record["images"])),
            )
        except (KeyError, TypeError, ValueError):
            return cls()


@dataclass(frozen=True)
class LearntRun:
    """What one run learnt from.

    Parameters
    ----------
    name : str
        Name of the run.
    images : tuple of RecordedImage
        Boxes of train and val in each of its images.
    """

    name: str
    images: tuple[RecordedImage, ...]


@dataclass(frozen=True)
class LearntFrom:
    """What a network learnt from.

    Parameters
    ----------
    runs : tuple of LearntRun
        The runs that are known, the last one first.
    is_complete : bool
        Whether they are all: False if the first of them started from weights of which nothing is known.
    """

    runs: tuple[LearntRun, ...] = ()
    is_complete: bool = False

    @property
    def images(self) -> tuple[RecordedImage, ...]:
        """Images of all runs."""
        return tuple(image for run in self.runs for image in run.images)

    def find_in(self, volume: Volume) -> LearntPart:
        """Return the part of a volume that was learnt from.

        Parameters
        ----------
        volume : Volume
            Any volume; of a small one under another name all voxels may be read.

        Returns
        -------
        LearntPart
            In voxels of the volume.
        """
        found = [boxes for image in self.images if (boxes := image.find_in(volume)) is not None]
        inside = (box.intersect(volume.bounds) for each in found for box in each)
        return LearntPart(
            boxes=tuple(dict.fromkeys(box for box in inside if box.num_voxels)),
            is_known=self.is_complete,
            is_same_image=bool(found),
            images=tuple(dict.fromkeys(image.image for image in self.images)),
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        runs = [{"run": run.name, "images": [image.to_plain() for image in run.images]} for run in self.runs]
        return {"complete": self.is_complete, "runs": runs}

    @classmethod
    def from_plain(cls, record: Any) -> LearntFrom:
        """Return what a record of `to_plain` holds; nothing is known from any other value."""
        try:
            runs = [
                LearntRun(str(run["run"]), tuple(map(RecordedImage.from_plain, run["images"])))
                for run in record["runs"]
            ]
            return cls(tuple(runs), bool(record["complete"]))
        except (KeyError, TypeError, ValueError):
            return cls()
