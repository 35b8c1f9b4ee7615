"""Files beside an output: `<output>.progress.json`, `<output>.plan.json` and the table of objects."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kasthuri_ray.metrics.object_columns import Columns, csv_lines
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


def parquet_path(path: str) -> str:
    """Return the path of the Parquet file beside a table of objects in CSV."""
    return f"{path.removesuffix('.csv')}.parquet"


def write_object_table(path: str, columns: Columns) -> None:
    """Write a table of objects as Parquet and as CSV, each whole or not at all; the CSV comes last.

    Parameters
    ----------
    path : str
        Path or `s3://` URL of the CSV file; the other one is beside it.
    columns : Columns
        What `object_columns` returned.
    """
    storage, name = _split_path(path)
    storage.write_bytes(parquet_path(name), _parquet_bytes(columns))
    storage.write_bytes(name, "".join(f"{line}\n" for line in csv_lines(columns)).encode())


def _parquet_bytes(columns: Columns) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    types = {"class": pa.string(), "size_nm3": pa.float64()}  # of columns that may hold nothing
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    out = pa.BufferOutputStream()
    parquet.write_table(pa.table(arrays), out, compression="zstd")
    return bytes(out.getvalue())


def read_object_table(path: str) -> list[dict[str, Any]]:
    """Read a table of objects.

    Parameters
    ----------
    path : str
        Path or `s3://` URL of the file that `write_object_table` wrote.

    Returns
    -------
    list of dict
        A row for each object, by the names of the columns; None for what is not known.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    storage, name = _split_path(path)
    rows = csv.DictReader(io.StringIO(storage.read_bytes(name).decode(), newline=""))
    return [{key: text if key == "class" else _parse_number(text) for key, text in row.items()} for row in rows]


def _parse_number(text: str) -> int | float | None:
    if not text:
        return None
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
    storage, name = _split_path(progress_path(output))
    storage.delete(name)
    remove_object_table(output, class_names)


def remove_object_table(output: str, class_names: Sequence[str]) -> None:
    """Remove an output's table of objects.

    Parameters
    ----------
    output : str
        Path or URL of the output.
    class_names : sequence of str
        Names of the foreground classes, which decide the name of the table.
    """
    table = object_table_path(output, class_names)
    for path in (table, parquet_path(table)):
        storage, name = _split_path(path)
        storage.delete(name)


def _split_path(path: str) -> tuple[Storage, str]:
    """Return the folder of a file, and its name in it."""
    folder, _, name = path.rpartition("/")
    return open_storage(folder or ("/" if path.startswith("/") else ".")), name
