"""The space that a sweep searches: which settings, and among which values. Read from JSON and checked; pure.

    {"network.learning_rate": {"loguniform": [1e-4, 1e-2]}, "network.start_filters": {"choice": [16, 32]}}

A space is a dict of `Domain` by `section.key`; of several networks, `network` says which one.
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

from kasthuri_ray.config.differences import FREE_SETTINGS
from kasthuri_ray.config.loading import override_settings
from kasthuri_ray.config.settings import SECTIONS, Settings, default_batch_size
from kasthuri_ray.models.unet import check_shape, pooling_factors

NETWORK_KEY = "network"  # the key of the network's name
LISTS, RANGES = ("choice", "grid"), ("uniform", "loguniform", "int")
DIGITS = 3  # of a number that was drawn: as exact as anybody needs, and short in a table
SEARCHED = ("network", "task", "train")
# Settings that all trials share: they make trials comparable, or are names.
SHARED = {
    "network.epochs": "trials of one length are compared epoch by epoch: --set network.epochs=... sets it for all",
    "network.metric": "trials are compared by it: --metric sets it for all",
    "network.outweightfilename": "it is a name",
    "task.loss": "trials learn by network.loss: search that",
    "task.name": "it is a name",
    "task.task_type": "it is what the task looks for",
}


@dataclass(frozen=True)
class SearchDomain:
    """Where a setting's value is looked for.

    kind: `choice` or `grid` (values, one of them); `uniform`, `loguniform` or `int` (values: the lowest and the
    highest, both included).
    """

    kind: str
    values: tuple[Any, ...]

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """All its values; None where there is no end of them."""
        if self.kind in LISTS:
            return self.values
        return tuple(range(self.values[0], self.values[1] + 1)) if self.kind == "int" else None

    def draw(self, random: np.random.Generator) -> Any:
        """A value, each as likely as another (by its logarithm, of loguniform)."""
        if self.kind in LISTS:
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "int":
            return int(random.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return self.rounded(random.uniform(low, high))
        return self.rounded(math.exp(random.uniform(math.log(low), math.log(high))))

    def rounded(self, value: float) -> float:
        """The value with as many digits as a table shows, more where the domain is narrow; inside the domain."""
        low, high = self.values
        narrow = max(abs(low), abs(high)) / max(high - low, sys.float_info.min)
        digits = DIGITS + (int(math.log10(narrow)) if narrow > 1 else 0)
        return min(max(float(f"{value:.{digits}g}"), low), high)

    def as_json(self) -> dict[str, list[Any]]:
        return {self.kind: list(self.values)}


SearchSpace = dict[str, SearchDomain]


def grid_size(space: SearchSpace) -> int | None:
    """How many combinations there are; None where there is no end of them."""
    lists = [domain.listed for domain in space.values()]
    return math.prod(map(len, lists)) if all(values is not None for values in lists) else None  # type: ignore[arg-type]


def parse_space(content: Mapping[str, Any], base: Settings, origin: str) -> SearchSpace:
    """The space that a JSON object describes, checked against the settings that it changes.

    origin: what to call it in errors. Raises a ValueError that names every mistake.
    """
    space, wrong = SearchSpace(), list[str]()
    for key, given in content.items():
        try:
            _check_key(key)
            space[key] = _domain(key, given)
            for value in space[key].values:
                override_settings(base, {key: value}, origin)
        except ValueError as error:
            wrong.append(str(error) if str(error).startswith(origin) else f"{origin}: {error}")
    if wrong:
        raise ValueError("\n".join(wrong))
    return space


def _check_key(key: str) -> None:
    known = [f"{section}.{name}" for section in SEARCHED for name in SECTIONS[section].model_fields]
    if key == NETWORK_KEY:
        raise ValueError("the networks to choose from are given by --networks")
    if key not in known:
        same = [name for name in known if name.partition(".")[2] == key]
        near = same or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        raise ValueError(f"no setting {key}" + (f"; did you mean {near[0]}?" if near else ""))
    section, _, name = key.partition(".")
    if name in FREE_SETTINGS.get(section, set()):
        raise ValueError(f"{key} changes nothing that is learnt, so that there is nothing to find out about it")
    if key in SHARED:
        raise ValueError(f"{key} cannot be searched: {SHARED[key]}")


def _domain(key: str, given: Any) -> SearchDomain:
    kinds = ", ".join((*LISTS, *RANGES))
    shown = f"{key} is {json.dumps(given)}"
    if not (isinstance(given, dict) and len(given) == 1):
        hint = f', such as {{"choice": {json.dumps(given)}}}' if isinstance(given, list) else ""
        raise ValueError(f"{shown}: expected an object with one of {kinds}{hint}")
    ((kind, values),) = given.items()
    if kind not in (*LISTS, *RANGES):
        near = difflib.get_close_matches(kind, (*LISTS, *RANGES), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{shown}: there is no {kind!r}, expected one of {kinds}{hint}")
    if kind in LISTS:
        if not isinstance(values, list) or not values:
            raise ValueError(f"{shown}: expected a list of at least one value")
        if twice := [value for place, value in enumerate(values) if value in values[:place]]:
            raise ValueError(f"{shown}: {json.dumps(twice[0])} is there twice; keep one of them")
        return SearchDomain(kind, tuple(values))
    _check_range(shown, kind, values)
    return SearchDomain(kind, tuple(values) if kind == "int" else tuple(map(float, values)))


def _check_range(shown: str, kind: str, values: Any) -> None:
    numbers = int if kind == "int" else int | float
    fits = isinstance(values, list) and len(values) == 2
    if not (fits and all(isinstance(value, numbers) and not isinstance(value, bool) for value in values)):
        whole = "whole numbers" if kind == "int" else "numbers"
        raise ValueError(f"{shown}: expected two {whole}, the lowest and the highest value")
    if not values[0] < values[1]:
        raise ValueError(f"{shown}: the first must be lower than the second")
    if kind == "loguniform" and values[0] <= 0:
        raise ValueError(f"{shown}: a logarithm needs numbers above 0")


def check_not_fixed(space: Mapping[str, Any], fixed: Iterable[str], origin: str) -> None:
    """Raise a ValueError for a setting that is both searched and set for all trials."""
    both = sorted(set(space) & set(fixed))
    if both:
        raise ValueError(f"{origin}: {', '.join(both)} is searched there and set on the command line; leave out one")


def default_space(bases: Sequence[Settings], workers: int) -> dict[str, dict[str, list[Any]]]:
    """The space where a person names none, as a space file holds it.

    bases: the settings of each network. workers: of a trial; each needs a tile of a batch.
    """
    task, batch = bases[0].task, default_batch_size(workers)
    space: dict[str, dict[str, list[Any]]] = {
        "network.learning_rate": {"loguniform": [3e-4, 1e-2]},
        "network.batch_size": {"choice": [batch, 2 * batch, 4 * batch]},
        "network.loss": {"choice": ["dice_ce", "cross_entropy", "focal", "tversky"]},
        "network.augmentations": {"choice": ["none", "basic", "em"]},
        "task.foreground_share": {"uniform": [0.0, 0.75]},
    }
    ours = [base.network for base in bases if "." not in base.network.model]
    if ours:  # a network of one's own has none of these
        space["network.start_filters"] = {"choice": [16, 32]}
        dims = {(network.dim, network.pool_z) for network in ours}
        blocks = [n for n in (3, 4, 5) if all(_can_pool(task.tile, n, *dim) for dim in dims)]
        if blocks:
            space["network.n_blocks"] = {"choice": blocks}
        space["network.normalization"] = {"choice": ["batch", "instance", "group"]}
    return space


def _can_pool(tile: tuple[int, int, int], blocks: int, dim: int, pool_z: int) -> bool:
    """Whether tiles can be halved as often as so many blocks do."""
    try:
        check_shape(tile[-dim:], pooling_factors(blocks, dim, pool_z)[-dim:])
    except ValueError:
        return False
    return True
