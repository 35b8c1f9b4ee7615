"""How a segmentation finds objects: flags win over what the run chose, and that over the threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from kasthuri_ray.config.settings import SegmentSettings
from kasthuri_ray.config.task import class_thresholds
from kasthuri_ray.errors import InputError
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.segmentation.trained_network import TrainedNetwork

FLAGS = "--object-threshold --object-extent --min-size-nm3 --min-sections --bridge-sections"
NO_SETTINGS_NOTE = (
    "the weights hold no object settings: every connected piece above the threshold is an object, however small; "
    f"{FLAGS} change that"
)


def resolve_object_settings(
    segment: SegmentSettings,
    trained: TrainedNetwork,
    thresholds: Sequence[float],
    class_names: Sequence[str],
    voxel_size_nm: Sequence[float] | None,
) -> ObjectSettings:
    """Return how objects are found.

    Parameters
    ----------
    segment : SegmentSettings
        What a person gave.
    trained : TrainedNetwork
        What the run chose, if it did.
    thresholds : sequence of float
        Threshold of the mask for each class.
    class_names : sequence of str
        Names of the foreground classes.
    voxel_size_nm : sequence of float or None
        Of the image.

    Returns
    -------
    ObjectSettings
        With a smallest size in nm^3 only if the image has a voxel size.

    Raises
    ------
    InputError
        If a number of values does not fit the classes, a seed is below its extent, or a precision cannot be reached.
    """
    settings = _settings_of_run(segment, trained, voxel_size_nm) or ObjectSettings.of_thresholds(thresholds)
    changes: dict[str, object] = {}
    given = {"seed": segment.object_threshold, "extent": segment.object_extent, "min_size": segment.min_size_nm3}
    flags = {"seed": "--object-threshold", "extent": "--object-extent", "min_size": "--min-size-nm3"}
    for name, value in given.items():
        if value is not None:
            changes[name] = tuple(class_thresholds(value, class_names, flags[name]))
    if segment.min_size_nm3 is not None:
        changes["is_nm3"] = voxel_size_nm is not None
    counts = {"min_sections": segment.min_sections, "bridge_sections": segment.bridge_sections}
    changes |= {name: value for name, value in counts.items() if value is not None}
    settings = replace(settings, **changes)  # type: ignore[arg-type]
    _check_seeds(settings, class_names)
    return settings


def objects_note(segment: SegmentSettings, trained: TrainedNetwork) -> str:
    """Return a line for people if objects are found by the threshold alone, else ""."""
    given = (
        *(segment.object_threshold, segment.object_extent, segment.min_size_nm3),
        *(segment.min_sections, segment.bridge_sections),
    )
    is_asked = segment.objects or segment.save_objects
    return NO_SETTINGS_NOTE if is_asked and trained.objects is None and set(given) == {None} else ""


def _settings_of_run(
    segment: SegmentSettings, trained: TrainedNetwork, voxel_size_nm: Sequence[float] | None
) -> ObjectSettings | None:
    choice, precision = trained.objects, segment.object_precision
    if choice is None:
        if precision is not None:
            raise InputError(
                f"--object-precision needs the scores of the objects of the validation box, which {trained.where} does "
                "not hold; give the folder of a finished run of this version"
            )
        return None
    if precision is not None and not choice.classes:
        raise InputError(
            "--object-precision needs the scores of the objects of the validation box, which are not known of the mean "
            "of several networks; give one run"
        )
    try:
        settings = choice.settings if precision is None else choice.at_precision(precision)
    except ValueError as error:
        raise InputError(f"--object-precision {precision:g}: {error}; give a lower one") from None
    if not settings.is_nm3 or voxel_size_nm is not None:
        return settings
    assert choice.voxel_size_nm is not None
    voxels = math.prod(choice.voxel_size_nm)
    return replace(settings, min_size=tuple(round(size / voxels, 6) for size in settings.min_size), is_nm3=False)


def _check_seeds(settings: ObjectSettings, class_names: Sequence[str]) -> None:
    for name, seed, extent in zip(class_names, settings.seed, settings.extent, strict=True):
        if seed < extent:
            raise InputError(
                f"--object-threshold {seed:g} is below the extent {extent:g} of the class {name}: an object reaches at "
                f"least its extent everywhere; give --object-extent of at most {seed:g} too"
            )
