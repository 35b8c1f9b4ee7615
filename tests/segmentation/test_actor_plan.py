"""Size of a pool of actors."""

import pytest

from kasthuri_ray.segmentation.actor_plan import ActorPlan


def test_a_plan_of_more_actors_at_least_than_at_most_is_refused():
    with pytest.raises(ValueError, match="a pool of 3 to 2 actors with 3 blocks each; expected"):
        ActorPlan(3, 2, 1.0)
