"""Membranes and synapses in electron microscopy of the brain, at the size of whole data sets.

    import kasthuri_ray

    run = kasthuri_ray.train("synapse", num_workers=2)
    output = kasthuri_ray.segment(run.path, "synapses.zarr", objects=True)

`train`, `tune`, `segment`, `evaluate` and `view` are what the jobs call; `open_volume` and `TileDataset` read voxels
and tiles.
`help(kasthuri_ray.train)` and so on describe them; kasthuri_ray/config/flags.py lists their keyword arguments.
Importing this package loads neither torch nor Ray. Start reading at `jobs/train.py` and docs/architecture.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kasthuri_ray.api import evaluate, open_volume, segment, train, tune, view
    from kasthuri_ray.tiles.dataset import TileDataset

__all__ = ["TileDataset", "evaluate", "open_volume", "segment", "train", "tune", "view"]


def __getattr__(name: str) -> Any:
    """Import a name of the public API at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module("kasthuri_ray.tiles.dataset" if name == "TileDataset" else "kasthuri_ray.api")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
