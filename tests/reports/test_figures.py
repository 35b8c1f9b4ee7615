"""Figures are pictures of the promised size, and show what the counts and the voxels say."""

import io
import itertools
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.section_images import (
    FOUND_COLOUR,
    MISSED_COLOUR,
    WRONG_COLOUR,
    SectionResult,
    encode_jpeg,
    rank_sections,
)


def counts():
    rng = np.random.default_rng(0)
    labels = (rng.random(5000) < 0.1).astype(int)
    probability = np.clip(0.2 + 0.5 * labels + rng.normal(0, 0.15, 5000), 0, 1)
    made = VoxelCounts.zeros()
    made.add(probability, probability >= 0.5, labels)
    return made


def history(epochs=4):
    return [
        {
            "epoch": epoch, "train.loss": 1 / epoch, "val.loss": 1.2 / epoch, "val.foreground_f1": 1 - 1 / epoch,
            "val.average_precision": 0.9 - 0.8 / epoch, "learning_rate": 1e-3, "seconds": 2.0, "tiles_per_second": 4.0,
        }
        for epoch in range(1, epochs + 1)
    ]  # fmt: skip


def section(f1_wrong=0, truth=True, z=3):
    """8 x 8 pixels: column 0 found, column 1 missed, and `f1_wrong` columns wrongly marked from column 4 on."""
    labels = np.zeros((8, 8), np.uint8)
    labels[:, :2] = 1
    probability = np.zeros((8, 8), np.float32)
    probability[:, 0] = 0.9
    probability[:, 4 : 4 + f1_wrong] = 0.9
    return SectionResult(z, np.full((8, 8), 128, np.uint8), labels if truth else None, probability)


def all_figures():
    matrix = [[90, 10], [3, 7]]
    return {
        "learning": figures.learning_curve(history(), 3),
        "loss": figures.loss_curve(history(), 3),
        "scores": figures.score_curve(history(), 3),
        "precision": figures.precision_recall(counts(), 0.5),
        "confusion": figures.confusion(matrix, ["background", "synapse"]),
        "slice": figures.slice_figure(section(1), 0.5, "synapse"),
    }


def test_each_figure_is_a_png_of_its_size():
    for name, figure in all_figures().items():
        picture = Image.open(io.BytesIO(figures.figure_png(figure, dpi=50)))
        width, height = figure.get_size_inches()
        assert picture.format == "PNG"
        assert picture.size == pytest.approx((width * 50, height * 50), abs=1), name
        assert np.asarray(picture.convert("L")).std() > 5, f"{name} is blank"


def test_an_svg_takes_the_pages_colours_and_names_nothing_outside():
    made = all_figures()
    for name in ("loss", "scores", "precision", "confusion"):
        text = figures.figure_svg(made[name], 'a <title> & "more"')
        root = ElementTree.fromstring(text.replace("xlink:href", "href"))
        assert root.tag == "svg"
        assert root.get("aria-label") == 'a <title> & "more"'
        assert root.get("viewBox").split()[:2] == ["0", "0"]
        assert "http" not in text
        assert "currentColor" in text
        assert not any(colour in text for colour in figures.PAGE_COLOURS)


def test_the_same_run_draws_the_same_bytes():
    first, second = (figures.figure_svg(figures.loss_curve(history(), 2), "loss") for _ in range(2))
    assert first == second


def test_figures_hold_their_words():
    made = all_figures()
    text = figures.figure_svg(made["loss"], "loss") + figures.figure_svg(made["scores"], "scores")
    for word in ("train", "val", "learning rate", "epoch", "best", "F1", "precision"):
        assert word in text
    text = figures.figure_svg(made["confusion"], "confusion")
    for word in ("90.0%", "30.0%", "synapse", "called by the network"):
        assert word in text
    text = figures.figure_svg(made["precision"], "precision")
    assert "threshold 0.50" in text
    assert "recall" in text


@pytest.mark.parametrize("rows", [history(1), history(0), [{"epoch": "1", "train.loss": "0.5", "val.loss": ""}]])
def test_curves_of_one_epoch_none_and_text_from_a_csv_are_drawn(rows):
    assert figures.figure_png(figures.learning_curve(rows, 1), dpi=40).startswith(b"\x89PNG")


def test_one_epoch_has_one_tick_and_every_figure_a_point():
    figure = figures.learning_curve(history(1), 1)
    panels = [axes for part in figure.subfigs for axes in part.axes]
    assert [axes.get_xticks().tolist() for axes in panels] == [[1], [1], [1]]
    assert {line.get_marker() for axes in panels for line in axes.lines} == {"o"}


def texts_that_touch(figure):
    """Pairs of texts of a figure that lie on each other."""
    FigureCanvasAgg(figure).draw()
    texts = []
    for axes in figure.axes:
        texts += axes.texts
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    return [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.shrunk(0.9, 0.9).overlaps(other)]


@pytest.mark.parametrize("epochs", [1, 2, 30])
@pytest.mark.parametrize("ends", [(0.5, 0.5), (0.5, 0.55), (0.5, 0.62), (0.0, 0.0), (1.0, 0.99), (0.9, 0.2)])
@pytest.mark.parametrize("best", [0, 1])
def test_no_name_lies_on_another(epochs, ends, best):
    rows = history(epochs)
    rows[-1] |= {"val.foreground_f1": ends[0], "val.average_precision": ends[1]}
    rows[-1] |= {"train.loss": ends[0], "val.loss": ends[1]}
    best_epoch = 1 if best == 0 else epochs
    for figure in (figures.learning_curve(rows, best_epoch), figures.score_curve(rows, best_epoch)):
        assert texts_that_touch(figure) == []


def test_a_loss_that_is_not_finite_is_left_out():
    rows = [*history(3), {**history()[0], "epoch": 4, "train.loss": math.nan, "val.loss": math.inf}]
    assert "<svg" in figures.figure_svg(figures.loss_curve(rows), "loss")


def test_errors_are_tinted_by_what_they_are():
    panels = section(1).panels(0.5)
    assert list(panels) == ["image", "truth", "prediction", "errors"]
    base = panels["errors"][0, 7].astype(float)
    for column, colour in ((0, FOUND_COLOUR), (1, MISSED_COLOUR), (4, WRONG_COLOUR)):
        expected = 0.2 * base + 0.8 * np.array(colour)
        np.testing.assert_allclose(panels["errors"][:, column], np.tile(expected, (8, 1)), atol=1)
    np.testing.assert_array_equal(panels["image"], 128)
    assert (panels["truth"][:, 1] == panels["errors"][:, 0]).all()
    assert list(section(truth=False).panels(0.5)) == ["image", "prediction"]


def test_uint8_and_float_probabilities_are_the_same_and_ignored_pixels_count_nowhere():
    one = section(2)
    other = SectionResult(3, one.image, one.truth, np.rint(one.probability * 255).astype(np.uint8))
    assert one.f1(0.5) == other.f1(0.5) == pytest.approx(2 * 8 / (2 * 8 + 8 + 16))
    one.truth[:, 4:6] = 255
    assert one.f1(0.5) == pytest.approx(2 * 8 / (2 * 8 + 8))
    assert section(truth=False).f1(0.5) is None


def test_the_best_and_the_worst_come_first_and_are_named():
    slices = [section(wrong, z=z) for z, wrong in ((10, 1), (11, 3), (12, 0), (13, 2))]
    ranked = rank_sections(slices, 0.5)
    assert [(s.z, name) for s, name in ranked] == [(12, "best"), (11, "worst"), (10, ""), (13, "")]
    assert [name for _, name in rank_sections([section(z=1), section(z=2)], 0.5)] == ["", ""]
    assert [name for _, name in rank_sections([section(truth=False), section()], 0.5)] == ["", ""]


def test_a_jpeg_is_made_smaller_never_larger_and_keeps_its_shape():
    panel = np.random.default_rng(0).integers(0, 255, (600, 300, 3), dtype=np.uint8)
    assert Image.open(io.BytesIO(encode_jpeg(panel, 200))).size == (100, 200)
    assert Image.open(io.BytesIO(encode_jpeg(panel, 2000))).size == (300, 600)
    assert Image.open(io.BytesIO(encode_jpeg(np.full((9, 9, 3), 7, np.uint8), 9))).mode == "L"
