"""The record of a sweep: what a trial comes to, who is best, and what is known again after a kill."""

import csv
import json

import pytest

from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.tuning.leaderboard import (
    FAILED,
    FINISHED,
    OUT_OF_TIME,
    RUNNING,
    STOPPED,
    Leaderboard,
    TrialRecord,
    delete_trial_weights,
    recover_trials,
    summarize_history,
    write_best,
)

AP = "val.average_precision"


def row(epoch: int, score: float, loss: float = 0.5) -> dict:
    return {
        **{"epoch": epoch, "train.loss": 0.4, "val.loss": loss, "val.foreground_f1": score / 2, AP: score},
        **{"learning_rate": 0.1, "seconds": 2.0, "tiles_per_second": 10.0 * epoch},
    }


def trial(number: int, score: float | None, state: str = FINISHED, **more) -> TrialRecord:
    return TrialRecord(
        number, "UNet_2D", {"network.loss": "focal", "task.tile_size": [64, 64]}, state, score=score, **more
    )


@pytest.fixture
def board(tmp_path) -> Leaderboard:
    scores = [(0.5, FINISHED), (None, FAILED), (0.8, STOPPED), (0.95, FAILED), (0.9, RUNNING), (0.7, OUT_OF_TIME)]
    trials = [trial(number, score, state) for number, (score, state) in enumerate(scores)]
    return Leaderboard(open_storage(str(tmp_path)), AP, trials, seconds=12.5)


def test_a_history_comes_to_its_best_epoch_by_the_metric():
    history = [row(1, 0.4, 0.3), row(2, 0.6, 0.6), row(3, 0.6, 0.5), row(4, 0.5)]
    assert summarize_history(history, AP) == {
        **{"score": 0.6, "best_epoch": 3, "epochs": 4, "seconds": 8.0, "tiles_per_second": 30.0}
    }
    assert summarize_history(history, "val.loss")["best_epoch"] == 1
    assert summarize_history([], AP) == {}


def test_the_best_of_those_that_did_not_fail_comes_first(board):
    assert [one.number for one in board.ranked()] == [4, 2, 5, 0, 3, 1]
    assert board.best().number == 2
    assert board.best(ended=False).number == 4
    board.metric = "val.loss"
    assert board.best().number == 0


def test_the_record_is_read_as_it_was_written(board):
    board.write()
    again = Leaderboard.read(board.storage, AP)
    assert again == board
    rows = json.loads(board.storage.read_bytes("leaderboard.json"))["trials"]
    assert [(row["rank"], row["id"]) for row in rows[:2]] == [(1, "0004"), (2, "0002")]
    table = list(csv.DictReader(board.storage.read_bytes("leaderboard.csv").decode().splitlines()))
    assert [line["rank"] for line in table] == list("123456")
    assert table[0]["network.loss"] == "focal"
    assert table[0]["task.tile_size"] == "[64, 64]"
    assert {"score", "epochs", "seconds", "tiles_per_second", "parameters", "why"} <= table[0].keys()


def test_nothing_is_known_of_a_sweep_that_has_not_been(tmp_path):
    assert Leaderboard.read(open_storage(str(tmp_path / "none")), AP).trials == []


def test_after_a_kill_the_folders_say_what_became_of_a_trial(board):
    cut_off, late, stopped = board.trials[4], board.trials[5], board.trials[2]
    for one, epochs in ((cut_off, 3), (late, 2), (stopped, 1)):
        board.folder(one).write_history([row(epoch, 0.1 * epoch) for epoch in range(1, epochs + 1)])
    for one in (cut_off, late):
        board.folder(one).write_metrics({"epochs": 3})
    recover_trials(board)
    assert (cut_off.state, cut_off.epochs, cut_off.score) == (FINISHED, 3, pytest.approx(0.3))
    assert (late.state, late.epochs) == (RUNNING, 2)  # goes on, though it was judged as far as it came
    recover_trials(board)  # killed again before it could
    assert late.state == RUNNING
    assert (stopped.state, stopped.score) == (STOPPED, 0.8)


def write_weights(board: Leaderboard) -> None:
    for one in board.trials:
        for name in ("checkpoint/best.pt", "checkpoint/last.pt", "net_synapse.pt", "history.csv"):
            board.folder(one).write(name, one.id)


def with_weights(board: Leaderboard) -> list[int]:
    return [one.number for one in board.trials if board.folder(one).storage.exists("checkpoint/best.pt")]


def test_only_the_best_keep_their_weights_and_those_that_run(board):
    write_weights(board)
    delete_trial_weights(board, keep=2)
    assert with_weights(board) == [0, 2, 4, 5]  # 4 runs, and 5, whose time was up, may go on
    assert [one.number for one in board.trials if one.kept] == [0, 2, 4, 5]
    assert board.folder(board.trials[1]).storage.list() == ["history.csv"]
    board.trials[4].state = FINISHED
    delete_trial_weights(board, keep=2)
    assert with_weights(board) == [2, 4, 5]
    assert board.folder(board.trials[4]).storage.exists("net_synapse.pt")


def test_best_is_the_best_ones_folder_and_a_config_to_train_it_again(board):
    write_weights(board)
    train = {"storage": "s", "name": "0002", "weights": None, "compile": "off", "cache": "none", "boss": "b.json"}
    settings = {"task": {"name": "t"}, "network": {"epochs": 3}, "train": train, "versions": {}}
    for one in (board.trials[2], board.trials[5]):
        board.folder(one).write_settings(settings)
    board.folder(board.trials[5]).write("other_synapse.pt", "other")
    write_best(board, board.trials[5])
    write_best(board, board.trials[2])
    best = board.storage.child("best")
    assert best.list() == board.folder(board.trials[2]).storage.list()
    assert best.read_bytes("checkpoint/best.pt") == b"0002"
    assert json.loads(board.storage.read_bytes("best.json")) == {
        **{"task": {"name": "t"}, "network": {"epochs": 3}, "train": {"weights": None, "compile": "off"}}
    }


def test_the_record_lies_on_s3_too(s3):
    board = Leaderboard(open_storage("s3://some-bucket/sweep"), AP, [trial(0, 0.5), trial(1, 0.6)], seconds=1.0)
    board.write()
    write_weights(board)
    assert Leaderboard.read(board.storage, AP) == board
    delete_trial_weights(board, keep=1)
    assert with_weights(board) == [1]
