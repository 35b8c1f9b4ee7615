"""What the next trial tries: the same in every run of the same sweep, nothing twice, and better as trials come in."""

import itertools

import numpy as np
import pytest

from kasthuri_ray.tuning.leaderboard import FAILED, FINISHED, RUNNING, STOPPED, TrialRecord
from kasthuri_ray.tuning.sampler import check_grid, grid_point, propose_trial, setting_importances
from kasthuri_ray.tuning.search_space import SearchDomain

SPACE = {
    "network.learning_rate": SearchDomain("loguniform", (1e-4, 1e-1)),
    "network.loss": SearchDomain("choice", ("dice_ce", "focal", "tversky")),
    "network.n_blocks": SearchDomain("int", (2, 5)),
    "task.foreground_share": SearchDomain("uniform", (0.0, 0.75)),
}
SMALL = {
    "network.loss": SearchDomain("choice", ("dice_ce", "focal")),
    "network.tile": SearchDomain("grid", ([1, 2], [3, 4])),
}


def score(values) -> float:
    """Highest at a learning rate of 0.01, with tversky."""
    return 1 - abs(np.log10(values["network.learning_rate"]) + 2) / 3 - 0.3 * (values["network.loss"] != "tversky")


def trials_of(search: str, number: int, space=SPACE, seed: int = 0, state=FINISHED, score=score) -> list[TrialRecord]:
    """So many trials one after the other, each ended before the next is proposed."""
    found: list[TrialRecord] = []
    for n in range(number):
        values = propose_trial(search, space, seed, n, found, higher=True)
        if values is None:
            break
        found.append(TrialRecord(n, "UNet_2D", values, state=state, score=score(values), epochs=3))
    return found


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_the_same_sweep_proposes_the_same_trials_and_another_seed_others(search):
    one, other, third = (trials_of(search, 14, seed=seed) for seed in (0, 0, 1))
    assert [trial.values for trial in one] == [trial.values for trial in other]
    assert all(a.values != b.values for a, b in zip(one, third, strict=True))


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_sweep_that_goes_on_proposes_what_it_would_have_proposed(search):
    whole = trials_of(search, 13)
    assert propose_trial(search, SPACE, 0, 12, whole[:12], higher=True) == whole[12].values


@pytest.mark.parametrize("search", ["random", "optuna", "grid"])
def test_nothing_is_tried_twice_and_a_small_space_comes_to_an_end(search):
    found = [trial.values for trial in trials_of(search, 20, SMALL, score=lambda values: 0.5)]
    assert len(found) == 4
    assert all(one != other for one, other in itertools.combinations(found, 2))


def test_a_grid_is_walked_through_in_its_order():
    found = [grid_point(SMALL, number) for number in range(5)]
    losses, tiles = ([point[key] for point in found[:4]] for key in SMALL)
    assert losses == ["dice_ce", "dice_ce", "focal", "focal"]
    assert tiles == [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert found[4] is None


def test_a_grid_needs_an_end():
    check_grid(SMALL, "mine.json")
    with pytest.raises(
        ValueError, match=r"mine\.json: network\.learning_rate, task\.foreground_share has no end of val"
    ):
        check_grid(SPACE, "mine.json")


def test_optuna_finds_better_trials_than_chance():
    late = {search: [trial.score for trial in trials_of(search, 40)[20:]] for search in ("random", "optuna")}
    assert np.median(late["optuna"]) > np.median(late["random"]) + 0.1


def test_optuna_learns_from_trials_of_every_state_and_where_lower_is_better():
    found = trials_of("random", 24)
    for trial, state in zip(found, itertools.cycle((FINISHED, STOPPED, FAILED, RUNNING)), strict=False):
        trial.state = state
    found[2].score = None
    for higher in (True, False):
        values = propose_trial("optuna", SPACE, 0, 24, found, higher)
        assert values is not None
        assert values.keys() == SPACE.keys()
    assert propose_trial("optuna", SPACE, 0, 24, found, True) != propose_trial("optuna", SPACE, 0, 24, found, False)


def test_importances_name_what_decides():
    found = setting_importances(SPACE, trials_of("random", 40), higher=True)
    assert sum(found.values()) == pytest.approx(1)
    assert set(list(found)[:2]) == {"network.learning_rate", "network.loss"}
    assert setting_importances(SPACE, trials_of("random", 4), higher=True) == {}
    assert setting_importances(SPACE, trials_of("random", 12, score=lambda values: 0.5), higher=True) is not None
