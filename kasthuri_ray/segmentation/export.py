"""Export of a finished segmentation to one file, for Fiji and ilastik: probabilities, mask or objects of a box."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from kasthuri_ray.config.loading import GivenSettings, resolve_section
from kasthuri_ray.config.settings import SegmentSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, parse_box
from kasthuri_ray.output.export_file import create_export, is_hdf5, read_export_provenance
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, compression_ratio
from kasthuri_ray.progress import Reporter, Throttle
from kasthuri_ray.ray_cluster.driver import exit_on_sigterm
from kasthuri_ray.ray_cluster.output_paths import SINGLE_NODE, check_writable_path, resolve_output_path
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.segmentation.export_source import ExportSource, segmented_box
from kasthuri_ray.segmentation.output_checks import check_space
from kasthuri_ray.segmentation.segmentation_run import SegmentResult
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.uris import is_inside, redact_secrets

REPORT_PERIOD_S = 1.0
# Settings that an export without weights may have.
WITHOUT_WEIGHTS = frozenset(
    {"output", "export", "export_box", "export_what", "overwrite", "verbose", "boss", "cache", "cache_size"}
)


@dataclass(frozen=True)
class ExportRequest:
    """What is exported.

    Parameters
    ----------
    path : str
        Absolute path of the file.
    what : str
        `probabilities`, `mask` or `objects`.
    box : Box
        In voxels of the image.
    overwrite : bool
        Whether an earlier export of that name is replaced.
    run : str or None
        The weights that segmented, if they are known.
    is_done : bool
        Whether the file holds this very export already.
    """

    path: str
    what: str
    box: Box
    overwrite: bool
    run: str | None = None
    is_done: bool = False


def read_export_request(segment: SegmentSettings, bounds: Box, run: str | None = None) -> ExportRequest | None:
    """Return what the settings ask to export; None if they do not.

    Parameters
    ----------
    segment : SegmentSettings
        Settings of the job.
    bounds : Box
        What is segmented, in voxels of the image.
    run : str or None
        Path or URL of the weights, if they are known.

    Returns
    -------
    ExportRequest or None
        With the path as it was typed.

    Raises
    ------
    InputError
        If the path is that of no TIFF or HDF5 file on a disk, the box is outside of `bounds`, or objects are exported
        that the segmentation does not find.
    """
    if segment.export is None:
        if segment.export_box is not None:
            raise InputError("--export-box: there is no file; give it with --export out.tif or --export out.h5")
        return None
    is_hdf5(segment.export)
    if "://" in segment.export.removeprefix("file://"):
        raise InputError(f"--export {segment.export}: the file is written to a disk; copy it from there")
    if segment.export_what == "objects" and segment.weights is not None and not segment.objects:
        raise InputError("--export-what objects needs the table of objects: add --objects")
    box = parse_box(segment.export_box, bounds, "--export-box", "that is segmented") if segment.export_box else bounds
    return ExportRequest(segment.export, segment.export_what, box, segment.overwrite, run and redact_secrets(run))


def resolve_export(
    request: ExportRequest, cluster: ClusterResources, output: str, record: dict[str, Any]
) -> ExportRequest:
    """Return a request with an absolute path, after a check that the file can be written.

    Parameters
    ----------
    request : ExportRequest
        With the path as it was typed.
    cluster : ClusterResources
        The cluster.
    output : str
        Path or URL of the output.
    record : dict
        Provenance of the output.

    Returns
    -------
    ExportRequest
        It says whether the file holds this very export already.

    Raises
    ------
    InputError
        If the file cannot be written, or another one of that name exists.
    """
    path, found = check_export_place(request, cluster, output)
    request = replace(request, path=path)
    return replace(request, is_done=_is_done(request, found, output, record))


def check_export_place(
    request: ExportRequest, cluster: ClusterResources, output: str
) -> tuple[str, dict[str, Any] | None]:
    """Check that the file of an export can be written.

    Parameters
    ----------
    request, cluster, output : ExportRequest, ClusterResources, str
        As of `resolve_export`.

    Returns
    -------
    path : str
        Absolute path of the file.
    found : dict or None
        Provenance of the export that it holds; None if there is no such file.

    Raises
    ------
    InputError
        If the file cannot be written, or holds anything but an export.
    """
    path = open_storage(resolve_output_path(request.path, cluster, "--export")).path
    for folder in (open_storage(output).real_path, Ledger.beside(output).storage.real_path):
        if is_inside(os.path.realpath(path), folder):
            raise InputError(f"--export {path} is in the folder of the output, {folder}; choose another --export")
    check_writable_path(os.path.dirname(path), "--export")
    if not os.path.lexists(path):
        return path, None
    found = read_export_provenance(path) if os.path.isfile(path) else None
    if found is None:
        raise InputError(f"--export {path} exists and is no export of a segmentation; choose another --export")
    return path, found


def _is_done(request: ExportRequest, found: dict[str, Any] | None, output: str, record: dict[str, Any]) -> bool:
    """Return whether the file holds this very export; InputError if it holds another one that is not replaced."""
    if found is None:
        return False
    if not request.overwrite and _to_compare(found) != _to_compare(_provenance(request, output, record)):
        raise InputError(
            f"--export {request.path} exists and holds another export ({found.get('what')} of {found.get('box')} of "
            f"{found.get('output')}); choose another --export, delete it, or replace it with --overwrite and without "
            "--weights"
        )
    return not request.overwrite


def _provenance(request: ExportRequest, output: str, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": version("kasthuri_ray"),
        "output": open_storage(output).path,
        "what": request.what,
        "box": str(request.box),
        "run": request.run,
        "segmentation": record,
    }


def _to_compare(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return what must be equal for two exports to hold the same voxels."""
    segmentation = {key: value for key, value in provenance.get("segmentation", {}).items() if key != "versions"}
    return {**{key: provenance.get(key) for key in ("output", "what", "box")}, "segmentation": segmentation}


def export_output(request: ExportRequest, output: str, reporter: Reporter) -> None:
    """Copy voxels of a finished output to a file, piece by piece.

    Parameters
    ----------
    request : ExportRequest
        What `resolve_export` returned. If the file holds this export already, nothing is written.
    output : str
        Path or URL of the output.
    reporter : Reporter
        Shows the progress.

    Raises
    ------
    InputError
        If blocks of the box are not finished, objects were not found, or the disk has too little space.
    OSError
        If the output cannot be read, or the file not be written.
    """
    if request.is_done:
        reporter.print_line(f"{request.path} holds {request.what} of {request.box} already")
        return
    opened = OmeZarrOutput.open(output)
    provenance = _provenance(request, opened.path, opened.spec.record)
    source = ExportSource(opened, request.what, request.box, provenance)
    if not source.is_known_finished:
        reporter.print_line(f"the ledger of {output} is gone: it is not known whether all of its blocks are finished")
    pieces, throttle = source.pieces(), Throttle(REPORT_PERIOD_S)
    _check_space(request.path, source, pieces)
    with create_export(request.path, source.spec) as file:
        for number, piece in enumerate(pieces):
            file.write(piece.relative_to(source.box.start), source.read(piece))
            if throttle.due():
                reporter.show_live(f"export: piece {number + 1}/{len(pieces)}")
    reporter.print_line(f"{request.what} of {request.box}: {request.path}")


def _check_space(path: str, source: ExportSource, pieces: Sequence[Box]) -> None:
    """Raise an InputError if the disk has too little space. HDF5 is taken to shrink as the middle piece does."""
    try:
        check_space(path, source.spec.num_bytes, "--export")
    except InputError:
        if not is_hdf5(path):
            raise
        ratio = compression_ratio(source.read(pieces[len(pieces) // 2]).view(np.uint8))
        check_space(path, round(source.spec.num_bytes / ratio), "--export")


def export_finished_output(given: GivenSettings, reporter: Reporter) -> SegmentResult:
    """Export an output without the weights that made it.

    Parameters
    ----------
    given : GivenSettings
        What a person gave: `output`, `export` and what belongs to it.
    reporter : Reporter
        Shows the path of the output and the progress.

    Returns
    -------
    SegmentResult
        Where output and file are.

    Raises
    ------
    InputError
        If settings are given that need weights, if there is no output, or as of `resolve_export` and `export_output`.
    OSError
        If the output cannot be read, or the file not be written.
    """
    segment = resolve_section(SegmentSettings, given)
    others = sorted(segment.model_fields_set - WITHOUT_WEIGHTS)
    others += [name for name in ("task", "network") if getattr(given, name) is not None]
    if others:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise InputError(
            f"no weights: without --weights a finished output is only exported, and {flags} does not apply; leave it "
            "out (--export-box cuts the export), or give --weights"
        )
    output = OmeZarrOutput.open(resolve_output_path(str(segment.output), SINGLE_NODE, "--output"))
    request = read_export_request(segment, segmented_box(output))
    assert request is not None
    request = resolve_export(request, SINGLE_NODE, output.path, output.spec.record)
    reporter.print_result(output.path)
    with exit_on_sigterm():
        export_output(request, output.path, reporter)
    reporter.print_result(output.path)
    return SegmentResult(output.path, export_path=request.path)
