"""A trial that trains in Tune's process: errors that may pass are tried again, others fail the trial."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from kasthuri_ray.errors import InputError, VolumeError
from kasthuri_ray.training import worker
from kasthuri_ray.training.worker_plan import WorkerPlan
from kasthuri_ray.tuning import trial


@pytest.fixture
def train(monkeypatch):
    """Return a function that trains with such errors, one after another; it returns the training and what it showed."""

    def run(*errors: Exception) -> tuple[Any, list[str], list[Any]]:
        waiting, shown, contexts = list(errors), list[str](), list[Any]()

        def train_worker(job: Any, context: Any) -> None:
            contexts.append(context)
            if waiting:
                raise waiting.pop(0)

        monkeypatch.setattr(worker, "train_worker", train_worker)
        plan = SimpleNamespace(id="0001", job="job", workers=WorkerPlan(1, 1, per_node=2))
        post = lambda message: shown.append(message.message.text)  # noqa: E731
        training = trial._TrainingThread(plan, post, lambda history: None, in_process=True)
        end = time.monotonic() + 60
        while training.alive:
            assert time.monotonic() < end
            time.sleep(0.01)
        return training, shown, contexts

    return run


def test_a_trial_trains_as_the_only_worker_and_shares_the_machine_with_other_trials(train) -> None:
    training, shown, (context,) = train()
    assert (training.failure, shown) == ("", [])
    assert (context.rank, context.world_size, context.workers_per_node, context.device.type) == (0, 1, 2, "cpu")


def test_an_error_that_may_pass_is_tried_again_from_the_last_epoch(train) -> None:
    training, shown, contexts = train(VolumeError("no answer"), ConnectionError("reset"))
    assert (training.failure, len(contexts)) == ("", 1 + 2)
    assert shown[0] == "worker 0 failed (no answer); the workers start again from the last epoch"


@pytest.mark.parametrize(
    ("errors", "attempts", "affects_all"),
    [([InputError("bad")], 1, False), ([VolumeError("no answer")] * 9, 1 + trial.MAX_FAILURES, True)],
)
def test_other_errors_and_too_many_fail_the_trial(train, errors, attempts, affects_all) -> None:
    training, _, contexts = train(*errors)
    assert len(contexts) == attempts
    assert str(errors[0]) in training.failure
    assert training.affects_all_trials == affects_all


@pytest.mark.parametrize(
    ("workers", "is_own", "expected"),
    [
        (WorkerPlan(1, 1), True, True),
        (WorkerPlan(1, 1), False, False),
        (WorkerPlan(1, 1, use_gpu=True), True, False),
        (WorkerPlan(1, 2), True, False),
    ],
)
def test_only_one_worker_on_a_machine_alone_trains_in_tunes_process(monkeypatch, workers, is_own, expected) -> None:
    monkeypatch.setattr(trial, "is_own_ray", lambda: is_own)
    assert trial.trains_in_process(workers) is expected
