"""The table of several classes, as the pages of a run and of an evaluation show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kasthuri_ray.reports.section_images import Rgb, class_colours


@dataclass(frozen=True)
class ClassRow:
    """Scores of a class. metrics: as of `metrics.voxel_scores.class_metrics`, and `objects` if they were matched."""

    name: str
    colour: Rgb
    metrics: Mapping[str, Any]

    @property
    def objects(self) -> Mapping[str, Any] | None:
        """Scores of its objects; None for a class without objects, such as membranes."""
        return self.metrics.get("objects")


def make_class_rows(metrics: Mapping[str, Any] | None) -> list[ClassRow]:
    """Return a row for each of several classes.

    Parameters
    ----------
    metrics : mapping or None
        Scores with an entry `classes` if there are several.

    Returns
    -------
    list of ClassRow
        Empty for a single class.
    """
    classes = (metrics or {}).get("classes", {})
    colours = class_colours(len(classes))
    return [ClassRow(name, colour, row) for (name, row), colour in zip(classes.items(), colours, strict=True)]
