"""What is understood of an image and its annotation, before any work with them: text, and a page with sections.

`check_volume` needs neither Ray nor a network. It reads a bounded number of voxels of volumes of any size.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.settings import CheckSettings
from kasthuri_ray.config.task import TaskSettings
from kasthuri_ray.errors import InputError, missing_is_bad_input
from kasthuri_ray.evaluation.annotation_check import check_annotation
from kasthuri_ray.evaluation.provenance import NO_VOLUME
from kasthuri_ray.evaluation.shown_sections import SectionReader
from kasthuri_ray.geometry import Box, per_axis
from kasthuri_ray.labels import LabelRule
from kasthuri_ray.progress import Reporter, format_count
from kasthuri_ray.ray_cluster.output_paths import SINGLE_NODE, check_writable_path, resolve_output_path
from kasthuri_ray.reports.volume_page import PAGE_MARK, ShownSection, Table, VolumeReport, volume_page
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.storage import Storage
from kasthuri_ray.storage.uris import is_inside, redact_secrets
from kasthuri_ray.volumes.alignment import Alignment, align_volumes
from kasthuri_ray.volumes.description import Rows, VolumeDescription, describe_volume, share_text
from kasthuri_ray.volumes.grey_range import DEFAULT_RANGE, STATED_RANGE, check_grey_range
from kasthuri_ray.volumes.intensity import DEFAULT_PERCENTILES, intensity_window, is_measured_range
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.value_sample import ValueSample
from kasthuri_ray.volumes.volume import Volume

PAGE = "index.html"


@dataclass(frozen=True)
class CheckedVolumes:
    """The volumes of a check.

    Parameters
    ----------
    image : Volume
        The image.
    annotation : Volume or None
        Its annotation, on its own voxels.
    task : TaskSettings or None
        Says what labels and grey levels mean.
    opener : VolumeOpener
        Opened them.
    """

    image: Volume
    annotation: Volume | None
    task: TaskSettings | None
    opener: VolumeOpener


@dataclass
class Findings:
    """What a check found: lines for people, and problems that have to be corrected."""

    notes: list[str]
    problems: list[str] = field(default_factory=list)


@missing_is_bad_input()
def check_volume(settings: CheckSettings, reporter: Reporter, task_changes: Mapping[str, Any] | None = None) -> bool:
    """Show what is understood of a volume, and of its annotation, as text and as a page.

    Parameters
    ----------
    settings : CheckSettings
        The volumes, and where the page is written.
    reporter : Reporter
        Shows the text.
    task_changes : mapping, optional
        Settings of the section `task` that win over those of the task.

    Returns
    -------
    bool
        Whether nothing has to be corrected before the volumes can be used.

    Raises
    ------
    InputError
        If a setting is wrong, or a volume cannot be opened; nothing is written then.
    VolumeError
        If a volume cannot be read.
    """
    volumes = _open_volumes(settings, task_changes or {})
    storage = _open_page_folder(settings.out, volumes)
    reporter.print_result(storage.path)  # the first line, for scripts
    report = _make_report(volumes)
    for line in report.lines():
        reporter.print_line(line)
    storage.write_bytes(PAGE, volume_page(report).encode())
    reporter.print_result(storage.path)
    return not report.problems


def _open_volumes(settings: CheckSettings, task_changes: Mapping[str, Any]) -> CheckedVolumes:
    assert settings.volume is not None
    opener = VolumeOpener(settings.boss, settings.cache, settings.cache_size)
    size = per_axis(float, settings.voxel_size) if settings.voxel_size else None
    task = _read_task(settings.task, task_changes) if settings.task is not None or task_changes else None
    image = opener.open(settings.volume, settings.mip, size, name="--volume")
    annotation = None
    if settings.annotation is not None:
        annotation = opener.open(settings.annotation, labels=True, name="--annotation")
    return CheckedVolumes(image, annotation, task, opener)


def _read_task(task: str | None, changes: Mapping[str, Any]) -> TaskSettings:
    """Return the settings of a task, or the defaults, with changes; it need not name volumes of its own."""
    base = "the check", {"task": {"image_chan": NO_VOLUME, "annotation_chan": NO_VOLUME}}
    return resolve_settings(GivenSettings(task, flags={"task": dict(changes)}), base).task


def _open_page_folder(out: str, volumes: CheckedVolumes) -> Storage:
    """Return the folder of the page; raise an InputError if it cannot be written, or holds another page."""
    storage = open_storage(resolve_output_path(out, SINGLE_NODE, "--out"))
    check_writable_path(storage.path, "--out")
    for volume in (volumes.image, volumes.annotation):
        if volume is not None and volume.folder is not None and is_inside(storage.real_path, volume.folder):
            raise InputError(f"--out {out} is in the folder of {volume.uri}, {volume.folder}; choose another --out")
    if storage.exists(PAGE) and PAGE_MARK.encode() not in storage.read_bytes(PAGE):
        raise InputError(f"{storage.path}/{PAGE} is another page, which is not replaced; choose another --out")
    return storage


def _make_report(volumes: CheckedVolumes) -> VolumeReport:
    """Read the volumes, and return what was understood."""
    image, found = volumes.image, Findings(volumes.opener.notes)
    described = describe_volume(image)
    intensity, grey_text = _grey_levels(image, described, volumes.task, found)
    rows = [*described.rows(), _blank_row(described), ("black and white", grey_text)]
    tables: list[Table] = [(f"image {described.uri}", rows)]
    if described.is_empty:
        found.problems.append(f"no chunk of {described.uri} was found: check the path and the format")
    reader = SectionReader(image, None, intensity, LabelRule())
    if volumes.annotation is None:
        sections = reader.read_sections(image.bounds, described.sample)
        headline = f"An image of {_shape_text(image.bounds)} voxels of {image.dtype}."
    else:
        checked = check_annotation(volumes.annotation, volumes.task, found.notes.append, found.problems.append)
        aligned, rows = _align(image, volumes.annotation, volumes.opener, found)
        tables += [checked.table, ("alignment", rows)]
        reader = replace(reader, rule=checked.rule)
        sections = _read_pair(reader, described, volumes.annotation, checked.sample, aligned)
        region = volumes.annotation.bounds if aligned is None else aligned.overlap
        headline = f"The annotation covers {_shape_text(region)} voxels of the image; {checked.foreground}."
    if found.problems:
        headline = f"{format_count(len(found.problems), 'problem')} to correct before these volumes can be used."
    size = image.voxel_size_nm
    return VolumeReport(
        name=described.uri.rstrip("/").rpartition("/")[2],
        headline=headline,
        tables=tables,
        problems=[redact_secrets(problem) for problem in found.problems],
        notes=[redact_secrets(note) for note in found.notes],
        sections=sections,
        pixel_size_nm=None if size is None else (size[1], size[2]),
        view_flags=_view_flags(volumes),
    )


def _view_flags(volumes: CheckedVolumes) -> list[str]:
    """Return the flags of jobs/view.py that show the volumes."""
    annotation = [] if volumes.annotation is None else ["--annotation", redact_secrets(volumes.annotation.uri)]
    return ["--image", redact_secrets(volumes.image.uri), *annotation]


def _shape_text(box: Box) -> str:
    return " x ".join(map(str, box.shape))


def _blank_row(described: VolumeDescription) -> tuple[str, str]:
    values = described.sample.total
    return "blank", f"{share_text(values.share(values.values == 0))} of the voxels are 0"


def _grey_levels(
    image: Volume, described: VolumeDescription, task: TaskSettings | None, found: Findings
) -> tuple[tuple[float, float], str]:
    """Return the grey levels that are shown black and white, and what a training takes for them."""
    setting = None if task is None else task.image_intensity
    if image.dtype == bool:
        return (0.0, 1.0), "none: the image holds bools"
    if not is_measured_range(setting, image.dtype):
        low, high = intensity_window(np.empty(0, image.dtype), image.dtype, setting)
        origin = DEFAULT_RANGE if setting is None else STATED_RANGE
        found.notes += check_grey_range(image, [image.bounds], (low, high), origin, is_stated=True)
        return (low, high), f"{low:g} and {high:g}, {'those of uint8' if setting is None else 'as the task states'}"
    percents = setting["percentiles"] if isinstance(setting, dict) else DEFAULT_PERCENTILES
    low, high = (float(value) for value in described.sample.total.percentiles(percents) or (0.0, 1.0))
    text = f"{low:g} and {high:g}, the percentiles {percents[0]:g} and {percents[1]:g} of the sample"
    if image.dtype.kind == "f" and setting is None:
        text += "; an image of floats needs task.image_intensity=LOW,HIGH"
    return (low, high if high > low else max(low + 1, math.nextafter(low, math.inf))), text


def _align(image: Volume, annotation: Volume, opener: VolumeOpener, found: Findings) -> tuple[Alignment | None, Rows]:
    """Return the annotation on the voxels of the image, and how it lies there; None if that is refused."""
    try:
        aligned = align_volumes(image, annotation, opener.open)
    except InputError as error:
        found.problems.append(str(error))
        return None, [("refused", str(error))]
    share, share_of_image = (aligned.overlap.num_voxels / each.bounds.num_voxels for each in (annotation, image))
    rows = [
        ("overlap", f"{aligned.overlap} in voxels of the image (z,y,x)"),
        ("covered", f"{share_text(share)} of the annotation, {share_text(share_of_image)} of the image"),
        ("remainder", "; ".join(aligned.notes) or "none: whole voxels lie on whole voxels"),
    ]
    return aligned, rows


def _read_pair(
    reader: SectionReader,
    described: VolumeDescription,
    annotation: Volume,
    sample: ValueSample,
    aligned: Alignment | None,
) -> list[ShownSection]:
    """Return sections of the image with the annotation; if they are not aligned, sections of each alone."""
    if aligned is None:
        alone = replace(reader, image=None, annotation=annotation)
        return [
            *reader.read_sections(described.bounds, described.sample),
            *alone.read_sections(annotation.bounds, sample),
        ]
    shift = per_axis(operator.sub, aligned.moving.bounds.start, annotation.bounds.start)
    both = replace(reader, annotation=aligned.moving)
    return both.read_sections(aligned.overlap, sample.shifted(shift))
