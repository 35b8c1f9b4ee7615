"""How many actors there are, and how many blocks each has in hand."""

import pytest

from kasthuri_ray.config import Segment
from kasthuri_ray.resources import Cluster
from kasthuri_ray.segmentation.crew import plan_crew
from kasthuri_ray.segmentation.predictor import Arithmetic

ARITHMETIC = Arithmetic("cpu", "float32", False, 2, (1, 64, 64), 1)


@pytest.mark.parametrize(
    ("actors", "blocks", "in_flight"), [(None, 160, 3), (None, 19_999, 3), (None, 20_000, 8), (1, 10_000, 8)]
)
def test_an_actor_with_very_many_blocks_before_it_has_more_in_hand(actors, blocks, in_flight):
    crew = plan_crew(Segment(actors=actors), ARITHMETIC, Cluster(4, 0, 1), blocks)
    assert crew.in_flight == in_flight
    assert (crew.fewest, crew.num_cpus) == (1, 2)
