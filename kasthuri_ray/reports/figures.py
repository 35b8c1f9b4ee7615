"""The figures of a run, drawn by matplotlib without a display: curves, confusion, and test sections.

Each function gives a `Figure`; `png` and `svg` write it. The SVG is meant to lie inside a page: it takes the page's
colours and fonts, so that it is legible in the dark and in print.
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

from kasthuri_ray.metrics import voxel_counts
from kasthuri_ray.reports.section_images import LEGEND, SectionResult

INK, FIRST, SECOND = "#22262b", "#0072b2", "#d55e00"
PAGE_COLOURS = {INK: "currentColor", FIRST: "var(--first)", SECOND: "var(--second)"}
"""What a page puts in place of each colour."""

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
LINE_POINTS = 12.0  # of a line of text
History = Sequence[Mapping[str, Any]]


@mpl.rc_context(STYLE)
def learning_curve(history: History, best_epoch: int | None = None) -> Figure:
    """Loss, learning rate and validation scores over the epochs, side by side. `history`: the rows of history.csv."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = np.ravel(figure.subfigures(1, 2, squeeze=False))
    _draw_loss(left, history, best_epoch)
    _draw_scores(right, history, best_epoch)
    return figure


@mpl.rc_context(STYLE)
def loss_curve(history: History, best_epoch: int | None = None) -> Figure:
    """Training and validation loss over the epochs, the learning rate small below."""
    figure = Figure(figsize=(4.4, 3.3), layout="constrained")
    _draw_loss(figure, history, best_epoch)
    return figure


@mpl.rc_context(STYLE)
def score_curve(history: History, best_epoch: int | None = None) -> Figure:
    """Validation F1 of the foreground and average precision over the epochs."""
    figure = Figure(figsize=(4.4, 3.3), layout="constrained")
    _draw_scores(figure, history, best_epoch)
    return figure


@mpl.rc_context(STYLE)
def precision_recall(counts: voxel_counts.VoxelCounts, threshold: float, named: float | None = None) -> Figure:
    """Precision over recall of the foreground, the chosen threshold marked; pale, the curves of equal F1.

    named: the threshold as it is called, where `threshold` is the edge of the bin that stands for it.
    """
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for f1 in (0.2, 0.4, 0.6, 0.8):
        recall = np.geomspace(f1 / (2 - f1), 1, 60)
        axes.plot(recall, f1 * recall / (2 * recall - f1), color=INK, alpha=0.22, linewidth=0.7)
        axes.text(1.01, f1 / (2 - f1), f"F1 {f1}", fontsize=7, alpha=0.6, va="center")
    precision, recall, _ = voxel_counts.precision_recall_curve(counts)
    called = counts.histogram[:, ::-1].cumsum(1)[:, ::-1].sum(0) > 0
    axes.plot(recall[called], precision[called], color=FIRST)
    at = voxel_counts.precision_recall_at(counts, threshold)
    axes.plot(at[1], at[0], "o", markersize=8, color=SECOND)
    right = at[1] < 0.6  # a falling curve leaves room above it on the right, below it on the left
    axes.annotate(
        f"threshold {threshold if named is None else named:.2f}\nF1 {voxel_counts.foreground_f1(counts, threshold):.2f}",
        (at[1], at[0]), xytext=(8, 6) if right else (-8, -6), textcoords="offset points", color=SECOND,
        ha="left" if right else "right", va="bottom" if right or at[0] < 0.15 else "top",
    )  # fmt: skip
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    return figure


@mpl.rc_context(STYLE)
def confusion(matrix: Sequence[Sequence[int]] | np.ndarray, names: Sequence[str]) -> Figure:
    """Voxels by truth (rows) and prediction (columns): counts, and the share of the row, which is also the tint."""
    matrix = np.asarray(matrix)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = len(matrix)
    figure = Figure(figsize=(max(4.4, 1.1 * side), max(3.0, 0.8 * side)), layout="constrained")
    axes = figure.subplots()
    for (row, column), value in np.ndenumerate(matrix):
        of_row = share[row, column]
        axes.fill_between([column - 0.48, column + 0.48], row - 0.47, row + 0.47, color=FIRST,
                          alpha=0.06 + 0.5 * of_row, linewidth=0)  # fmt: skip
        axes.text(column, row, _percent(of_row), ha="center", va="bottom", fontsize=13 if side < 4 else 9)
        axes.text(column, row + 0.06, f"{value:,}", ha="center", va="top", fontsize=8, alpha=0.8)
    axes.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5), xlabel="called by the network", ylabel="truth")
    axes.set_xticks(range(side), names)
    axes.set_yticks(range(side), names, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@mpl.rc_context(STYLE)
def slice_figure(
    section: SectionResult, threshold: float, foreground: str = "foreground", named: float | None = None
) -> Figure:
    """Image, truth, prediction and errors of one section side by side, with a legend; what test_outputs/ holds.

    named: as of `precision_recall`.
    """
    panels = section.panels(threshold)
    height = 4.4 * section.image.shape[0] / section.image.shape[1]
    figure = Figure(figsize=(4.2 * len(panels), height + 0.7), layout="constrained")
    for axes, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axes.imshow(panel, interpolation="antialiased")
        axes.set_title(name, loc="left", fontsize=12)
        axes.set_axis_off()
    if "errors" in panels:
        handles = [Patch(color=f"#{bytes(colour).hex()}", label=label) for colour, label, _ in LEGEND]
        figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False, fontsize=11)
    f1 = section.f1(threshold)
    words = [f"section z {section.z}", foreground, f"threshold {threshold if named is None else named:.2f}"]
    words += [f"F1 {f1:.3f}"] if f1 is not None else []
    figure.suptitle("   ".join(words), x=0.002, ha="left", fontsize=13)
    return figure


@mpl.rc_context(STYLE)
def figure_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG, on white."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, facecolor="white")
    return out.getvalue()


@mpl.rc_context(STYLE)
def figure_svg(figure: Figure, title: str) -> str:
    """The figure as an `<svg>` element that lies in a page: `title` for who cannot see it, the page's colours
    (`PAGE_COLOURS`), no background, no address of anything outside."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(
        r'<g id="[^"]*">', "<g>", text
    )  # the names of groups repeat from figure to figure; nobody refers to them
    for colour, word in PAGE_COLOURS.items():
        text = text.replace(colour, word)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _draw_loss(figure: FigureBase, history: History, best_epoch: int | None) -> None:
    epochs, rate = _column(history, "epoch"), _column(history, "learning_rate")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    train, val = _column(history, "train.loss"), _column(history, "val.loss")
    _lines(above, epochs, {"train": (train, FIRST), "val": (val, SECOND)}, best_epoch, height=110.0)
    above.set_title("loss", loc="left", fontsize=10)
    below.plot(epochs, rate, color=INK, alpha=0.7, linewidth=1.2, marker=_marker(epochs), markersize=3)
    below.set_title("learning rate", loc="left", fontsize=8)
    below.set_ylim(0, _top(rate))
    below.yaxis.set_major_locator(MaxNLocator(2))
    below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _epochs_below(below, epochs)


def _draw_scores(figure: FigureBase, history: History, best_epoch: int | None) -> None:
    axes = figure.subplots()
    epochs = _column(history, "epoch")
    f1, precision = _column(history, "val.foreground_f1"), _column(history, "val.average_precision")
    lines = {"F1": (f1, FIRST), "average\nprecision": (precision, SECOND)}
    _lines(axes, epochs, lines, best_epoch, height=150.0)
    axes.set_title("on the validation box", loc="left", fontsize=10)
    axes.set_ylim(0, 1)
    _epochs_below(axes, epochs)


def _lines(
    axes: Axes, epochs: np.ndarray, lines: Mapping[str, tuple[np.ndarray, str]], best_epoch: int | None, height: float
) -> None:
    """Lines named at their right end, and the best epoch marked. height: of the axes, about, in points."""
    for values, colour in lines.values():
        axes.plot(epochs, values, color=colour, marker=_marker(epochs), markersize=5)
    if best_epoch is not None and len(epochs) > 1:
        early = best_epoch < (epochs[0] + epochs[-1]) / 2  # its name stands where there is room
        axes.axvline(best_epoch, color=INK, alpha=0.35, linewidth=0.8, dashes=(3, 3))
        axes.annotate("best", (best_epoch, 1), xycoords=("data", "axes fraction"), fontsize=8, alpha=0.8,
                      xytext=(3 if early else -3, -1), textcoords="offset points", ha="left" if early else "right",
                      va="top")  # fmt: skip
    axes.set_ylim(0, _top(*(values for values, _ in lines.values())))
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)
    ends = {name: values[np.isfinite(values)][-1] for name, (values, _) in lines.items() if np.isfinite(values).any()}
    for name, shift in _apart({name: end / axes.get_ylim()[1] * height for name, end in ends.items()}).items():
        axes.annotate(name, (epochs[-1], ends[name]), xytext=(6, shift), textcoords="offset points",
                      color=lines[name][1], va="center", annotation_clip=False)  # fmt: skip


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """How far to move each of at most two names up, in points, so that they do not lie on each other.

    heights: of the middle of each, in points.
    """
    order = sorted(heights, key=lambda name: heights[name])
    shifts = dict.fromkeys(order, 0.0)
    if len(order) == 2:
        low, high = order
        room = LINE_POINTS * (2 + low.count("\n") + high.count("\n")) / 2
        overlap = max(0.0, room - (heights[high] - heights[low]))
        shifts = {low: -overlap / 2, high: overlap / 2}
    return shifts


def _marker(epochs: np.ndarray) -> str | None:
    """What shows a line of one point."""
    return "o" if len(epochs) < 2 else None


def _epochs_below(axes: Axes, epochs: np.ndarray) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if len(epochs) > 1:
        axes.set_xlim(epochs[0], epochs[-1])
    elif len(epochs):
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
        axes.set_xticks([epochs[0]])


def _column(history: History, name: str) -> np.ndarray:
    """A column as float64; nan where a row does not hold it (text from a CSV file is read)."""
    return np.array([float(row[name]) if row.get(name) not in (None, "") else np.nan for row in history], np.float64)


def _top(*columns: np.ndarray) -> float:
    """A little above the highest finite value: the upper end of an axis that starts at zero."""
    values = np.concatenate(columns)
    values = values[np.isfinite(values)]
    return float(values.max()) * 1.08 if values.size and values.max() > 0 else 1.0


def _percent(share: float) -> str:
    """A share as a percentage that never rounds to a false 0% or 100%."""
    return f"{share:.1%}" if 0.0005 <= share < 0.9995 or share in (0, 1) else f"{share:.3%}"
