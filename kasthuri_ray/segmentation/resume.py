"""How an output is begun, gone on with, or begun anew: what is at its place, and whether it may be."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kasthuri_ray.config.differences import fill_record_defaults, record_differences
from kasthuri_ray.inference.memory import InferenceSettings
from kasthuri_ray.output.existing_output import find_existing_output, remove_output
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.segmentation.plan import SegmentationPlan, bytes_written
from kasthuri_ray.segmentation.segmentation_inputs import SegmentationInputs
from kasthuri_ray.segmentation.segmentation_job import COPY, SegmentationJob
from kasthuri_ray.storage.folder import Storage, list_folder, open_storage, remove_folder
from kasthuri_ray.storage.uris import is_inside
from kasthuri_ray.volumes.volume import Volume

RESERVED_BYTES = 500_000_000  # of a disk, for others
COPY_FILE = "copy.json"  # of a ledger: where the precomputed copy is that it tells of


def absolute_path(path: str) -> str:
    """The path or URL as it is known by from now on."""
    return open_storage(path).path


def check_output_places(output: str, copy: str | None) -> None:
    """Raise a ValueError for a place where no files are kept, and for an output and its copy of which one is in the
    other: neither could be removed, or known for what it is, without the other."""
    place = absolute_path(output)
    if copy is None:
        return
    other = absolute_path(copy)
    if is_inside(place, other) or any(is_inside(other, folder) for folder in (place, f"{place}.ledger")):
        raise ValueError(
            f"--precomputed {copy} and --output {output} would lie in one another; each needs a folder of its own: "
            f"give another --precomputed, such as {output.rstrip('/')}.precomputed"
        )


def check_output_outside_volumes(output: str, copy: str | None, volumes: Mapping[str, Volume | None]) -> None:
    """Raise a ValueError for an output or a copy in the folder of what is read: it would go where that goes.

    volumes: what is read, by what it is called.
    """
    for flag, path in (("--output", output), ("--precomputed", copy)):
        place = path and absolute_path(path)
        real = place and (place if place.startswith("s3://") else os.path.realpath(place))
        for name, volume in volumes.items():
            if real and volume is not None and volume.folder is not None and is_inside(real, volume.folder):
                raise ValueError(
                    f"{flag} {path} lies in the folder of the {name}, {volume.folder}; choose another {flag}"
                )


def read_begun_record(output: str, overwrite: bool) -> dict[str, Any] | None:
    """The record of the segmentation that was begun at `output`; None where nothing is there, or it is to go.

    Raises ValueError where something else is there, or half of a segmentation.
    """
    ledger, found = Ledger.beside(output), find_existing_output(output)
    if found is not None and not found.ours:
        raise ValueError(f"{found.words}; choose another --output")
    record = None if overwrite else ledger.settings()
    if overwrite or (found is None and record is None):
        return None
    if record is None:
        raise ValueError(
            f"{output} is a segmentation whose ledger, {ledger.storage.path}, is gone: nobody knows which blocks "
            "are done; --overwrite begins it anew"
        )
    if found is None and ledger.done("s0"):
        raise ValueError(
            f"the ledger {ledger.storage.path} says that blocks are done, and {output} is gone; --overwrite begins anew"
        )
    return record


def check_same_settings(begun: dict[str, Any] | None, job: SegmentationJob) -> None:
    """Raise a ValueError, with the difference, where the output was begun with other settings."""
    differ = record_differences(fill_record_defaults(begun, job.record), job.record) if begun is not None else []
    if differ:
        shown = "\n  ".join(differ)
        raise ValueError(
            f"{job.output} was begun with other settings:\n  {shown}\nGive another --output, or those; --overwrite "
            "begins it anew"
        )


def resumed_inference_settings(begun: dict[str, Any], prepared: SegmentationInputs) -> InferenceSettings:
    """How the blocks of a segmentation that was begun are computed: as then, unless something else is asked for now.

    What differs is found by `check_same`. Raises ValueError for a record that is not of this version.
    """
    asked = prepared.settings.segment
    told = {
        "device": asked.device,
        "precision": asked.precision,
        "compile": False if asked.compile == "off" else "auto",  # "on" is off where there is no compiler
        "tile": asked.tile or "auto",
        "batch": asked.batch or "auto",
        "tta": asked.tta,
    }
    try:
        return InferenceSettings(
            **begun["arithmetic"] | {name: value for name, value in told.items() if value != "auto"}
        )
    except (KeyError, TypeError):
        raise ValueError("it was begun by another version of this program; --overwrite begins it anew") from None


def check_precomputed_copy(job: SegmentationJob, overwrite: bool) -> None:
    """Raise a ValueError where the precomputed copy would be written over something else."""
    found = find_existing_output(job.precomputed) if job.precomputed else None
    if found is not None and not found.ours:
        raise ValueError(f"{found.words}; choose another place for --precomputed")
    if found is not None and fill_record_defaults(found.record or {}, job.record) != job.record and not overwrite:
        raise ValueError(f"{found.words}, with other settings; choose another place for --precomputed, or --overwrite")


def fits_uncompressed(job: SegmentationJob) -> bool:
    """Whether all of it would fit uncompressed, so that no sample need say how it compresses. S3 has room."""
    folder = open_storage(job.output).folder
    return folder is None or bytes_written(job) <= _free(_existing(folder))


def check_free_space(job: SegmentationJob, plan: SegmentationPlan) -> str:
    """What is free and what is left to be written, in a line; empty on S3. ValueError where the disk has no room."""
    folder = open_storage(job.output).folder
    if folder is None:
        return ""
    there = _existing(folder)
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{there} cannot be written to; choose another --output")
    free = _free(there)
    needed = plan.bytes_written * (1 - plan.done / plan.blocks)
    takes = f"about {needed / 1e9:.2f} GB, compressed" if plan.hours is not None else f"at most {needed / 1e9:.2f} GB"
    words = f"{there} has room for {free / 1e9:.2f} GB, and what is left to write takes {takes}"
    if needed > free:
        raise ValueError(f"{words}; free some space or choose another --output than {job.output}")
    return words


def _free(there: Path) -> int:
    """Bytes of its disk that a job may fill."""
    return max(0, shutil.disk_usage(there).free - RESERVED_BYTES)


def _existing(folder: Path) -> Path:
    return next(parent for parent in [folder, *folder.parents] if parent.exists())


def table_path(job: SegmentationJob) -> str:
    """Where the table of objects lies."""
    return f"{job.output}.synapses.csv" if job.task_type == "synapse" else f"{job.output}.objects.csv"


def write_plan(output: str, plan: SegmentationPlan) -> None:
    """Write `<output>.plan.json`."""
    storage, name = _beside(f"{output}.plan.json")
    storage.write_bytes(name, (json.dumps(plan.to_json(), indent=2) + "\n").encode())


def _beside(path: str) -> tuple[Storage, str]:
    """The storage and the name of a file."""
    folder, _, name = path.rpartition("/")
    return open_storage(folder or "/"), name


def remove_segmentation(job: SegmentationJob) -> None:
    """Remove an earlier segmentation and all that lies beside it; its ledger's lock, which is ours now, stays."""
    Ledger.beside(job.output).clear()  # first: what it says is done must be there
    remove_output(job.output)
    for path in (f"{job.output}.progress.json", table_path(job)):
        storage, name = _beside(path)
        storage.delete(name)
    if job.precomputed:
        remove_output(job.precomputed)


def prepare_copy_ledger(job: SegmentationJob, ledger: Ledger) -> None:
    """Have the ledger forget what it says of a precomputed copy that is elsewhere, or gone."""
    try:
        before = json.loads(ledger.storage.read_bytes(COPY_FILE))["path"]
    except (FileNotFoundError, ValueError, KeyError):
        before = None
    assert job.precomputed is not None
    if before != job.precomputed or find_existing_output(job.precomputed) is None:
        for name in list_folder(ledger.storage):
            if name.startswith(COPY):
                remove_folder(ledger.storage.child(name))
        ledger.storage.write_bytes(COPY_FILE, json.dumps({"path": job.precomputed}).encode())
