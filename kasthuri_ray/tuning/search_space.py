"""The search space of a sweep: which settings are searched, and among which values. Read from JSON and checked; pure.

    {"network.learning_rate": {"loguniform": [1e-4, 1e-2]}, "network.start_filters": {"choice": [16, 32]}}

A space is a dict of `SearchDomain` by `section.key`. With several networks, the key `network` names one of them.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasthuri_ray.config.loading import override_settings
from kasthuri_ray.config.network import default_batch_size
from kasthuri_ray.config.settings import SECTIONS, Settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.models.unet import check_shape, pooling_factors

NETWORK_KEY = "network"  # the key of the network's name
LISTS, RANGES = ("choice", "grid"), ("uniform", "loguniform", "int")
NUM_DIGITS = 3  # of a number that was drawn: precise enough, and short in a table
SEARCHED_SECTIONS = ("network", "task", "train")

# Settings that all trials share, because they make trials comparable or are names; and the reason to show.
SHARED_SETTINGS = {
    "network.epochs": "trials of equal length are compared epoch by epoch; --set network.epochs=... sets it for all",
    "network.metric": "trials are compared by it; --metric sets it for all",
    "network.outweightfilename": "it is a name",
    "task.loss": "trials train with network.loss; search that instead",
    "task.name": "it is a name",
    "task.task_type": "it says what the task segments",
}


@dataclass(frozen=True)
class SearchDomain:
    """The values that a setting may take.

    Parameters
    ----------
    kind : str
        `choice` or `grid` for a list, `uniform`, `loguniform` or `int` for a range.
    values : tuple
        The list; or the lowest and the highest value of the range, both included.
    """

    kind: str
    values: tuple[Any, ...]

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """Return all values; None for a continuous range."""
        if self.kind in LISTS:
            return self.values
        return tuple(range(self.values[0], self.values[1] + 1)) if self.kind == "int" else None

    def draw(self, random: np.random.Generator) -> Any:
        """Return a random value, all equally likely (their logarithms, for loguniform)."""
        if self.kind in LISTS:
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "int":
            return int(random.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return self.rounded(random.uniform(low, high))
        return self.rounded(math.exp(random.uniform(math.log(low), math.log(high))))

    def rounded(self, value: float) -> float:
        """Return the value with `NUM_DIGITS` digits, with more where the range is narrow; never outside the range."""
        low, high = self.values
        narrow = max(abs(low), abs(high)) / max(high - low, sys.float_info.min)
        digits = NUM_DIGITS + (int(math.log10(narrow)) if narrow > 1 else 0)
        return min(max(float(f"{value:.{digits}g}"), low), high)

    def as_json(self) -> dict[str, list[Any]]:
        return {self.kind: list(self.values)}


SearchSpace = dict[str, SearchDomain]


def grid_size(space: SearchSpace) -> int | None:
    """Return the number of combinations; None if a range is continuous."""
    lists = [domain.listed for domain in space.values()]
    sizes = [len(values) for values in lists if values is not None]
    return math.prod(sizes) if len(sizes) == len(lists) else None


def parse_space(content: Mapping[str, Any], base: Settings, origin: str) -> SearchSpace:
    """Return the space that a JSON object describes, after checking each value against the settings `base`.

    Raise an InputError that names every mistake; `origin` names the space in it.
    """
    space, errors = SearchSpace(), list[str]()
    for key, description in content.items():
        try:
            _check_key(key)
            space[key] = _parse_domain(key, description)
            for value in space[key].values:
                override_settings(base, {key: value}, origin)
        except ValueError as error:
            errors.append(str(error) if str(error).startswith(origin) else f"{origin}: {error}")
    if errors:
        raise InputError("\n".join(errors))
    return space


def _check_key(key: str) -> None:
    known = [f"{section}.{name}" for section in SEARCHED_SECTIONS for name in SECTIONS[section].model_fields]
    if key == NETWORK_KEY:
        raise InputError("--networks names the networks to choose from; remove the key network")
    if key not in known:
        same = [name for name in known if name.partition(".")[2] == key]
        near = same or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        raise InputError(f"no setting {key}" + (f"; did you mean {near[0]}?" if near else ""))
    section, _, name = key.partition(".")
    if name in SECTIONS[section].changeable:
        raise InputError(f"{key} does not change what a network learns; remove it from the space")
    if key in SHARED_SETTINGS:
        raise InputError(f"{key} cannot be searched: {SHARED_SETTINGS[key]}")


def _parse_domain(key: str, description: Any) -> SearchDomain:
    kinds = ", ".join((*LISTS, *RANGES))
    shown = f"{key} is {json.dumps(description)}"
    if not (isinstance(description, dict) and len(description) == 1):
        hint = f', such as {{"choice": {json.dumps(description)}}}' if isinstance(description, list) else ""
        raise InputError(f"{shown}: expected an object with one of {kinds}{hint}")
    ((kind, values),) = description.items()
    if kind not in (*LISTS, *RANGES):
        near = difflib.get_close_matches(kind, (*LISTS, *RANGES), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{shown}: unknown kind {kind!r}, expected one of {kinds}{hint}")
    if kind in LISTS:
        _check_list(shown, values)
        return SearchDomain(kind, tuple(values))
    _check_range(shown, kind, values)
    return SearchDomain(kind, tuple(values) if kind == "int" else tuple(map(float, values)))


def _check_list(shown: str, values: Any) -> None:
    if not isinstance(values, list) or not values:
        raise InputError(f"{shown}: expected a list of at least one value")
    if repeated := [value for index, value in enumerate(values) if value in values[:index]]:
        raise InputError(f"{shown}: {json.dumps(repeated[0])} is listed twice; keep one of them")


def _check_range(shown: str, kind: str, values: Any) -> None:
    numbers = int if kind == "int" else int | float
    is_pair = isinstance(values, list) and len(values) == 2
    if not (is_pair and all(isinstance(value, numbers) and not isinstance(value, bool) for value in values)):
        noun = "whole numbers" if kind == "int" else "numbers"
        raise InputError(f"{shown}: expected two {noun}, the lowest and the highest value")
    if not values[0] < values[1]:
        raise InputError(f"{shown}: the first must be lower than the second")
    if kind == "loguniform" and values[0] <= 0:
        raise InputError(f"{shown}: loguniform needs numbers above 0")


def check_not_fixed(space: Mapping[str, Any], fixed: Iterable[str], origin: str) -> None:
    """Raise an InputError for a setting that is both searched and set for all trials."""
    both = sorted(set(space) & set(fixed))
    if both:
        raise InputError(
            f"{origin}: {', '.join(both)} is searched here and set on the command line; remove one of them"
        )


def default_space(bases: Sequence[Settings], num_workers: int) -> dict[str, dict[str, list[Any]]]:
    """Return the space that is searched without a space file, in the form of such a file.

    `bases` are the settings of each network. `num_workers` of a trial share a batch; each needs one tile of it.
    """
    task, batch = bases[0].task, default_batch_size(num_workers)
    space: dict[str, dict[str, list[Any]]] = {
        "network.learning_rate": {"loguniform": [3e-4, 1e-2]},
        "network.batch_size": {"choice": [batch, 2 * batch, 4 * batch]},
        "network.loss": {"choice": ["dice_ce", "cross_entropy", "focal", "tversky"]},
        "network.augmentations": {"choice": ["none", "basic", "em"]},
        "task.foreground_share": {"uniform": [0.0, 0.75]},
    }
    unets = [base.network for base in bases if "." not in base.network.model]
    if unets:  # a user's own network has none of these settings
        space["network.start_filters"] = {"choice": [16, 32]}
        pooling = {(network.dim, network.pool_z) for network in unets}
        blocks = [n for n in (3, 4, 5) if all(_can_pool(task.tile, n, *each) for each in pooling)]
        if blocks:
            space["network.n_blocks"] = {"choice": blocks}
        space["network.normalization"] = {"choice": ["batch", "instance", "group"]}
    return space


def _can_pool(tile: tuple[int, int, int], num_blocks: int, dim: int, pool_z: int) -> bool:
    """Return whether a U-Net of that many blocks can halve the tiles often enough."""
    try:
        check_shape(tile[-dim:], pooling_factors(num_blocks, dim, pool_z)[-dim:])
    except ValueError:
        return False
    return True
