"""The viewer in a real browser: what it says of its state, and pixels of image, overlay, segments and points."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from kasthuri_ray.errors import WorkFailed
from kasthuri_ray.output.reviewed_file import read_reviewed
from kasthuri_ray.viewer.layers import Point, PointLayer
from kasthuri_ray.viewer.object_table import table_points
from kasthuri_ray.viewer.review import Review, ReviewFile
from kasthuri_ray.viewer.screenshot import is_empty, take_screenshot
from kasthuri_ray.viewer.viewer_keys import PointWalk

pytestmark = pytest.mark.browser

SIZE = (300, 200)


def picture(server, browser, size=SIZE):
    """Return the pixels of a screenshot, y, x, rgb."""
    png = take_screenshot(server, browser, size)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert pixels.shape == (size[1], size[0], 3)
    return pixels


def at(pixels, y, x, position=(100, 100)):
    """Return the colour of a voxel of the section, one voxel a pixel, with the view around a voxel y, x."""
    return pixels[int(pixels.shape[0] / 2 + y - position[0] + 0.5), int(pixels.shape[1] / 2 + x - position[1] + 0.5)]


@pytest.fixture
def grey_image(array_volume):
    """Return an image of 3 x 200 x 200 voxels whose left half is 60 and whose right half is 180."""
    voxels = np.full((3, 200, 200), 60, np.uint8)
    voxels[:, :, 100:] = 180
    return array_volume(voxels, chunk=(1, 64, 64))


POSITION = (45.0, 600.0, 600.0)  # the corner of voxel 100, 100 in the middle of section 1


def test_the_image_has_its_grey_levels_at_its_places(grey_image, make_layer, make_scene, serve, browser_program):
    layer = make_layer(grey_image, grey_range=(0.0, 255.0))
    pixels = picture(serve(make_scene(layer, position=POSITION)), browser_program)
    for x, grey in ((40, 60), (98, 60), (102, 180), (160, 180)):
        assert np.abs(at(pixels, 100, x) - grey).max() <= 1, x


def test_an_overlay_and_segments_lie_on_the_voxels_that_they_are_of(
    grey_image, array_volume, make_layer, make_scene, serve, browser_program
):
    probability = np.zeros((3, 200, 200), np.uint8)
    probability[1, 60:70, 60:70] = 255
    ids = np.zeros((3, 200, 200), np.uint32)
    ids[1, 120:140, 130:150] = 7
    layers = [
        make_layer(grey_image, grey_range=(0.0, 255.0)),
        make_layer(array_volume(probability), "synapse", "overlay", "probability", color="#ff0000"),
        make_layer(array_volume(ids), "mask", "segmentation", "labels", color="#00ff00"),
    ]
    pixels = picture(serve(make_scene(*layers, position=POSITION)), browser_program)
    red, green, blue = at(pixels, 65, 65)
    assert red > 150 > green
    assert abs(green - blue) <= 1
    red, green, blue = at(pixels, 130, 140)
    assert green > 180 > red
    for y, x in ((50, 65), (65, 80), (110, 140), (150, 120)):
        assert np.ptp(at(pixels, y, x)) == 0, (y, x)


def test_a_prediction_that_is_a_mask_of_bools_is_drawn_as_a_full_overlay(
    grey_image, array_volume, make_layer, make_scene, serve, browser_program
):
    mask = np.zeros((3, 200, 200), bool)
    mask[1, 60:70, 60:70] = True
    layers = [
        make_layer(grey_image, grey_range=(0.0, 255.0)),
        make_layer(array_volume(mask), "prediction", "overlay", color="#ff0000"),
    ]
    pixels = picture(serve(make_scene(*layers, position=POSITION)), browser_program)
    red, green, blue = at(pixels, 65, 65)
    assert red > 150 > green
    assert abs(green - blue) <= 1
    assert np.ptp(at(pixels, 65, 80)) == 0


def test_a_volume_of_another_voxel_size_and_place_lies_at_its_place_in_nm(
    grey_image, array_volume, make_layer, make_scene, serve, browser_program
):
    from kasthuri_ray.volumes.place import Place

    coarse = np.zeros((3, 10, 10), np.uint8)
    coarse[:, 5, 5] = 255  # 24 nm wide: voxels 70 + 5 * 4 to 74 + 5 * 4 of the image, whose voxels are 6 nm wide
    place = Place((0.0, 420.0, 420.0), "corner", "offset")
    volume = array_volume(coarse, voxel_size_nm=(30.0, 24.0, 24.0), place=place)
    layers = [make_layer(grey_image, grey_range=(0.0, 255.0)), make_layer(volume, "p", "overlay", "probability")]
    pixels = picture(serve(make_scene(*layers, position=POSITION)), browser_program)
    is_red = (pixels[..., 0] - pixels[..., 1] > 20) & (pixels[..., 1] - pixels[..., 2] < 20)  # frames are yellow
    colored = np.argwhere(is_red)
    low, high = colored.min(0), colored.max(0)
    expected = np.array([SIZE[1] / 2 + 90 - 100, SIZE[0] / 2 + 90 - 100])
    assert np.abs(low - expected).max() <= 1
    assert np.abs(high - (expected + 3)).max() <= 1


def test_a_point_is_drawn_at_its_place(grey_image, make_layer, make_scene, serve, browser_program):
    point = Point(1, (45.0, 130.5 * 6, 40.5 * 6), properties={"p": 0.5})
    scene = make_scene(
        make_layer(grey_image, grey_range=(0.0, 255.0)),
        points=[PointLayer("synapses", [point], "#ffee00")],
        position=POSITION,
    )
    pixels = picture(serve(scene), browser_program)
    red, green, blue = at(pixels, 130, 40)
    assert min(red, green) > 200 > 50 > blue
    assert np.ptp(at(pixels, 130, 55)) == 0


def test_many_points_come_from_the_server(grey_image, make_layer, make_scene, serve, browser_program, monkeypatch):
    monkeypatch.setattr("kasthuri_ray.viewer.viewer_state.MAX_POINTS", 10)
    monkeypatch.setattr("kasthuri_ray.viewer.data_server.MAX_POINTS", 10)
    places = [(45.0, 6 * (20.5 + 20 * n), 6 * 40.5) for n in range(9)] + [(15.0, 3.0, 3.0)] * 30
    points = [Point(n + 1, place, properties={"p": 0.5}) for n, place in enumerate(places)]
    scene = make_scene(
        make_layer(grey_image, grey_range=(0.0, 255.0)),
        points=[PointLayer("synapses", points, "#ffee00")],
        position=POSITION,
    )
    pixels = picture(serve(scene), browser_program)
    for n in range(1, 7):  # above the scale bar
        red, green, blue = at(pixels, 20 + 20 * n, 40)
        assert min(red, green) > 200 > 50 > blue, n


def test_the_browser_has_the_state_that_was_set(grey_image, make_layer, make_scene, serve, show_page):
    scene = make_scene(make_layer(grey_image), position=POSITION, layout="4panel")
    shown = show_page(serve(scene))
    state = shown.wait_until(lambda: shown.state() if shown.state().get("layers") else None)
    assert state["position"] == [100, 100, 1.5]
    assert state["dimensions"] == {"x": [6e-9, "m"], "y": [6e-9, "m"], "z": [3e-8, "m"]}
    assert state["layout"] == "4panel"
    assert [layer["name"] for layer in state["layers"]] == ["image"]


def test_an_empty_canvas_and_a_source_that_fails_are_failures(
    array_volume, make_layer, make_scene, serve, browser_program
):
    empty = serve(make_scene(make_layer(array_volume(np.full((2, 300, 300), 9, np.uint8))), position=(15, 900, 900)))
    with pytest.raises(WorkFailed, match="the picture is empty"):
        take_screenshot(empty, browser_program, (200, 150))
    broken = array_volume(np.ones((2, 300, 300), np.uint8))
    layer = make_layer(broken)
    broken.array = None
    with pytest.raises(WorkFailed, match="a layer cannot be read"):
        take_screenshot(serve(make_scene(layer, position=(15, 900, 900))), browser_program, (200, 150))


def make_objects():
    """Return ids of three objects in section 1, and the rows of their table."""
    ids = np.zeros((3, 200, 200), np.uint32)
    rows = []
    for number, (y, x) in enumerate(((40, 40), (100, 100), (150, 60)), 1):
        ids[1, y : y + 20, x : x + 20] = number
        centroid = {"centroid_z_nm": 30.0, "centroid_y_nm": (y + 9.5) * 6, "centroid_x_nm": (x + 9.5) * 6}
        rows.append({"id": number, **centroid, "size_voxels": 400, "mean_probability": 0.5 + number / 10})
    return ids, rows


def test_verdicts_by_keys_are_in_the_file_at_once_and_the_review_resumes(
    grey_image, array_volume, make_layer, make_scene, serve, show_page, tmp_path
):
    ids, rows = make_objects()
    path = str(tmp_path / "out.zarr.reviewed.csv")
    layers = [make_layer(grey_image), make_layer(array_volume(ids), "objects", "segmentation", "labels", rows=rows)]
    scene = make_scene(*layers, position=POSITION)
    places = {point.id: point.position for point in table_points(rows, (15.0, 3.0, 3.0))}

    def start():
        server = serve(scene)
        Review(server, scene, ReviewFile(path, rows, 3), places.__getitem__, walks=True)
        shown = show_page(server)
        shown.wait_until(lambda: selected(shown))
        shown.page.mouse.move(400, 250)
        shown.page.wait_for_timeout(500)
        return shown

    def selected(shown):
        return [layer.get("segments") for layer in shown.state().get("layers", []) if layer["name"] == "objects"][-1:]

    def decided():
        return {each.id: each.verdict for each in read_reviewed(path) if each.verdict}

    order = [each.id for each in ReviewFile(path, rows, 3).drawn]
    shown = start()
    assert selected(shown) == [[str(order[0])]]
    z, y, x = places[order[0]]
    np.testing.assert_allclose(shown.state()["position"], (x / 6, y / 6, z / 30))
    shown.press("k")
    shown.wait_until(lambda: decided() == {order[0]: "keep"})
    shown.wait_until(lambda: selected(shown) == [[str(order[1])]])
    shown.press("r")
    shown.wait_until(lambda: decided() == {order[0]: "keep", order[1]: "reject"})
    again = start()
    assert selected(again) == [[str(order[2])]]
    again.press("u")
    again.wait_until(lambda: decided() == {order[0]: "keep", order[1]: "reject", order[2]: "unsure"})
    again.wait_until(lambda: selected(again) == [[str(order[0])]])  # nothing is left: it begins again
    again.press("p")
    again.wait_until(lambda: selected(again) == [[str(order[2])]])


def test_no_key_of_a_review_is_lost_however_quickly_it_follows_the_one_before(
    grey_image, array_volume, make_layer, make_scene, serve, show_page, tmp_path
):
    ids, rows = make_objects()
    path = str(tmp_path / "out.zarr.reviewed.csv")
    layers = [make_layer(grey_image), make_layer(array_volume(ids), "objects", "segmentation", "labels", rows=rows)]
    scene = make_scene(*layers, position=POSITION)
    server = serve(scene)
    file = ReviewFile(path, rows, 3)
    Review(server, scene, file, lambda number: POSITION, walks=True)
    shown = show_page(server)
    segments = "() => window.viewer.state.toJSON().layers?.filter(each => each.name === 'objects')[0]?.segments?.[0]"
    shown.wait_until(lambda: shown.page.evaluate(segments) == str(file.drawn[0].id))
    for number in range(1, 13):  # without the mouse over a section, as soon as the browser has the next state
        shown.press("n")
        expected = str(file.drawn[number % 3].id)
        shown.page.wait_for_function(f"() => ({segments})() === {expected!r}", timeout=60_000)
    for _ in range(12):  # and before it has it
        shown.press("n")
    shown.wait_until(lambda: shown.page.evaluate(segments) == str(file.drawn[24 % 3].id))
    shown.press("k")
    shown.wait_until(lambda: [each.id for each in read_reviewed(path) if each.verdict] == [file.drawn[24 % 3].id])


def test_without_a_walk_the_verdict_is_on_the_object_that_is_selected(
    grey_image, array_volume, make_layer, make_scene, serve, show_page, tmp_path
):
    ids, rows = make_objects()
    path = str(tmp_path / "out.zarr.reviewed.csv")
    layers = [make_layer(grey_image), make_layer(array_volume(ids), "objects", "segmentation", "labels", rows=rows)]
    scene = replace(make_scene(*layers, position=POSITION), selected=(2,))
    server = serve(scene)
    Review(server, scene, ReviewFile(path, rows, None), lambda number: POSITION, walks=False)
    shown = show_page(server)
    shown.wait_until(lambda: len(shown.state().get("layers", [])) == 2)
    shown.page.mouse.move(400, 250)
    shown.page.wait_for_timeout(500)
    shown.press("r")
    shown.wait_until(lambda: (tmp_path / "out.zarr.reviewed.csv").exists())
    (found,) = read_reviewed(path)
    assert (found.id, found.verdict, found.is_drawn) == (2, "reject", False)


def test_keys_jump_from_one_object_to_the_next(grey_image, make_layer, make_scene, serve, show_page):
    points = [Point(n, (45.0, 6.0 * 10 * n, 300.0), f"missed {n}") for n in (1, 2)]
    scene = make_scene(make_layer(grey_image), points=[PointLayer("missed", points)], position=POSITION)
    server = serve(scene)
    PointWalk(server, scene, "keym", "missed", points)
    shown = show_page(server)
    shown.wait_until(lambda: shown.state().get("layers"))
    shown.page.mouse.move(400, 250)
    shown.page.wait_for_timeout(500)
    for key, y in (("m", 10), ("m", 20), ("m", 10), ("Shift+M", 20)):
        shown.press(key)
        shown.wait_until(lambda y=y: shown.state()["position"][1] == y)


def test_only_a_picture_of_one_colour_is_empty():
    pixels = np.full((300, 400, 3), 128, np.uint8)
    assert is_empty(pixels)
    pixels[-41:, :100] = np.arange(100)[:, None]  # as large as a scale bar
    pixels[150:152], pixels[:, 100:102] = 255, 255  # frames
    assert is_empty(pixels)
    pixels[20:120, 120:300] = np.arange(180)[:, None]
    assert not is_empty(pixels)
