"""The label image of objects, `labels/<task>_objects`: each voxel has the id of its object in the table."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kasthuri_ray.output import ome_metadata
from kasthuri_ray.output.ledger import COMPONENTS, Ledger
from kasthuri_ray.output.object_labels import JoinedBlocks
from kasthuri_ray.output.ome_zarr import LABELS_FILE, OmeZarrOutput, list_labels, object_image_name
from kasthuri_ray.output.output_array import OutputArray
from kasthuri_ray.storage.folder import open_storage

IDS = "ids"  # folder in the ledger: the ids of the objects of each block
OBJECT_FOLDERS = (IDS, COMPONENTS)  # what the ledger holds about objects beside finished blocks
NUM_WRITERS = 16  # threads that write small files, most of whose time is waiting


def create_object_image(output: OmeZarrOutput, num_objects: int) -> None:
    """Create the label image of objects, or complete one that was created in part.

    Parameters
    ----------
    output : OmeZarrOutput
        The output.
    num_objects : int
        Highest label: uint32 holds up to 2^32 - 1, uint64 more.
    """
    array = _array(output, "uint32" if num_objects < 1 << 32 else "uint64")
    name, storage = object_image_name(output.spec.name), open_storage(output.path)
    group = ome_metadata.object_image_json(name, output.spec.levels, output.spec.nanometers)
    files = {f"{level.name}/zarr.json": array.level_json(level.number) for level in array.levels}
    for path, document in {**files, "zarr.json": group}.items():
        storage.write_bytes(f"labels/{name}/{path}", _json_bytes(document))
    mask = [] if output.spec.mask is None else [output.spec.mask]
    listed = ome_metadata.labels_json(list_labels(storage, ome_metadata.labels_json([*mask, name])))
    storage.write_bytes(LABELS_FILE, _json_bytes(listed))


def complete_object_image(output: OmeZarrOutput, num_objects: int) -> None:
    """Note in the label image of objects that all of them are written.

    Parameters
    ----------
    output : OmeZarrOutput
        The output.
    num_objects : int
        How many there are.
    """
    name = object_image_name(output.spec.name)
    group = ome_metadata.object_image_json(name, output.spec.levels, output.spec.nanometers, num_objects)
    open_storage(output.path).write_bytes(f"labels/{name}/zarr.json", _json_bytes(group))


def remove_object_image(output: OmeZarrOutput) -> None:
    """Remove the label image of objects, if there is one, and its name among those of label images.

    Parameters
    ----------
    output : OmeZarrOutput
        The output.
    """
    name, storage = object_image_name(output.spec.name), open_storage(output.path)
    others = [each for each in list_labels(storage, {}) if each != name]
    if name in storage.child("labels").list_folder():
        storage.child("labels").child(name).remove_folder()
    if others:
        storage.write_bytes(LABELS_FILE, _json_bytes(ome_metadata.labels_json(others)))
    else:
        storage.delete(LABELS_FILE)
        storage.child("labels").remove_if_empty()


def complete_object_image_path(output: str, name: str) -> str | None:
    """Return the path of the label image of objects in which all are written.

    Parameters
    ----------
    output : str
        Path or URL of an output.
    name : str
        Name of its image, the type of the task.

    Returns
    -------
    str or None
        None if there is no such label image, or it is not complete.
    """
    path = f"labels/{object_image_name(name)}"
    try:
        document = json.loads(open_storage(output).read_bytes(f"{path}/zarr.json"))
    except (OSError, ValueError):
        return None
    return f"{output}/{path}" if ome_metadata.PROVENANCE_KEY in document.get("attributes", {}) else None


def open_object_image(output: OmeZarrOutput) -> OutputArray | None:
    """Open the label image of objects.

    Parameters
    ----------
    output : OmeZarrOutput
        The output.

    Returns
    -------
    OutputArray or None
        None if there is none.
    """
    storage = open_storage(f"{output.path}/labels/{object_image_name(output.spec.name)}")
    try:
        document = json.loads(storage.read_bytes(f"{output.spec.levels[0].name}/zarr.json"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _array(output, document["data_type"])


def write_object_ids(ledger: Ledger, joined: JoinedBlocks, names: Iterable[str]) -> None:
    """Write the ids of the objects of blocks to the ledger, for those who label the blocks.

    Parameters
    ----------
    ledger : Ledger
        Ledger of the output.
    joined : JoinedBlocks
        The objects.
    names : iterable of str
        Names of the blocks.
    """

    def write(name: str) -> None:
        out = io.BytesIO()
        np.save(out, joined.block_ids(name))
        ledger.storage.write_bytes(_ids_path(name), out.getvalue())

    with ThreadPoolExecutor(NUM_WRITERS) as writers:
        for _ in writers.map(write, names):
            pass


def read_object_ids(ledger: Ledger, name: str) -> np.ndarray:
    """Return what `JoinedBlocks.block_ids` returned for a block.

    Parameters
    ----------
    ledger : Ledger
        Ledger of the output.
    name : str
        Name of the block.

    Returns
    -------
    ndarray of int64
        The id of each label of the block.
    """
    return np.load(io.BytesIO(ledger.storage.read_bytes(_ids_path(name))), allow_pickle=False)


def _ids_path(name: str) -> str:
    return f"{IDS}/{name}.npy"


def _array(output: OmeZarrOutput, dtype: str) -> OutputArray:
    path = f"{output.path}/labels/{object_image_name(output.spec.name)}"
    return OutputArray(path, output.spec.levels, output.spec.layout, None, dtype)


def _json_bytes(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
