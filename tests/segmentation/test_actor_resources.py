"""How many actors there are, and how many blocks each has in hand."""

import pytest

from kasthuri_ray.config.settings import SegmentSettings
from kasthuri_ray.inference.memory import InferenceSettings
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.segmentation.actor_resources import plan_actors

ARITHMETIC = InferenceSettings("cpu", "float32", False, 2, (1, 64, 64), 1)


@pytest.mark.parametrize(
    ("actors", "blocks", "in_flight"), [(None, 160, 3), (None, 19_999, 3), (None, 20_000, 8), (1, 10_000, 8)]
)
def test_an_actor_with_very_many_blocks_before_it_has_more_in_hand(actors, blocks, in_flight):
    crew = plan_actors(SegmentSettings(actors=actors), ARITHMETIC, ClusterResources(4, 0, 1), blocks)
    assert crew.in_flight == in_flight
    assert (crew.fewest, crew.num_cpus) == (1, 2)
