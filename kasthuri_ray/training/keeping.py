"""What of a sweep's trials stays: the weights of the best few, and the best one's folder for other jobs to take."""

from __future__ import annotations

import json
from typing import Any

from kasthuri_ray.storage import Storage
from kasthuri_ray.training.leaderboard import FAILED, OUT_OF_TIME, Leaderboard, Trial
from kasthuri_ray.training.run_folder import FREE

BEST, CONFIG = "best", "best.json"
WEIGHTS = ".pt"


def drop_weights(board: Leaderboard, keep: int) -> None:
    """Delete the weights of all trials that have ended, but those of the `keep` best. One out of time may yet go on."""
    ended = [trial for trial in board.ranked() if trial.ended and trial.state != OUT_OF_TIME]
    kept = [trial for trial in ended if trial.state != FAILED and trial.score is not None][:keep]
    for trial in ended:
        if trial.kept and not any(trial is one for one in kept):
            _delete(board.folder(trial).storage, WEIGHTS)
            trial.kept = False


def _delete(storage: Storage, ending: str) -> None:
    for name in storage.list():
        if name.endswith(ending):
            storage.delete(name)


def leave_best(board: Leaderboard, best: Trial) -> None:
    """Leave a copy of the best trial's folder in best/, and its settings in best.json."""
    source, target = board.folder(best).storage, board.storage.child(BEST)
    names = source.list()
    for name in names:
        target.write_bytes(name, source.read_bytes(name))
    for name in set(target.list()) - set(names):  # of the one that was the best before
        target.delete(name)
    settings = board.folder(best).read_settings()
    assert settings is not None
    board.storage.write_bytes(CONFIG, (json.dumps(_config(settings), indent=2) + "\n").encode())


def _config(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a run's settings what another run needs to learn the same: a file for --config."""
    train = {key: value for key, value in settings["train"].items() if key not in FREE["train"]}
    return {"task": settings["task"], "network": settings["network"], "train": train}
