"""The figures of a sweep: how every trial learned, what each setting is worth, and what a good one costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from kasthuri_ray.reports.figures import FIRST, INK, SECOND, STYLE

LOGARITHMIC = "loguniform"
COLUMNS = 3  # of small figures beside each other
LONGEST = 14  # letters of a value under an axis


@dataclass(frozen=True)
class TrialRow:
    """One trial as the figures need it. values: by key, of all that is searched. curve: the metric after each epoch.

    whole: whether it was trained to its end.
    """

    id: str
    values: Mapping[str, Any]
    score: float | None
    whole: bool
    tiles_per_second: float | None
    curve: Sequence[float] = field(default=())


@dataclass(frozen=True)
class Axis:
    """A setting along an axis. kind: as in a space file; choices are put at 0, 1, ... in their order."""

    key: str
    kind: str
    values: Sequence[Any]

    @property
    def name(self) -> str:
        return self.key.partition(".")[2] or self.key

    @property
    def listed(self) -> bool:
        return self.kind in ("choice", "grid")

    def place(self, value: Any) -> float:
        if self.listed:
            return float(list(self.values).index(value))
        return float(np.log10(value)) if self.kind == LOGARITHMIC else float(value)

    def share(self, value: Any) -> float:
        """The place between 0, the lowest, and 1, the highest."""
        low, high = (0, len(self.values) - 1) if self.listed else (self.place(each) for each in self.values)
        return 0.5 if high == low else (self.place(value) - low) / (high - low)


@mpl.rc_context(STYLE)
def trial_learning_curves(trials: Sequence[TrialRow], winner: str, metric: str) -> Figure:
    """The metric of every trial over its epochs; the winner stands out, and a dot says where one was stopped."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    axes = figure.subplots()
    for trial in sorted(trials, key=lambda each: each.id == winner):
        best = trial.id == winner
        epochs = np.arange(1, len(trial.curve) + 1)
        colour, alpha = (SECOND, 1.0) if best else (FIRST, 0.45)
        axes.plot(epochs, trial.curve, color=colour, alpha=alpha, linewidth=2.4 if best else 1.0)
        if len(trial.curve) and (not trial.whole or len(trial.curve) == 1):
            axes.plot(epochs[-1], trial.curve[-1], "o", color=colour, alpha=alpha, markersize=4, clip_on=False)
        if best:
            axes.annotate(winner, (epochs[-1], trial.curve[-1]), xytext=(5, 0), textcoords="offset points",
                          color=SECOND, va="center", annotation_clip=False)  # fmt: skip
    axes.set(xlabel="epoch", ylabel=metric)
    longest = max((len(trial.curve) for trial in trials), default=1)
    axes.set_xlim(1, max(2, longest))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)
    return figure


@mpl.rc_context(STYLE)
def scores_by_setting(trials: Sequence[TrialRow], space: Sequence[Axis], winner: str, metric: str) -> Figure:
    """The score over each setting, one small figure a setting; of choices a bar shows the median."""
    rows = -(-len(space) // COLUMNS)
    figure = Figure(figsize=(9.6, 2.5 * rows), layout="constrained")
    every = figure.subplots(rows, COLUMNS, squeeze=False, sharey=True)
    scored = [trial for trial in trials if trial.score is not None]
    for axis, axes in zip(space, every.flat, strict=False):
        _draw_setting(axes, axis, scored, winner)
    for axes in list(every.flat)[len(space) :]:
        axes.set_visible(False)
    for axes in every[:, 0]:
        axes.set_ylabel(metric)
    return figure


def _draw_setting(axes: Axes, axis: Axis, trials: Sequence[TrialRow], winner: str) -> None:
    scores = np.array([trial.score for trial in trials], np.float64)
    places = np.array([axis.place(trial.values[axis.key]) for trial in trials])
    beside = _beside(places) if axis.listed else 0.0
    if axis.listed:
        for place in range(len(axis.values)):
            here = scores[places == place]
            if here.size > 1:
                axes.hlines(np.median(here), place - 0.3, place + 0.3, color=INK, alpha=0.5, linewidth=1.4)
        axes.set_xlim(-0.5, len(axis.values) - 0.5)
        names = [_words(value) for value in axis.values]
        turned: dict[str, Any] = {"rotation": 20, "ha": "right"} if sum(map(len, names)) > 34 else {}
        axes.set_xticks(range(len(names)), names, fontsize=7.5, **turned)
    x = places + beside if axis.listed else np.array([float(trial.values[axis.key]) for trial in trials])
    if axis.kind == "int":
        x += _beside(places) * min(1.0, (axis.values[1] - axis.values[0]) / 6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if axis.kind == LOGARITHMIC:
        _scale_by_logarithm(axes, axis)
    _points(axes, x, scores, trials, winner)
    axes.set_title(axis.name.replace("_", " "), loc="left", fontsize=10)
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)


def _scale_by_logarithm(axes: Axes, axis: Axis) -> None:
    """A few round numbers along the axis, written as a person would."""
    low, high = axis.values
    axes.set_xscale("log")
    powers = [10.0**n * step for n in range(-12, 12) for step in (1, 3)]
    ticks = [tick for tick in powers if low * 0.999 <= tick <= high * 1.001]
    if len(ticks) > 1:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _beside(places: np.ndarray) -> np.ndarray:
    """A little to the side, one after the other, so that equal values do not hide each other."""
    found = np.zeros(len(places))
    for place in np.unique(places):
        here = np.flatnonzero(places == place)
        found[here] = np.linspace(-0.2, 0.2, len(here)) if len(here) > 1 else 0.0
    return found


def _points(axes: Axes, x: np.ndarray, scores: np.ndarray, trials: Sequence[TrialRow], winner: str) -> None:
    """Filled where a trial was trained to its end, hollow where not; the winner stands out."""
    whole = np.array([trial.whole for trial in trials], bool)
    best = np.array([trial.id == winner for trial in trials], bool)
    rest = ~best
    axes.plot(x[rest & whole], scores[rest & whole], "o", color=FIRST, markersize=5, alpha=0.75)
    axes.plot(x[rest & ~whole], scores[rest & ~whole], "o", markerfacecolor="none", markeredgecolor=FIRST,
              markersize=5, markeredgewidth=0.9)  # fmt: skip
    axes.plot(x[best], scores[best], "o", color=SECOND, markersize=8)


@mpl.rc_context(STYLE)
def parallel_coordinates(
    trials: Sequence[TrialRow], space: Sequence[Axis], winner: str, metric: str, higher: bool
) -> Figure:
    """Each trial a line through its values and up to its score; the better, the darker. The winner stands out."""
    scored = [(trial.score, trial) for trial in trials if trial.score is not None]
    scored.sort(key=lambda pair: pair[0] if higher else -pair[0])
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    axes = figure.subplots()
    scores = [score for score, _ in scored]
    low, high = min(scores, default=0.0), max(scores, default=1.0)
    for rank, (score, trial) in enumerate(scored):
        ends = 0.5 if high == low else (score - low) / (high - low)
        line = [axis.share(trial.values[axis.key]) for axis in space] + [ends]
        best = trial.id == winner
        alpha = 1.0 if best else 0.12 + 0.6 * rank / max(1, len(scored) - 1)
        axes.plot(line, color=SECOND if best else FIRST, alpha=alpha, linewidth=2.4 if best else 1.1,
                  zorder=3 if best else 2)  # fmt: skip
    for place, axis in enumerate(space):
        axes.axvline(place, color=INK, alpha=0.35, linewidth=0.7)
        for value in axis.values:
            share = axis.share(value)
            beside = -0.035 if share == 0 else 0.02 if share < 1 else 0.035  # out of the lines' way
            axes.text(place + 0.03, share + beside, _words(value), fontsize=7.5, va="center", alpha=0.9)
    axes.axvline(len(space), color=INK, alpha=0.6, linewidth=1.0)
    for share, value in ((0.0, low), (1.0, high)):
        axes.text(len(space) + 0.04, share, f"{value:.3f}", fontsize=8, va="center")
    axes.set_xticks(
        range(len(space) + 1),
        [*(axis.name.replace("_", "\n") for axis in space), metric.replace(" ", "\n")],
        fontsize=8,
    )
    axes.set(xlim=(-0.1, len(space) + 0.5), ylim=(-0.08, 1.08), yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@mpl.rc_context(STYLE)
def scores_by_speed(trials: Sequence[TrialRow], winner: str, metric: str) -> Figure:
    """The score over the tiles that a trial trained on in a second."""
    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
    axes = figure.subplots()
    shown = [trial for trial in trials if trial.score is not None and trial.tiles_per_second is not None]
    x = np.array([trial.tiles_per_second for trial in shown], np.float64)
    _points(axes, x, np.array([trial.score for trial in shown], np.float64), shown, winner)
    axes.set(xlabel="tiles/s in training", ylabel=metric)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)
    return figure


@mpl.rc_context(STYLE)
def importance_chart(found: Mapping[str, float]) -> Figure:
    """How much each setting decides, as bars, the most important on top."""
    figure = Figure(figsize=(4.4, max(1.6, 0.36 * len(found) + 0.7)), layout="constrained")
    axes = figure.subplots()
    names = [(key.partition(".")[2] or key).replace("_", " ") for key in found]
    places = np.arange(len(found))[::-1]
    axes.barh(places, list(found.values()), color=FIRST, alpha=0.75, height=0.62)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, max([*found.values(), 1e-9]) * 1.18)
    for place, value in zip(places, found.values(), strict=True):
        axes.annotate(
            f"{value:.0%}", (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_visible(False)
    return figure


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
    text = text.removeprefix("UNet_")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
