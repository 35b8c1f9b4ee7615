"""The record of a sweep: the ranking, the files that are kept, and what is recovered after a kill."""

import csv
import json

import pytest

from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.tuning.leaderboard import Leaderboard, delete_trial_weights, recover_trials, write_best_trial
from kasthuri_ray.tuning.trial_record import FAILED, FINISHED, OUT_OF_TIME, RUNNING, STOPPED, TrialRecord

AP = "val.average_precision"


def row(epoch: int, score: float) -> dict:
    return {
        **{"epoch": epoch, "train.loss": 0.4, "val.loss": 0.5, "val.foreground_f1": score / 2, AP: score},
        **{"learning_rate": 0.1, "seconds": 2.0, "tiles_per_second": 10.0 * epoch},
    }


def trial(number: int, score: float | None, state: str = FINISHED, **more) -> TrialRecord:
    return TrialRecord(
        number, "UNet_2D", {"network.loss": "focal", "task.tile_size": [64, 64]}, state, score=score, **more
    )


@pytest.fixture
def leaderboard(tmp_path) -> Leaderboard:
    scores = [(0.5, FINISHED), (None, FAILED), (0.8, STOPPED), (0.95, FAILED), (0.9, RUNNING), (0.7, OUT_OF_TIME)]
    trials = [trial(number, score, state) for number, (score, state) in enumerate(scores)]
    return Leaderboard(open_storage(str(tmp_path)), AP, trials, seconds=12.5)


def test_trials_are_ranked_by_score_with_failed_ones_last(leaderboard):
    assert [one.number for one in leaderboard.ranked()] == [4, 2, 5, 0, 3, 1]
    assert leaderboard.best().number == 2
    assert leaderboard.best(ended=False).number == 4
    leaderboard.metric = "val.loss"
    assert leaderboard.best().number == 0


def test_the_record_is_read_as_it_was_written(leaderboard):
    leaderboard.write()
    assert Leaderboard.read(leaderboard.storage, AP) == leaderboard
    rows = json.loads(leaderboard.storage.read_bytes("leaderboard.json"))["trials"]
    assert [(row["rank"], row["id"]) for row in rows[:2]] == [(1, "0004"), (2, "0002")]
    table = list(csv.DictReader(leaderboard.storage.read_bytes("leaderboard.csv").decode().splitlines()))
    assert [line["rank"] for line in table] == list("123456")
    assert table[0]["network.loss"] == "focal"
    assert table[0]["task.tile_size"] == "[64, 64]"
    assert {"score", "epochs", "seconds", "tiles_per_second", "parameters", "why"} <= table[0].keys()


def test_a_new_sweep_has_an_empty_leaderboard(tmp_path):
    assert Leaderboard.read(open_storage(str(tmp_path / "none")), AP).trials == []


def test_after_a_kill_the_state_of_trials_is_recovered_from_their_folders(leaderboard):
    interrupted, late, stopped = leaderboard.trials[4], leaderboard.trials[5], leaderboard.trials[2]
    for one, epochs in ((interrupted, 3), (late, 2), (stopped, 1)):
        leaderboard.folder(one).write_history([row(epoch, 0.1 * epoch) for epoch in range(1, epochs + 1)])
    for one in (interrupted, late):
        leaderboard.folder(one).write_metrics({"epochs": 3})
    recover_trials(leaderboard)
    assert (interrupted.state, interrupted.epochs, interrupted.score) == (FINISHED, 3, pytest.approx(0.3))
    assert (late.state, late.epochs) == (RUNNING, 2)  # resumes, although its first epochs were evaluated
    recover_trials(leaderboard)  # killed again before it could resume
    assert late.state == RUNNING
    assert (stopped.state, stopped.score) == (STOPPED, 0.8)


def write_weights(leaderboard: Leaderboard) -> None:
    for one in leaderboard.trials:
        for name in ("checkpoint/best.pt", "checkpoint/last.pt", "net_synapse.pt", "history.csv"):
            leaderboard.folder(one).write(name, one.id)


def trials_with_weights(leaderboard: Leaderboard) -> list[int]:
    return [one.number for one in leaderboard.trials if leaderboard.folder(one).storage.exists("checkpoint/best.pt")]


def test_only_the_best_trials_and_those_that_may_resume_keep_their_weights(leaderboard):
    write_weights(leaderboard)
    delete_trial_weights(leaderboard, keep=2)
    assert trials_with_weights(leaderboard) == [0, 2, 4, 5]  # 4 runs, and 5, which is out of time, may resume
    assert [one.number for one in leaderboard.trials if one.kept] == [0, 2, 4, 5]
    assert leaderboard.folder(leaderboard.trials[1]).storage.list_files() == ["history.csv"]
    leaderboard.trials[4].state = FINISHED
    delete_trial_weights(leaderboard, keep=2)
    assert trials_with_weights(leaderboard) == [2, 4, 5]
    assert leaderboard.folder(leaderboard.trials[4]).storage.exists("net_synapse.pt")


def test_best_is_a_copy_of_the_best_trial_with_a_config_to_train_it_again(leaderboard):
    write_weights(leaderboard)
    train = {"storage": "s", "name": "0002", "weights": None, "compile": "off", "cache": "none", "boss": "b.json"}
    settings = {"task": {"name": "t"}, "network": {"epochs": 3}, "train": train, "versions": {}}
    for one in (leaderboard.trials[2], leaderboard.trials[5]):
        leaderboard.folder(one).write_settings(settings)
    leaderboard.folder(leaderboard.trials[5]).write("other_synapse.pt", "other")
    write_best_trial(leaderboard, leaderboard.trials[5])
    write_best_trial(leaderboard, leaderboard.trials[2])
    best = leaderboard.storage.child("best")
    assert best.list_files() == leaderboard.folder(leaderboard.trials[2]).storage.list_files()
    assert best.read_bytes("checkpoint/best.pt") == b"0002"
    assert json.loads(leaderboard.storage.read_bytes("best.json")) == {
        **{"task": {"name": "t"}, "network": {"epochs": 3}, "train": {"weights": None, "compile": "off"}}
    }


def test_the_record_can_be_kept_on_s3(s3):
    storage = open_storage("s3://some-bucket/sweep")
    leaderboard = Leaderboard(storage, AP, [trial(0, 0.5), trial(1, 0.6)], seconds=1.0)
    leaderboard.write()
    write_weights(leaderboard)
    assert Leaderboard.read(leaderboard.storage, AP) == leaderboard
    delete_trial_weights(leaderboard, keep=1)
    assert trials_with_weights(leaderboard) == [1]
