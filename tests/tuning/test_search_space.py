"""The search space: what a space file may hold, the messages for mistakes, random draws, and the default space."""

import json
import math

import numpy as np
import pytest

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.training.preflight import build_checked_network
from kasthuri_ray.tuning.search_space import SearchDomain, check_not_fixed, default_space, grid_size, parse_space


@pytest.fixture(scope="module")
def base():
    return resolve_settings(GivenSettings("synapse", "UNet_2D"))


def error_message(base, content) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        parse_space(content, base, "mine.json")
    return str(error.value)


def test_every_kind_of_domain_is_parsed(base):
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
    ("key", "domain", "message"),
    [
        (
            "network.learning_rat",
            {"choice": [1]},
            "no setting network.learning_rat; did you mean network.learning_rate?",
        ),
        ("learning_rate", {"choice": [1]}, "no setting learning_rate; did you mean network.learning_rate?"),
        ("network", {"choice": ["UNet_2D"]}, "--networks names the networks to choose from; remove the key network"),
        ("segment.tile", {"choice": [1]}, "no setting segment.tile"),
        ("train.cache", {"choice": ["none"]}, "train.cache does not change what a network learns"),
        ("network.epochs", {"choice": [3]}, "network.epochs cannot be searched: trials of equal length"),
        ("network.metric", {"choice": ["val.loss"]}, "--metric sets it for all"),
        (
            "network.loss",
            ["focal"],
            'expected an object with one of choice, grid, uniform, loguniform, int, such as {"choi',
        ),
        ("network.loss", {"choise": ["focal"]}, "unknown kind 'choise', expected one of"),
        ("network.loss", {"choise": ["focal"]}, "did you mean choice?"),
        ("network.loss", {"choice": []}, "expected a list of at least one value"),
        ("network.loss", {"grid": ["focal", "focal"]}, '"focal" is listed twice; keep one of them'),
        ("network.loss", {"choice": ["focal", "foccal"]}, 'network.loss is "foccal": expected'),
        ("network.start_filters", {"choice": [0]}, "network.start_filters is 0: expected greater than or equal to 1"),
        ("network.n_blocks", {"int": [2, 9]}, "network.n_blocks is 9: expected less than or equal to 8"),
        ("network.n_blocks", {"int": [2.0, 4.0]}, "expected two whole numbers, the lowest and the highest value"),
        ("network.n_blocks", {"int": [2]}, "expected two whole numbers"),
        ("network.n_blocks", {"uniform": [2, 4]}, "network.n_blocks is 2.0: expected a whole number"),
        ("network.ema", {"uniform": [0.9, 0.1]}, "the first must be lower than the second"),
        ("network.ema", {"loguniform": [0, 0.9]}, "loguniform needs numbers above 0"),
        ("network.ema", {"uniform": [True, 2]}, "expected two numbers"),
        ("network.class_weights", {"choice": [[1.0]]}, "class_weights has 1 values for 2 classes"),
    ],
)
def test_the_error_names_file_and_key_and_what_is_allowed(base, key, domain, message):
    error = error_message(base, {key: domain})
    assert error.startswith("mine.json: ")
    assert message in error


def test_one_error_names_every_mistake(base):
    error = error_message(
        base, {"network.loss": {"choice": ["x"]}, "task.z_gab": {"int": [0, 1]}, "network.ema": {"grid": [0.5]}}
    )
    assert [line.split(" ")[1] for line in error.splitlines()] == ["network.loss", "no"]


def test_a_setting_cannot_be_both_searched_and_set():
    check_not_fixed({"network.loss": 0}, {"network.epochs"}, "mine.json")
    with pytest.raises(ValueError, match=r"mine\.json: network\.loss is searched here and set on the command line"):
        check_not_fixed({"network.loss": 0}, {"network.loss"}, "mine.json")


def test_draws_are_short_numbers_that_cover_the_whole_range_and_no_more():
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
    assert json.dumps(SearchDomain("int", (2, 4)).draw(random))  # a Python number, not one of numpy


def test_every_built_in_network_can_be_built_from_the_default_space():
    for task, networks in (("synapse", ["UNet_2D", "UNet_2D_depth"]), ("membrane", ["UNet_2D_attention"])):
        bases = [resolve_settings(GivenSettings(task, name)) for name in networks]
        content = default_space(bases, num_workers=1)
        space = parse_space(content, bases[0], "the default space")
        assert {"network.learning_rate", "network.normalization", "task.foreground_share"} <= space.keys()
        deepest = max(space["network.n_blocks"].listed)
        build_checked_network(
            resolve_settings(
                GivenSettings(task, networks[0], assignments=[f"network.n_blocks={deepest}", "network.start_filters=2"])
            )
        )


def test_the_default_space_fits_the_tiles_and_the_number_of_workers():
    base = resolve_settings(GivenSettings("synapse", "UNet_2D", assignments=["task.tile_size=64,72"]))
    space = default_space([base], num_workers=6)
    assert space["network.n_blocks"] == {"choice": [3, 4]}
    assert space["network.batch_size"] == {"choice": [6, 12, 24]}
    own = resolve_settings(GivenSettings("synapse", "UNet_2D", assignments=["network.model=my.Net"]))
    assert "network.n_blocks" not in default_space([own], num_workers=1)
