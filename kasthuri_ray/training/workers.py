"""Ray Train around what a worker does: the trainer that starts the workers, and the wait for its end."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from kasthuri_ray.priority import let_helpers_give_way
from kasthuri_ray.progress import Reporter
from kasthuri_ray.resources import ENVIRONMENT, WORKER_CPUS
from kasthuri_ray.training.failures import stop_on_final_errors
from kasthuri_ray.training.job import Job, Ranks
from kasthuri_ray.training.progress import show as show_note
from kasthuri_ray.training.worker import train

MAX_FAILURES = 8  # restarts of the workers, each from the last epoch, before the run gives up
MAX_STARTS = 60  # tries, of half a minute each, to get workers at all
STOP_S = 10.0  # that work has to end when it is told to
QUIET_S = 15.0  # how often new processes are told to give way

Show = Callable[[dict[str, Any]], None]
Report = Callable[[list[dict[str, Any]]], str | None]


def make_trainer(
    job: Job,
    workers: tuple[int, int],
    gpu: bool,
    scratch: str,
    show: Show,
    report: Report | None = None,
    sharing: int = 1,
    max_failures: int = MAX_FAILURES,
) -> Any:
    """The trainer whose `fit` trains a job and comes back once it is done.

    workers: the fewest and the most. scratch: a folder for Ray's own notes. show, report: as of `Ranks`, picklable.
    sharing: how many workers, those of other jobs included, share a machine.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from kasthuri_ray.training.rendezvous import TorchOverHosts

    return TorchTrainer(
        _worker,
        train_loop_config={"job": job, "show": show, "report": report or _report, "sharing": sharing},
        torch_config=TorchOverHosts(),
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
            callbacks=[stop_on_final_errors(show)],
            worker_runtime_env={"env_vars": ENVIRONMENT},  # type: ignore[call-arg]
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """What Ray Train calls on every worker."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    ranks = Ranks(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        size_here=max(context.get_local_world_size(), config["sharing"]),
        device=ray.train.torch.get_device(),
        report=config["report"],
        show=config["show"],
    )
    train(config["job"], ranks)


def _report(history: list[dict[str, Any]]) -> None:
    import ray.train

    ray.train.report(history[-1])


def shown_by(reporter: Reporter) -> Show:
    """What takes the workers' notes: it shows them, and now and then sees to it that they are not disturbed."""
    last = -math.inf

    def show(note: dict[str, Any]) -> None:
        nonlocal last
        show_note(reporter, note)
        if "step" in note and time.monotonic() - last > QUIET_S:
            last = time.monotonic()
            let_helpers_give_way()

    return show


def wait_for(work: Callable[[], Any], check: Callable[[], None], stop: Callable[[], None] | None = None) -> None:
    """Do the work in a thread, so that Ctrl-C is ours at any moment; `check` is called now and then and may raise.

    stop: makes the work end soon. It is called where the wait ends before the work, which has STOP_S then: what asks
    Ray for anything after Ray was ended hangs for a minute.
    """
    failed: list[BaseException] = []

    def do() -> None:
        try:
            work()
        except BaseException as error:  # raised where it is waited for
            failed.append(error)

    thread = threading.Thread(target=do, name="ray train", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(timeout=0.2)
            check()
    except BaseException:
        if stop is not None:
            stop()
            thread.join(timeout=STOP_S)
        raise
    if failed:
        raise failed[0]
