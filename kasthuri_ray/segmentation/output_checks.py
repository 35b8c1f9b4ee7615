"""Checks of where an output goes, before anything is written: its folders, and the free space on its disk."""

from __future__ import annotations

from collections.abc import Mapping

from kasthuri_ray.errors import InputDenied, InputError
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.segmentation.plan import SegmentationPlan, bytes_written
from kasthuri_ray.segmentation.segmentation_job import SegmentationJob
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.storage import DiskSpace
from kasthuri_ray.storage.uris import is_inside
from kasthuri_ray.volumes.volume import Volume

FILE_ENDINGS = (".tif", ".tiff", ".h5", ".hdf5", ".hdf", ".mrc", ".png", ".npy")  # of what is not a folder
RESERVED_BYTES = 500_000_000  # of a disk, left free for others


def check_output_paths(output: str, copy: str | None) -> None:
    """Raise InputError for a path where files cannot be stored, for that of a file, and if output and copy are nested.

    Nested, neither could be recognized or removed on its own.
    """
    storage = open_storage(output)
    path = storage.path
    if path.lower().endswith(FILE_ENDINGS) and not storage.exists("zarr.json"):  # else one that is resumed
        raise InputError(
            f"--output {output} would be a folder, of the format OME-Zarr: give --output NAME.zarr. One file of "
            f"probabilities for Fiji or ilastik is written beside it with --export {output}"
        )
    if copy is None:
        return
    copy_path = open_storage(copy).path
    folders = (path, Ledger.beside(path).storage.path)
    if is_inside(path, copy_path) or any(is_inside(copy_path, folder) for folder in folders):
        raise InputError(
            f"--output and --precomputed must not be nested ({output}, {copy}); otherwise neither could be "
            f"recognized or removed on its own; give another --precomputed, such as {output.rstrip('/')}.precomputed"
        )


def check_outside_volumes(output: str, copy: str | None, volumes: Mapping[str, Volume | None]) -> None:
    """Raise InputError if the output or its copy is in the folder of a volume that is read.

    volumes: by what messages call them.
    """
    for flag, path in (("--output", output), ("--precomputed", copy)):
        real_path = path and open_storage(path).real_path
        for name, volume in volumes.items():
            if real_path and volume is not None and volume.folder is not None and is_inside(real_path, volume.folder):
                raise InputError(
                    f"{flag} {path} is in the folder of the {name}, {volume.folder}; choose another {flag}"
                )


def fits_uncompressed(job: SegmentationJob) -> bool:
    """Return whether the disk has room for all of the output uncompressed. S3 always has."""
    disk = open_storage(job.output).disk_space()
    return disk is None or bytes_written(job) <= _usable_bytes(disk)


def check_free_space(job: SegmentationJob, plan: SegmentationPlan) -> str:
    """Return a line about free space and what is left to write; empty on S3.

    Raises InputError if the disk has too little space, PermissionError if the folder cannot be written to.
    """
    disk = open_storage(job.output).disk_space()
    if disk is None:
        return ""
    if not disk.writable:
        raise InputDenied(f"{disk.folder} cannot be written to; choose another --output")
    free = _usable_bytes(disk)
    needed = plan.bytes_written * (1 - plan.done / plan.blocks)
    limit = "about" if plan.hours is not None else "at most"
    text = f"{disk.folder}: {free / 1e9:.2f} GB free, {limit} {needed / 1e9:.2f} GB still to write"
    if needed > free:
        raise InputError(f"{text}; free some space or choose another --output than {job.output}")
    return text


def check_space(path: str, needed_bytes: int, flag: str) -> None:
    """Raise InputError if the disk of a file that is to be written has too little space.

    flag: by which the path was given.
    """
    disk = open_storage(path).disk_space()
    if disk is None:
        return
    free = _usable_bytes(disk)
    if needed_bytes > free:
        raise InputError(
            f"{disk.folder}: {free / 1e9:.2f} GB free, {needed_bytes / 1e9:.2f} GB needed for {path}; free some space "
            f"or choose another {flag}"
        )


def _usable_bytes(disk: DiskSpace) -> int:
    return max(0, disk.free_bytes - RESERVED_BYTES)
