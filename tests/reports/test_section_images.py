"""Pictures of sections show which pixels are found, missed and wrongly marked."""

import io

import numpy as np
import pytest
from PIL import Image

from kasthuri_ray.reports.section_images import (
    FOUND_COLOUR,
    MISSED_COLOUR,
    WRONG_COLOUR,
    SectionResult,
    class_colours,
    encode_jpeg,
    rank_sections,
)


def test_errors_are_tinted_by_their_outcome(make_section):
    panels = make_section(1).panels()
    assert list(panels) == ["image", "truth", "prediction", "errors"]
    base = panels["errors"][0, 7].astype(float)
    for column, colour in ((0, FOUND_COLOUR), (1, MISSED_COLOUR), (4, WRONG_COLOUR)):
        expected = 0.2 * base + 0.8 * np.array(colour)
        np.testing.assert_allclose(panels["errors"][:, column], np.tile(expected, (8, 1)), atol=1)
    np.testing.assert_array_equal(panels["image"], 128)
    assert (panels["truth"][:, 1] == panels["errors"][:, 0]).all()
    assert list(make_section(truth=False).panels()) == ["image", "prediction"]


def test_uint8_and_float_probabilities_agree_and_ignored_pixels_do_not_count(make_section):
    floats = make_section(2)
    stored = np.rint(floats.probability * 255).astype(np.uint8)
    bytes_ = SectionResult(3, floats.image, floats.truth, stored, [0.5])
    assert floats.f1 == bytes_.f1 == pytest.approx(2 * 8 / (2 * 8 + 8 + 16))
    ignored = make_section(2)
    ignored.truth[:, 4:6] = 255
    assert ignored.f1 == pytest.approx(2 * 8 / (2 * 8 + 8))
    assert make_section(truth=False).f1 is None


def test_ignored_pixels_are_hatched_in_truth_and_errors(make_section):
    plain, section = make_section(1), make_section(1)
    section.truth[:, 4:] = 255
    for name, panel in section.panels().items():
        is_changed = (panel != plain.panels()[name]).any(-1)
        assert is_changed[:, 4:].any() == (name in ("truth", "errors"))
        assert not is_changed[:, :4].any()


def test_several_classes_have_colours_of_their_own_and_a_confused_pixel_is_wrong():
    truth = np.array([[1, 1, 2, 2, 0, 255]], np.uint8)
    probability = np.array([[[0.9, 0.2, 0.1, 0.7, 0.1, 0.9]], [[0.0, 0.1, 0.8, 0.6, 0.2, 0.0]]])
    section = SectionResult(0, np.full((1, 6), 128, np.uint8), truth, probability, [0.5, 0.5])
    assert section.predicted.tolist() == [[1, 0, 2, 1, 0, 1]]
    found, missed, wrong = (mask[0].tolist() for mask in section.outcomes)
    assert found == [True, False, True, False, False, False]
    assert missed == [False, True, False, False, False, False]
    assert wrong == [False, False, False, True, False, False]
    assert section.num_outcomes == (2, 2, 1)  # the confused pixel is missed as well
    assert section.f1 == pytest.approx(2 * 2 / (4 + 3))
    panels, base = section.panels(), 30 + 0.48 * 128
    for column, colour in ((0, class_colours(2)[0]), (2, class_colours(2)[1])):
        np.testing.assert_allclose(panels["truth"][0, column], 0.2 * base + 0.8 * np.array(colour), atol=1)
    assert len({tuple(colour) for colour in class_colours(7)}) == 7


def test_the_best_and_the_worst_section_come_first(make_section):
    sections = [make_section(num_wrong, z=z) for z, num_wrong in ((10, 1), (11, 3), (12, 0), (13, 2))]
    ranked = rank_sections(sections)
    assert [(section.z, rating) for section, rating in ranked] == [(12, "best"), (11, "worst"), (10, ""), (13, "")]
    assert [rating for _, rating in rank_sections([make_section(z=1), make_section(z=2)])] == ["", ""]
    assert [rating for _, rating in rank_sections([make_section(truth=False), make_section()])] == ["", ""]


def test_a_jpeg_is_scaled_down_never_up_and_keeps_its_aspect_ratio():
    panel = np.random.default_rng(0).integers(0, 255, (600, 300, 3), dtype=np.uint8)
    assert Image.open(io.BytesIO(encode_jpeg(panel, 200))).size == (100, 200)
    assert Image.open(io.BytesIO(encode_jpeg(panel, 2000))).size == (300, 600)
    assert Image.open(io.BytesIO(encode_jpeg(np.full((9, 9, 3), 7, np.uint8), 9))).mode == "L"
