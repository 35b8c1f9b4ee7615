"""What the next trial of a sweep tries: at random, along a grid, or by Optuna's TPE.

`propose` is a function of the seed, the trial's number and what came of the earlier trials, and of nothing else: a
sweep that goes on proposes what it would have proposed, and the same sweep proposes the same trials.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kasthuri_ray.tuning.leaderboard import FAILED, FINISHED, RUNNING, TrialRecord
from kasthuri_ray.tuning.search_space import LISTS, SearchDomain, SearchSpace, grid_size

Values = dict[str, Any]
TRIES = 50  # to draw what no earlier trial has tried
COUNTABLE = 100_000  # combinations that are gone through to find one that is left
TARGET = 0.25  # importances are of what it takes to be among this share of the trials


def propose_trial(
    search: str, space: SearchSpace, seed: int, number: int, earlier: Sequence[TrialRecord], higher: bool
) -> Values | None:
    """The values of trial `number`, by key; None if there is nothing left to try.

    earlier: the trials before it. higher: whether a higher score is a better one.
    """
    if search == "grid":
        return grid_point(space, number)
    if search == "optuna":
        found = _by_optuna(space, seed, number, earlier, higher)
        if found is not None:
            return found
    return _at_random(space, seed, number, earlier)


def check_grid(space: SearchSpace, origin: str) -> None:
    """Raise a ValueError if there is no end of values somewhere."""
    endless = [key for key, domain in space.items() if domain.listed is None]
    if endless:
        raise ValueError(
            f"{origin}: {', '.join(endless)} has no end of values for a grid to go through; list them "
            '({"grid": [...]}), or search by --search random or optuna'
        )


def grid_point(space: SearchSpace, number: int) -> Values | None:
    """The combination of that number, the last key running fastest; None past the last."""
    values: Values = {}
    for key, domain in reversed(list(space.items())):
        listed = domain.listed
        assert listed is not None
        number, place = divmod(number, len(listed))
        values[key] = listed[place]
    return None if number else {key: values[key] for key in space}


def _at_random(space: SearchSpace, seed: int, number: int, earlier: Sequence[TrialRecord]) -> Values | None:
    random = np.random.default_rng([seed, number])
    for _ in range(TRIES):
        values = {key: space[key].draw(random) for key in space}
        if not _tried(values, earlier):
            return values
    size = grid_size(space)
    if size is None or size > COUNTABLE:
        return values
    points = (grid_point(space, place) for place in range(size))
    return next((point for point in points if point is not None and not _tried(point, earlier)), None)


def _tried(values: Mapping[str, Any], earlier: Iterable[TrialRecord]) -> bool:
    return any(trial.values == values for trial in earlier)


def _by_optuna(
    space: SearchSpace, seed: int, number: int, earlier: Sequence[TrialRecord], higher: bool
) -> Values | None:
    """What TPE asks for (Bergstra et al. 2011, NIPS 24); None if it asks only for what was tried.

    The first ten are drawn at random. Trials that run count as poor ones, so that others keep away from them.
    """
    import optuna

    size = grid_size(space)
    if size is not None and size <= len(earlier):
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {key: _distribution(domain) for key, domain in space.items()}
    for attempt in range(TRIES):
        state = np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0]
        study = _study(space, earlier, higher, optuna.samplers.TPESampler(seed=int(state)))
        asked = study.ask(distributions).params
        values = {key: _decoded(domain, asked[key]) for key, domain in space.items()}
        if not _tried(values, earlier):
            return values
    return None


def setting_importances(space: SearchSpace, trials: Sequence[TrialRecord], higher: bool) -> dict[str, float]:
    """How much each setting decides whether a trial is among the best quarter, in all 1; the highest first.

    By PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255). Empty for too few trials, or where none stands out.
    """
    import optuna

    scored = [trial for trial in trials if trial.ended and trial.state != FAILED and trial.score is not None]
    if len(scored) < 5 or not space:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _study(space, scored, higher, None, all_complete=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TARGET)
        try:
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, ValueError):
            return {}
    return found if all(np.isfinite(value) for value in found.values()) else {}


def _study(
    space: SearchSpace, trials: Iterable[TrialRecord], higher: bool, sampler: Any, all_complete: bool = False
) -> Any:
    """A study in which these trials have been made."""
    import optuna

    states = optuna.trial.TrialState
    study = optuna.create_study(direction="maximize" if higher else "minimize", sampler=sampler)
    distributions = {key: _distribution(domain) for key, domain in space.items()}
    for trial in trials:
        entry: dict[str, Any] = {"state": states.FAIL}
        if trial.state == RUNNING:
            entry = {"state": states.RUNNING}
        elif trial.score is not None and (trial.state == FINISHED or all_complete):
            entry = {"state": states.COMPLETE, "value": trial.score}
        elif trial.score is not None and trial.state != FAILED:
            entry = {"state": states.PRUNED, "intermediate_values": {trial.epochs: trial.score}}
        params = {key: _encoded(domain, trial.values[key]) for key, domain in space.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, **entry))
    return study


def _distribution(domain: SearchDomain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.kind in LISTS:
        return CategoricalDistribution(tuple(map(json.dumps, domain.values)))
    low, high = domain.values
    if domain.kind == "int":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=domain.kind == "loguniform")


def _encoded(domain: SearchDomain, value: Any) -> Any:
    return json.dumps(value) if domain.kind in LISTS else value


def _decoded(domain: SearchDomain, value: Any) -> Any:
    if domain.kind in LISTS:
        return json.loads(value)
    return int(value) if domain.kind == "int" else domain.rounded(value)
