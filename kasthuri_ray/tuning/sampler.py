"""Propose the settings of the next trial: at random, along a grid, or by Optuna's TPE.

`propose_trial` depends on the seed, the trial's number and the results of the earlier trials, and on nothing else. So
the same sweep proposes the same trials, and a resumed sweep proposes what an uninterrupted one would have proposed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.tuning.search_space import LISTS, SearchDomain, SearchSpace, grid_size
from kasthuri_ray.tuning.trial_record import FINISHED, RUNNING, TrialRecord

MAX_ATTEMPTS = 50  # draws, until one differs from all earlier trials
MAX_ENUMERATED = 100_000  # combinations of a space that are enumerated to find an untried one
MIN_TRIALS_FOR_IMPORTANCES = 10
BEST_SHARE = 0.25  # importances say what it takes to be among this share of the trials

Values = dict[str, Any]


def propose_trial(
    search: str, space: SearchSpace, seed: int, number: int, earlier: Sequence[TrialRecord], higher_is_better: bool
) -> Values | None:
    """Return the values of trial `number`, by `section.key`; None if nothing is left to try.

    `search` is `random`, `grid` or `optuna`. `earlier` are the trials with lower numbers.
    """
    if search == "grid":
        return grid_point(space, number)
    if search == "optuna":
        values = _propose_by_optuna(space, seed, number, earlier, higher_is_better)
        if values is not None:
            return values
    return _propose_at_random(space, seed, number, earlier)


def check_grid(space: SearchSpace, origin: str) -> None:
    """Raise an InputError for a grid search over a continuous range. `origin` names the space in the message."""
    continuous = [key for key, domain in space.items() if domain.listed is None]
    if continuous:
        raise InputError(
            f"{origin}: a grid search needs a list of values, but {', '.join(continuous)} has a continuous range; list "
            'its values ({"grid": [...]}), or use --search random or optuna'
        )


def grid_point(space: SearchSpace, number: int) -> Values | None:
    """Return the combination of that number, the last key varying fastest; None past the last one."""
    values: Values = {}
    for key, domain in reversed(list(space.items())):
        listed = domain.listed
        assert listed is not None
        number, index = divmod(number, len(listed))
        values[key] = listed[index]
    return None if number else {key: values[key] for key in space}


def _propose_at_random(space: SearchSpace, seed: int, number: int, earlier: Sequence[TrialRecord]) -> Values | None:
    random = np.random.default_rng([seed, number])
    for _ in range(MAX_ATTEMPTS):
        values = {key: space[key].draw(random) for key in space}
        if not _was_tried(values, earlier):
            return values
    size = grid_size(space)
    if size is None or size > MAX_ENUMERATED:
        return values
    points = (grid_point(space, index) for index in range(size))
    return next((point for point in points if point is not None and not _was_tried(point, earlier)), None)


def _was_tried(values: Mapping[str, Any], earlier: Iterable[TrialRecord]) -> bool:
    return any(trial.values == values for trial in earlier)


def _propose_by_optuna(
    space: SearchSpace, seed: int, number: int, earlier: Sequence[TrialRecord], higher_is_better: bool
) -> Values | None:
    """Return what TPE proposes (Bergstra et al. 2011, NIPS 24); None if it proposes only what was tried.

    The first ten are random. Running trials count as poor ones, so that others keep away from them.
    """
    import optuna

    size = grid_size(space)
    if size is not None and size <= len(earlier):
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {key: _distribution(domain) for key, domain in space.items()}
    for attempt in range(MAX_ATTEMPTS):
        state = np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0]
        study = _make_study(space, earlier, higher_is_better, optuna.samplers.TPESampler(seed=int(state)))
        proposed = study.ask(distributions).params
        values = {key: _from_optuna(domain, proposed[key]) for key, domain in space.items()}
        if not _was_tried(values, earlier):
            return values
    return None


def setting_importances(space: SearchSpace, trials: Sequence[TrialRecord], higher_is_better: bool) -> dict[str, float]:
    """Return how much each setting decides whether a trial is among the best quarter; highest first, 1 in all.

    Computed by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255). Empty for too few trials, or if no setting matters.
    """
    import optuna

    scored = [trial for trial in trials if trial.ended and trial.has_result]
    if len(scored) < MIN_TRIALS_FOR_IMPORTANCES or not space:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = _make_study(space, scored, higher_is_better, None, all_complete=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        try:
            importances = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, ValueError):
            return {}
    return importances if all(np.isfinite(value) for value in importances.values()) else {}


def _make_study(
    space: SearchSpace,
    trials: Iterable[TrialRecord],
    higher_is_better: bool,
    sampler: Any,
    all_complete: bool = False,
) -> Any:
    """Return an Optuna study that holds these trials; with `all_complete`, stopped ones count as complete."""
    import optuna

    states = optuna.trial.TrialState
    study = optuna.create_study(direction="maximize" if higher_is_better else "minimize", sampler=sampler)
    distributions = {key: _distribution(domain) for key, domain in space.items()}
    for trial in trials:
        entry: dict[str, Any] = {"state": states.FAIL}
        if trial.state == RUNNING:
            entry = {"state": states.RUNNING}
        elif trial.score is not None and (trial.state == FINISHED or all_complete):
            entry = {"state": states.COMPLETE, "value": trial.score}
        elif trial.has_result:
            entry = {"state": states.PRUNED, "intermediate_values": {trial.epochs: trial.score}}
        params = {key: _to_optuna(domain, trial.values[key]) for key, domain in space.items()}
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


def _to_optuna(domain: SearchDomain, value: Any) -> Any:
    return json.dumps(value) if domain.kind in LISTS else value


def _from_optuna(domain: SearchDomain, value: Any) -> Any:
    if domain.kind in LISTS:
        return json.loads(value)
    return int(value) if domain.kind == "int" else domain.rounded(value)
