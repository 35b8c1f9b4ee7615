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
    encode_jpeg,
    rank_sections,
)


def test_errors_are_tinted_by_their_outcome(make_section):
    panels = make_section(1).panels(0.5)
    assert list(panels) == ["image", "truth", "prediction", "errors"]
    base = panels["errors"][0, 7].astype(float)
    for column, colour in ((0, FOUND_COLOUR), (1, MISSED_COLOUR), (4, WRONG_COLOUR)):
        expected = 0.2 * base + 0.8 * np.array(colour)
        np.testing.assert_allclose(panels["errors"][:, column], np.tile(expected, (8, 1)), atol=1)
    np.testing.assert_array_equal(panels["image"], 128)
    assert (panels["truth"][:, 1] == panels["errors"][:, 0]).all()
    assert list(make_section(truth=False).panels(0.5)) == ["image", "prediction"]


def test_uint8_and_float_probabilities_agree_and_ignored_pixels_do_not_count(make_section):
    floats = make_section(2)
    bytes_ = SectionResult(3, floats.image, floats.truth, np.rint(floats.probability * 255).astype(np.uint8))
    assert floats.f1(0.5) == bytes_.f1(0.5) == pytest.approx(2 * 8 / (2 * 8 + 8 + 16))
    floats.truth[:, 4:6] = 255
    assert floats.f1(0.5) == pytest.approx(2 * 8 / (2 * 8 + 8))
    assert make_section(truth=False).f1(0.5) is None


def test_the_best_and_the_worst_section_come_first(make_section):
    sections = [make_section(num_wrong, z=z) for z, num_wrong in ((10, 1), (11, 3), (12, 0), (13, 2))]
    ranked = rank_sections(sections, 0.5)
    assert [(section.z, rating) for section, rating in ranked] == [(12, "best"), (11, "worst"), (10, ""), (13, "")]
    assert [rating for _, rating in rank_sections([make_section(z=1), make_section(z=2)], 0.5)] == ["", ""]
    assert [rating for _, rating in rank_sections([make_section(truth=False), make_section()], 0.5)] == ["", ""]


def test_a_jpeg_is_scaled_down_never_up_and_keeps_its_aspect_ratio():
    panel = np.random.default_rng(0).integers(0, 255, (600, 300, 3), dtype=np.uint8)
    assert Image.open(io.BytesIO(encode_jpeg(panel, 200))).size == (100, 200)
    assert Image.open(io.BytesIO(encode_jpeg(panel, 2000))).size == (300, 600)
    assert Image.open(io.BytesIO(encode_jpeg(np.full((9, 9, 3), 7, np.uint8), 9))).mode == "L"
