"""The workers of a training and the batch size that they share; one rule for runs and for the trials of a sweep."""

from __future__ import annotations

from dataclasses import dataclass

from kasthuri_ray.config.network import default_batch_size
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.ray_cluster.connection import WORKER_CPUS
from kasthuri_ray.ray_cluster.resources import ClusterResources, ResourceDemand
from kasthuri_ray.tiles.streaming import READ_CPUS


@dataclass(frozen=True)
class WorkerPlan:
    """The workers of one training.

    Parameters
    ----------
    fewest, most : int
        Number of workers.
    use_gpu : bool
        Whether each worker has a GPU.
    per_node : int
        Workers that share a node, those of other trainings included.
    """

    fewest: int
    most: int
    use_gpu: bool = False
    per_node: int = 1

    def demand(self, num_trainings: int = 1) -> ResourceDemand:
        """Return what the fewest workers of so many trainings at the same time need.

        Parameters
        ----------
        num_trainings : int
            Number of trainings.

        Returns
        -------
        ResourceDemand
            Of all of them together.
        """
        workers, reading = num_trainings * self.fewest, num_trainings * READ_CPUS
        return ResourceDemand(workers, WORKER_CPUS, int(self.use_gpu), reading)


def uses_gpus(settings: Settings, cluster: ClusterResources) -> bool:
    """Return whether the workers use GPUs.

    Parameters
    ----------
    settings : Settings
        Settings of the run, with `train.device`.
    cluster : ClusterResources
        Resources of the Ray cluster.

    Returns
    -------
    bool
        Whether each worker has a GPU.
    """
    device = settings.train.device
    return device == "cuda" or (device == "auto" and cluster.gpus >= 1)


def plan_workers(
    settings: Settings, use_gpu: bool, num_gpus: float = 1, recorded_batch_size: int | None = None
) -> tuple[Settings, WorkerPlan]:
    """Decide the batch size and the number of workers, so that each worker has at least one tile of a batch.

    Parameters
    ----------
    settings : Settings
        A batch size and a number of workers that are set stay.
    use_gpu : bool
        Whether each worker has a GPU.
    num_gpus : float
        GPUs that may be used, one for each worker, if the number of workers is not set.
    recorded_batch_size : int, optional
        Batch size of the run that is resumed.

    Returns
    -------
    settings : Settings
        A copy with a batch size.
    workers : WorkerPlan
        The workers.

    Raises
    ------
    InputError
        If the batch size is smaller than the number of workers.
    """
    default = max(1, int(num_gpus)) if use_gpu else 1
    fewest, most = settings.train.worker_range or (default, default)
    batch_size = settings.network.batch_size or recorded_batch_size or default_batch_size(most)
    if settings.train.worker_range is None:
        fewest = most = min(default, batch_size)
    if batch_size < most:
        raise InputError(
            f"network.batch_size {batch_size} is smaller than the {most} workers that share it (--num-workers); each "
            "needs at least one tile"
        )
    network = settings.network.model_copy(update={"batch_size": batch_size})
    return settings.model_copy(update={"network": network}), WorkerPlan(fewest, most, use_gpu)
