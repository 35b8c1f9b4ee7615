"""Fixtures of the viewer's tests: a headless browser, and servers of scenes that are closed in the end."""

import contextlib
import csv
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.viewer.chunk_memory import ChunkMemory
from kasthuri_ray.viewer.data_server import ViewerServer
from kasthuri_ray.viewer.layers import Scene, VoxelLayer
from kasthuri_ray.viewer.screenshot import FLAGS, find_browser
from kasthuri_ray.viewer.served_levels import serve_levels
from kasthuri_ray.viewer.viewer_state import viewer_state

SIZE_NM = (30.0, 6.0, 6.0)


@pytest.fixture(scope="session")
def browser_program() -> str:
    """Return an installed browser."""
    try:
        return find_browser(None)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def chromium(browser_program) -> Iterator[Any]:
    """Yield a headless browser of playwright."""
    from playwright.sync_api import sync_playwright

    flags = [flag for flag in FLAGS if not flag.startswith("--headless")]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_program, args=flags)
        yield browser
        browser.close()


class Shown:
    """A page of the viewer in a browser."""

    def __init__(self, page: Any, server: ViewerServer) -> None:
        self.page, self.server = page, server
        page.goto(server.url)
        page.wait_for_function("() => window.viewer !== undefined", timeout=60_000)

    def state(self) -> dict[str, Any]:
        """Return the state that the browser has."""
        return json.loads(self.page.evaluate("() => JSON.stringify(window.viewer.state.toJSON())"))

    def press(self, key: str) -> None:
        """Press a key at once, also while the browser still draws what changed last."""
        self.page.keyboard.press(key)

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 60) -> Any:
        """Wait until a condition holds, while the page works."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline, "it did not happen in time"
            self.page.wait_for_timeout(200)
        return found


@pytest.fixture
def show_page(chromium) -> Iterator[Callable[[ViewerServer], Shown]]:
    """Return `show_page(server)`, which opens the viewer in a browser."""
    with contextlib.ExitStack() as stack:

        def show(server: ViewerServer) -> Shown:
            context = chromium.new_context(viewport={"width": 800, "height": 600})
            stack.callback(context.close)
            return Shown(context.new_page(), server)

        yield show


@pytest.fixture
def serve() -> Iterator[Callable[[Scene], ViewerServer]]:
    """Return `serve(scene)`, which serves a scene until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(scene: Scene) -> ViewerServer:
            server = ViewerServer()
            stack.callback(server.close)
            server.serve(scene)
            server.viewer.set_state(viewer_state(scene, server.data_url))
            return server

        yield start


@pytest.fixture
def make_layer() -> Callable[..., VoxelLayer]:
    """Return `make_layer(volume, name, style, content)`, a layer of one volume."""

    def make(volume: Any, name: str = "image", style: str = "image", content: str = "image", **more: Any) -> VoxelLayer:
        levels = tuple(serve_levels([volume], ChunkMemory(), content))
        return VoxelLayer(name, style, levels, **more)

    return make


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    """Return `make_scene(*layers, ...)`, a scene of voxels of 30 x 6 x 6 nm."""

    def make(*layers: VoxelLayer, position: Any = (15.0, 300.0, 300.0), points: Any = (), **more: Any) -> Scene:
        known = {"voxel_size": SIZE_NM, "has_size": True, "zoom": 1.0, "title": "test", **more}
        return Scene(voxel_layers=layers, point_layers=tuple(points), position=position, **known)

    return make


@pytest.fixture(scope="session")
def fetch() -> Callable[[str], tuple[int, bytes]]:
    """Return `fetch(url)`, which returns the status and the content of an address."""

    def get(url: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    return get


@pytest.fixture
def make_ome_pyramid(tmp_path) -> Callable[..., tuple[str, list[Any]]]:
    """Return `make_ome_pyramid(shapes)`, which writes an OME-Zarr and returns its path and its arrays."""
    import numpy as np
    import zarr

    def make(shapes: list[tuple[int, int, int]], name: str = "em.zarr", chunks: Any = (1, 128, 128)) -> Any:
        path = str(tmp_path / name)
        group = zarr.open_group(path, mode="w")
        datasets, arrays = [], []
        for number, shape in enumerate(shapes):
            factors = [shapes[0][axis] / shape[axis] for axis in range(3)]
            scale = [size * round(factor) for size, factor in zip(SIZE_NM, factors, strict=True)]
            shift = [(a - b) / 2 for a, b in zip(scale, SIZE_NM, strict=True)]
            transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": shift}]
            datasets.append({"path": f"s{number}", "coordinateTransformations": transformations})
            voxels = np.random.default_rng(number).integers(1, 255, shape, np.uint8)
            group.create_array(f"s{number}", shape=shape, chunks=chunks, dtype=np.uint8)[:] = voxels
            arrays.append(voxels)
        axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
        multiscale = {"axes": axes, "datasets": datasets, "name": "em"}
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
        return path, arrays

    return make


@pytest.fixture
def make_output(tmp_path) -> Callable[..., Any]:
    """Return `make_output(image, shape, ...)`, an output with one class and its voxels, without Ray."""
    import numpy as np

    from kasthuri_ray.output.layout import plan_layout
    from kasthuri_ray.output.ome_zarr import OmeZarrOutput, OutputSpec
    from kasthuri_ray.output.pyramid import plan_levels

    def make(image: str, shape: tuple[int, int, int], size: Any = SIZE_NM, **record: Any) -> OmeZarrOutput:
        box = ",".join(f"0:{n}" for n in shape)
        known = {"image": image, "box": box, "block": list(shape), "voxel_size_nm": size and list(size)}
        spec = OutputSpec(
            levels=tuple(plan_levels(shape, size)),
            layout=plan_layout(shape),
            nanometers=size is not None,
            channels=("synapse",),
            name="synapse",
            record={**known, "threshold": 0.5, **record},
        )
        output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), spec)
        voxels = np.random.default_rng(0).integers(0, 255, (1, *shape), np.uint8)
        output.probabilities.write_block(0, spec.levels[0].box, voxels)
        return output

    return make


@pytest.fixture
def write_table() -> Callable[..., None]:
    """Return `write_table(output, rows)`, which writes the table of objects of an output of synapses."""
    from kasthuri_ray.output.side_files import object_table_path

    def write(output: Any, rows: list[dict[str, Any]]) -> None:
        with open(object_table_path(output.path, output.spec.channels), "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)

    return write
