"""The page of a volume shows what was understood, in one file, and colours the annotation."""

import re

import numpy as np
import pytest

from kasthuri_ray.reports.section_images import FOUND_COLOUR, WRONG_COLOUR
from kasthuri_ray.reports.volume_page import PAGE_MARK, ShownSection, VolumeReport, volume_page

IMAGE = np.full((20, 30), 100, np.uint8)


@pytest.fixture
def classes():
    labels = np.zeros(IMAGE.shape, np.uint8)
    labels[:10, :10], labels[:10, 20:] = 2, 255
    return labels


def test_foreground_is_blue_and_ignored_voxels_are_yellow_over_the_image(classes):
    pictures = ShownSection(3, "3:4,0:20,0:30", "image", IMAGE, classes).pictures()
    assert list(pictures) == ["image", "annotation"]
    np.testing.assert_array_equal(pictures["image"], 100)
    annotation = pictures["annotation"].astype(float)
    below = annotation[15, 15]
    for column, colour in ((0, FOUND_COLOUR), (25, WRONG_COLOUR)):
        np.testing.assert_allclose(annotation[5, column], 0.2 * below + 0.8 * np.array(colour), atol=1)
    alone = ShownSection(3, "3:4,0:20,0:30", "annotation", None, classes).pictures()
    assert list(alone) == ["annotation"]


def test_text_and_page_show_the_same(page_text, classes):
    rows = [("format", "zarr <3>"), ("a long name", "value")]
    sections = [ShownSection(3, "3:4,0:20,0:30", "image", IMAGE, classes)]
    report = VolumeReport("em", "A headline.", [("image x", rows)], ["wrong"], ["strange"], sections, (4.0, 4.0))
    assert report.lines() == [
        "image x",
        "  format       zarr <3>",
        "  a long name  value",
        "note  strange",
        "fix   wrong",
    ]
    page = volume_page(report)
    text = page_text(page)
    for words in ("A headline.", "format zarr <3>", "a long name value", "strange", "wrong", "Section z 3.", "20 nm"):
        assert words in text
    assert "ignored (yellow)" in text
    assert PAGE_MARK in page


def test_the_page_has_no_links_and_no_mark_of_another_page(classes):
    page = volume_page(VolumeReport("em", "", [("image", [("a", "b")])]))
    assert not re.search(r"https?:|@import|<script|<link|src=", page)
    assert "Sections" not in page
