"""The line of docs/viewing.md that opens an output in napari; skipped where napari and its plugin are not installed."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from kasthuri_ray.output.layout import plan_layout
from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec
from kasthuri_ray.output.pyramid import plan_levels

PAGE = Path(__file__).resolve().parents[2] / "docs" / "viewing.md"


def test_napari_opens_an_output_with_its_plugin_at_the_right_scale(tmp_path):
    components = pytest.importorskip("napari.components")
    plugins = pytest.importorskip("napari.plugins")
    pytest.importorskip("napari_ome_zarr")
    (line,) = re.findall(r"^napari .*$", PAGE.read_text(), re.MULTILINE)
    _, flag, plugin, name = shlex.split(line)
    assert flag == "--plugin"
    shape = (4, 64, 64)
    spec = OutputSpec(
        levels=tuple(plan_levels(shape, (30.0, 6.0, 6.0))),
        layout=plan_layout(shape),
        nanometers=True,
        channels=("synapse",),
        name="synapse",
    )
    output = OmeZarrOutput.create(str(tmp_path / name), spec)
    voxels = np.random.default_rng(0).integers(0, 255, (1, *shape), np.uint8)
    output.probabilities.write_block(0, spec.levels[0].box, voxels)
    plugins._initialize_plugins()
    viewer = components.ViewerModel()
    viewer.open(str(tmp_path / name), plugin=plugin)
    layer = viewer.layers[0]
    data = layer.data[0] if layer.multiscale else layer.data
    np.testing.assert_array_equal(np.asarray(data).reshape(shape), voxels[0])
    assert tuple(layer.scale[-3:]) == (30, 6, 6)
