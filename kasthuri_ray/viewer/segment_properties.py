"""Rows of a table of objects as Neuroglancer's segment properties: a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_ROWS = 100_000
SCORE = "mean_probability"


def segment_properties(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the `info` of the properties of segments.

    Parameters
    ----------
    rows : sequence of mapping
        Rows of the table with a column `id`; of more than 100,000 those with the highest score.

    Returns
    -------
    dict
        JSON object: numbers are numbers, the first column of text has tags, and a column in which nothing is known is
        left out. The label of a segment is that of its row, else its id.

    Notes
    -----
    https://neuroglancer-docs.web.app/datasource/precomputed/segment_properties.html
    """
    rows = best_rows(rows, MAX_ROWS)
    columns = [name for name in (rows[0] if rows else {}) if name not in ("id", "label")]
    labels = [str(row.get("label", row["id"])) for row in rows]
    properties: list[dict[str, Any]] = [{"id": "label", "type": "label", "values": labels}]
    for name in columns:
        values = [row[name] for row in rows]
        if all(value is None for value in values):
            continue
        if all(isinstance(value, int | float) for value in values):
            numbers = {"data_type": "float32", "values": [float(value) for value in values]}
            properties.append({"id": name, "type": "number", "description": name, **numbers})
        elif any(each["type"] == "tags" for each in properties):  # the format allows one
            properties.append({"id": name, "type": "string", "values": [str(value) for value in values]})
        else:
            properties.append(_tags(name, [str(value) for value in values]))
    inline = {"ids": [str(row["id"]) for row in rows], "properties": properties}
    return {"@type": "neuroglancer_segment_properties", "inline": inline}


def best_rows(rows: Sequence[Mapping[str, Any]], number: int) -> Sequence[Mapping[str, Any]]:
    """Return the rows with the highest score, best first if there are more than the number; else all, as they are."""
    if len(rows) <= number:
        return rows
    return sorted(rows, key=lambda row: -float(row.get(SCORE, 0)))[:number]


def _tags(name: str, values: Sequence[str]) -> dict[str, Any]:
    """Return a column of text as tags."""
    tags = sorted(set(values))
    number = {tag: index for index, tag in enumerate(tags)}
    return {"id": name, "type": "tags", "tags": tags, "values": [[number[value]] for value in values]}
