"""Turns of what a benchmark compares."""

from kasthuri_ray.benchmarks.turns import count_job_blocks, next_candidate

ORDER = ("network", "job", "seed")


def test_everything_has_one_turn_even_if_there_is_no_time() -> None:
    assert next_candidate(ORDER, {}, -5.0, 3) == "network"
    assert next_candidate(ORDER, {"network": [900.0]}, -905.0, 3) == "job"
    assert next_candidate(ORDER, {"network": [1.0], "job": [1.0]}, 0.5, 1) == "seed"


def test_then_the_one_with_the_fewest_turns_is_next_if_it_fits_into_the_time() -> None:
    seconds = {"network": [10.0], "job": [60.0], "seed": [20.0]}
    assert next_candidate(ORDER, seconds, 100.0, 3) == "network"
    seconds["network"].append(12.0)
    assert next_candidate(ORDER, seconds, 60.0, 3) == "job"
    assert next_candidate(ORDER, seconds, 59.0, 3) == "seed"
    assert next_candidate(ORDER, seconds, 12.0, 3) == "network"
    assert next_candidate(ORDER, seconds, 11.0, 3) is None  # its longest turn took 12 s
    assert next_candidate(ORDER, seconds, 1000.0, 1) is None


def test_a_job_has_as_many_blocks_as_there_is_time_for() -> None:
    assert count_job_blocks(4e6, 20.0, 2_000_000, 4, 240) == 40
    assert count_job_blocks(0.3e6, 20.0, 2_000_000, 4, 240) == 4
    assert count_job_blocks(1e3, 20.0, 2_000_000, 4, 240) == 4
    assert count_job_blocks(500e6, 20.0, 2_000_000, 4, 240) == 240
