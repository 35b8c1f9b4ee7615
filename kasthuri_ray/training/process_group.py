"""Values of all ranks of a training together: sums, lists, and statistics that every rank copies from rank 0."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from kasthuri_ray.training.optimizer import WeightAverage


def process_rank() -> int:
    """Return the rank of this process.

    Returns
    -------
    int
        0 outside of a process group.
    """
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks, 1 outside of a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of all ranks' values, on every rank; `values` is changed in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_over_ranks(value: Any) -> list[Any]:
    """Return the values of all ranks, on every rank.

    Parameters
    ----------
    value : Any
        Value of this rank; picklable.

    Returns
    -------
    list
        One value for each rank, in the order of ranks.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_statistics(network: nn.Module, average: WeightAverage | None) -> None:
    """Copy the running statistics of rank 0, which are the ones that are saved, to every rank."""
    if world_size() > 1:
        for name, buffer in network.named_buffers():
            dist.broadcast(buffer, 0)
            if average is not None and name in average.weights:
                dist.broadcast(average.weights[name], 0)
