"""Which parts of which sections to show, and what they look like."""

from __future__ import annotations

import numpy as np

from kasthuri_ray.evaluation.alignment import moved
from kasthuri_ray.evaluation.blocks import FOUND, MISSED, WRONG, Comparison
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.reports.slices import TestSlice
from kasthuri_ray.volumes import Volume
from kasthuri_ray.volumes.labels import intensity_window, to_uint8

MOST = 6  # the best, the worst and what lies between
GREY = 128  # where no image is known


def choose_parts(parts: np.ndarray, most: int = MOST) -> list[tuple[int, int, int]]:
    """(section, window y, window x) of the parts to show: of those with foreground the best, the worst, and evenly what
    lies between.

    parts: see `Totals.parts`. What a foreground object just touches (less than half of the mean) says little and is
    left out. Where there is no foreground at all, sections spread over the box.
    """
    true = parts[..., FOUND] + parts[..., MISSED]
    total = true + parts[..., FOUND] + parts[..., WRONG]
    if not true.any():
        sections = np.unique(np.linspace(0, len(parts) - 1, min(most, len(parts))).round().astype(int))
        return [(int(z), *map(int, np.unravel_index(total[z].argmax(), total[z].shape))) for z in sections]  # type: ignore[misc]
    shown = np.argwhere(true >= max(1.0, true[true > 0].mean() / 2))
    f1 = 2 * parts[..., FOUND] / np.maximum(total, 1)
    shown = shown[np.lexsort((*shown.T[::-1], f1[tuple(shown.T)]))]
    places = np.linspace(0, len(shown) - 1, min(most, len(shown))).round().astype(int)
    return [(int(z), int(y), int(x)) for z, y, x in shown[np.unique(places)]]


def read_part(
    comparison: Comparison, part: tuple[int, int, int], image: Volume | None, image_shift: Zyx, intensity: object
) -> TestSlice:
    """A part of a section as it is shown. intensity: the grey levels that become 0 and 255, if the provenance says."""
    box = part_box(comparison, part)
    return TestSlice(
        z=box.start[0],
        image=_read_image(box, image, image_shift, intensity),
        truth=comparison.read_classes(box)[0],
        probability=comparison.read_probability(box)[0],
        box=str(box),
    )


def part_box(comparison: Comparison, part: tuple[int, int, int]) -> Box:
    """The voxels of a part, in those of the annotation."""
    z = comparison.box.start[0] + part[0]
    starts, stops = [z], [z + 1]
    for axis, (edges, number) in enumerate(zip(comparison.windows(), part[1:], strict=True), start=1):
        ends = [*edges[1:].tolist(), comparison.box.stop[axis]]
        starts.append(int(edges[number]))
        stops.append(ends[number])
    return Box(tuple(starts), tuple(stops))  # type: ignore[arg-type]


def _read_image(box: Box, image: Volume | None, shift: Zyx, intensity: object) -> np.ndarray:
    """uint8 [y, x]; grey where the image does not reach."""
    shown = np.full(box.shape, GREY, np.uint8)
    if image is None:
        return shown[0]
    there = moved(box, shift)
    part = there.intersect(image.bounds)
    if part.num_voxels:
        voxels = image.read(part)
        shown[part.slices(there.start)] = to_uint8(voxels, _window(voxels, intensity))
    return shown[0]


def _window(voxels: np.ndarray, intensity: object) -> tuple[float, float]:
    if isinstance(intensity, list | tuple) and len(intensity) == 2:
        return float(intensity[0]), float(intensity[1])
    if voxels.dtype == np.uint8:
        return 0.0, 255.0
    try:
        return intensity_window(voxels, voxels.dtype, {"percentiles": (0.5, 99.5)})
    except ValueError:  # flat
        return float(voxels.min()), float(voxels.min()) + 1.0
