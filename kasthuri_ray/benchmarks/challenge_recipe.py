"""The challenge's recipe as a contestant of its scoreboard: trained by a Ray task, then tested like any weights."""

from __future__ import annotations

import io
import json
from typing import Any

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.connection import WORKER_CPUS, worker_runtime_env
from kasthuri_ray.storage.folder import open_storage

WEIGHTS, RATES = "weights.pt", "rates.json"


def train_recipe(settings: Settings, folder: str, use_gpu: bool) -> None:
    """Train the recipe on a machine of the cluster, and leave its weights and its speed in a folder.

    Parameters
    ----------
    settings : Settings
        Task, number of epochs and tiles, and seed.
    folder : str
        Path or URL of the folder. If it holds both files, nothing is trained.
    use_gpu : bool
        Whether it computes on a GPU.
    """
    import ray

    if open_storage(folder).exists(RATES):  # the last file
        return
    train: Any = ray.remote(num_cpus=WORKER_CPUS, num_gpus=int(use_gpu), runtime_env=worker_runtime_env())(_train)
    ray.get(train.remote(settings, folder, "cuda" if use_gpu else "cpu"))


def read_rates(folder: str) -> dict[str, float]:
    """Return the `tiles_per_second` of the training and the `mvoxels_per_second` of the prediction."""
    return dict(json.loads(open_storage(folder).read_bytes(RATES)))


def _train(settings: Settings, folder: str, device: str) -> None:
    import torch

    from kasthuri_ray import process_resources
    from kasthuri_ray.benchmarks.seed_recipe import SeedRecipe
    from kasthuri_ray.tiles.sampling import TileAddress, read_tile
    from kasthuri_ray.tiles.splits import open_task_tiles

    process_resources.set_threads(1)
    tiles = open_task_tiles(settings, Reporter().print_line)
    assert tiles.test is not None
    sources = [each.sources[0] for each in (tiles.train, tiles.val, tiles.test)]
    train, val, test = (read_tile((source,), TileAddress(0, source.box, source.box))[:2] for source in sources)
    task, network = settings.task, settings.network
    recipe = SeedRecipe(task.task_type, train, val, test, task.tile_size[0], seed=network.seed, device=device)
    rates = {"tiles_per_second": recipe.fit(network.epochs, network.tiles_per_epoch)}
    rates["mvoxels_per_second"] = recipe.time_prediction() / 1e6
    weights = {name: value.cpu() for name, value in recipe.network.state_dict().items()}
    out, storage = io.BytesIO(), open_storage(folder)
    torch.save(weights, out)
    storage.write_bytes(WEIGHTS, out.getvalue())
    storage.write_bytes(RATES, json.dumps(rates).encode())
