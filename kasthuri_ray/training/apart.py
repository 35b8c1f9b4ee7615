"""Do two boxes hold the same tissue: what is judged must not have been learnt, nor be counted twice."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from kasthuri_ray.config import Task
from kasthuri_ray.geometry import Box
from kasthuri_ray.tiles.sampling import Source

Nm = tuple[float, float, float]


def check_apart(sources: Mapping[str, tuple[Source, ...]], task: Task) -> None:
    """Raise a ValueError where two splits share voxels, or where one that is judged holds a voxel twice.

    sources: of each split, in the order of the task's regions.
    """
    for split in ("val", "test"):
        for (i, a), (j, b) in itertools.combinations(enumerate(sources[split]), 2):
            if shared := shared_words(a, b):
                keys = _keys(task, (split, i), (split, j))
                raise ValueError(f"two boxes of {split} share voxels, which would count twice: {shared}; change {keys}")
    for (one, some), (other, more) in itertools.combinations(sources.items(), 2):
        for (i, a), (j, b) in itertools.product(enumerate(some), enumerate(more)):
            if shared := shared_words(a, b):
                raise ValueError(
                    f"{one} and {other} share voxels: {shared}; what is judged must not have been learnt: change "
                    f"{_keys(task, (one, i), (other, j))}"
                )


def _keys(task: Task, *regions: tuple[str, int]) -> str:
    return " or ".join(task.keys_of(split, number)[0] for split, number in regions)


def shared_words(a: Source, b: Source) -> str:
    """Where two boxes meet, in words; empty where they do not.

    Two resolutions of one volume are held against each other in nm; that they meet by less than half of a coarser voxel
    may be how its rows were numbered, and is none.
    """
    if a.image.identity == b.image.identity:
        meet = f"{a.box} and {b.box} of {a.image.uri} meet in {a.box.intersect(b.box)}"
        return meet if a.box.overlaps(b.box) else ""
    sizes = (a.image.voxel_size_nm, b.image.voxel_size_nm)
    if a.image.pyramid is None or a.image.pyramid != b.image.pyramid or None in sizes:
        return ""
    half = [max(pair) / 2 for pair in zip(*sizes, strict=True)]  # type: ignore[arg-type]
    places = zip(_place_nm(a), _place_nm(b), half, strict=True)
    meet_nm = [(max(p[0], q[0]), min(p[1], q[1]), least) for p, q, least in places]
    if any(stop - start <= least * 1.001 for start, stop, least in meet_nm):
        return ""
    shown = ",".join(f"{start:g}:{stop:g}" for start, stop, _ in meet_nm)
    boxes = f"{a.box} of {a.image.uri} and {b.box} of {b.image.uri}"
    return f"{boxes}, two resolutions of one volume, meet in {shown} nm (z,y,x)"


def _place_nm(source: Source) -> list[tuple[float, float]]:
    """From where to where a box reaches along z, y and x, in nm; a voxel's place is that of its middle."""
    assert source.image.voxel_size_nm is not None
    box: Box = source.box
    axes = zip(box.start, box.stop, source.image.voxel_size_nm, source.image.translation_nm, strict=True)
    return [(moved + (a - 0.5) * size, moved + (b - 0.5) * size) for a, b, size, moved in axes]
