"""Figures of scores: precision over recall, confusion, and F1 over the sections; see `figures`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kasthuri_ray.metrics import voxel_counts, voxel_scores
from kasthuri_ray.metrics.voxel_outcomes import VoxelOutcomes
from kasthuri_ray.reports.figures import FIRST, INK, SECOND, STYLE
from kasthuri_ray.reports.section_images import class_colours


@mpl.rc_context(STYLE)
def plot_precision_recall(
    counts: voxel_counts.VoxelCounts,
    outcomes: Sequence[VoxelOutcomes],
    thresholds: Sequence[float] | None,
    names: Sequence[str] = (),
) -> Figure:
    """Plot precision over recall of each foreground class, with its threshold marked, over pale curves of equal F1.

    Parameters
    ----------
    counts : VoxelCounts
        Voxels by truth and probability.
    outcomes : sequence of VoxelOutcomes
        Those of each class at its threshold, which are marked.
    thresholds : sequence of float or None
        The thresholds, 0 to 1; None if there is not one for all voxels.
    names : sequence of str
        Names of the classes, for the legend of several.

    Returns
    -------
    matplotlib.figure.Figure
        The curves, 4.4 x 4.0 inches.
    """
    figure = Figure(figsize=(4.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for f1 in (0.2, 0.4, 0.6, 0.8):
        recall = np.geomspace(f1 / (2 - f1), 1, 60)
        axes.plot(recall, f1 * recall / (2 * recall - f1), color=INK, alpha=0.22, linewidth=0.7)
        axes.text(1.01, f1 / (2 - f1), f"F1 {f1}", fontsize=7, alpha=0.6, va="center")
    is_single = len(outcomes) == 1
    colours = [FIRST] if is_single else [f"#{bytes(each).hex()}" for each in class_colours(len(outcomes))]
    for number, (of_class, at_threshold) in enumerate(zip(counts.by_class, outcomes, strict=True)):
        precision, recall, _ = voxel_scores.precision_recall_curve(of_class)
        any_marked = np.add(*of_class.positives_by_bin()) > 0
        text = f"F1 {at_threshold.f1:.2f}"
        if thresholds is not None:
            text = f"threshold {thresholds[number]:.2f}\n{text}"
        label = None if is_single else f"{names[number]}: {text.replace(chr(10), ', ')}"
        axes.plot(recall[any_marked], precision[any_marked], color=colours[number], label=label)
        x, y = at_threshold.recall, at_threshold.precision
        axes.plot(x, y, "o", markersize=8, color=SECOND if is_single else colours[number])
        if is_single:
            _annotate_threshold(axes, x, y, text)
    if not is_single:
        axes.legend(loc="lower left", frameon=False, fontsize=7)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    return figure


def _annotate_threshold(axes: Any, x: float, y: float, text: str) -> None:
    on_right = x < 0.6  # a falling curve leaves space above it on the right, below it on the left
    axes.annotate(
        text,
        (x, y),
        xytext=(8, 6) if on_right else (-8, -6),
        textcoords="offset points",
        color=SECOND,
        ha="left" if on_right else "right",
        va="bottom" if on_right or y < 0.15 else "top",
    )


@mpl.rc_context(STYLE)
def plot_confusion(matrix: Sequence[Sequence[int]] | np.ndarray, names: Sequence[str]) -> Figure:
    """Plot voxels by truth (rows) and prediction (columns): counts, and the share of the row, also as the tint."""
    matrix = np.asarray(matrix)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = len(matrix)
    width, height = (4.4, 3.0) if side == 2 else (1.0 + 1.1 * side, 0.6 + 0.8 * side)
    figure = Figure(figsize=(width, height), layout="constrained")
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
    width_chars, fontsize = (20, 9) if side == 2 else (15, 8)  # as wide as a cell
    wrapped = [textwrap.fill(name.replace("_", " "), width_chars) for name in names]
    axes.set_xticks(range(side), wrapped, fontsize=fontsize)
    axes.set_yticks(range(side), wrapped, va="center", rotation=90 if side == 2 else 0, fontsize=fontsize)
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


def _percent_label(share: float) -> str:
    """Return a share as a percentage that never rounds to a false 0% or 100%."""
    return f"{share:.1%}" if 0.0005 <= share < 0.9995 or share in (0, 1) else f"{share:.3%}"
