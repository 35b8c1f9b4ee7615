"""Parts of the benchmark of sweeps.

`PartRunner` starts them as `python -m kasthuri_ray.benchmarks.sweep_processes PART GIVEN.json FOUND.json`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks.harness import run_as_part


def run_sweep(flags: dict[str, Any]) -> dict[str, Any]:
    """Search as jobs/tune.py does; return the content of leaderboard.json."""
    from kasthuri_ray.config.loading import GivenSettings
    from kasthuri_ray.config.sweep_settings import resolve_sweep
    from kasthuri_ray.progress import Reporter
    from kasthuri_ray.tuning.tune import tune

    result = tune(
        resolve_sweep(GivenSettings("membrane", flags=flags)), Reporter(), resume_command=str, job_command=str
    )
    return json.loads(Path(result.path, "leaderboard.json").read_text())


def run_trials_alone(configs: dict[str, str], storage: str) -> dict[str, Any]:
    """Train with each config file as jobs/train.py does, with Ray already started; return the seconds by name."""
    from kasthuri_ray.config.loading import GivenSettings, resolve_settings
    from kasthuri_ray.progress import Reporter
    from kasthuri_ray.ray_cluster.connection import connect_ray
    from kasthuri_ray.training.train import train

    connect_ray(Reporter())
    seconds = {}
    for name, config in configs.items():
        given = GivenSettings(config=config, flags={"train": {"storage": storage, "name": name}})
        start = time.perf_counter()
        train(resolve_settings(given), Reporter(), resume_command=str)
        seconds[name] = time.perf_counter() - start
    return {"seconds": seconds}


if __name__ == "__main__":
    run_as_part({"sweep": run_sweep, "fits": run_trials_alone})
