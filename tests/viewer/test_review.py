"""Verdicts without a browser: what a key does, and what is in the file."""

from dataclasses import replace

import numpy as np
import pytest
from neuroglancer.viewer_config_state import ActionState

from kasthuri_ray.output.reviewed_file import read_reviewed
from kasthuri_ray.viewer.review import Review, ReviewFile
from kasthuri_ray.viewer.viewer_keys import STATUS


@pytest.fixture
def rows():
    return [{"id": number, "size_voxels": 400, "mean_probability": 0.5 + number / 10} for number in (1, 2, 3, 4)]


@pytest.fixture
def scene(array_volume, make_layer, make_scene, rows):
    ids = array_volume(np.ones((2, 64, 64), np.uint32))
    return make_scene(make_layer(ids, "objects", "segmentation", "labels", rows=rows))


@pytest.fixture
def start(scene, serve, rows, tmp_path):
    """Return `start(number)`, which starts a review of a number of objects, or of those that a person selects."""

    def begin(number=None):
        file = ReviewFile(str(tmp_path / "out.zarr.reviewed.csv"), rows, number)
        return Review(serve(scene), scene, file, lambda _: (15.0, 3.0, 3.0), walks=number is not None)

    return begin


def shown(number):
    """Return what the browser sends with a key while an object is selected."""
    return ActionState(
        {"viewerState": {"layers": [{"name": "objects", "type": "segmentation", "segments": [str(number)]}]}}
    )


def status_of(review):
    return review.server.viewer.config_state.state.to_json()["statusMessages"][STATUS]


def verdicts_of(review):
    return {each.id: each.verdict for each in read_reviewed(review.file.path) if each.verdict}


def test_two_viewers_of_an_output_keep_each_others_verdicts(start):
    walk, other = start(3), start()
    first, second, third = (each.id for each in walk.file.drawn)
    walk.decide("keep", shown(first))
    other.decide("reject", shown(second))
    walk.decide("unsure", shown(third))
    (apart,) = {1, 2, 3, 4} - {first, second, third}
    other.decide("keep", shown(apart))
    expected = {first: "keep", second: "reject", third: "unsure", apart: "keep"}
    assert verdicts_of(walk) == expected
    assert [each.is_drawn for each in read_reviewed(walk.file.path)] == [True, True, True, False]
    assert verdicts_of(start(3)) == expected


def test_a_viewer_that_is_older_than_the_draw_leaves_the_strata_of_the_objects_as_they_are(start):
    other = start()
    other.decide("keep", shown(2))
    walk = start(3)
    assert 2 in {each.id for each in walk.file.drawn}
    other.decide("reject", shown(2))
    stored = {each.id: each for each in read_reviewed(walk.file.path)}
    assert stored == {each.id: replace(each, verdict=stored[each.id].verdict) for each in walk.file.drawn}
    assert verdicts_of(start(3)) == {2: "reject"}


def test_a_verdict_on_an_object_that_is_no_longer_the_next_one_does_not_move_the_walk(start):
    review = start(3)
    first, second, _ = (each.id for each in review.file.drawn)
    review.decide("keep", shown(first))
    review.decide("reject", shown(first))  # the browser did not show the second one yet
    assert verdicts_of(review) == {first: "reject"}
    assert status_of(review).startswith(f"Object {first}: reject. Object {second} (p ")
    review.decide("keep", shown(second))
    assert verdicts_of(review) == {first: "reject", second: "keep"}


def test_a_verdict_that_cannot_be_saved_is_said_and_the_object_stays(start, tmp_path):
    review = start(3)
    first = review.file.drawn[0].id
    (tmp_path / "out.zarr.reviewed.csv").write_text("another file")
    review.decide("keep", shown(first))
    assert status_of(review).startswith("The verdict was not saved: ")
    assert (tmp_path / "out.zarr.reviewed.csv").read_text() == "another file"
    (tmp_path / "out.zarr.reviewed.csv").unlink()
    review.decide("keep", shown(first))
    assert verdicts_of(review) == {first: "keep"}
