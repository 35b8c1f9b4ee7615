"""Figures have their size, their labels do not overlap, and they show what the counts and the voxels say."""

import io
import itertools
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from kasthuri_ray.metrics.thresholds import class_outcomes
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.reports import figures, score_figures


def make_counts():
    rng = np.random.default_rng(0)
    labels = (rng.random(5000) < 0.1).astype(int)
    probability = np.clip(0.2 + 0.5 * labels + rng.normal(0, 0.15, 5000), 0, 1)
    counts = VoxelCounts.zeros()
    counts.add(probability[None], probability >= 0.5, labels)
    return counts


def make_history(epochs=4):
    return [
        {
            "epoch": epoch,
            "train.loss": 1 / epoch,
            "val.loss": 1.2 / epoch,
            "val.foreground_f1": 1 - 1 / epoch,
            "val.average_precision": 0.9 - 0.8 / epoch,
            "learning_rate": 1e-3,
            "seconds": 2.0,
            "tiles_per_second": 4.0,
        }
        for epoch in range(1, epochs + 1)
    ]


@pytest.fixture
def all_figures(make_section):
    return {
        "learning": figures.plot_learning_curve(make_history(), 3),
        "loss": figures.plot_loss(make_history(), 3),
        "scores": figures.plot_validation_scores(make_history(), 3),
        "precision": score_figures.plot_precision_recall(make_counts(), class_outcomes(make_counts(), [0.5]), [0.5]),
        "confusion": score_figures.plot_confusion([[90, 10], [3, 7]], ["background", "synapse"]),
        "section": figures.plot_section(make_section(1), ["synapse"]),
    }


def test_each_figure_is_a_png_of_its_size(all_figures):
    for name, figure in all_figures.items():
        picture = Image.open(io.BytesIO(figures.figure_png(figure, dpi=50)))
        width, height = figure.get_size_inches()
        assert picture.format == "PNG"
        assert picture.size == pytest.approx((width * 50, height * 50), abs=1), name
        assert np.asarray(picture.convert("L")).std() > 5, f"{name} is blank"


def test_an_svg_has_the_colours_of_the_page_and_no_links(all_figures):
    for name in ("loss", "scores", "precision", "confusion"):
        text = figures.figure_svg(all_figures[name], 'a <title> & "more"')
        root = ElementTree.fromstring(text.replace("xlink:href", "href"))
        assert root.tag == "svg"
        assert root.get("aria-label") == 'a <title> & "more"'
        assert root.get("viewBox").split()[:2] == ["0", "0"]
        assert "http" not in text
        assert "currentColor" in text
        assert not any(colour in text for colour in figures.PAGE_COLOURS)


def test_the_same_history_is_drawn_to_the_same_bytes():
    first, second = (figures.figure_svg(figures.plot_loss(make_history(), 2), "loss") for _ in range(2))
    assert first == second


def test_figures_have_labels(all_figures):
    curves = figures.figure_svg(all_figures["loss"], "loss") + figures.figure_svg(all_figures["scores"], "scores")
    for label in ("train", "val", "learning rate", "epoch", "best", "F1", "precision"):
        assert label in curves
    confusion = figures.figure_svg(all_figures["confusion"], "confusion")
    for label in ("90.0%", "30.0%", "synapse", "prediction"):
        assert label in confusion
    precision_recall = figures.figure_svg(all_figures["precision"], "precision")
    assert "threshold 0.50" in precision_recall
    assert "recall" in precision_recall


@pytest.mark.parametrize(
    "rows", [make_history(1), make_history(0), [{"epoch": "1", "train.loss": "0.5", "val.loss": ""}]]
)
def test_curves_of_one_epoch_none_and_text_from_a_csv_are_drawn(rows):
    assert figures.figure_png(figures.plot_learning_curve(rows, 1), dpi=40).startswith(b"\x89PNG")


def test_one_epoch_has_one_tick_and_a_point_in_every_panel():
    figure = figures.plot_learning_curve(make_history(1), 1)
    panels = [axes for part in figure.subfigs for axes in part.axes]
    assert [axes.get_xticks().tolist() for axes in panels] == [[1], [1], [1]]
    assert {line.get_marker() for axes in panels for line in axes.lines} == {"o"}


def overlapping_labels(figure):
    """Return the pairs of labels of a figure that overlap."""
    FigureCanvasAgg(figure).draw()
    labels = []
    for axes in figure.axes:
        labels += axes.texts
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [
        (label.get_text(), label.get_window_extent()) for label in labels if label.get_text() and label.get_visible()
    ]
    return [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.shrunk(0.9, 0.9).overlaps(other)]


@pytest.mark.parametrize("epochs", [1, 2, 30])
@pytest.mark.parametrize("ends", [(0.5, 0.5), (0.5, 0.55), (0.5, 0.62), (0.0, 0.0), (1.0, 0.99), (0.9, 0.2)])
@pytest.mark.parametrize("best", [0, 1])
def test_labels_do_not_overlap(epochs, ends, best):
    rows = make_history(epochs)
    rows[-1] |= {"val.foreground_f1": ends[0], "val.average_precision": ends[1]}
    rows[-1] |= {"train.loss": ends[0], "val.loss": ends[1]}
    best_epoch = 1 if best == 0 else epochs
    for figure in (figures.plot_learning_curve(rows, best_epoch), figures.plot_validation_scores(rows, best_epoch)):
        assert overlapping_labels(figure) == []


def test_a_loss_that_is_not_finite_is_left_out():
    rows = [*make_history(3), {**make_history()[0], "epoch": 4, "train.loss": math.nan, "val.loss": math.inf}]
    assert "<svg" in figures.figure_svg(figures.plot_loss(rows), "loss")


def test_sections_with_little_foreground_are_hollow_and_those_without_are_left_out():
    figure = score_figures.plot_section_scores([(0, 0.9, 100), (1, 0.8, 100), (2, 0.1, 2), (3, 0.0, 0)], 0.85)
    full, hollow = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert full.get_xdata().tolist() == [0, 1]
    assert hollow.get_xdata().tolist() == [2]
    assert score_figures.plot_section_scores([], 0.0).axes


@pytest.mark.parametrize("num_classes", [2, 4, 9])
def test_the_names_of_classes_do_not_overlap_in_a_confusion_matrix(num_classes):
    names = ["background", "postsynaptic_density_of_all_kinds", "mitochondrion", "extracellular_space"]
    names = [names[number % len(names)] for number in range(num_classes)]
    figure = score_figures.plot_confusion(np.full((num_classes, num_classes), 123_456_789), names)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all("mitochondrion" in label.get_text() or "mito" not in label.get_text() for label in labels)
