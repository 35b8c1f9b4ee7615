"""Figures of a sweep: how every trial learned, how each setting affects the score, and the speed of the trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from kasthuri_ray.geometry import ceil_div
from kasthuri_ray.reports.figures import FIRST, INK, SECOND, STYLE

LOGARITHMIC = "loguniform"
CATEGORICAL = ("choice", "grid")

NUM_COLUMNS = 3  # of panels beside each other
MAX_LABEL_LETTERS = 14  # of a value under an axis


@dataclass(frozen=True)
class TrialRow:
    """One trial, as the figures need it.

    values: setting by key. finished: whether the trial was trained to the end. curve: the metric after each epoch.
    """

    id: str
    values: Mapping[str, Any]
    score: float | None
    finished: bool
    tiles_per_second: float | None
    curve: Sequence[float] = ()


@dataclass(frozen=True)
class SettingAxis:
    """Searched setting and its place along an axis.

    Parameters
    ----------
    key : str
        Section and name of the setting, such as network.learning_rate.
    kind : str
        Kind of domain, as in a file of the search space; choices are placed at 0, 1, ... in their order.
    values : sequence
        The choices, or the lowest and the highest value.
    """

    key: str
    kind: str
    values: Sequence[Any]

    @property
    def name(self) -> str:
        """Name of the setting, with spaces."""
        return setting_name(self.key)

    @property
    def is_categorical(self) -> bool:
        """Whether the values are a list of choices."""
        return self.kind in CATEGORICAL

    def position(self, value: Any) -> float:
        """Return the place of a value, by its logarithm if the domain is logarithmic."""
        if self.is_categorical:
            return float(list(self.values).index(value))
        return float(np.log10(value)) if self.kind == LOGARITHMIC else float(value)

    def relative_position(self, value: Any) -> float:
        """Return the place of a value between 0, the lowest, and 1, the highest."""
        low, high = (0, len(self.values) - 1) if self.is_categorical else map(self.position, self.values)
        return 0.5 if high == low else (self.position(value) - low) / (high - low)


def setting_name(key: str) -> str:
    """Return the name of a setting without its section, with spaces."""
    return (key.partition(".")[2] or key).replace("_", " ")


def format_setting(value: Any) -> str:
    """Return the value of a setting as text."""
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)


@mpl.rc_context(STYLE)
def plot_trial_curves(trials: Sequence[TrialRow], winner: str, metric: str) -> Figure:
    """Plot the metric of every trial over its epochs; a dot ends the curve of a trial that was stopped."""
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    axes = figure.subplots()
    for trial in sorted(trials, key=lambda each: each.id == winner):
        best = trial.id == winner
        epochs = np.arange(1, len(trial.curve) + 1)
        colour, alpha = (SECOND, 1.0) if best else (FIRST, 0.45)
        axes.plot(epochs, trial.curve, color=colour, alpha=alpha, linewidth=2.4 if best else 1.0)
        if len(trial.curve) and (not trial.finished or len(trial.curve) == 1):
            axes.plot(epochs[-1], trial.curve[-1], "o", color=colour, alpha=alpha, markersize=4, clip_on=False)
        if best:
            axes.annotate(
                winner,
                (epochs[-1], trial.curve[-1]),
                xytext=(5, 0),
                textcoords="offset points",
                color=SECOND,
                va="center",
                annotation_clip=False,
            )
    axes.set(xlabel="epoch", ylabel=metric)
    max_epochs = max((len(trial.curve) for trial in trials), default=1)
    axes.set_xlim(1, max(2, max_epochs))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)
    return figure


@mpl.rc_context(STYLE)
def plot_scores_by_setting(
    trials: Sequence[TrialRow], space: Sequence[SettingAxis], winner: str, metric: str
) -> Figure:
    """Plot the score over each setting, one panel a setting; a bar shows the median of each choice."""
    num_rows = ceil_div(len(space), NUM_COLUMNS)
    figure = Figure(figsize=(9.6, 2.5 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, NUM_COLUMNS, squeeze=False, sharey=True)
    scored = [trial for trial in trials if trial.score is not None]
    for setting, axes in zip(space, panels.flat, strict=False):
        _draw_setting(axes, setting, scored, winner)
    for axes in list(panels.flat)[len(space) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(metric)
    return figure


def _draw_setting(axes: Axes, setting: SettingAxis, trials: Sequence[TrialRow], winner: str) -> None:
    scores = np.array([trial.score for trial in trials], np.float64)
    positions = np.array([setting.position(trial.values[setting.key]) for trial in trials])
    if setting.is_categorical:
        _draw_medians(axes, setting, positions, scores)
        x = positions + _spread_equal(positions)
    else:
        x = np.array([float(trial.values[setting.key]) for trial in trials])
    if setting.kind == "int":
        x += _spread_equal(positions) * min(1.0, (setting.values[1] - setting.values[0]) / 6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if setting.kind == LOGARITHMIC:
        _scale_by_logarithm(axes, setting)
    _draw_points(axes, x, scores, trials, winner)
    axes.set_title(setting.name, loc="left", fontsize=10)
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)


def _draw_medians(axes: Axes, setting: SettingAxis, positions: np.ndarray, scores: np.ndarray) -> None:
    """Draw a bar at the median of each choice, and the names of the choices below."""
    for position in range(len(setting.values)):
        chosen = scores[positions == position]
        if chosen.size > 1:
            axes.hlines(np.median(chosen), position - 0.3, position + 0.3, color=INK, alpha=0.5, linewidth=1.4)
    axes.set_xlim(-0.5, len(setting.values) - 0.5)
    names = [_short_label(value) for value in setting.values]
    rotation: dict[str, Any] = {"rotation": 20, "ha": "right"} if sum(map(len, names)) > 34 else {}
    axes.set_xticks(range(len(names)), names, fontsize=7.5, **rotation)


def _scale_by_logarithm(axes: Axes, setting: SettingAxis) -> None:
    """Scale the axis by the logarithm, with ticks at 1 and 3 times powers of ten, written as decimals."""
    low, high = setting.values
    axes.set_xscale("log")
    steps = [10.0**n * step for n in range(-12, 12) for step in (1, 3)]
    ticks = [tick for tick in steps if low * 0.999 <= tick <= high * 1.001]
    if len(ticks) > 1:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _spread_equal(positions: np.ndarray) -> np.ndarray:
    """Return small offsets that move equal positions apart, so that their points do not hide each other."""
    offsets = np.zeros(len(positions))
    for position in np.unique(positions):
        equal = np.flatnonzero(positions == position)
        offsets[equal] = np.linspace(-0.2, 0.2, len(equal)) if len(equal) > 1 else 0.0
    return offsets


def _draw_points(axes: Axes, x: np.ndarray, scores: np.ndarray, trials: Sequence[TrialRow], winner: str) -> None:
    """Draw a point for each trial: filled if it was trained to the end, else hollow; large for the winner."""
    finished = np.array([trial.finished for trial in trials], bool)
    best = np.array([trial.id == winner for trial in trials], bool)
    filled, hollow = ~best & finished, ~best & ~finished
    outline: Any = {"markerfacecolor": "none", "markeredgecolor": FIRST, "markeredgewidth": 0.9}
    axes.plot(x[filled], scores[filled], "o", color=FIRST, markersize=5, alpha=0.75)
    axes.plot(x[hollow], scores[hollow], "o", markersize=5, **outline)
    axes.plot(x[best], scores[best], "o", color=SECOND, markersize=8)


@mpl.rc_context(STYLE)
def plot_parallel_coordinates(
    trials: Sequence[TrialRow], space: Sequence[SettingAxis], winner: str, metric: str, higher: bool
) -> Figure:
    """Plot each trial as a line through its settings to its score; better trials are darker.

    higher: whether a higher score is better.
    """
    scored = [(trial.score, trial) for trial in trials if trial.score is not None]
    scored.sort(key=lambda pair: pair[0] if higher else -pair[0])
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    axes = figure.subplots()
    scores = [score for score, _ in scored]
    low, high = min(scores, default=0.0), max(scores, default=1.0)
    for rank, (score, trial) in enumerate(scored):
        end = 0.5 if high == low else (score - low) / (high - low)
        line = [setting.relative_position(trial.values[setting.key]) for setting in space] + [end]
        best = trial.id == winner
        alpha = 1.0 if best else 0.12 + 0.6 * rank / max(1, len(scored) - 1)
        style: Any = {"linewidth": 2.4 if best else 1.1, "zorder": 3 if best else 2}
        axes.plot(line, color=SECOND if best else FIRST, alpha=alpha, **style)
    for column, setting in enumerate(space):
        _draw_value_axis(axes, column, setting)
    axes.axvline(len(space), color=INK, alpha=0.6, linewidth=1.0)
    for y, value in ((0.0, low), (1.0, high)):
        axes.text(len(space) + 0.04, y, f"{value:.3f}", fontsize=8, va="center")
    names = [*(setting.name for setting in space), metric]
    axes.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=8)
    axes.set(xlim=(-0.1, len(space) + 0.5), ylim=(-0.08, 1.08), yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _draw_value_axis(axes: Axes, column: int, setting: SettingAxis) -> None:
    axes.axvline(column, color=INK, alpha=0.35, linewidth=0.7)
    for value in setting.values:
        y = setting.relative_position(value)
        offset = -0.035 if y == 0 else 0.02 if y < 1 else 0.035  # away from the lines
        axes.text(column + 0.03, y + offset, _short_label(value), fontsize=7.5, va="center", alpha=0.9)


@mpl.rc_context(STYLE)
def plot_scores_by_speed(trials: Sequence[TrialRow], winner: str, metric: str) -> Figure:
    """Plot the score over the tiles that a trial trained on in a second."""
    figure = Figure(figsize=(4.4, 3.6), layout="constrained")
    axes = figure.subplots()
    shown = [trial for trial in trials if trial.score is not None and trial.tiles_per_second is not None]
    x = np.array([trial.tiles_per_second for trial in shown], np.float64)
    _draw_points(axes, x, np.array([trial.score for trial in shown], np.float64), shown, winner)
    axes.set(xlabel="tiles/s in training", ylabel=metric)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=INK, alpha=0.1, linewidth=0.6)
    return figure


@mpl.rc_context(STYLE)
def plot_importances(importances: Mapping[str, float]) -> Figure:
    """Plot the importance of each setting as a bar, in the order of the mapping from the top."""
    figure = Figure(figsize=(4.4, max(1.6, 0.36 * len(importances) + 0.7)), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(importances))[::-1]
    axes.barh(positions, list(importances.values()), color=FIRST, alpha=0.75, height=0.62)
    axes.set_yticks(positions, list(map(setting_name, importances)))
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, max([*importances.values(), 1e-9]) * 1.18)
    label: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
    for position, value in zip(positions, importances.values(), strict=True):
        axes.annotate(f"{value:.0%}", (value, position), **label)
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_visible(False)
    return figure


def _short_label(value: Any) -> str:
    """Return a value as text that fits under an axis."""
    text = format_setting(value).removeprefix("UNet_")
    return text if len(text) <= MAX_LABEL_LETTERS else f"{text[: MAX_LABEL_LETTERS - 1]}…"
