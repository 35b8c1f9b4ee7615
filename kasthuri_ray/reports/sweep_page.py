"""Page of a sweep: the best trial, the scores of all trials, and how each setting affects them, in one HTML file."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from kasthuri_ray.reports import sweep_figures
from kasthuri_ray.reports.rendering import render
from kasthuri_ray.reports.sweep_figures import SettingAxis, TrialRow

# A trial that is named beside the winner, for speed: at most so much below its score, at least so many times as fast.
MAX_SCORE_LOSS = 0.01
MIN_SPEEDUP = 1.3

MAX_NAMED_SETTINGS = 3  # of the winner, in the headline
AT_CHANCE = "No trial is better than chance."


@dataclass(frozen=True)
class SettingRow:
    """A searched setting and what it did to the score, in words.

    Parameters
    ----------
    key : str
        Section and name of the setting.
    values : str
        What was tried, with the mean score of each value of a list.
    effect : str
        Range of the mean scores, or rank correlation.
    certainty : str
        Whether the effect is more than chance.
    """

    key: str
    values: str
    effect: str
    certainty: str


@dataclass
class SweepReport:
    """What the page of a sweep shows.

    Parameters
    ----------
    name : str
        Name of the sweep.
    task_type : str
        synapse, membrane or any other word for the foreground.
    metric : str
        Name of the metric in plain words.
    higher : bool
        Whether a higher metric is better.
    trials : sequence of mappings
        Rows of leaderboard.json, the best first.
    curves : mapping
        The metric after each epoch, by id of the trial.
    space : sequence of SettingAxis
        The settings that were searched.
    importances : mapping
        Importance of each setting (PED-ANOVA), by key, sums to 1; empty if unknown.
    effects : sequence of SettingRow
        What each setting did to the score, the surest first.
    metrics : mapping, optional
        Content of the winner's metrics.json; None if it was not evaluated.
    at_chance : bool
        Whether no trial is better than chance.
    seconds : float
        Duration of the sweep.
    settings : mapping
        Sections of settings, as in settings.json.
    commands : sequence of (str, str)
        Commands to type next, each after a text that says what it does.
    """

    name: str
    task_type: str
    metric: str
    higher: bool
    trials: Sequence[Mapping[str, Any]]
    curves: Mapping[str, Sequence[float]]
    space: Sequence[SettingAxis]
    importances: Mapping[str, float] = field(default_factory=dict)
    effects: Sequence[SettingRow] = ()
    metrics: Mapping[str, Any] | None = None
    at_chance: bool = False
    seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()

    @property
    def test(self) -> Mapping[str, Any] | None:
        """The winner's scores on the test box."""
        return (self.metrics or {}).get("test")

    @property
    def warnings(self) -> list[str]:
        """Signs that the winner's scores mean nothing."""
        return [*([AT_CHANCE] if self.at_chance else []), *(self.metrics or {}).get("warnings", ())]

    @property
    def winner(self) -> Mapping[str, Any] | None:
        """The best trial that has ended and did not fail."""
        ended = [row for row in self.trials if row["score"] is not None and row["state"] not in ("failed", "running")]
        return ended[0] if ended else None

    @property
    def varied(self) -> list[str]:
        """Settings of which trials had different values, those with the surest effect first."""
        keys = list(dict.fromkeys(key for row in self.trials for key in row["values"]))
        ranks = {effect.key: rank for rank, effect in enumerate(self.effects)}
        keys.sort(key=lambda key: ranks.get(key, len(ranks)))
        return [key for key in keys if len({json.dumps(row["values"].get(key)) for row in self.trials}) > 1]

    @property
    def num_scored(self) -> int:
        """Trials with a score that did not fail."""
        return sum(row["score"] is not None and row["state"] not in ("failed", "running") for row in self.trials)

    def rows(self) -> list[TrialRow]:
        """Return the trials as the figures need them."""
        return [
            TrialRow(
                id=row["id"],
                values=row["values"],
                score=None if row["state"] == "failed" else row["score"],
                finished=row["state"] == "finished",
                tiles_per_second=row["tiles_per_second"],
                curve=self.curves.get(row["id"], ()),
            )
            for row in self.trials
        ]


def sweep_page(report: SweepReport) -> str:
    """Return the page as HTML: one file with everything in it and no links.

    Parameters
    ----------
    report : SweepReport
        What to show.

    Returns
    -------
    str
        A whole HTML document.
    """
    return render(
        "sweep.html.jinja",
        report,
        num_epochs=sum(row["epochs"] for row in report.trials),
        named=report.varied[:MAX_NAMED_SETTINGS],
        num_by_state=collections.Counter(row["state"] for row in report.trials),
        faster=None if report.warnings else _faster_trial(report),
        failures=_trials_by_failure(report),
        figures=_plot_figures(report, report.winner["id"]) if report.winner else {},
        searched=list(dict.fromkeys(key for row in report.trials for key in row["values"] if key != "network")),
        next_steps=report.commands,
        settings=_shared_settings(report),
    )


def _faster_trial(report: SweepReport) -> Mapping[str, Any] | None:
    """Return the fastest other trial that is nearly as good and much faster, which matters for a whole volume."""
    best = report.winner
    if best is None or not best["tiles_per_second"]:
        return None
    sign = 1 if report.higher else -1
    candidates = [
        row
        for row in report.trials
        if row["state"] == "finished"
        and sign * (best["score"] - row["score"]) <= MAX_SCORE_LOSS
        and (row["tiles_per_second"] or 0) >= MIN_SPEEDUP * best["tiles_per_second"]
    ]
    return max(candidates, key=lambda row: row["tiles_per_second"], default=None)


def _trials_by_failure(report: SweepReport) -> dict[str, list[str]]:
    """Return the ids of the trials that failed, by the first line of the reason."""
    ids: dict[str, list[str]] = {}
    for row in sorted(report.trials, key=lambda row: row["id"]):
        if row["state"] == "failed":
            ids.setdefault(row["why"].partition("\n")[0], []).append(row["id"])
    return ids


def _plot_figures(report: SweepReport, winner: str) -> dict[str, Figure | None]:
    rows, space, metric = report.rows(), report.space, report.metric
    return {
        "trial_curves": sweep_figures.plot_trial_curves(rows, winner, metric),
        "scores_by_setting": sweep_figures.plot_scores_by_setting(rows, space, winner, metric),
        "parallel_coordinates": sweep_figures.plot_parallel_coordinates(rows, space, winner, metric, report.higher),
        "scores_by_speed": sweep_figures.plot_scores_by_speed(rows, winner, metric),
        "importances": sweep_figures.plot_importances(report.importances) if report.importances else None,
    }


def _shared_settings(report: SweepReport) -> dict[str, Any]:
    """Return the settings that all trials share, after those that were searched."""
    shared = {key: value for key, value in report.settings.items() if key != "sweep"}
    space = {setting.key: f"{setting.kind} {json.dumps(list(setting.values))}" for setting in report.space}
    return {"searched": space, **shared}
