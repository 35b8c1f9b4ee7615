"""What the processes of the sweeps' benchmark do: `python -m kasthuri_ray.benchmarks.tune_parts PART GIVEN FOUND`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks.processes import be_a_part


def sweep(layers: dict[str, Any]) -> dict[str, Any]:
    """Search as jobs/tune.py does; what leaderboard.json holds."""
    from kasthuri_ray.training.sweep import sweep_as_told

    path = sweep_as_told("membrane", layers, "jobs/tune.py", [])
    return json.loads(Path(path, "leaderboard.json").read_text())


def fits(configs: dict[str, str], storage: str) -> dict[str, Any]:
    """Train with each of these settings as jobs/train.py does, in a Ray that runs already; seconds by name."""
    from kasthuri_ray.layers import resolve
    from kasthuri_ray.resources import attach_or_start
    from kasthuri_ray.training.fit import fit

    attach_or_start()
    seconds = {}
    for name, config in configs.items():
        settings = resolve(None, None, config=config, flags={"train": {"storage": storage, "name": name}})
        start = time.perf_counter()
        fit(settings)
        seconds[name] = time.perf_counter() - start
    return {"seconds": seconds}


if __name__ == "__main__":
    be_a_part({part.__name__: part for part in (sweep, fits)})
