"""Which failures of a worker another try may mend, which would only come again, and which are nobody's doing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.progress import Reporter, Throttle, format_duration
from kasthuri_ray.ray_cluster.connection import RAY_ENVIRONMENT, WORKER_CPUS
from kasthuri_ray.ray_cluster.process_priority import lower_helper_priority
from kasthuri_ray.ray_cluster.ray_errors import root_cause, user_error
from kasthuri_ray.training.training_job import TrainingJob, WorkerContext
from kasthuri_ray.training.worker import train_worker

# What torch says, in a plain RuntimeError, when another rank is gone.
CONNECTION_WORDS = ("gloo", "nccl", "connection", "timed out", "peer")
STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}


MAX_FAILURES = 8  # restarts of the workers, each from the last epoch, before the run gives up
MAX_STARTS = 60  # tries, of half a minute each, to get workers at all


QUIET_S = 15.0  # how often new processes are told to give way

MessageHandler = Callable[[dict[str, Any]], None]
EpochReporter = Callable[[list[dict[str, Any]]], str | None]


def is_retryable(error: BaseException) -> bool:
    """Whether another try may do better: a worker or a node died, a connection broke, a source was down."""
    import ray
    import torch

    if isinstance(error, OSError):
        return isinstance(error, VolumeError | ConnectionError | TimeoutError)
    # RayTrainError, which has no public name, says that a worker did not answer for very long.
    if isinstance(error, torch.distributed.DistError | ray.exceptions.RayError) or "RayTrainError" in _names(error):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in CONNECTION_WORDS)


def is_environment_failure(error: BaseException) -> bool:
    """Whether a run failed of what any other run would fail of too: a full disk, a storage or a source that is gone."""
    if isinstance(error, VolumeError | ConnectionError | TimeoutError | PermissionError):
        return True
    return isinstance(error, OSError) and error.errno in STORAGE_ERRNOS


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def stop_on_permanent_errors(show: Callable[[dict[str, Any]], None]) -> Any:
    """A callback of Ray Train: what would fail again in the same way is not tried again; what is, is shown."""
    from ray.train import UserCallback

    class StopOnFinalErrors(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                found = user_error(error)
                if not is_retryable(found):
                    raise found
            ranks = ", ".join(map(str, worker_exceptions))
            reason = root_cause(next(iter(worker_exceptions.values()))).splitlines()[0].rstrip(".")
            show({"line": f"worker {ranks} failed ({reason}); the workers start again from the last epoch"})

    return StopOnFinalErrors()


def report_message(reporter: Reporter, note: dict[str, Any]) -> None:
    """A worker's note: a line, a step, or an epoch that is done."""
    if "line" in note:
        reporter.line(note["line"])
    elif "epoch_done" in note:
        reporter.line(epoch_line(note["epoch_done"]))
        if note["background"]:
            reporter.line("  the network calls background everywhere so far")
    else:
        reporter.live(step_line(note))


def step_line(note: dict[str, Any]) -> str:
    """How far an epoch is."""
    return (
        f"epoch {note['epoch']}/{note['epochs']}  step {note['step']}/{note['steps']}  "
        f"{note['tiles_per_second']:.1f} tiles/s  loss {note['loss']:.4f}  "
        f"{format_duration(note['seconds_left'])} left  waiting for data {note['wait_share']:.1%}"
    )


def epoch_line(row: dict[str, Any]) -> str:
    """What an epoch has come to."""
    return (
        f"epoch {row['epoch']}  loss {row['train.loss']:.4f}  val loss {row['val.loss']:.4f}  "
        f"F1 {row['val.foreground_f1']:.3f}  average precision {row['val.average_precision']:.3f}  "
        f"{row['tiles_per_second']:.1f} tiles/s  {format_duration(row['seconds'])}"
    )


def make_trainer(
    job: TrainingJob,
    workers: tuple[int, int],
    gpu: bool,
    scratch: str,
    show: MessageHandler,
    report: EpochReporter | None = None,
    sharing: int = 1,
    max_failures: int = MAX_FAILURES,
) -> Any:
    """The trainer whose `fit` trains a job and comes back once it is done.

    workers: the fewest and the most. scratch: a folder for Ray's own notes. show, report: as of `Ranks`, picklable.
    sharing: how many workers, those of other jobs included, share a machine.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from kasthuri_ray.training.rendezvous import MultiHostTorchConfig

    return TorchTrainer(
        _worker,
        train_loop_config={"job": job, "show": show, "report": report or _no_epoch_report, "sharing": sharing},
        torch_config=MultiHostTorchConfig(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers[0] if workers[0] == workers[1] else workers,  # type: ignore[arg-type]
            use_gpu=gpu,
            resources_per_worker={"CPU": WORKER_CPUS, "GPU": 1} if gpu else {"CPU": WORKER_CPUS},
            # Without GPUs a worker computes on its machine's cores, which two would share.
            placement_strategy="PACK" if gpu else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            # Ray keeps notes of its own here, and nothing that a run needs: that is in the run's folder.
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(
                max_failures=max_failures,
                controller_failure_limit=MAX_STARTS,  # type: ignore[call-arg]
            ),
            callbacks=[stop_on_permanent_errors(show)],
            worker_runtime_env={"env_vars": RAY_ENVIRONMENT},  # type: ignore[call-arg]
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """What Ray Train calls on every worker."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    ranks = WorkerContext(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        size_here=max(context.get_local_world_size(), config["sharing"]),
        device=ray.train.torch.get_device(),
        report=config["report"],
        show=config["show"],
    )
    train_worker(config["job"], ranks)


def _no_epoch_report(history: list[dict[str, Any]]) -> None:
    import ray.train

    ray.train.report(history[-1])


def worker_message_handler(reporter: Reporter) -> MessageHandler:
    """What takes the workers' notes: it shows them, and now and then sees to it that they are not disturbed."""
    priority = Throttle(QUIET_S)

    def show(note: dict[str, Any]) -> None:
        report_message(reporter, note)
        if "step" in note and priority.due():
            lower_helper_priority()

    return show
