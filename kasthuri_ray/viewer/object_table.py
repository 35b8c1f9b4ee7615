"""The table of an output's objects, for the viewer: where each object is, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kasthuri_ray.geometry import Nm, per_axis
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.side_files import object_table_path, read_object_table
from kasthuri_ray.viewer.layers import Point
from kasthuri_ray.viewer.segment_properties import SCORE

Row = Mapping[str, Any]
POINT_PROPERTIES = ("mean_probability", "size_voxels")


def read_rows(output: OmeZarrOutput) -> list[dict[str, Any]] | None:
    """Return the rows of an output's table of objects; None if there is none."""
    try:
        return list(read_object_table(object_table_path(output.path, output.spec.channels)))
    except FileNotFoundError:
        return None


def centroid_of(row: Row) -> Nm:
    """Return the centroid that a row states, z, y, x."""
    unit = "nm" if "centroid_z_nm" in row else "voxels"
    return per_axis(lambda axis: float(row[f"centroid_{axis}_{unit}"]), "zyx")


def place_of(row: Row, shift: Nm) -> Nm:
    """Return the middle of an object as the viewer counts. shift: from the table's centroids to the middles."""
    return per_axis(lambda place, by: place + by, centroid_of(row), shift)


def best_row(rows: Sequence[Row]) -> Row | None:
    """Return the most confident object: the one with the highest mean probability."""
    return max(rows, key=lambda row: float(row[SCORE]), default=None)


def table_points(rows: Sequence[Row], shift: Nm) -> list[Point]:
    """Return the points of a table, the most confident first.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of the table.
    shift : tuple of float
        See `place_of`.

    Returns
    -------
    list of Point
        One for each row.
    """
    ordered = sorted(rows, key=lambda row: -float(row[SCORE]))
    return [
        Point(
            id=int(row["id"]),
            position=place_of(row, shift),
            description=f"{row['id']}" + (f" {row['class']}" if "class" in row else ""),
            properties={name: float(row[name]) for name in POINT_PROPERTIES if name in row},
        )
        for row in ordered
    ]
