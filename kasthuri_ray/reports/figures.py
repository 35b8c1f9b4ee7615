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

from kasthuri_ray.reports.section_images import LEGEND, SectionResult, class_colours

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
def plot_section(
    section: SectionResult, names: Sequence[str] = ("foreground",), shown_thresholds: Sequence[float] | None = None
) -> Figure:
    """Plot image, truth, prediction and errors of one section side by side, with a legend.

    Parameters
    ----------
    section : SectionResult
        What to show.
    names : sequence of str
        Names of the foreground classes.
    shown_thresholds : sequence of float, optional
        Thresholds in the title, if those of the section are the edges of the bins that stand for them.

    Returns
    -------
    matplotlib.figure.Figure
        A row of panels, 4.2 inches wide each.
    """
    panels = section.panels()
    height = 4.4 * section.image.shape[0] / section.image.shape[1]
    figure = Figure(figsize=(4.2 * len(panels), height + 0.7), layout="constrained")
    for axes, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.imshow(panel, interpolation="antialiased")
        axes.set_title(name, loc="left", fontsize=12)
        axes.set_axis_off()
    legend = [(colour, outcome) for colour, outcome, _ in LEGEND] if "errors" in panels else []
    if len(names) > 1:
        legend = [*zip(class_colours(len(names)), names, strict=True), *legend]
    if legend:
        handles = [Patch(color=f"#{bytes(colour).hex()}", label=label) for colour, label in legend]
        figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), frameon=False, fontsize=11)
    shown = ", ".join(f"{threshold:.2f}" for threshold in shown_thresholds or section.thresholds)
    title = [f"section z {section.z}", ", ".join(names), f"threshold {shown}"]
    title += [f"F1 {section.f1:.3f}"] if section.f1 is not None else []
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
