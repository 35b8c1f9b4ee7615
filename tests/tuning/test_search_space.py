"""The space of a sweep: what a file may say, how mistakes are told, and what is searched where there is none."""

import json
import math

import numpy as np
import pytest

from kasthuri_ray.config.loading import resolve_settings
from kasthuri_ray.training.preflight import build_checked_network
from kasthuri_ray.tuning.search_space import SearchDomain, check_not_fixed, default_space, grid_size, parse_space


@pytest.fixture(scope="module")
def base():
    return resolve_settings("synapse", "UNet_2D")


def refused(base, content) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_space(content, base, "mine.json")
    return str(caught.value)


def test_every_kind_is_read_and_checked_against_the_setting(base):
    space = parse_space(
        {
            "network.learning_rate": {"loguniform": [1e-4, 1e-2]},
            "network.start_filters": {"choice": [16, 32]},
            "network.n_blocks": {"int": [3, 5]},
            "task.foreground_share": {"uniform": [0, 0.75]},
            "task.tile_size": {"grid": [[64, 64], [128, 128]]},
            "train.compile": {"choice": ["on", "off"]},
        },
        base,
        "mine.json",
    )
    assert space["network.learning_rate"] == SearchDomain("loguniform", (1e-4, 1e-2))
    assert space["task.foreground_share"] == SearchDomain("uniform", (0.0, 0.75))
    assert space["network.n_blocks"].listed == (3, 4, 5)
    assert space["task.tile_size"].listed == ([64, 64], [128, 128])
    assert grid_size(space) is None
    assert grid_size({key: space[key] for key in ("network.n_blocks", "network.start_filters")}) == 6


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        (
            "network.learning_rat",
            {"choice": [1]},
            "no setting network.learning_rat; did you mean network.learning_rate?",
        ),
        ("learning_rate", {"choice": [1]}, "no setting learning_rate; did you mean network.learning_rate?"),
        ("network", {"choice": ["UNet_2D"]}, "the networks to choose from are given by --networks"),
        ("segment.tile", {"choice": [1]}, "no setting segment.tile"),
        ("train.cache", {"choice": ["none"]}, "train.cache changes nothing that is learnt"),
        ("network.epochs", {"choice": [3]}, "network.epochs cannot be searched: trials of one length"),
        ("network.metric", {"choice": ["val.loss"]}, "--metric sets it for all"),
        (
            "network.loss",
            ["focal"],
            'expected an object with one of choice, grid, uniform, loguniform, int, such as {"choi',
        ),
        ("network.loss", {"choise": ["focal"]}, "there is no 'choise', expected one of"),
        ("network.loss", {"choise": ["focal"]}, "did you mean choice?"),
        ("network.loss", {"choice": []}, "expected a list of at least one value"),
        ("network.loss", {"grid": ["focal", "focal"]}, '"focal" is there twice; keep one of them'),
        ("network.loss", {"choice": ["focal", "foccal"]}, 'network.loss is "foccal": expected'),
        ("network.start_filters", {"choice": [0]}, "network.start_filters is 0: expected greater than or equal to 1"),
        ("network.n_blocks", {"int": [2, 9]}, "network.n_blocks is 9: expected less than or equal to 8"),
        ("network.n_blocks", {"int": [2.0, 4.0]}, "expected two whole numbers, the lowest and the highest value"),
        ("network.n_blocks", {"int": [2]}, "expected two whole numbers"),
        ("network.n_blocks", {"uniform": [2, 4]}, "network.n_blocks is 2.0: expected a valid integer"),
        ("network.ema", {"uniform": [0.9, 0.1]}, "the first must be lower than the second"),
        ("network.ema", {"loguniform": [0, 0.9]}, "a logarithm needs numbers above 0"),
        ("network.ema", {"uniform": [True, 2]}, "expected two numbers"),
        ("network.class_weights", {"choice": [[1.0]]}, "class_weights has 1 values for 2 classes"),
    ],
)
def test_a_mistake_is_told_by_file_key_and_what_is_allowed(base, key, given, words):
    said = refused(base, {key: given})
    assert said.startswith("mine.json: ")
    assert words in said


def test_every_mistake_is_told_at_once(base):
    said = refused(
        base, {"network.loss": {"choice": ["x"]}, "task.z_gab": {"int": [0, 1]}, "network.ema": {"grid": [0.5]}}
    )
    assert [line.split(" ")[1] for line in said.splitlines()] == ["network.loss", "no"]


def test_what_is_searched_is_not_also_set():
    check_not_fixed({"network.loss": 0}, {"network.epochs"}, "mine.json")
    with pytest.raises(ValueError, match=r"mine\.json: network\.loss is searched there and set on the command line"):
        check_not_fixed({"network.loss": 0}, {"network.loss"}, "mine.json")


def test_draws_lie_inside_are_short_and_reach_everywhere():
    random = np.random.default_rng(0)
    rates = [SearchDomain("loguniform", (0.00123, 0.1)).draw(random) for _ in range(2000)]
    assert 0.00123 <= min(rates) <= max(rates) <= 0.1
    assert np.median(rates) == pytest.approx(math.sqrt(0.00123 * 0.1), rel=0.15)
    assert all(len(f"{rate:.3e}") >= len(f"{rate:.10g}") - 3 and float(f"{rate:.3g}") == rate for rate in rates)
    assert {SearchDomain("int", (2, 4)).draw(random) for _ in range(100)} == {2, 3, 4}
    assert {SearchDomain("choice", ("a", "b")).draw(random) for _ in range(100)} == {"a", "b"}
    shares = [SearchDomain("uniform", (0.1, 0.3)).draw(random) for _ in range(1000)]
    assert np.mean(shares) == pytest.approx(0.2, abs=0.01)
    assert type(shares[0]) is float
    assert len({SearchDomain("uniform", (0.999, 0.9999)).draw(random) for _ in range(100)}) > 50
    assert json.dumps(SearchDomain("int", (2, 4)).draw(random))  # no number of numpy's


def test_the_default_space_is_one_that_every_network_of_ours_can_be_built_from():
    for task, networks in (("synapse", ["UNet_2D", "UNet_2D_depth"]), ("membrane", ["UNet_2D_attention"])):
        bases = [resolve_settings(task, name) for name in networks]
        content = default_space(bases, workers=1)
        space = parse_space(content, bases[0], "the default space")
        assert {"network.learning_rate", "network.normalization", "task.foreground_share"} <= space.keys()
        deepest = max(space["network.n_blocks"].listed)
        build_checked_network(
            resolve_settings(task, networks[0], assignments=[f"network.n_blocks={deepest}", "network.start_filters=2"])
        )


def test_the_default_space_keeps_to_the_tiles_and_to_the_workers():
    base = resolve_settings("synapse", "UNet_2D", assignments=["task.tile_size=64,72"])
    found = default_space([base], workers=6)
    assert found["network.n_blocks"] == {"choice": [3, 4]}
    assert found["network.batch_size"] == {"choice": [6, 12, 24]}
    own = resolve_settings("synapse", "UNet_2D", assignments=["network.model=my.Net"])
    assert "network.n_blocks" not in default_space([own], workers=1)
