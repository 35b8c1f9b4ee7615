"""Parts of the benchmark of sweeps.

`harness.run_part` starts them as `python -m kasthuri_ray.benchmarks.sweep_processes PART GIVEN.json FOUND.json`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks.harness import run_as_part


def run_sweep(layers: dict[str, Any]) -> dict[str, Any]:
    """Search as jobs/tune.py does; return the content of leaderboard.json."""
    from kasthuri_ray.tuning.tune import tune

    path = tune("membrane", layers)
    return json.loads(Path(path, "leaderboard.json").read_text())


def run_trials_alone(configs: dict[str, str], storage: str) -> dict[str, Any]:
    """Train with each config file as jobs/train.py does, with Ray already started; return the seconds by name."""
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
    run_as_part({"sweep": run_sweep, "fits": run_trials_alone})
