"""Outputs to write and read: their paths, their spec, random voxels, and writing all of them."""

from __future__ import annotations

import numpy as np
import pytest

from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.output.layout import plan_layout
from kasthuri_ray.output.ome_zarr import OutputSpec
from kasthuri_ray.output.pyramid import plan_levels

SHAPE = (10, 600, 90)
VOXEL_SIZE_NM = (30.0, 12.0, 12.0)
START = (2, 10, 7)


@pytest.fixture(params=["disk", "s3"])
def output(request, tmp_path):
    """Return the path of an output, on the disk or on S3."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return "s3://some-bucket/deep/out.zarr"
    return str(tmp_path / "deep/out.zarr")


@pytest.fixture(scope="session")
def make_spec():
    """`make_spec(...)` returns the spec of an output, with keywords as further entries of its record."""

    def make(channels=("synapse",), mask=None, size=VOXEL_SIZE_NM, shape=SHAPE, **record):
        return OutputSpec(
            levels=tuple(plan_levels(shape, size, START)),
            layout=plan_layout(shape, (4, 128, 64), (4, 64, 32)),
            nanometers=size is not None,
            channels=tuple(channels),
            name="synapse",
            mask=mask,
            record={"image": "file:///em", "box": "2:12,10:610,7:97", **record},
        )

    return make


@pytest.fixture(scope="session")
def random_probabilities():
    """`random_probabilities(...)` returns random voxels, with whole shards of zeros among them."""

    def make(shape=SHAPE, channels=1, seed=0):
        rng = np.random.default_rng(seed)
        voxels = rng.integers(0, 256, (channels, *shape), dtype=np.uint8)
        voxels[:, :4, 128:256] = 0
        return voxels

    return make


@pytest.fixture(scope="session")
def write_output():
    """`write_output(output, voxels, order)` writes all of an output, block by block: every level, and the mask."""

    def write(output, voxels, order=1):
        grid = output.probabilities.grid(0, (4, 256, 64))
        for index in list(grid)[::order]:
            box = grid.box(index)
            part = voxels[(..., *box.slices())]
            output.probabilities.write_block(0, box, part)
            if output.labels:
                output.labels.write_block(0, box, classes_at(part, [0.5] * len(part)))
        for level in output.spec.levels[1:]:
            grid = output.probabilities.grid(level.number)
            for index in list(grid)[::order]:
                for array in output.arrays:
                    array.downsample_block(level.number, grid.box(index))
        return output

    return write
