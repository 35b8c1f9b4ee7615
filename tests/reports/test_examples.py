"""Examples on a page have their numbers, pictures of the right size, and scale bars of a round length."""

import base64
import io

import pytest
from PIL import Image

from kasthuri_ray.reports.examples import make_examples, make_scale_bar


def test_an_example_has_the_numbers_of_its_caption(make_section):
    (example,) = make_examples([make_section(2)], None)
    assert (example.found, example.missed, example.wrong) == (8, 8, 16)
    assert example.f1 == pytest.approx(2 * 8 / (2 * 8 + 8 + 16))
    assert [panel.name for panel in example.panels] == ["image", "truth", "prediction", "errors"]
    assert {panel.scale_bar for panel in example.panels} == {None}


@pytest.mark.parametrize(("truth", "layout", "num_panels"), [(True, "", 4), (False, "few", 2)])
def test_a_section_without_truth_has_two_pictures(truth, layout, num_panels, make_section):
    (example,) = make_examples([make_section(truth=truth)], (4.0, 4.0))
    assert (example.layout, len(example.panels), example.has_truth) == (layout, num_panels, truth)
    assert example.panels[0].scale_bar is not None


def test_only_the_errors_of_the_best_and_the_worst_are_large(random_prediction):
    sections = random_prediction(0.5, num_sections=3, side=1000)[1]
    sizes = {}
    for example in make_examples(sections, None):
        for panel in example.panels:
            data = base64.b64decode(panel.source.removeprefix("data:image/jpeg;base64,"))
            sizes[example.rating, panel.name] = Image.open(io.BytesIO(data)).width
    assert {place for place, width in sizes.items() if width == 960} == {("best", "errors"), ("worst", "errors")}
    assert set(sizes.values()) == {480, 960}


def test_a_scale_bar_is_a_round_length_of_at_most_a_quarter_of_the_picture():
    assert [make_scale_bar(width).length for width in (400, 1000, 6144)] == ["100 nm", "200 nm", "1 µm"]
    assert make_scale_bar(6144).percent == pytest.approx(100 / 6.144)
