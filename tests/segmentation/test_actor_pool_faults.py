"""Nodes are lost: their blocks are done elsewhere, and neither blamed nor forgotten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOST_NODES = Path(__file__).with_name("lost_nodes.py")
IN_FLIGHT, MOST_ACTORS = 2, 4


def trials(folder, num, seed, *more, seconds):
    """What each trial of lost_nodes.py came to; block 7 of each kills every actor that tries it."""
    command = [sys.executable, str(LOST_NODES), str(folder), str(num), str(seed), *more]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(found) == num
    return found


def check(trial):
    assert trial["set_aside"] == [7], trial["said"]
    assert trial["done"] == 79
    assert trial["all_begun"]
    assert trial["struck"]
    assert all(strike["done"] and strike["pending"] for strike in trial["struck"])
    deaths = sum(" died: " in line for line in trial["said"])
    assert trial["begun_again"] <= IN_FLIGHT * deaths


def test_a_killed_raylet_blames_no_block_and_the_next_node_goes_on(tmp_path):
    [trial] = trials(tmp_path, 1, 1, seconds=120)
    check(trial)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_raylets_and_actors_killed_at_random_moments(tmp_path, seed):
    for trial in trials(tmp_path, 8, seed, "actors", seconds=1200):
        check(trial)
        print(json.dumps({key: trial[key] for key in ("struck", "begun_again", "seconds")}))


@pytest.mark.faults
def test_a_node_that_falls_silent_is_waited_for_and_blames_no_block(tmp_path):
    for trial in trials(tmp_path, 2, 1, "cuts", seconds=600):
        check(trial)
