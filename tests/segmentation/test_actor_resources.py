"""Resources of actors: how many there are, how many blocks each holds, the sample of a plan, and kept memory."""

import platform
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kasthuri_ray.config.settings import SegmentSettings
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.inference.tiling import plan_tiles
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.segmentation.actor_resources import SAMPLE_VOXELS, actor_class, plan_actors, sample_block

INFERENCE = InferenceSettings("cpu", "float32", False, 2, (1, 64, 64), 1)
KASTHURI = "phantom://em?shape=1850,26624,21504"
LARGE_BYTES = 100_000_000  # as of an activation


@pytest.mark.parametrize(
    ("actors", "num_blocks", "in_flight"), [(None, 160, 3), (None, 19_999, 3), (None, 20_000, 8), (1, 10_000, 8)]
)
def test_an_actor_with_very_many_blocks_before_it_holds_more_at_once(actors, num_blocks, in_flight):
    plan = plan_actors(SegmentSettings(actors=actors), INFERENCE, ClusterResources(4, 0, 1), num_blocks)
    assert plan.in_flight == in_flight
    assert (plan.min_actors, plan.num_cpus) == (1, 2)


@pytest.mark.parametrize("tile", [(1, 1264, 1264), (1, 72, 72)])
def test_the_sample_is_a_tile_in_the_middle_that_takes_seconds(run, make_job, tmp_path, tile):
    job = make_job(run, tmp_path / "out.zarr", image=KASTHURI, tile=tile)
    sample = sample_block(job)
    assert job.box.contains(sample)
    core = tuple(n - 2 * h for n, h in zip(tile, job.halo, strict=True))
    assert sample.shape == (2, *core[1:])
    tiles = plan_tiles(sample, job.image.bounds.start, job.receptive_field.margin, job.receptive_field.factors, tile)
    assert {one.input.shape for one in tiles} == {tile}
    assert sum(one.input.num_voxels for one in tiles) <= SAMPLE_VOXELS["cpu"]


def test_the_sample_in_3d_is_made_smaller_until_it_takes_seconds(write_run, make_job, tmp_path):
    run = write_run(tmp_path / "run3d", dim=3)
    job = make_job(run, tmp_path / "out.zarr", image=KASTHURI, tile=(128, 512, 256))
    tiling = (job.image.bounds.start, job.receptive_field.margin, job.receptive_field.factors, job.inference.tile)
    computed = sum(one.input.num_voxels for one in plan_tiles(sample_block(job), *tiling))
    assert SAMPLE_VOXELS["cpu"] / 3 < computed <= SAMPLE_VOXELS["cpu"] * 1.1


class PageFaultCounter:
    """An actor that counts the page faults of its network thread for large arrays, once the thread has made some."""

    def __init__(self, job) -> None:
        self._computing = ThreadPoolExecutor(1)

    def count(self) -> int:
        from kasthuri_ray.process_resources import configure_allocator

        self._computing.submit(configure_allocator).result()  # as in an actor, whose threads exist already
        return self._computing.submit(self._count).result()

    @staticmethod
    def _count() -> int:
        np.ones(LARGE_BYTES, np.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            np.ones(LARGE_BYTES, np.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps memory this way")
def test_memory_that_the_network_of_an_actor_frees_is_kept_for_its_next_tile(local_ray):
    handle = actor_class(PageFaultCounter).options(num_cpus=0.1, max_concurrency=4).remote(None)
    try:
        assert local_ray.get(handle.count.remote(), timeout=60) < 100  # thousands if memory is not kept
    finally:
        local_ray.kill(handle)
