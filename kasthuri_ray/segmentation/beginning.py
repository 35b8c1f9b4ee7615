"""How an output is begun, gone on with, or begun anew: what is at its place, and whether it may be."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kasthuri_ray.layers import with_defaults
from kasthuri_ray.segmentation.actor import COPY
from kasthuri_ray.segmentation.existing import names_in, remove, remove_folder, what_is_there
from kasthuri_ray.segmentation.job import Job
from kasthuri_ray.segmentation.ledger import Ledger, differences
from kasthuri_ray.segmentation.plan import Plan, bytes_written
from kasthuri_ray.segmentation.predictor import Arithmetic
from kasthuri_ray.segmentation.prepare import Prepared
from kasthuri_ray.storage import Storage, lies_in, open_storage, without_secrets
from kasthuri_ray.volumes import Volume

SPARED_BYTES = 500_000_000  # of a disk, for others
COPY_FILE = "copy.json"  # of a ledger: where the precomputed copy is that it tells of


def absolute(path: str) -> str:
    """The path or URL as it is known by from now on."""
    return open_storage(path).path


def check_places(output: str, copy: str | None) -> None:
    """Raise a ValueError for a place where no files are kept, and for an output and its copy of which one is in the
    other: neither could be removed, or known for what it is, without the other."""
    place = absolute(output)
    if copy is None:
        return
    other = absolute(copy)
    if lies_in(place, other) or any(lies_in(other, folder) for folder in (place, f"{place}.ledger")):
        raise ValueError(
            f"--precomputed {copy} and --output {output} would lie in one another; each needs a folder of its own: "
            f"give another --precomputed, such as {output.rstrip('/')}.precomputed"
        )


def check_apart(output: str, copy: str | None, volumes: Mapping[str, Volume | None]) -> None:
    """Raise a ValueError for an output or a copy in the folder of what is read: it would go where that goes.

    volumes: what is read, by what it is called.
    """
    for flag, path in (("--output", output), ("--precomputed", copy)):
        place = path and absolute(path)
        real = place and (place if place.startswith("s3://") else os.path.realpath(place))
        for name, volume in volumes.items():
            if real and volume is not None and volume.folder is not None and lies_in(real, volume.folder):
                raise ValueError(
                    f"{flag} {path} lies in the folder of the {name}, {volume.folder}; choose another {flag}"
                )


def begun_with(output: str, overwrite: bool) -> dict[str, Any] | None:
    """The record of the segmentation that was begun at `output`; None where nothing is there, or it is to go.

    Raises ValueError where something else is there, or half of a segmentation.
    """
    ledger, found = Ledger.beside(output), what_is_there(output)
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


def check_same(begun: dict[str, Any] | None, job: Job) -> None:
    """Raise a ValueError, with the difference, where the output was begun with other settings."""
    differ = differences(_completed(begun, job.record), job.record) if begun is not None else []
    if differ:
        shown = "\n  ".join(differ)
        raise ValueError(
            f"{job.output} was begun with other settings:\n  {shown}\nGive another --output, or those; --overwrite "
            "begins it anew"
        )


def _completed(begun: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The record with settings of task and network that it is too old to name, which had their defaults."""
    filled = dict(begun)
    for section in ("task", "network"):
        written = begun.get(section, {})
        whole = with_defaults(section, written)
        filled[section] = {**{key: whole[key] for key in now[section] if key in whole}, **written}
    return filled


def arithmetic_of(begun: dict[str, Any], prepared: Prepared) -> Arithmetic:
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
        return Arithmetic(**begun["arithmetic"] | {name: value for name, value in told.items() if value != "auto"})
    except (KeyError, TypeError):
        raise ValueError("it was begun by another version of this program; --overwrite begins it anew") from None


def check_copy(job: Job, overwrite: bool) -> None:
    """Raise a ValueError where the precomputed copy would be written over something else."""
    found = what_is_there(job.precomputed) if job.precomputed else None
    if found is not None and not found.ours:
        raise ValueError(f"{found.words}; choose another place for --precomputed")
    if found is not None and _completed(found.record or {}, job.record) != job.record and not overwrite:
        raise ValueError(f"{found.words}, with other settings; choose another place for --precomputed, or --overwrite")


def has_room_for_all(job: Job) -> bool:
    """Whether all of it would fit uncompressed, so that no sample need say how it compresses. S3 has room."""
    folder = open_storage(job.output).folder
    return folder is None or bytes_written(job) <= _free(_existing(folder))


def check_room(job: Job, plan: Plan) -> str:
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
    return max(0, shutil.disk_usage(there).free - SPARED_BYTES)


def _existing(folder: Path) -> Path:
    return next(parent for parent in [folder, *folder.parents] if parent.exists())


def table_path(job: Job) -> str:
    """Where the table of objects lies."""
    return f"{job.output}.synapses.csv" if job.task_type == "synapse" else f"{job.output}.objects.csv"


def write_plan(output: str, plan: Plan) -> None:
    """Write `<output>.plan.json`."""
    storage, name = _beside(f"{output}.plan.json")
    storage.write_bytes(name, (json.dumps(plan.to_json(), indent=2) + "\n").encode())


def _beside(path: str) -> tuple[Storage, str]:
    """The storage and the name of a file."""
    folder, _, name = path.rpartition("/")
    return open_storage(folder or "/"), name


def remove_all(job: Job) -> None:
    """Remove an earlier segmentation and all that lies beside it; its ledger's lock, which is ours now, stays."""
    Ledger.beside(job.output).clear()  # first: what it says is done must be there
    remove(job.output)
    for path in (f"{job.output}.progress.json", table_path(job)):
        storage, name = _beside(path)
        storage.delete(name)
    if job.precomputed:
        remove(job.precomputed)


def begin_copy(job: Job, ledger: Ledger) -> None:
    """Have the ledger forget what it says of a precomputed copy that is elsewhere, or gone."""
    try:
        before = json.loads(ledger.storage.read_bytes(COPY_FILE))["path"]
    except (FileNotFoundError, ValueError, KeyError):
        before = None
    assert job.precomputed is not None
    if before != job.precomputed or what_is_there(job.precomputed) is None:
        for name in names_in(ledger.storage):
            if name.startswith(COPY):
                remove_folder(ledger.storage.child(name))
        ledger.storage.write_bytes(COPY_FILE, json.dumps({"path": job.precomputed}).encode())


def command_again(program: str, given: Sequence[str]) -> str:
    """The command that goes on: the same, but that it does not begin anew."""
    return shlex.join(["python", program, *(without_secrets(word) for word in given if word != "--overwrite")])
