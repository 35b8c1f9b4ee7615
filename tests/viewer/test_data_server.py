"""The server: one port, a token in every address, and voxels that another reader of precomputed volumes reads alike."""

import concurrent.futures
import json

import numpy as np
import pytest
import tensorstore as ts

from kasthuri_ray.errors import InputError
from kasthuri_ray.viewer import served_levels
from kasthuri_ray.viewer.data_server import ViewerServer
from kasthuri_ray.viewer.layer_maker import grey_range
from kasthuri_ray.viewer.layers import Point, PointLayer
from kasthuri_ray.viewer.viewer_state import MAX_POINTS
from kasthuri_ray.volumes.place import Place


def open_served(server, name, scale=0):
    """Return a served volume as tensorstore opens it: x, y, z, channel."""
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"{server.data_url}/{name}/",
        "scale_index": scale,
    }
    return ts.open(spec, read=True).result()


@pytest.mark.parametrize(
    ("dtype", "style", "expected"),
    [
        (np.uint8, "image", np.uint8),
        (np.uint16, "image", np.uint16),
        (np.float64, "image", np.float32),
        (np.int64, "segmentation", np.uint64),
        (np.uint32, "segmentation", np.uint32),
        (bool, "segmentation", np.uint8),
    ],
)
def test_tensorstore_reads_the_voxels_that_are_served(
    array_volume, make_layer, make_scene, serve, dtype, style, expected
):
    voxels = np.random.default_rng(0).integers(0, 2 if dtype is bool else 120, (5, 70, 45)).astype(dtype)
    content = "labels" if style == "segmentation" else "image"
    volume = array_volume(voxels, chunk=(2, 32, 32), offset=(3, 10, 20), place=Place((0, 0, 0), "corner", "offset"))
    server = serve(make_scene(make_layer(volume, "em", style, content)))
    store = open_served(server, "em")
    assert store.dtype.numpy_dtype == expected
    assert store.domain.inclusive_min[:3] == (20, 10, 3)
    found = np.asarray(store[ts.d["channel"][0]].read().result()).transpose()
    np.testing.assert_array_equal(found, voxels)


@pytest.mark.parametrize("style", ["image", "overlay"])
def test_a_mask_of_bools_is_sent_with_the_lowest_and_the_highest_grey_level(
    array_volume, make_layer, make_scene, serve, style
):
    voxels = np.random.default_rng(0).integers(0, 2, (2, 30, 40)).astype(bool)
    volume = array_volume(voxels)
    store = open_served(serve(make_scene(make_layer(volume, "em", style))), "em")
    assert store.dtype.numpy_dtype == np.uint8
    np.testing.assert_array_equal(np.asarray(store[ts.d["channel"][0]].read().result()).transpose(), 255 * voxels)
    assert grey_range(volume) == (0, 255)


def test_a_made_level_is_served_with_its_own_voxel_size(array_volume, make_layer, make_scene, serve):
    voxels = np.random.default_rng(0).integers(0, 255, (2, 700, 600), np.uint8)
    server = serve(make_scene(make_layer(array_volume(voxels, chunk=(1, 128, 128)))))
    coarse = open_served(server, "image", 1)
    assert [unit.multiplier for unit in coarse.dimension_units[:3]] == [12, 12, 30]
    found = np.asarray(coarse[ts.d["channel"][0]].read().result()).transpose()
    np.testing.assert_array_equal(found, served_levels.reduce_cells(voxels, (1, 2, 2), "image"))


def test_nothing_else_is_served(array_volume, make_layer, make_scene, serve, fetch, tmp_path):
    server = serve(make_scene(make_layer(array_volume(np.ones((2, 40, 40), np.uint8)))))
    base = f"http://127.0.0.1:{server.port}"
    assert fetch(server.url)[0] == 200
    assert fetch(f"{server.data_url}/image/info")[0] == 200
    for path in (
        "/",
        "/v/wrong/",
        "/data/wrong/image/info",
        f"/data/{server.token}/",
        f"/data/{server.token}/other/info",
        f"/data/{server.token}/image/provenance",
        f"/data/{server.token}/image/s0/0-40_0-40_0-3",
        f"/data/{server.token}/image/s9/0-40_0-40_0-2",
        f"/data/{server.token}/image/segment_properties/info",
        f"/data/{server.token}/image/../../../../etc/passwd",
        f"/data/{server.token}/%2e%2e/%2e%2e/etc/passwd",
        f"/v/{server.token}/../../../etc/passwd",
        f"/neuroglancer/info/{server.token}.image",
    ):
        assert fetch(base + path)[0] == 404, path


def test_the_viewer_hands_out_no_credentials(array_volume, make_layer, make_scene, serve):
    import urllib.error
    import urllib.request

    server = serve(make_scene(make_layer(array_volume(np.ones((2, 40, 40), np.uint8)))))
    url = f"http://127.0.0.1:{server.port}/credentials/{server.token}"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(url, data=b"{}", timeout=30)


def test_two_servers_have_two_ports_and_two_tokens(serve, make_scene, make_layer, array_volume):
    scene = make_scene(make_layer(array_volume(np.ones((2, 40, 40), np.uint8))))
    one, other = serve(scene), serve(scene)
    assert one.port != other.port
    assert one.token != other.token
    assert len(one.token) >= 40


def test_a_port_that_is_taken_is_bad_input(serve, make_scene, make_layer, array_volume):
    server = serve(make_scene(make_layer(array_volume(np.ones((2, 40, 40), np.uint8)))))
    with pytest.raises(InputError, match=f"port {server.port}"):
        ViewerServer(port=server.port)


def test_a_source_that_fails_is_an_answer_with_its_message(array_volume, make_layer, make_scene, serve, fetch):
    volume = array_volume(np.ones((2, 40, 40), np.uint8))
    layer = make_layer(volume)
    volume.array = None
    server = serve(make_scene(layer))
    status, content = fetch(f"{server.data_url}/image/s0/0-40_0-40_0-2")
    assert status == 503
    assert content
    assert len(server.failures) == 1


def test_at_most_eight_reads_run_at_once_whatever_is_asked_for(array_volume, make_layer, make_scene, serve, fetch):
    volume = array_volume(np.ones((64, 256, 256), np.uint8), chunk=(1, 256, 256), seconds=0.05)
    server = serve(make_scene(make_layer(volume)))
    most = [0]
    inner, running = type(volume)._read, []

    def counted(self, box):
        running.append(box)
        most[0] = max(most[0], len(running))
        try:
            return inner(self, box)
        finally:
            running.remove(box)

    with pytest.MonkeyPatch.context() as patch, concurrent.futures.ThreadPoolExecutor(40) as pool:
        patch.setattr(type(volume), "_read", counted)
        urls = [f"{server.data_url}/image/s0/0-256_0-256_{z}-{z + 1}" for z in range(64)]
        assert {status for status, _ in pool.map(fetch, urls)} == {200}
    assert most[0] <= 8


def test_the_rows_of_a_table_are_segment_properties(array_volume, make_layer, make_scene, serve, fetch):
    rows = [{"id": 3, "mean_probability": 0.5, "class": "b"}, {"id": 7, "mean_probability": 0.75, "class": "a"}]
    layer = make_layer(array_volume(np.ones((2, 40, 40), np.uint32)), "objects", "segmentation", "labels", rows=rows)
    server = serve(make_scene(layer))
    assert json.loads(fetch(f"{server.data_url}/objects/info")[1])["segment_properties"] == "segment_properties"
    found = json.loads(fetch(f"{server.data_url}/objects/segment_properties/info")[1])
    assert found["@type"] == "neuroglancer_segment_properties"
    assert found["inline"]["ids"] == ["3", "7"]
    by_name = {each["id"]: each for each in found["inline"]["properties"]}
    assert by_name["mean_probability"]["values"] == [0.5, 0.75]
    assert [by_name["class"]["tags"][value[0]] for value in by_name["class"]["values"]] == ["b", "a"]


def test_more_points_than_the_state_holds_are_served_cell_by_cell(array_volume, make_layer, make_scene, serve, fetch):
    number = MAX_POINTS + 5000
    places = np.random.default_rng(0).random((number, 3)) * (3000, 60000, 60000)
    points = [Point(n + 1, tuple(place), properties={"p": n / number}) for n, place in enumerate(places.tolist())]
    scene = make_scene(
        make_layer(array_volume(np.ones((2, 40, 40), np.uint8))), points=[PointLayer("synapses", points)]
    )
    server = serve(scene)
    info = json.loads(fetch(f"{server.data_url}/synapses/info")[1])
    assert info["@type"] == "neuroglancer_annotations_v1"
    found = {}
    record = np.dtype([("place", "<f4", 3), ("p", "<f4")])
    for level in info["spatial"]:
        for cell in np.ndindex(*level["grid_shape"]):
            status, content = fetch(f"{server.data_url}/synapses/{level['key']}/{'_'.join(map(str, cell))}")
            if status == 404:
                continue
            count = int(np.frombuffer(content[:8], "<u8")[0])
            assert count <= level["limit"]
            rows = np.frombuffer(content[8 : 8 + count * record.itemsize], record)
            ids = np.frombuffer(content[8 + count * record.itemsize :], "<u8")
            low = np.array(info["lower_bound"]) + np.array(cell) * level["chunk_size"]
            assert (rows["place"] >= low - 1e-2).all()
            assert (rows["place"] <= low + level["chunk_size"] + 1e-2).all()
            found |= {int(n): tuple(place) for n, place in zip(ids, rows["place"], strict=True)}
    assert found.keys() == {point.id for point in points}
    np.testing.assert_allclose(found[17], places[16][::-1] / (6, 6, 30), rtol=1e-5)
    one = np.frombuffer(fetch(f"{server.data_url}/synapses/by_id/17")[1], record)
    np.testing.assert_allclose(one["place"][0], found[17])
    assert fetch(f"{server.data_url}/synapses/by_id/{number + 1}")[0] == 404
