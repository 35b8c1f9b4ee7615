"""The columns of a table of objects, as people read them: in nm, with probabilities from 0 to 1."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kasthuri_ray.geometry import AXES, Box, Zyx
from kasthuri_ray.metrics.components import CLASS, MAX_PROBABILITY, SIZE, START_Z, STOP_Z
from kasthuri_ray.metrics.objects import ObjectTable

DECIMALS = {"mean_probability": 6, "highest_probability": 6, "score": 6}  # of CSV; 3 of other fractions

Columns = Mapping[str, Sequence[Any] | np.ndarray]
"""Values of each column by its name; all are as long as the table."""


def object_columns(
    table: ObjectTable,
    bounds: Box,
    voxel_size_nm: Sequence[float] | None = None,
    translation_nm: Sequence[float] = (0.0, 0.0, 0.0),
    start: Zyx = (0, 0, 0),
    class_names: Sequence[str] = (),
) -> dict[str, Sequence[Any] | np.ndarray]:
    """Return the columns of a table of objects.

    Parameters
    ----------
    table : ObjectTable
        The objects, in voxels of `bounds`.
    bounds : Box
        All voxels in which objects were found: what touches its faces is cut.
    voxel_size_nm : sequence of float, optional
        Voxel size z, y, x. Without it, centroids are in voxels, as their names say, and `size_nm3` is unknown.
    translation_nm : sequence of float
        Added to the centroids, z, y, x.
    start : tuple of int
        Added to the half-open boxes, in voxels, z, y, x.
    class_names : sequence of str
        Names of the classes 1, 2, ...; if there are several, there is a column for the class.

    Returns
    -------
    dict
        `id`, centroid, `size_voxels`, mean and highest probability, box, `class`, `size_nm3`, `score` (the mean
        probability) and `cut` (whether the object touches a face of `bounds`).
    """
    stats, unit = table.stats, "voxels" if voxel_size_nm is None else "nm"
    centroids = table.centroid * np.array(voxel_size_nm or (1.0, 1.0, 1.0)) + np.array(translation_nm, np.float64)
    columns: dict[str, Sequence[Any] | np.ndarray] = {"id": np.arange(1, len(table) + 1)}
    columns |= {f"centroid_{name}_{unit}": centroids[:, axis] for axis, name in enumerate(AXES)}
    columns["size_voxels"] = stats[:, SIZE]
    columns["mean_probability"] = table.mean_probability
    columns["highest_probability"] = stats[:, MAX_PROBABILITY] / 255
    for axis, name in enumerate(AXES):
        columns[f"{name}_start"] = stats[:, START_Z + axis] + start[axis]
        columns[f"{name}_stop"] = stats[:, STOP_Z + axis] + start[axis]
    if len(class_names) > 1:
        columns["class"] = [class_names[number - 1] for number in stats[:, CLASS].tolist()]
    known = None if voxel_size_nm is None else stats[:, SIZE] * math.prod(voxel_size_nm)
    columns["size_nm3"] = [None] * len(table) if known is None else known
    columns["score"] = table.mean_probability
    columns["cut"] = table.is_cut(bounds)
    return columns


def csv_lines(columns: Columns) -> Iterator[str]:
    """Yield columns as lines of CSV, header first.

    Parameters
    ----------
    columns : Columns
        What `object_columns` returned. Unknown values are left empty; yes and no are 1 and 0.

    Yields
    ------
    str
        A line.
    """
    yield csv_line(columns)
    texts = [_texts(name, np.asarray(values).tolist()) for name, values in columns.items()]
    yield from map(csv_line, zip(*texts, strict=True))


def csv_line(cells: Iterable[str]) -> str:
    """Return cells as a line of CSV, without a line break at its end; what holds a comma is quoted.

    Parameters
    ----------
    cells : iterable of str
        The texts of a row.

    Returns
    -------
    str
        A line.
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


def _texts(name: str, values: Sequence[Any]) -> list[str]:
    decimals = DECIMALS.get(name, 3)
    return ["" if value is None else _text(value, decimals) for value in values]


def _text(value: Any, decimals: int) -> str:
    if isinstance(value, float):
        return f"{value:.{decimals}f}"
    return str(int(value)) if isinstance(value, bool) else str(value)
