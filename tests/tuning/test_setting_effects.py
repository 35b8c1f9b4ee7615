"""How much a setting mattered equals SciPy's statistics, and few trials are called too few."""

import numpy as np
import pytest
from scipy import stats

from kasthuri_ray.tuning.search_space import SearchDomain
from kasthuri_ray.tuning.setting_effects import measure_effects
from kasthuri_ray.tuning.trial_record import FAILED, FINISHED, TrialRecord

SPACE = {
    "network.loss": SearchDomain("choice", ("dice_ce", "focal")),
    "network.learning_rate": SearchDomain("loguniform", (1e-4, 1e-2)),
    "network.n_blocks": SearchDomain("int", (3, 5)),
    "task.tile_size": SearchDomain("grid", ([64, 64], [128, 128])),
}


def make_trials(number, score, seed=0):
    random = np.random.default_rng(seed)
    trials = []
    for index in range(number):
        values = {key: domain.draw(random) for key, domain in SPACE.items()} | {"task.tile_size": [64, 64]}
        trials.append(TrialRecord(index, "UNet_2D", values, FINISHED, score=score(values, random)))
    return [*trials, TrialRecord(number, "UNet_2D", trials[0].values, FAILED)]


def by_rate(values, random):
    return float(np.log10(values["network.learning_rate"]) + random.normal(0, 0.2))


@pytest.mark.parametrize("number", [6, 30])
def test_ranges_have_the_rank_correlation_and_the_p_value_of_scipy(number):
    trials = make_trials(number, by_rate)
    scored = trials[:-1]
    for effect in measure_effects(SPACE, trials):
        if effect.is_list:
            continue
        values, scores = [trial.values[effect.key] for trial in scored], [trial.score for trial in scored]
        expected = stats.spearmanr(values, scores).statistic
        assert effect.size == pytest.approx(expected)
        test = stats.permutation_test(
            (scores,), lambda s, values=values: abs(stats.spearmanr(values, s).statistic),
            permutation_type="pairings", alternative="greater", n_resamples=2000, rng=np.random.default_rng(1),
        )  # fmt: skip
        assert effect.p_value == pytest.approx(test.pvalue, abs=0.03)


def test_the_setting_that_decides_the_score_comes_first_and_is_more_than_chance():
    effects = measure_effects(SPACE, make_trials(30, by_rate, seed=2))
    assert effects[0].key == "network.learning_rate"
    assert effects[0].describe_certainty().startswith("more than chance, p 0.0002")
    loss = next(effect for effect in effects if effect.key == "network.loss")
    assert loss.describe_certainty().startswith("no clear effect, p ")


def test_lists_have_the_range_of_their_mean_scores():
    trials = make_trials(12, lambda values, random: float(values["network.loss"] == "focal"))
    (loss,) = [effect for effect in measure_effects(SPACE, trials) if effect.key == "network.loss"]
    assert loss.size == 1.0
    assert loss.describe().startswith("loss (mean score 0.000 to 1.000; more than chance, p 0.00")
    assert "dice_ce: 0.000 (" in loss.describe_values()


def test_two_trials_a_value_are_too_few_however_different_they_are():
    trials = make_trials(4, lambda values, random: 0.5)
    for trial, loss in zip(trials, ("focal", "focal", "dice_ce", "dice_ce"), strict=False):
        trial.values["network.loss"], trial.score = loss, 0.9 * (loss == "focal")
    (loss,) = [effect for effect in measure_effects(SPACE, trials) if effect.key == "network.loss"]
    assert loss.p_value == pytest.approx(1 / 3)
    assert loss.describe() == "loss (mean score 0.000 to 0.900; too few trials to tell, p 0.33)"


def test_what_cannot_be_compared_is_said():
    sizes = {effect.key: effect.describe() for effect in measure_effects(SPACE, make_trials(8, by_rate))}
    assert sizes["task.tile_size"] == "tile_size (one value was tried)"
    assert {effect.describe_certainty() for effect in measure_effects(SPACE, make_trials(2, by_rate))} == {
        "too few trials to tell"
    }
    assert [effect.tried for effect in measure_effects(SPACE, [])] == [()] * 4
    equal = measure_effects(SPACE, make_trials(30, lambda values, random: 0.5))
    assert {effect.describe_certainty() for effect in equal if effect.p_value is not None} == {"no clear effect, p 1"}
