"""Figures of a run and of an evaluation, drawn by matplotlib without a display.

The `plot_...` functions return a `Figure`; `figure_png` and `figure_svg` encode it. The SVG takes the colours and fonts
of the page around it, so that it is legible in dark mode and in print.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kasthuri_ray.metrics import thresholds, voxel_counts, voxel_scores
from kasthuri_ray.reports.section_images import LEGEND, SectionResult

History = Sequence[Mapping[str, Any]]  # rows of history.csv

INK, FIRST, SECOND = "#22262b", "#0072b2", "#d55e00"
# CSS values that replace these colours in a page.
PAGE_COLOURS = {INK: "currentColor", FIRST: "var(--first)", SECOND: "var(--second)"}

STYLE: Any = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "kasthuri_ray",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
TEXT_LINE_POINTS = 12.0  # height of a line of text


@mpl.rc_context(STYLE)
def plot_learning_curve(history: History, best_epoch: int | None = None) -> Figure:
    """Plot loss, learning rate and validation scores over the epochs, side by side.

    Parameters
    ----------
    history : sequence of mappings
        Rows of history.csv, as numbers or as text.
    best_epoch : int, optional
        Epoch to mark.

    Returns
    -------
    matplotlib.figure.Figure
        Two panels of 4.8 x 3.6 inches.
    """
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = np.ravel(figure.subfigures(1, 2, squeeze=False))
    _draw_loss(left, history, best_epoch)
    _draw_scores(right, history, best_epoch)
    return figure


@mpl.rc_context(STYLE)
def plot_loss(history: History, best_epoch: int | None = None) -> Figure:
    """Plot training and validation loss over the epochs, with a small panel of the learning rate below."""
    figure = Figure(figsize=(4.4, 3.3), layout="constrained")
    _draw_loss(figure, history, best_epoch)
    return figure


@mpl.rc_context(STYLE)
def plot_validation_scores(history: History, best_epoch: int | None = None) -> Figure:
    """Plot validation F1 of the foreground and average precision over the epochs."""
    figure = Figure(figsize=(4.4, 3.3), layout="constrained")
    _draw_scores(figure, history, best_epoch)
    return figure


@mpl.rc_context(STYLE)
def plot_precision_recall(
    counts: voxel_counts.VoxelCounts, threshold: float, shown_threshold: float | None = None
) -> Figure:
    """Plot precision over recall of the foreground, with the threshold marked, over pale curves of equal F1.

    Parameters
    ----------
    counts : VoxelCounts
        Voxels by truth and probability.
    threshold : float
        Threshold to mark, 0 to 1.
    shown_threshold : float, optional
        Threshold to write beside the mark, if `threshold` is the edge of the bin that stands for it.

    Returns
    -------
    matplotlib.figure.Figure
        The curve, 4.4 x 4.0 inches.
    """
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for f1 in (0.2, 0.4, 0.6, 0.8):
        recall = np.geomspace(f1 / (2 - f1), 1, 60)
        axes.plot(recall, f1 * recall / (2 * recall - f1), color=INK, alpha=0.22, linewidth=0.7)
        axes.text(1.01, f1 / (2 - f1), f"F1 {f1}", fontsize=7, alpha=0.6, va="center")
    precision, recall, _ = voxel_scores.precision_recall_curve(counts)
    any_marked = counts.histogram[:, ::-1].cumsum(1)[:, ::-1].sum(0) > 0
    axes.plot(recall[any_marked], precision[any_marked], color=FIRST)
    y, x = thresholds.precision_recall_at(counts, threshold)
    axes.plot(x, y, "o", markersize=8, color=SECOND)
    on_right = x < 0.6  # a falling curve leaves space above it on the right, below it on the left
    axes.annotate(
        f"threshold {threshold if shown_threshold is None else shown_threshold:.2f}\n"
        f"F1 {thresholds.foreground_f1(counts, threshold):.2f}",
        (x, y),
        xytext=(8, 6) if on_right else (-8, -6),
        textcoords="offset points",
        color=SECOND,
        ha="left" if on_right else "right",
        va="bottom" if on_right or y < 0.15 else "top",
    )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    return figure


@mpl.rc_context(STYLE)
def plot_confusion(matrix: Sequence[Sequence[int]] | np.ndarray, names: Sequence[str]) -> Figure:
    """Plot voxels by truth (rows) and prediction (columns): counts, and the share of the row, also as the tint."""
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = len(matrix)
    figure = Figure(figsize=(max(4.4, 1.1 * side), max(3.0, 0.8 * side)), layout="constrained")
    axes = figure.subplots()
    for (row, column), count in np.ndenumerate(matrix):
        share = shares[row, column]
        axes.fill_between(
            [column - 0.48, column + 0.48],
            row - 0.47,
            row + 0.47,
            color=FIRST,
            alpha=0.06 + 0.5 * share,
            linewidth=0,
        )
        axes.text(column, row, _percent_label(share), ha="center", va="bottom", fontsize=13 if side < 4 else 9)
        axes.text(column, row + 0.06, f"{count:,}", ha="center", va="top", fontsize=8, alpha=0.8)
    axes.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5), xlabel="prediction", ylabel="truth")
    axes.set_xticks(range(side), names)
    axes.set_yticks(range(side), names, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@mpl.rc_context(STYLE)
def plot_section_scores(sections: Sequence[tuple[int, float, int]], overall_f1: float) -> Figure:
    """Plot F1 over the sections: hollow circles where there is little foreground, none where there is none.

    Parameters
    ----------
    sections : sequence of (int, float, int)
        z, F1 and number of foreground voxels of each section.
    overall_f1 : float
        F1 of all voxels, drawn as a line.

    Returns
    -------
    matplotlib.figure.Figure
        A point for each section, over z.
    """
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in sections if row[2]]
    z, f1, size = (np.array(column) for column in zip(*shown, strict=True)) if shown else (np.zeros(0),) * 3
    small = size < size.mean() / 2 if size.size else np.zeros(0, bool)
    marker_size = 5 if len(shown) < 60 else 3 if len(shown) < 300 else 1.5
    axes.axhline(overall_f1, color=SECOND, linewidth=1.2)
    axes.set_title(f"all voxels {overall_f1:.2f}", loc="right", color=SECOND, fontsize=9)
    axes.plot(z, f1, color=FIRST, linewidth=0.8, alpha=0.5)
    axes.plot(z[~small], f1[~small], "o", color=FIRST, markersize=marker_size)
    hollow: Any = {"markerfacecolor": "none", "markeredgecolor": FIRST, "markeredgewidth": 0.8}
    axes.plot(z[small], f1[small], "o", markersize=marker_size, **hollow)
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)
    axes.set(xlabel="section z", ylabel="F1", ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    return figure


@mpl.rc_context(STYLE)
def plot_section(
    section: SectionResult, threshold: float, foreground: str = "foreground", shown_threshold: float | None = None
) -> Figure:
    """Plot image, truth, prediction and errors of one section side by side, with a legend.

    Parameters
    ----------
    section : SectionResult
        What to show.
    threshold : float
        Probability from which a voxel counts as foreground, 0 to 1.
    foreground : str
        Name of the foreground in the title.
    shown_threshold : float, optional
        Threshold in the title, if `threshold` is the edge of the bin that stands for it.

    Returns
    -------
    matplotlib.figure.Figure
        A row of panels, 4.2 inches wide each.
    """
    panels = section.panels(threshold)
    height = 4.4 * section.image.shape[0] / section.image.shape[1]
    figure = Figure(figsize=(4.2 * len(panels), height + 0.7), layout="constrained")
    for axes, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.imshow(panel, interpolation="antialiased")
        axes.set_title(name, loc="left", fontsize=12)
        axes.set_axis_off()
    if "errors" in panels:
        handles = [Patch(color=f"#{bytes(colour).hex()}", label=outcome) for colour, outcome, _ in LEGEND]
        figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False, fontsize=11)
    f1 = section.f1(threshold)
    shown = threshold if shown_threshold is None else shown_threshold
    title = [f"section z {section.z}", foreground, f"threshold {shown:.2f}"]
    title += [f"F1 {f1:.3f}"] if f1 is not None else []
    figure.suptitle("   ".join(title), x=0.002, ha="left", fontsize=13)
    return figure


@mpl.rc_context(STYLE)
def figure_png(figure: Figure, dpi: int = 150) -> bytes:
    """Return the figure as PNG, on white.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        What to encode.
    dpi : int
        Pixels an inch.

    Returns
    -------
    bytes
        Content of a PNG file.
    """
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor="white")
    return out.getvalue()


@mpl.rc_context(STYLE)
def figure_svg(figure: Figure, title: str) -> str:
    """Return the figure as an `<svg>` element for a page: its colours (`PAGE_COLOURS`), no background, no outside link.

    title: text for screen readers.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    # The ids of groups repeat from figure to figure, and nothing refers to them.
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    for colour, css in PAGE_COLOURS.items():
        text = text.replace(colour, css)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _draw_loss(figure: FigureBase, history: History, best_epoch: int | None) -> None:
    epochs, rate = _column(history, "epoch"), _column(history, "learning_rate")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    train, val = _column(history, "train.loss"), _column(history, "val.loss")
    _draw_lines(above, epochs, {"train": (train, FIRST), "val": (val, SECOND)}, best_epoch, height_points=110.0)
    above.set_title("loss", loc="left", fontsize=10)
    below.plot(epochs, rate, color=INK, alpha=0.7, linewidth=1.2, marker=_marker(epochs), markersize=3)
    below.set_title("learning rate", loc="left", fontsize=8)
    below.set_ylim(0, _upper_limit(rate))
    below.yaxis.set_major_locator(MaxNLocator(2))
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _draw_epoch_axis(below, epochs)


def _draw_scores(figure: FigureBase, history: History, best_epoch: int | None) -> None:
    axes = figure.subplots()
    epochs = _column(history, "epoch")
    f1, precision = _column(history, "val.foreground_f1"), _column(history, "val.average_precision")
    lines = {"F1": (f1, FIRST), "average\nprecision": (precision, SECOND)}
    _draw_lines(axes, epochs, lines, best_epoch, height_points=150.0)
    axes.set_title("on the validation box", loc="left", fontsize=10)
    axes.set_ylim(0, 1)
    _draw_epoch_axis(axes, epochs)


def _draw_lines(
    axes: Axes,
    epochs: np.ndarray,
    lines: Mapping[str, tuple[np.ndarray, str]],
    best_epoch: int | None,
    height_points: float,
) -> None:
    """Draw lines with their names at the right end, and mark the best epoch.

    height_points: approximate height of the axes.
    """
    for values, colour in lines.values():
        axes.plot(epochs, values, color=colour, marker=_marker(epochs), markersize=5)
    if best_epoch is not None and len(epochs) > 1:
        early = best_epoch < (epochs[0] + epochs[-1]) / 2  # then the label is on the right, where there is space
        axes.axvline(best_epoch, color=INK, alpha=0.35, linewidth=0.8, dashes=(3, 3))
        axes.annotate(
            "best",
            (best_epoch, 1),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            alpha=0.8,
            xytext=(3 if early else -3, -1),
            textcoords="offset points",
            ha="left" if early else "right",
            va="top",
        )
    axes.set_ylim(0, _upper_limit(*(values for values, _ in lines.values())))
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)
    ends = {name: values[np.isfinite(values)][-1] for name, (values, _) in lines.items() if np.isfinite(values).any()}
    heights = {name: end / axes.get_ylim()[1] * height_points for name, end in ends.items()}
    for name, shift in _label_shifts(heights).items():
        axes.annotate(
            name,
            (epochs[-1], ends[name]),
            xytext=(6, shift),
            textcoords="offset points",
            color=lines[name][1],
            va="center",
            annotation_clip=False,
        )


def _label_shifts(heights: Mapping[str, float]) -> dict[str, float]:
    """Return how far to move each of at most two labels up, in points, so that they do not overlap.

    heights: of the middle of each label, in points.
    """
    order = sorted(heights, key=lambda name: heights[name])
    shifts = dict.fromkeys(order, 0.0)
    if len(order) == 2:
        low, high = order
        distance = TEXT_LINE_POINTS * (2 + low.count("\n") + high.count("\n")) / 2
        overlap = max(0.0, distance - (heights[high] - heights[low]))
        shifts = {low: -overlap / 2, high: overlap / 2}
    return shifts


def _marker(epochs: np.ndarray) -> str | None:
    """Return the marker without which a line of one point is invisible."""
    return "o" if len(epochs) < 2 else None


def _draw_epoch_axis(axes: Axes, epochs: np.ndarray) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if len(epochs) > 1:
        axes.set_xlim(epochs[0], epochs[-1])
    elif len(epochs):
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.set_xticks([epochs[0]])


def _column(history: History, name: str) -> np.ndarray:
    """Return a column as float64, nan where a row lacks it; text from a CSV file is converted."""
    return np.array([float(row[name]) if row.get(name) not in (None, "") else np.nan for row in history], np.float64)


def _upper_limit(*columns: np.ndarray) -> float:
    """Return the upper end of an axis from zero: a little above the highest finite value."""
    values = np.concatenate(columns)
    values = values[np.isfinite(values)]
    return float(values.max()) * 1.08 if values.size and values.max() > 0 else 1.0


def _percent_label(share: float) -> str:
    """Return a share as a percentage that never rounds to a false 0% or 100%."""
    return f"{share:.1%}" if 0.0005 <= share < 0.9995 or share in (0, 1) else f"{share:.3%}"
