"""Many points as Neuroglancer's precomputed annotations, in memory: what a browser asks for, cell by cell.

Format: https://neuroglancer-docs.web.app/datasource/precomputed/annotations.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from kasthuri_ray.viewer.layers import PointLayer, Scene
from kasthuri_ray.viewer.viewer_state import dimensions, property_names, to_viewer

MAX_IN_CELL = 2_000
MAX_LEVELS = 12
BY_ID = "by_id"


class PointFiles(Mapping[str, bytes]):
    """The files of a layer of points, by their names.

    Every point is in one cell of one level: the first level is one cell with a random sample of all points, each next
    one halves the cells and holds a sample of the rest.

    Parameters
    ----------
    layer : PointLayer
        The points.
    scene : Scene
        Gives the unit of the axes.
    """

    def __init__(self, layer: PointLayer, scene: Scene) -> None:
        names = property_names(layer.points)
        positions = np.array([to_viewer(point.position, scene) for point in layer.points], np.float32)
        values = np.array([[point.properties[name] for name in names] for point in layer.points], np.float32)
        record = np.dtype([("position", "<f4", 3), ("values", "<f4", len(names))])
        self._records = np.empty(len(positions), record)
        self._records["position"], self._records["values"] = positions, values
        self._ids = np.array([point.id for point in layer.points], "<u8")
        self._rows = {int(number): row for row, number in enumerate(self._ids)}
        self._low, self._high = positions.min(0), positions.max(0) + 1
        self._cells, shapes = self._divide(positions)
        self._info = json.dumps(self._info_json(scene, names, shapes)).encode()

    def _divide(self, positions: np.ndarray) -> tuple[dict[str, np.ndarray], list[int]]:
        """Return the points of each cell by its file, and the number of cells of each level along an axis."""
        rest = np.random.default_rng(0).permutation(len(positions))
        cells: dict[str, np.ndarray] = {}
        shapes = []
        for level in range(MAX_LEVELS):
            number = 1 << level
            shapes.append(number)
            share = (positions[rest] - self._low) / (self._high - self._low)
            index = np.minimum((share * number).astype(int), number - 1)
            order = np.lexsort((np.arange(len(rest)), index[:, 2], index[:, 1], index[:, 0]))
            keys, starts = np.unique(index[order], axis=0, return_index=True)
            kept = []
            for key, members in zip(keys, np.split(order, starts[1:]), strict=True):
                taken = members if level == MAX_LEVELS - 1 else members[:MAX_IN_CELL]
                cells[f"spatial{level}/{'_'.join(map(str, key))}"] = rest[taken]
                kept.append(taken)
            rest = np.delete(rest, np.concatenate(kept))
            if not len(rest):
                break
        return cells, shapes

    def _info_json(self, scene: Scene, names: Sequence[str], shapes: Sequence[int]) -> dict[str, object]:
        extent = self._high - self._low
        spatial = [
            {
                "key": f"spatial{level}",
                "grid_shape": [number] * 3,
                "chunk_size": (extent / number).tolist(),
                "limit": self._most_in_cell(level),
            }
            for level, number in enumerate(shapes)
        ]
        return {
            "@type": "neuroglancer_annotations_v1",
            "dimensions": dimensions(scene.voxel_size, scene.has_size),
            "lower_bound": self._low.tolist(),
            "upper_bound": self._high.tolist(),
            "annotation_type": "point",
            "properties": [{"id": name, "type": "float32"} for name in names],
            "relationships": [],
            "by_id": {"key": BY_ID},
            "spatial": spatial,
        }

    def _most_in_cell(self, level: int) -> int:
        """Return the largest number of points in a cell of a level, by which the viewer decides how many it draws."""
        return max(len(rows) for name, rows in self._cells.items() if name.startswith(f"spatial{level}/"))

    def __getitem__(self, name: str) -> bytes:
        if name == "info":
            return self._info
        folder, _, key = name.partition("/")
        if folder == BY_ID and key.isdigit() and int(key) in self._rows:
            return self._records[self._rows[int(key)]].tobytes()
        rows = self._cells[name]
        count = np.array(len(rows), "<u8").tobytes()
        return count + self._records[rows].tobytes() + self._ids[rows].tobytes()

    def __iter__(self):  # type: ignore[no-untyped-def]
        yield from ("info", *self._cells)

    def __len__(self) -> int:
        return 1 + len(self._cells)
