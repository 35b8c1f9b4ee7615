"""Page of a sweep: the best trial, the scores of all trials, and how each setting affects them, in one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.progress import format_count, format_duration
from kasthuri_ray.reports import rendering, sweep_figures
from kasthuri_ray.reports.rendering import ForegroundName, chart_html
from kasthuri_ray.reports.sweep_figures import SettingAxis, TrialRow, format_setting, setting_name

# A trial that is named beside the winner, for speed: at most so much below its score, at least so many times as fast.
MAX_SCORE_LOSS = 0.01
MIN_SPEEDUP = 1.3

STATE_TEXTS = {"finished": "to the end", "stopped": "stopped early"}  # other states are shown as they are


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
    test : mapping, optional
        Scores of the winner on the test box, as in metrics.json.
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
    test: Mapping[str, Any] | None = None
    seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()

    @property
    def foreground(self) -> ForegroundName:
        """Name of what the networks look for."""
        return ForegroundName(self.task_type)

    @property
    def winner(self) -> Mapping[str, Any] | None:
        """The best trial that has ended and did not fail."""
        ended = [row for row in self.trials if row["score"] is not None and row["state"] not in ("failed", "running")]
        return ended[0] if ended else None

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
    context = [report.foreground.plural.capitalize(), "hyperparameter search", report.name]
    paragraphs = [_winner_settings(report), _effort(report), _faster_trial(report)]
    parts = [
        rendering.page_header(context, _headline(report), paragraphs),
        rendering.warning_notes(_warnings(report)),
        _winner_scores(report),
        _trial_curves(report),
        _setting_charts(report),
        _leaderboard(report),
        rendering.next_steps(report.commands),
        rendering.settings_tables(_shared_settings(report)),
    ]
    return rendering.html_document(f"{report.name}: {report.foreground.plural}", parts)


def _headline(report: SweepReport) -> str:
    best, num_trials = report.winner, len(report.trials)
    if best is None and num_trials == 1:
        return "The only trial did not end successfully."
    if best is None:
        return f"None of the {num_trials} trials ended successfully."
    rank = f"the best of {num_trials} trials" if num_trials > 1 else "the only trial"
    return f"{best['network']} is {rank}, with {report.metric} {best['score']:.3f}."


def _winner_settings(report: SweepReport) -> str:
    best = report.winner
    if best is None:
        return ""
    values = [f"{setting_name(key)} {_value_text(value)}" for key, value in best["values"].items() if key != "network"]
    size = f" The network has {best['parameters']:,} parameters." if best["parameters"] else ""
    best_epoch = f" Its score was best after epoch {best['best_epoch']} of {best['epochs']}."
    return f"Trial {best['id']}: {', '.join(values) or best['network']}.{size}{best_epoch}"


def _effort(report: SweepReport) -> str:
    """Return how much was trained, and how many trials were stopped early or failed."""
    counts = {state: sum(row["state"] == state for row in report.trials) for state in ("finished", "stopped", "failed")}
    parts = [f"{counts['finished']} trained to the end"]
    parts += [f"{counts['stopped']} stopped early"] if counts["stopped"] else []
    parts += [f"{counts['failed']} failed"] if counts["failed"] else []
    epochs = format_count(sum(row["epochs"] for row in report.trials), "epoch")
    trials = format_count(len(report.trials), "trial")
    return f"The sweep ran {trials} with {epochs} in total, in {format_duration(report.seconds)}: {', '.join(parts)}."


def _faster_trial(report: SweepReport) -> str:
    """Return which other trial is nearly as good and much faster, which matters for a whole volume."""
    best = report.winner
    if best is None or not best["tiles_per_second"]:
        return ""
    sign = 1 if report.higher else -1
    candidates = [
        row
        for row in report.trials
        if row["state"] == "finished"
        and sign * (best["score"] - row["score"]) <= MAX_SCORE_LOSS
        and (row["tiles_per_second"] or 0) >= MIN_SPEEDUP * best["tiles_per_second"]
    ]
    if not candidates:
        return ""
    fastest = max(candidates, key=lambda row: row["tiles_per_second"])
    speedup = fastest["tiles_per_second"] / best["tiles_per_second"]
    return (
        f"To segment a whole volume, consider trial {fastest['id']} too: {fastest['network']} with {report.metric} "
        f"{fastest['score']:.3f}, {speedup:.1f} times as fast in training."
    )


def _warnings(report: SweepReport) -> list[str]:
    best, notes = report.winner, []
    if best is not None and best["values"].get("network.normalization") in ("instance", "group"):
        notes.append(
            f"The winner uses {best['values']['network.normalization']} normalization, whose statistics depend on the "
            "tile: its segmentation changes a little with --block and --tile."
        )
    if best is not None and best["state"] != "finished":
        notes.append(f"The winner was not trained to the end ({best['why']}): training it again may improve it.")
    failed = [row for row in report.trials if row["state"] == "failed"]
    reasons: dict[str, list[str]] = {}
    for row in sorted(failed, key=lambda row: row["id"]):
        reasons.setdefault(_first_line(row["why"]), []).append(row["id"])
    notes += [f"Trial{'s' * (len(ids) > 1)} {', '.join(ids)} failed: {reason}" for reason, ids in reasons.items()]
    return notes


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")


def _winner_scores(report: SweepReport) -> str:
    """Return the scores of the winner on the test box, by which no trial was chosen."""
    if not report.test:
        return ""
    test = report.test
    iou = test["iou"][1:]
    scores = [
        ("F1", test["foreground_f1"], f"at threshold {test['threshold']:.2f}, chosen on the validation box"),
        ("average precision", test["average_precision"], "over all thresholds"),
        ("IoU", sum(iou) / len(iou), rendering.IOU_MEANING),
        ("balanced accuracy", test["balanced_accuracy"], "mean of the recall of foreground and background"),
    ]
    cells = rendering.score_cells([(name, f"{value:.3f}", text) for name, value, text in scores], "Scores on test")
    text = "Measured on the test box, a part of the volume that neither training nor the search has used:"
    return f"<section>\n<h2>Scores of the winner</h2>\n<p>{text}</p>\n{cells}\n</section>"


def _trial_curves(report: SweepReport) -> str:
    if report.winner is None:
        return ""
    curves = chart_html(
        sweep_figures.plot_trial_curves(report.rows(), report.winner["id"], report.metric),
        "Learning curves of all trials",
        f"The {report.metric} on the validation box after each epoch, one line a trial. Orange is the winner. A dot "
        "marks trials that did not run to the end.",
        wide=True,
    )
    return rendering.charts_html("Learning curves", [curves])


def _setting_charts(report: SweepReport) -> str:
    """Return the charts of score against settings, and of score against speed."""
    if report.winner is None:
        return ""
    rows, winner, metric = report.rows(), report.winner["id"], report.metric
    by_setting = chart_html(
        sweep_figures.plot_scores_by_setting(rows, report.space, winner, metric),
        "Score against each setting",
        "The best score of each trial against each setting. Filled: trained to the end; hollow: not trained to the "
        "end, so that the score might have improved. The bar is the median of a choice. Orange is the winner.",
        wide=True,
    )
    parallel = chart_html(
        sweep_figures.plot_parallel_coordinates(rows, report.space, winner, metric, report.higher),
        "Parallel coordinates",
        "Each trial is a line through its settings, from left to right, to its score; better trials are darker. Orange "
        "is the winner.",
        wide=True,
    )
    by_speed = chart_html(
        sweep_figures.plot_scores_by_speed(rows, winner, metric),
        "Score against speed",
        "The best score of each trial against the number of tiles that it trained on in a second during the sweep, "
        f"which may train several networks at once. Trials at the {'upper' if report.higher else 'lower'} right are "
        "both good and fast. A slow network is a poor choice for a whole volume.",
    )
    charts = [by_setting, parallel, by_speed, *_importance_chart(report)]
    return rendering.charts_html("Effect of the settings", charts)


def _importance_chart(report: SweepReport) -> list[str]:
    if not report.importances:
        return []
    chart = chart_html(
        sweep_figures.plot_importances(report.importances),
        "Importances",
        "How much each setting decides whether a trial is among the best quarter (Optuna, PED-ANOVA). With few trials "
        "this is only a hint.",
    )
    return [chart]


def _leaderboard(report: SweepReport) -> str:
    keys = list(dict.fromkeys(key for row in report.trials for key in row["values"] if key != "network"))
    heads = ["rank", "trial", report.metric, "epochs", "trained", "tiles/s", "parameters", "network"]
    rows = [
        [
            str(rank),
            row["id"],
            "" if row["score"] is None else f"{row['score']:.3f}",
            str(row["epochs"]),
            STATE_TEXTS.get(row["state"], row["state"]),
            "" if row["tiles_per_second"] is None else f"{row['tiles_per_second']:.1f}",
            "" if row["parameters"] is None else f"{row['parameters']:,}",
            row["network"],
            *(_value_text(row["values"].get(key)) for key in keys),
        ]
        for rank, row in enumerate(report.trials, 1)
    ]
    return rendering.html_table("Leaderboard", [*heads, *map(setting_name, keys)], rows, numbers=(2, 3, 5, 6))


def _shared_settings(report: SweepReport) -> dict[str, Any]:
    """Return the settings that all trials share, after those that were searched."""
    shared = {key: value for key, value in report.settings.items() if key != "sweep"}
    space = {setting.key: f"{setting.kind} {json.dumps(list(setting.values))}" for setting in report.space}
    return {"searched": space, **shared}


def _value_text(value: Any) -> str:
    return "" if value is None else format_setting(value)
