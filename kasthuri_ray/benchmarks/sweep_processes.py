"""What the processes of the sweeps' benchmark do: `python -m kasthuri_ray.benchmarks.sweep_processes PART GIVEN FOUND`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks.harness import run_as_part


def sweep(layers: dict[str, Any]) -> dict[str, Any]:
    """Search as jobs/tune.py does; what leaderboard.json holds."""
    from kasthuri_ray.tuning.tune import tune

    path = tune("membrane", layers)
    return json.loads(Path(path, "leaderboard.json").read_text())


def fits(configs: dict[str, str], storage: str) -> dict[str, Any]:
    """Train with each of these settings as jobs/train.py does, in a Ray that runs already; seconds by name."""
    from kasthuri_ray.config.loading import resolve_settings
    from kasthuri_ray.ray_cluster.connection import connect_ray
    from kasthuri_ray.training.train import train

    connect_ray()
    seconds = {}
    for name, config in configs.items():
        settings = resolve_settings(None, None, config=config, flags={"train": {"storage": storage, "name": name}})
        start = time.perf_counter()
        train(settings)
        seconds[name] = time.perf_counter() - start
    return {"seconds": seconds}


if __name__ == "__main__":
    run_as_part({part.__name__: part for part in (sweep, fits)})
