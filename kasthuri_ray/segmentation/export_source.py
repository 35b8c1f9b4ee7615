"""What an export reads: probabilities, mask or objects of a finished output, in pieces of limited size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.output.block_grid import block_name
from kasthuri_ray.output.export_spec import ExportSpec
from kasthuri_ray.output.hdf5_export import CHUNK
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.object_labels import BlockLabeller, ObjectLabels, recorded_object_settings
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.side_files import object_table_path
from kasthuri_ray.progress import format_count
from kasthuri_ray.segmentation.object_phases import ObjectsPhase
from kasthuri_ray.segmentation.phases import NetworkPhase
from kasthuri_ray.storage.folder import open_storage

MAX_PIECE_BYTES = 256_000_000  # of probabilities that are read at once


class ExportSource:
    """The voxels of an output that are exported; boxes are in voxels of the output.

    Parameters
    ----------
    output : OmeZarrOutput
        The output.
    what : str
        `probabilities`, `mask` or `objects`.
    box : Box
        What is exported, in voxels of the image.
    provenance : mapping
        What the file says about its origin.

    Raises
    ------
    InputError
        If blocks of the box are not finished, or objects were not found.
    """

    def __init__(self, output: OmeZarrOutput, what: str, box: Box, provenance: Mapping[str, Any]) -> None:
        self.output, self.record, self.what = output, output.spec.record, what
        self.box = box.relative_to(segmented_box(output).start)
        ledger = Ledger.beside(output.path)
        self.grid = output.probabilities.grid(0, per_axis(int, self.record["block"]))
        self.is_known_finished = ledger.settings() is not None
        if self.is_known_finished:
            self._check_finished(ledger)
        self.objects = self._find_objects(ledger) if what == "objects" else None
        self.spec = self._make_spec(provenance)

    def _check_finished(self, ledger: Ledger) -> None:
        done, names = ledger.done(NetworkPhase.NAME), [block_name(index) for index in self.grid.overlapping(self.box)]
        num_unfinished = sum(name not in done for name in names)
        if num_unfinished:
            raise InputError(
                f"{num_unfinished} of {format_count(len(names), 'block')} to export are not segmented yet; finish them "
                "with the command that began the segmentation, or give --export-box of a part that is done"
            )

    def _find_objects(self, ledger: Ledger) -> ObjectLabels:
        output = self.output
        table = object_table_path(output.path, output.spec.channels)
        folder, _, name = table.rpartition("/")
        if not open_storage(folder).exists(name):
            raise InputError(
                f"there are no objects to export: {table} does not exist; segment with --objects first (the same "
                "command with --objects adds them to a finished output)"
            )
        names = {name for name, wrote in ledger.done(ObjectsPhase.NAME).items() if wrote}
        settings = recorded_object_settings(self.record, self._thresholds())
        labeller = BlockLabeller(output.probabilities, self.grid, settings)
        finest = output.spec.levels[0]
        return ObjectLabels(labeller, ledger, names, finest.scale if output.spec.nanometers else None)

    def _thresholds(self) -> list[float]:
        """Return the threshold of each class; InputError if the output has one for the sum of several classes."""
        recorded, num_classes = self.record["threshold"], len(self.output.spec.channels)
        thresholds = recorded if isinstance(recorded, list) else [float(recorded)]
        if len(thresholds) != num_classes:
            raise InputError(
                f"{self.output.path} was made with one threshold for the sum of its {num_classes} classes; "
                "segment again (--overwrite) to export its mask or objects"
            )
        return thresholds

    def _make_spec(self, provenance: Mapping[str, Any]) -> ExportSpec:
        finest, spec = self.output.spec.levels[0], self.output.spec
        dtype, highest = "uint8", 255 if self.what == "probabilities" else len(spec.channels)
        if self.objects is not None:
            highest = self.objects.num_objects
            dtype = "uint16" if highest < 1 << 16 else "uint32"
        return ExportSpec(
            shape=self.box.shape,
            channels=spec.channels if self.what == "probabilities" else (self.what,),
            dtype=np.dtype(dtype),
            voxel_size_nm=finest.scale if spec.nanometers else None,
            origin_nm=per_axis(lambda t, n, size: t + n * size, finest.translation, self.box.start, finest.scale),
            highest=highest,
            provenance=provenance,
        )

    def pieces(self) -> list[Box]:
        """Return boxes that divide the box, each of which `read` reads at once."""
        if self.objects is not None:
            return [self.grid.box(index).intersect(self.box) for index in self.grid.overlapping(self.box)]
        shape = piece_shape(self.box.shape, self.output.spec.layout.chunk, len(self.output.spec.channels))
        return list(self.box.cells(shape, self.box.start))

    def read(self, piece: Box) -> np.ndarray:
        """Return the voxels of a piece, c, z, y, x."""
        if self.objects is not None:
            (index,) = self.grid.overlapping(piece)
            ids = self.objects.read(index)[piece.slices(self.grid.box(index).start)]
            return ids[None].astype(self.spec.dtype)
        if self.what == "mask" and self.output.labels is not None:
            return self.output.labels.read(0, piece)[None]
        probabilities = self.output.probabilities.read(0, piece)
        if self.what == "mask":
            return classes_at(probabilities, self._thresholds())[None]
        return probabilities


def segmented_box(output: OmeZarrOutput) -> Box:
    """Return what an output covers.

    Parameters
    ----------
    output : OmeZarrOutput
        The output.

    Returns
    -------
    Box
        In voxels of its image.
    """
    starts = [int(part.split(":")[0]) for part in output.spec.record["box"].split(",")]
    return Box.at(starts, output.spec.levels[0].shape)


def piece_shape(shape: Zyx, chunk: Zyx, num_channels: int) -> Zyx:
    """Return the shape of what is read at once: whole rows, in whole chunks as far as memory allows.

    Parameters
    ----------
    shape : tuple of int
        Of the exported box, z, y, x.
    chunk : tuple of int
        Chunks of the output.
    num_channels : int
        Classes that are read.

    Returns
    -------
    tuple of int
        At most 256 MB, unless 16 sections of 128 rows have more.
    """
    depth, rows = max(chunk[0], CHUNK[0]), max(chunk[1], CHUNK[1])
    while depth > CHUNK[0] and depth * rows * shape[2] * num_channels > MAX_PIECE_BYTES:
        depth = max(CHUNK[0], depth // 2)
    num_bands = max(1, MAX_PIECE_BYTES // (depth * rows * shape[2] * num_channels))
    return depth, rows * num_bands, shape[2]
