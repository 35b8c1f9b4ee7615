"""Files beside an output: `<output>.progress.json`, `<output>.plan.json` and the table of objects."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.metrics.objects import ObjectTable
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.storage import Storage


def object_table_path(output: str, class_names: Sequence[str]) -> str:
    """Return the path of an output's table of objects.

    Parameters
    ----------
    output : str
        Path or URL of the output.
    class_names : sequence of str
        Names of the foreground classes; that of a single one is the type of the task.

    Returns
    -------
    str
        `<output>.synapses.csv` for synapses alone, `<output>.objects.csv` for anything else.
    """
    return f"{output}.synapses.csv" if list(class_names) == ["synapse"] else f"{output}.objects.csv"


def write_object_table(
    table: ObjectTable,
    path: str,
    voxel_size_nm: Sequence[float] | None,
    translation_nm: Sequence[float] = (0.0, 0.0, 0.0),
    start: Zyx = (0, 0, 0),
    class_names: Sequence[str] = (),
) -> None:
    """Write a table of objects as CSV, whole or not at all.

    Parameters
    ----------
    table : ObjectTable
        Objects, with centroids in voxels of the output and probabilities from 0 to 1.
    path : str
        Path or `s3://` URL of the file.
    voxel_size_nm : sequence of float or None
        Voxel size z, y, x. If None, centroids are in voxels, and the header says so.
    translation_nm : sequence of float
        Added to the centroids, z, y, x: where the middle of the output's first voxel is.
    start : tuple of int
        Added to the half-open boxes, in voxels, z, y, x: where the output begins in its image.
    class_names : sequence of str
        Names of the foreground classes, for a column of their own if there are several.
    """
    storage, name = _split_path(path)
    lines = table.csv_lines(voxel_size_nm, translation_nm, start, class_names)
    storage.write_bytes(name, "".join(f"{line}\n" for line in lines).encode())


def read_object_table(path: str) -> list[dict[str, int | float | str]]:
    """Read a table of objects.

    Parameters
    ----------
    path : str
        Path or `s3://` URL of the file that `write_object_table` wrote.

    Returns
    -------
    list of dict
        A row for each object, by the names of the columns.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    storage, name = _split_path(path)
    rows = csv.DictReader(storage.read_bytes(name).decode().splitlines())
    return [{key: text if key == "class" else _parse_number(text) for key, text in row.items()} for row in rows]


def _parse_number(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def write_plan(output: str, plan: Mapping[str, Any]) -> None:
    """Write `<output>.plan.json`.

    Parameters
    ----------
    output : str
        Path or URL of the output.
    plan : mapping
        JSON object.
    """
    storage, name = _split_path(f"{output}.plan.json")
    storage.write_bytes(name, (json.dumps(plan, indent=2) + "\n").encode())


def progress_path(output: str) -> str:
    """Return the path of an output's progress file.

    Parameters
    ----------
    output : str
        Path or URL of the output.

    Returns
    -------
    str
        `<output>.progress.json`.
    """
    return f"{open_storage(output).path}.progress.json"


def read_progress(output: str) -> dict[str, Any]:
    """Return what `<output>.progress.json` holds.

    Parameters
    ----------
    output : str
        Path or URL of the output.

    Returns
    -------
    dict
        The JSON object.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be read.
    InputError
        If it is not JSON.
    """
    storage, name = _split_path(progress_path(output))
    return json.loads(storage.read_bytes(name))


def write_progress(output: str, progress: Mapping[str, Any]) -> None:
    """Write `<output>.progress.json`, whole or not at all, without waiting for the disk.

    Parameters
    ----------
    output : str
        Path or URL of the output.
    progress : mapping
        JSON object; numbers must be finite.
    """
    storage, name = _split_path(progress_path(output))
    data = (json.dumps(progress, allow_nan=False) + "\n").encode()
    storage.write_bytes(name, data, flush=False)


def remove_side_files(output: str, class_names: Sequence[str]) -> None:
    """Remove an output's progress file and table of objects; the plan stays.

    Parameters
    ----------
    output : str
        Path or URL of the output.
    class_names : sequence of str
        Names of the foreground classes, which decide the name of the table.
    """
    for path in (progress_path(output), object_table_path(output, class_names)):
        storage, name = _split_path(path)
        storage.delete(name)


def _split_path(path: str) -> tuple[Storage, str]:
    """Return the folder of a file, and its name in it."""
    folder, _, name = path.rpartition("/")
    return open_storage(folder or ("/" if path.startswith("/") else ".")), name
