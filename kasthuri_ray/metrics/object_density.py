"""How densely objects lie in an annotation, and signs that a prediction's objects are mostly noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kasthuri_ray.metrics.matching import SMALL_VOXELS
from kasthuri_ray.metrics.objects import ObjectTable
from kasthuri_ray.progress import format_count

MAX_RATIO = 5.0  # of the density of the predicted objects to that of the annotated ones
MAX_PER_TRUE = 2.0  # where the annotation itself has about as many objects, a high density is no sign of noise
NM3_PER_UM3 = 1e9


def imaged_um3(num_voxels: int, voxel_size_nm: Sequence[float]) -> float:
    """Return a volume in um^3.

    Parameters
    ----------
    num_voxels : int
        Voxels that show tissue.
    voxel_size_nm : sequence of float
        Size of a voxel, z, y, x.

    Returns
    -------
    float
        The volume.
    """
    return num_voxels * math.prod(voxel_size_nm) / NM3_PER_UM3


@dataclass(frozen=True)
class AnnotatedObjects:
    """The objects of an annotation, or of a part of it.

    Parameters
    ----------
    num_objects : mapping of str to int
        Objects of each class by its name.
    num_voxels : int
        Labelled voxels.
    voxel_size_nm : sequence of float or None
        Size of a voxel, z, y, x.
    """

    num_objects: Mapping[str, int]
    num_voxels: int
    voxel_size_nm: Sequence[float] | None

    @classmethod
    def from_plain(cls, record: Mapping[str, Any] | None) -> AnnotatedObjects | None:
        """Return what `to_plain` returned; None for None."""
        return None if record is None else cls(**record)

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def object_warnings(
    objects: Mapping[str, Mapping[str, Any]],
    num_voxels: int,
    voxel_size_nm: Sequence[float] | None,
    training: AnnotatedObjects | None,
) -> list[str]:
    """Return the signs that the objects of a prediction are mostly noise.

    Parameters
    ----------
    objects : mapping
        Result of `object_outcomes.object_metrics` for each class by its name.
    num_voxels : int
        Labelled voxels that were compared.
    voxel_size_nm : sequence of float or None
        Size of a voxel, z, y, x.
    training : AnnotatedObjects or None
        Objects of the annotation of the training boxes. Without them, or where they hold none of a class, the
        annotation that the prediction is compared with takes their place.

    Returns
    -------
    list of str
        Sentences.
    """
    warnings = []
    for name, row in objects.items():
        warnings.append(speck_warning(name, row["num_predicted"], row.get("num_small", 0)))
        here = AnnotatedObjects({name: row["num_true"]}, num_voxels, voxel_size_nm)
        is_known = training is not None and training.num_voxels > 0 and training.num_objects.get(name, 0) > 0
        reference, whose = (training, "the annotation of the training boxes") if is_known else (here, "the annotation")
        assert reference is not None
        warnings.append(_density_warning(name, row, here, reference, whose))
    return [warning for warning in warnings if warning]


def speck_warning(name: str, num_objects: int, num_small: int) -> str:
    """Return a warning if most objects are too small to be any.

    Parameters
    ----------
    name : str
        Name of their class.
    num_objects, num_small : int
        Marked objects, and those of fewer than `SMALL_VOXELS` voxels.

    Returns
    -------
    str
        A sentence, or "".
    """
    if num_small <= num_objects / 2:
        return ""
    return (
        f"Most of the {num_objects:,} marked objects of the class {name} are specks: {num_small:,} have fewer than "
        f"{SMALL_VOXELS} voxels. A count of them means nothing."
    )


def describe_objects(table: ObjectTable, names: Sequence[str]) -> tuple[str, list[str]]:
    """Return how many objects of each class there are, and the signs that they are mostly noise.

    Parameters
    ----------
    table : ObjectTable
        Objects of all classes.
    names : sequence of str
        Names of the classes 1, 2, ....

    Returns
    -------
    counts : str
        Such as "12 objects" or "12 objects (3 of synapse, 9 of mitochondrion)".
    warnings : list of str
        Sentences.
    """
    by_class = {name: table.size_voxels[table.class_numbers == number] for number, name in enumerate(names, start=1)}
    parts = ", ".join(f"{len(sizes):,} of {name}" for name, sizes in by_class.items())
    counts = format_count(len(table), "object") + (f" ({parts})" if len(names) > 1 else "")
    warnings = [speck_warning(name, len(sizes), int((sizes < SMALL_VOXELS).sum())) for name, sizes in by_class.items()]
    return counts, [warning for warning in warnings if warning]


def _density_warning(
    name: str, row: Mapping[str, Any], here: AnnotatedObjects, reference: AnnotatedObjects, whose: str
) -> str:
    volume, other_volume, unit = here.num_voxels / 1e6, reference.num_voxels / 1e6, "million voxels"
    if here.voxel_size_nm is not None and reference.voxel_size_nm is not None:
        volume, other_volume = (
            imaged_um3(each.num_voxels, size)
            for each, size in ((here, here.voxel_size_nm), (reference, reference.voxel_size_nm))
        )
        unit = "um^3"
    num_predicted, num_true, num_reference = row["num_predicted"], row["num_true"], reference.num_objects[name]
    if not num_reference or num_predicted <= MAX_RATIO * num_reference * volume / other_volume:
        return ""
    if num_predicted <= MAX_PER_TRUE * num_true:
        return ""
    return (
        f"The prediction marks {num_predicted:,} objects of the class {name} in {volume:.3g} {unit}, "
        f"{_format(num_predicted / volume)} per {unit}. That is over {MAX_RATIO:.0f} times as many as in {whose}, "
        f"{_format(num_reference / other_volume)} per {unit}: most of them are not {name}."
    )


def _format(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
