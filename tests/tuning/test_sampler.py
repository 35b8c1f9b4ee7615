"""The settings of the next trial: reproducible, never the same twice, and better with more results."""

import itertools

import numpy as np
import pytest

from kasthuri_ray.tuning.sampler import check_grid, grid_point, propose_trial, setting_importances
from kasthuri_ray.tuning.search_space import SearchDomain
from kasthuri_ray.tuning.trial_record import FAILED, FINISHED, RUNNING, STOPPED, TrialRecord

SPACE = {
    "network.learning_rate": SearchDomain("loguniform", (1e-4, 1e-1)),
    "network.loss": SearchDomain("choice", ("dice_ce", "focal", "tversky")),
    "network.n_blocks": SearchDomain("int", (2, 5)),
    "task.foreground_share": SearchDomain("uniform", (0.0, 0.75)),
}
SMALL_SPACE = {
    "network.loss": SearchDomain("choice", ("dice_ce", "focal")),
    "network.tile": SearchDomain("grid", ([1, 2], [3, 4])),
}


def score(values) -> float:
    """Return a score that is highest at a learning rate of 0.01 with tversky."""
    return 1 - abs(np.log10(values["network.learning_rate"]) + 2) / 3 - 0.3 * (values["network.loss"] != "tversky")


def run_trials(search: str, count: int, space=SPACE, seed: int = 0, state=FINISHED, score=score) -> list[TrialRecord]:
    """Return so many trials; each ends before the next is proposed."""
    trials: list[TrialRecord] = []
    for number in range(count):
        values = propose_trial(search, space, seed, number, trials, higher_is_better=True)
        if values is None:
            break
        trials.append(TrialRecord(number, "UNet_2D", values, state=state, score=score(values), epochs=3))
    return trials


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_the_same_seed_proposes_the_same_trials_and_another_seed_others(search):
    one, other, third = (run_trials(search, 14, seed=seed) for seed in (0, 0, 1))
    assert [trial.values for trial in one] == [trial.values for trial in other]
    assert all(a.values != b.values for a, b in zip(one, third, strict=True))


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_resumed_sweep_proposes_what_an_uninterrupted_one_proposes(search):
    whole = run_trials(search, 13)
    assert propose_trial(search, SPACE, 0, 12, whole[:12], higher_is_better=True) == whole[12].values


@pytest.mark.parametrize("search", ["random", "optuna", "grid"])
def test_no_combination_is_tried_twice_and_a_small_space_is_exhausted(search):
    proposed = [trial.values for trial in run_trials(search, 20, SMALL_SPACE, score=lambda values: 0.5)]
    assert len(proposed) == 4
    assert all(one != other for one, other in itertools.combinations(proposed, 2))


def test_grid_points_are_in_order_with_the_last_key_fastest():
    points = [grid_point(SMALL_SPACE, number) for number in range(5)]
    losses, tiles = ([point[key] for point in points[:4]] for key in SMALL_SPACE)
    assert losses == ["dice_ce", "dice_ce", "focal", "focal"]
    assert tiles == [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert points[4] is None


def test_a_grid_search_over_a_continuous_range_is_refused():
    check_grid(SMALL_SPACE, "mine.json")
    with pytest.raises(
        ValueError,
        match=r"mine\.json: a grid search needs a list of values, but network\.learning_rate, task\.foreground_share "
        r"has a continuous range",
    ):
        check_grid(SPACE, "mine.json")


def test_optuna_finds_better_trials_than_random_search():
    late_scores = {search: [trial.score for trial in run_trials(search, 40)[20:]] for search in ("random", "optuna")}
    assert np.median(late_scores["optuna"]) > np.median(late_scores["random"]) + 0.1


def test_optuna_learns_from_trials_of_every_state_and_for_metrics_where_lower_is_better():
    trials = run_trials("random", 24)
    for trial, state in zip(trials, itertools.cycle((FINISHED, STOPPED, FAILED, RUNNING)), strict=False):
        trial.state = state
    trials[2].score = None
    maximizing, minimizing = (propose_trial("optuna", SPACE, 0, 24, trials, higher) for higher in (True, False))
    for values in (maximizing, minimizing):
        assert values is not None
        assert values.keys() == SPACE.keys()
    assert maximizing != minimizing


def test_importances_are_highest_for_the_settings_that_decide_the_score():
    importances = setting_importances(SPACE, run_trials("random", 40), higher_is_better=True)
    assert sum(importances.values()) == pytest.approx(1)
    assert set(list(importances)[:2]) == {"network.learning_rate", "network.loss"}
    assert setting_importances(SPACE, run_trials("random", 4), higher_is_better=True) == {}
    equal_scores = run_trials("random", 12, score=lambda values: 0.5)
    assert setting_importances(SPACE, equal_scores, higher_is_better=True) is not None
