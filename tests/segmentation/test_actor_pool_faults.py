"""Pools of actors on clusters that lose nodes: their blocks are done elsewhere, and none is set aside or forgotten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOST_NODES = Path(__file__).with_name("lost_nodes.py")
IN_FLIGHT = 2


def run_trials(folder, num, seed, *kind, timeout_s):
    """Run lost_nodes.py; return the result of each trial, in which block 7 kills every actor that tries it."""
    command = [sys.executable, str(LOST_NODES), str(folder), str(num), str(seed), *kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
    assert process.returncode == 0, process.stdout + process.stderr
    results = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    assert len(results) == num
    return results


def check_trial(trial):
    assert trial["set_aside"] == [7], trial["lines"]
    assert trial["done"] == 79
    assert trial["all_started"]
    assert trial["strikes"]
    assert all(strike["done"] and strike["pending"] for strike in trial["strikes"])
    num_deaths = sum(" died: " in line for line in trial["lines"])
    assert trial["num_redone"] <= IN_FLIGHT * num_deaths


@pytest.mark.slow
def test_blocks_of_a_killed_raylet_are_done_on_the_next_node_and_none_is_set_aside(tmp_path):
    [trial] = run_trials(tmp_path, 1, 1, timeout_s=120)
    check_trial(trial)


@pytest.mark.faults
def test_raylets_and_actors_may_be_killed_at_random_moments(tmp_path, fault_trials):
    for seed in range(-(-fault_trials(24) // 8)):
        check_trials(run_trials(tmp_path, fault_trials(8), seed, "actors", timeout_s=1200))


def check_trials(trials):
    for trial in trials:
        check_trial(trial)
        print(json.dumps({key: trial[key] for key in ("strikes", "num_redone", "seconds")}))


@pytest.mark.faults
def test_a_node_that_stops_answering_is_waited_for_and_no_block_is_set_aside(tmp_path):
    for trial in run_trials(tmp_path, 2, 1, "cuts", timeout_s=600):
        check_trial(trial)
