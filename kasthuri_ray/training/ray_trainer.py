"""The trainer of Ray Train: its workers and their failures, and the messages in which workers report their progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kasthuri_ray.progress import Reporter, Throttle
from kasthuri_ray.ray_cluster.connection import WORKER_CPUS, worker_runtime_env
from kasthuri_ray.ray_cluster.process_priority import lower_helper_priority
from kasthuri_ray.training.training_job import TrainingJob, WorkerContext
from kasthuri_ray.training.training_messages import (
    EpochMessage,
    MessageHandler,
    StepMessage,
    TextMessage,
    TrainingMessage,
)
from kasthuri_ray.training.worker import train_worker
from kasthuri_ray.training.worker_failures import make_failure_callback
from kasthuri_ray.training.worker_plan import WorkerPlan

MAX_FAILURES = 8  # restarts of the workers, each from the last epoch, before the run fails
MAX_START_ATTEMPTS = 60  # attempts, of half a minute each, to get workers at all

PRIORITY_PERIOD_S = 15.0  # between two searches for new helper processes whose priority must be lowered

EpochReporter = Callable[[list[dict[str, Any]]], str | None]


def make_trainer(
    job: TrainingJob,
    workers: WorkerPlan,
    scratch: str,
    show: MessageHandler,
    report: EpochReporter | None = None,
    max_failures: int = MAX_FAILURES,
) -> Any:
    """Make the trainer whose `fit` runs a job and returns when it has ended.

    Parameters
    ----------
    job : TrainingJob
        The run, which every worker receives.
    workers : WorkerPlan
        The workers to start.
    scratch : str
        Folder for Ray's own files.
    show : callable
        Receives messages about the progress; picklable. See `WorkerContext`.
    report : callable, optional
        Receives the history after every epoch and may end the run; picklable. See `WorkerContext`.
    max_failures : int
        Restarts of the workers, each from the last epoch, before the run fails.

    Returns
    -------
    ray.train.torch.TorchTrainer
        Its `fit` blocks.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    gpu = workers.use_gpu
    # Ray Train's controlling process receives this too: by reference, it need not load what the job is made of.
    config = {"job": ray.put(job), "show": show, "report": report, "per_node": workers.per_node}
    return TorchTrainer(
        _train_loop,
        train_loop_config=config,
        torch_config=_make_torch_config(workers),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.most if workers.fewest == workers.most else (workers.fewest, workers.most),  # type: ignore[arg-type]
            use_gpu=gpu,
            resources_per_worker={"CPU": WORKER_CPUS, "GPU": 1} if gpu else {"CPU": WORKER_CPUS},
            # Without GPUs a worker computes on all cores of its machine, which two workers would have to share.
            placement_strategy="PACK" if gpu else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            # Ray keeps files of its own here; everything that a run needs is in the run's folder.
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(
                max_failures=max_failures,
                controller_failure_limit=MAX_START_ATTEMPTS,  # type: ignore[call-arg]
            ),
            callbacks=[make_failure_callback(show)],
            worker_runtime_env=worker_runtime_env(),
        ),
    )


def _make_torch_config(workers: WorkerPlan) -> Any:
    """Return how the workers' process group is set up; one worker on a CPU needs none, nor torch where it is set up."""
    if workers.most == 1 and not workers.use_gpu:
        from kasthuri_ray.training.single_worker import SingleWorkerConfig

        return SingleWorkerConfig()
    from kasthuri_ray.training.rendezvous import MultiHostTorchConfig

    return MultiHostTorchConfig()


def make_message_handler(reporter: Reporter) -> MessageHandler:
    """Make the function that receives the workers' messages in the driver.

    It shows them, and from time to time lowers the priority of processes that would disturb the workers.
    """
    throttle = Throttle(PRIORITY_PERIOD_S)

    def show(message: TrainingMessage) -> None:
        show_message(reporter, message)
        if isinstance(message, StepMessage) and throttle.due():
            lower_helper_priority()

    return show


def show_message(reporter: Reporter, message: TrainingMessage) -> None:
    """Show a worker's message: a line, the progress of an epoch, or a finished epoch."""
    match message:
        case TextMessage():
            reporter.print_line(message.text)
        case StepMessage():
            reporter.show_live(message.describe())
        case EpochMessage():
            reporter.print_line(message.describe())
            if message.only_background:
                reporter.print_line(
                    "  background is the most probable class of every voxel so far; the F1 is at the best threshold of "
                    "the epoch"
                )


def _train_loop(config: dict[str, Any]) -> None:
    """Train; Ray Train calls this on every worker."""
    import ray.train
    import ray.train.torch

    ray_context = ray.train.get_context()
    context = WorkerContext(
        rank=ray_context.get_world_rank(),
        world_size=ray_context.get_world_size(),
        workers_per_node=max(ray_context.get_local_world_size(), config["per_node"]),
        device=ray.train.torch.get_device(),
        report=config["report"] or _report_to_ray_train,
        show=config["show"],
    )
    train_worker(ray.get(config["job"]), context)


def _report_to_ray_train(history: list[dict[str, Any]]) -> None:
    import ray.train

    ray.train.report(history[-1])
