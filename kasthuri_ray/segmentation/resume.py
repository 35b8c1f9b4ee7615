"""How an output is started, resumed or started over.

Here are the checks of what already exists at the output path, and of whether it may be continued.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from kasthuri_ray.config.differences import fill_defaults, fill_record_defaults, record_differences, refuse_differences
from kasthuri_ray.config.settings import SegmentSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.output.existing_output import find_existing_output, remove_output
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.object_image import OBJECT_FOLDERS, complete_object_image_path, remove_object_image
from kasthuri_ray.output.object_labels import recorded_object_settings
from kasthuri_ray.output.side_files import remove_object_table, remove_side_files
from kasthuri_ray.ray_cluster.output_paths import SINGLE_NODE, resolve_output_path
from kasthuri_ray.segmentation.object_phases import IMAGE_PHASES, ObjectsPhase
from kasthuri_ray.segmentation.phases import CopyPhase, NetworkPhase, job_phases
from kasthuri_ray.segmentation.segmentation_job import SegmentationInputs, SegmentationJob

OBJECTS = "objects"  # entry of a record: how objects are found, if not by the threshold alone
NOT_COMPARED = ("versions", "learnt_from")  # entries of a record


def was_begun(segment: SegmentSettings) -> bool:
    """Return whether the settings resume a segmentation; what their output may be is checked later."""
    if segment.output is None or segment.overwrite:
        return False
    return Ledger.beside(resolve_output_path(segment.output, SINGLE_NODE, "--output")).settings() is not None


def read_existing_record(output: str, overwrite: bool) -> dict[str, Any] | None:
    """Return the record of the segmentation that was started at `output`; None to start one.

    Raises InputError if anything else is there, or only a part of a segmentation.
    """
    ledger, existing = Ledger.beside(output), find_existing_output(output)
    if existing is not None and not existing.is_segmentation:
        raise InputError(f"{existing.description}; choose another --output")
    record = None if overwrite else ledger.settings()
    if overwrite or (existing is None and record is None):
        return None
    if record is None:
        raise InputError(
            f"{output} is a segmentation whose ledger, {ledger.storage.path}, is gone, so it is not known which blocks "
            "are done; --overwrite starts over"
        )
    if existing is None and ledger.done(NetworkPhase.NAME):
        raise InputError(
            f"the ledger {ledger.storage.path} lists finished blocks, but {output} is gone; --overwrite starts over"
        )
    return record


def check_same_settings(record: dict[str, Any] | None, job: SegmentationJob) -> None:
    """Raise InputError, with the differences, if the output was started with other settings.

    Those of objects may differ if the job finds objects: `restart_objects` has them found again.
    """
    if record is None or object_changes(record, job):
        return
    differences = record_differences(_complete_record(record, job), job.record)
    advice = "Give another --output, or the same settings; --overwrite starts over"
    refuse_differences(job.output, differences, advice)


def object_changes(record: dict[str, Any] | None, job: SegmentationJob) -> list[str]:
    """Return a line for each object setting in which a job differs from its output.

    The list is empty if other settings differ too, or if the job finds no objects.
    """
    if record is None or not job.finds_objects:
        return []
    before, now = _complete_record(record, job), job.record
    before_objects, objects = (_recorded_objects(each, job) for each in (before, now))
    if {**before, OBJECTS: None} != {**now, OBJECTS: None}:
        return []
    return [f"{OBJECTS}.{line}" for line in record_differences(before_objects, objects)]


def _recorded_objects(record: Mapping[str, Any], job: SegmentationJob) -> dict[str, Any]:
    settings = recorded_object_settings(record, job.thresholds)
    return json.loads(json.dumps(settings.to_plain()))


def restart_objects(job: SegmentationJob, ledger: Ledger) -> list[str]:
    """Remove the objects of an output if they were found with other settings; return lines about that for people.

    The records of their blocks go first, and the settings are replaced last: whatever stops this, the same command
    repeats it, and the earlier command finds the earlier objects again.
    """
    record = ledger.settings()
    changes = object_changes(record, job)
    if not changes or record is None:
        return []
    had_image = complete_object_image_path(job.output, job.spec.name) is not None
    names = [name for name in ledger.storage.list_folder() if name.startswith(IMAGE_PHASES)]
    ledger.forget([*names, ObjectsPhase.NAME, *OBJECT_FOLDERS])
    remove_object_image(job.output_zarr)
    remove_object_table(job.output, job.class_names)
    others = {key: value for key, value in record.items() if key != OBJECTS}
    ledger.restart({**others, **({OBJECTS: job.record[OBJECTS]} if OBJECTS in job.record else {})})
    lines = [f"objects are found again with other settings, the voxels stay: {'; '.join(changes)}"]
    if had_image and not job.settings.segment.save_objects:
        lines.append("the label image of the earlier objects is removed; --save-objects writes one of these")
    return lines


def version_changes(record: dict[str, Any] | None, job: SegmentationJob) -> str:
    """Return a line that names the packages whose versions have changed since the output was started; "" if none."""
    before, now = (record or job.record).get("versions", {}), job.record["versions"]
    changes = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    return f"versions since the start of this output: {', '.join(changes)}" if changes else ""


def _complete_record(record: dict[str, Any], job: SegmentationJob) -> dict[str, Any]:
    """Return a record with the settings that did not exist when it was written, as they were then.

    Versions are reported (`version_changes`), not compared: the current ones stand in the copy. The same holds for what
    the network learnt from, which follows from the weights.
    """
    # The entry OBJECTS of a record has the name of a setting, and is none.
    names = set(job.record) - {OBJECTS}
    segment = {name: value for name, value in fill_defaults("segment", {}).items() if name in names}
    arithmetic = {each.name: each.default for each in fields(InferenceSettings) if each.default is not MISSING}
    compared = {name: value for name, value in record.items() if name not in NOT_COMPARED}
    complete = {**segment, **fill_record_defaults(compared, job.record)}
    now = {name: job.record[name] for name in NOT_COMPARED if name in job.record}
    return {**complete, **now, "arithmetic": {**arithmetic, **record.get("arithmetic", {})}}


def restore_inference_settings(record: dict[str, Any], inputs: SegmentationInputs) -> InferenceSettings:
    """Return the recorded settings, overridden by those of the command line.

    `check_same_settings` finds what differs. Raises InputError for a record of another version.
    """
    segment = inputs.settings.segment
    requested = {
        "device": segment.device,
        "precision": segment.precision,
        "compile": False if segment.compile == "off" else "auto",  # "on" is off where there is no compiler
        "tile": segment.tile or "auto",
        "batch": segment.batch or "auto",
        "tta": segment.tta,
        "fold": {"on": True, "off": False}.get(segment.fold, "auto"),
    }
    changes = {name: value for name, value in requested.items() if value != "auto"}
    try:
        return InferenceSettings(**record["arithmetic"] | changes)
    except (KeyError, TypeError):
        raise InputError("the output was started by another version of this program; --overwrite starts over") from None


def check_precomputed_copy(job: SegmentationJob, overwrite: bool) -> None:
    """Raise InputError if the precomputed copy would be written over something else."""
    existing = find_existing_output(job.precomputed) if job.precomputed else None
    if existing is None:
        return
    if not existing.is_segmentation:
        raise InputError(f"{existing.description}; choose another path for --precomputed")
    record = existing.record or {}
    if _complete_record(record, job) != job.record and not object_changes(record, job) and not overwrite:
        raise InputError(
            f"{existing.description}, with other settings; choose another path for --precomputed, or --overwrite"
        )


def remove_segmentation(job: SegmentationJob) -> None:
    """Remove an earlier segmentation, its copy and the files beside it; the lock in the ledger stays."""
    Ledger.beside(job.output).clear()  # first: blocks that it lists must exist
    remove_output(job.output)
    remove_side_files(job.output, job.class_names)
    if job.precomputed:
        remove_output(job.precomputed)


def prepare_copy_ledger(job: SegmentationJob, ledger: Ledger) -> None:
    """Make the ledger forget the blocks of a precomputed copy at another path, or of one that is gone."""
    assert job.precomputed is not None
    if ledger.copy_path() != job.precomputed or find_existing_output(job.precomputed) is None:
        ledger.start_copy(job.precomputed, [each.name for each in job_phases(job) if isinstance(each, CopyPhase)])
