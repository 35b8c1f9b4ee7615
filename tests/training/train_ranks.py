"""Train and evaluate a small network on `argv[1]` ranks of this machine; rank 0 writes the results to `argv[2]`.

This is a program of its own, because ranks are made by fork, which is fast as long as torch has not computed yet.
"""

import copy
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

from kasthuri_ray.config.network import NetworkSettings
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.tiles.streaming import rank_share
from kasthuri_ray.training.compute_plan import ComputePlan
from kasthuri_ray.training.learner import Learner
from kasthuri_ray.training.training_job import make_learner_settings

BATCH_SIZE, STEPS, NUM_EVALUATED = 5, 3, 7


def batch(numbers: range) -> SimpleNamespace:
    """Return tiles of noise with labels where they are bright; each depends on its number alone."""
    images = np.stack([np.random.default_rng(n).integers(0, 256, (1, 16, 16), dtype=np.uint8) for n in numbers])
    return SimpleNamespace(image=images, label=(images > 200).astype(np.uint8), number=np.array(numbers))


def sparse_batch(numbers: range) -> SimpleNamespace:
    """Return the same tiles with a number of labelled rows that differs; every fifth has none."""
    tiles = batch(numbers)
    for label, number in zip(tiles.label, tiles.number, strict=True):
        label[:, 3 * (number % 5) :] = 255
    return tiles


def train_rank(rank: int, size: int, out: str) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=size)
    settings = NetworkSettings(
        start_filters=2, n_blocks=2, normalization="none", optimizer="SGD", learning_rate=0.1, momentum=0.0,
        scheduler="constant", epochs=1, batch_size=BATCH_SIZE, augmentations="basic", gradient_clip=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    network = build_network(settings.model_dump())
    learner_settings = make_learner_settings(settings, "synapse")
    twin, plan = copy.deepcopy(network), ComputePlan("float32", False, STEPS)
    learner = Learner(network, learner_settings, torch.device("cpu"), plan)
    share = rank_share(BATCH_SIZE, rank, size)
    ranges = [range(step * 5 + share.start, step * 5 + share.stop) for step in range(STEPS)]
    train_loss = learner.train_epoch(0, [batch(numbers) for numbers in ranges], [])
    sparse = Learner(twin, learner_settings, torch.device("cpu"), replace(plan, by_labelled_voxels=True))
    sparse_loss = sparse.train_epoch(0, [sparse_batch(numbers) for numbers in ranges], [])
    numbers = range(100 + rank, 100 + NUM_EVALUATED, size)
    batches = [batch(numbers[i : i + 2]) for i in range(0, len(numbers), 2)] if rank < 2 else []
    counts, val_loss = learner.evaluate(batches)
    weights = learner.evaluation_weights()
    result = {"weights": weights, "train": train_loss, "val": val_loss, "counts": counts.to_array()}
    result |= {"sparse_weights": sparse.evaluation_weights(), "sparse_train": sparse_loss}
    results = [None] * size
    if size > 1:
        dist.all_gather_object(results, result)
    if rank == 0:
        torch.save(results if size > 1 else [result], out)


if __name__ == "__main__":
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for size in map(int, sys.argv[1].split(",")):
        children = []
        for rank in range(size):
            child = os.fork()
            if not child:
                train_rank(rank, size, f"{sys.argv[2]}.{size}")
                os._exit(0)
            children.append(child)
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)
