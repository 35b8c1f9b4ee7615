"""The output of a segmentation: an OME-Zarr 0.5 group of a pyramid of probabilities, and of labels if requested.

    output = OmeZarrOutput.create("out.zarr", spec)
    output.probabilities.write_block(0, box, voxels)

`s0`, `s1`, ... are zarr 3 arrays with axes c, z, y, x, uint8. The same spec and voxels have the same bytes.
`output_array` writes and reads their voxels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.output import ome_metadata
from kasthuri_ray.output.layout import ArrayLayout
from kasthuri_ray.output.output_array import OutputArray
from kasthuri_ray.output.pyramid import PyramidLevel
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.local_paths import BEST_FILE
from kasthuri_ray.storage.storage import Storage

LABELS_FILE = "labels/zarr.json"  # lists the label images


@dataclass(frozen=True)
class OutputSpec:
    """Everything that the metadata of an output depends on.

    Parameters
    ----------
    levels : tuple of PyramidLevel
        As from `plan_levels`. The shape of s0 is that of what is segmented.
    layout : ArrayLayout
        Of s0; those of the other levels follow.
    nanometers : bool
        Whether lengths of the levels are in nm.
    channels : tuple of str
        Names of the foreground classes, in their order.
    name : str
        Of the image, for viewers.
    mask : str, optional
        Name of the label image in `labels/`; None for none.
    record : dict
        Provenance, a JSON object that is stored as the attribute `kasthuri_ray` of the group.

    Raises
    ------
    InputError
        If `mask` cannot be the name of a zarr node.
    """

    levels: tuple[PyramidLevel, ...]
    layout: ArrayLayout
    nanometers: bool
    channels: tuple[str, ...]
    name: str
    mask: str | None = None
    record: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.mask is not None and not ome_metadata.is_node_name(self.mask):
            raise InputError(f"{self.mask!r} cannot name a label image; expected letters, digits, . _ and -")

    def probabilities(self, path: str) -> OutputArray:
        """Return the probabilities of the output at a path."""
        return OutputArray(path, self.levels, self.layout, len(self.channels))

    def labels(self, path: str) -> OutputArray | None:
        """Return the label image of the output at a path; None if it has none."""
        return None if self.mask is None else OutputArray(f"{path}/labels/{self.mask}", self.levels, self.layout, None)

    def metadata_files(self) -> dict[str, dict[str, Any]]:
        """Return every `zarr.json` by its path in the group, that of the group first."""
        lengths = (self.levels, self.nanometers, self.channels)
        files = {"zarr.json": ome_metadata.image_json(self.name, *lengths, self.record)}
        files |= _level_files("", self.probabilities(""))
        labels = self.labels("")
        if self.mask is not None and labels is not None:
            files[LABELS_FILE] = ome_metadata.labels_json([self.mask])
            files[f"labels/{self.mask}/zarr.json"] = ome_metadata.mask_json(self.mask, *lengths)
            files |= _level_files(f"labels/{self.mask}/", labels)
        return files


@dataclass(frozen=True)
class OmeZarrOutput:
    """An output on a disk or on S3. It can be pickled.

    Parameters
    ----------
    path : str
        Absolute path, or `s3://bucket/key`.
    spec : OutputSpec
        What the output contains.
    """

    path: str
    spec: OutputSpec

    @classmethod
    def create(cls, path: str, spec: OutputSpec) -> OmeZarrOutput:
        """Create the output of a spec, or complete one that was created in part.

        The metadata of another output would be overwritten: check with `find_existing_output` before.
        """
        storage = open_storage(path)
        for name, document in spec.metadata_files().items():
            if name == LABELS_FILE:
                document = ome_metadata.labels_json(list_labels(storage, document))
            data = (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
            if _read_or_none(storage, name) != data:
                storage.write_bytes(name, data)
        return cls(storage.path, spec)

    @classmethod
    def open(cls, path: str) -> OmeZarrOutput:
        """Open an output. Raises FileNotFoundError if there is none, and InputError for anything else."""
        storage = open_storage(path)
        try:
            group, finest = (json.loads(storage.read_bytes(name)) for name in ("zarr.json", "s0/zarr.json"))
        except FileNotFoundError:
            run = "; it is the folder of a training run" if storage.exists(BEST_FILE) else ""
            raise InputNotFound(f"{storage.path}: there is no output of a segmentation{run}") from None
        labels = _read_or_none(storage, LABELS_FILE)
        try:
            return cls(storage.path, _spec_from_metadata(group, finest, json.loads(labels or b"{}")))
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise InputError(f"{storage.path} is not an output of a segmentation: {error!r}") from None

    @property
    def probabilities(self) -> OutputArray:
        """The probabilities of the foreground classes, at all levels."""
        return self.spec.probabilities(self.path)

    @property
    def labels(self) -> OutputArray | None:
        """The label image, at all levels; None if there is none."""
        return self.spec.labels(self.path)

    @property
    def arrays(self) -> list[OutputArray]:
        """The probabilities, and the label image if there is one."""
        return [self.probabilities, *([self.labels] if self.labels else [])]


def object_image_name(name: str) -> str:
    """Return the name of the label image of objects.

    Parameters
    ----------
    name : str
        Name of the image, the type of the task.

    Returns
    -------
    str
        Name of its group in `labels`.
    """
    return f"{name}_objects"


def list_labels(storage: Storage, document: dict[str, Any]) -> list[str]:
    """Return the names of label images: those of a document of `labels`, then the others that the output has.

    Parameters
    ----------
    storage : Storage
        The output.
    document : dict
        Content of `labels/zarr.json`.

    Returns
    -------
    list of str
        Each once.
    """
    written = json.loads(_read_or_none(storage, LABELS_FILE) or b"{}")
    return list(dict.fromkeys([*_label_names(document), *_label_names(written)]))


def _label_names(document: dict[str, Any]) -> list[str]:
    return document.get("attributes", {}).get("ome", {}).get("labels", [])


def compression_ratio(voxels: np.ndarray) -> float:
    """Return how many times smaller voxels are once they are compressed as in an output.

    Parameters
    ----------
    voxels : ndarray of uint8
        Probabilities or labels, of any shape.

    Returns
    -------
    float
        At least 1.
    """
    return max(1.0, voxels.size / len(Zstd(level=1).encode(np.ascontiguousarray(voxels))))


def _read_or_none(storage: Storage, name: str) -> bytes | None:
    try:
        return storage.read_bytes(name)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _level_files(folder: str, array: OutputArray) -> dict[str, dict[str, Any]]:
    return {f"{folder}{level.name}/zarr.json": array.level_json(level.number) for level in array.levels}


def _spec_from_metadata(group: dict[str, Any], finest: dict[str, Any], labels: dict[str, Any]) -> OutputSpec:
    """Return the spec of an output. Raises KeyError, TypeError, IndexError or InputError if these are not its files."""
    record = group["attributes"][ome_metadata.PROVENANCE_KEY]
    levels, nanometers, channels = ome_metadata.read_image(group, tuple(finest["shape"][1:]))
    name = group["attributes"]["ome"]["multiscales"][0]["name"]
    masks = [each for each in _label_names(labels) if each != object_image_name(name)]
    return OutputSpec(
        levels=levels,
        layout=ome_metadata.read_layout(finest),
        nanometers=nanometers,
        channels=channels,
        name=name,
        mask=masks[0] if masks else None,
        record=record,
    )
