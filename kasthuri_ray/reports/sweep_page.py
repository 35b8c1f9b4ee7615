"""The page of a sweep: which trial won, what the others came to, and what the settings are worth, in one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.progress import format_duration
from kasthuri_ray.reports import rendering, sweep_figures
from kasthuri_ray.reports.rendering import ForegroundName, chart_html
from kasthuri_ray.reports.sweep_figures import Axis, TrialRow

CLOSE = 0.01  # of the score: trials this near the winner are as good, and may be faster
FASTER = 1.3
ENDINGS = {"finished": "to the end", "stopped": "stopped early"}  # the others are words of their own


@dataclass
class SweepReport:
    """What a page tells about a sweep.

    name: the sweep's. task_type: synapse, membrane or any other. metric: as a person says it; higher: whether more of
    it is better. trials: rows of leaderboard.json, the best first. curves: the metric after each epoch, by trial's id.
    space: what was searched. importances: of its settings, by key. test: figures of the winner, as metrics.json has
    them; None where there are none. seconds: that it all took. settings: as settings.json. commands: what to type next,
    each with words that say what for.
    """

    name: str
    task_type: str
    metric: str
    higher: bool
    trials: Sequence[Mapping[str, Any]]
    curves: Mapping[str, Sequence[float]]
    space: Sequence[Axis]
    importances: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, Any] | None = None
    seconds: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()

    @property
    def foreground(self) -> ForegroundName:
        return ForegroundName(self.task_type)

    @property
    def winner(self) -> Mapping[str, Any] | None:
        """The best trial that did not fail and runs no more."""
        ended = [row for row in self.trials if row["score"] is not None and row["state"] not in ("failed", "running")]
        return ended[0] if ended else None

    def rows(self) -> list[TrialRow]:
        return [
            TrialRow(
                id=row["id"],
                values=row["values"],
                score=None if row["state"] == "failed" else row["score"],
                whole=row["state"] == "finished",
                tiles_per_second=row["tiles_per_second"],
                curve=self.curves.get(row["id"], ()),
            )
            for row in self.trials
        ]


def sweep_page(report: SweepReport) -> str:
    """The page as HTML: everything in one file, no address of anything outside it."""
    over = [report.foreground.many.capitalize(), "search", report.name]
    body = [
        rendering.page_header(over, _headline(report), [_winner(report), _effort(report), _faster(report)]),
        rendering.warning_notes(_warnings(report)),
        _figures_of_winner(report),
        _learning(report),
        _worth(report),
        _leaderboard(report),
        rendering.next_steps(report.commands),
        rendering.settings_tables(_shown_settings(report)),
    ]
    return rendering.html_document(f"{report.name}: {report.foreground.many}", "\n".join(filter(None, body)))


def _headline(report: SweepReport) -> str:
    best = report.winner
    if best is None:
        return f"None of the {len(report.trials)} trials came to an end."
    of = f"the best of {len(report.trials)} trials" if len(report.trials) > 1 else "the only trial"
    return f"{best['network']} is {of}, at {report.metric} {best['score']:.3f}."


def _winner(report: SweepReport) -> str:
    best = report.winner
    if best is None:
        return ""
    values = [f"{_name(key)} {_value(value)}" for key, value in best["values"].items() if key != "network"]
    size = f" It has {best['parameters']:,} parameters." if best["parameters"] else ""
    learned = f" It was best after epoch {best['best_epoch']} of {best['epochs']}."
    return f"Trial {best['id']}: " + (", ".join(values) or best["network"]) + "." + size + learned


def _effort(report: SweepReport) -> str:
    """What it took, and what stopping poor trials early has saved."""
    count = len(report.trials)
    epochs = sum(row["epochs"] for row in report.trials)
    words = f"{count} trial{'s' * (count != 1)} of {epochs:,} epochs together, in {format_duration(report.seconds)}"
    by_state = {
        state: sum(row["state"] == state for row in report.trials) for state in ("finished", "stopped", "failed")
    }
    told = [
        f"{by_state['finished']} trained to the end",
        *([f"{by_state['stopped']} stopped early"] if by_state["stopped"] else []),
        *([f"{by_state['failed']} failed"] if by_state["failed"] else []),
    ]
    return f"{words}: {', '.join(told)}."


def _faster(report: SweepReport) -> str:
    """Whether another trial is as good and much faster, which a full volume would thank for."""
    best = report.winner
    if best is None or not best["tiles_per_second"]:
        return ""
    sign = 1 if report.higher else -1
    near = [
        row
        for row in report.trials
        if row["state"] == "finished"
        and sign * (best["score"] - row["score"]) <= CLOSE
        and (row["tiles_per_second"] or 0) >= FASTER * best["tiles_per_second"]
    ]
    if not near:
        return ""
    quick = max(near, key=lambda row: row["tiles_per_second"])
    times = quick["tiles_per_second"] / best["tiles_per_second"]
    return (
        f"For a whole volume look at trial {quick['id']} too: {quick['network']} at {report.metric} "
        f"{quick['score']:.3f}, and {times:.1f} times as fast."
    )


def _warnings(report: SweepReport) -> list[str]:
    best, notes = report.winner, []
    if best is not None and best["values"].get("network.normalization") in ("instance", "group"):
        notes.append(
            f"The winner normalizes by the tile ({best['values']['network.normalization']} norm): what it segments "
            "changes a little with --block and --tile."
        )
    if best is not None and best["state"] != "finished":
        notes.append(f"The winner was not trained to its end ({best['why']}): training it again may do better.")
    failed = [row for row in report.trials if row["state"] == "failed"]
    reasons: dict[str, list[str]] = {}
    for row in sorted(failed, key=lambda row: row["id"]):
        reasons.setdefault(_reason(row), []).append(row["id"])
    notes += [f"Failed: trial{'s' * (len(ids) > 1)} {', '.join(ids)}. {why}" for why, ids in reasons.items()]
    return notes


def _reason(row: Mapping[str, Any]) -> str:
    """Why a trial failed, in a line."""
    return next(iter(row["why"].splitlines()), "")


def _figures_of_winner(report: SweepReport) -> str:
    """The winner's figures on test, which no trial was chosen by."""
    if not report.test:
        return ""
    test = report.test
    iou = test["iou"][1:]
    entries = [
        ("F1", test["foreground_f1"], f"at threshold {test['threshold']:.2f}, chosen on validation"),
        ("average precision", test["average_precision"], "over all thresholds"),
        ("IoU", sum(iou) / len(iou), "overlap, taking the likeliest class"),
        ("balanced accuracy", test["balanced_accuracy"], "mean over the classes"),
    ]
    words = "<p>On the test box, which neither training nor the search has seen:</p>"
    return f"<section>\n<h2>What the winner can do</h2>\n{words}\n" + (
        rendering.figure_cells([(name, f"{value:.3f}", said) for name, value, said in entries], "Figures on test")
        + "\n</section>"
    )


def _learning(report: SweepReport) -> str:
    if report.winner is None:
        return ""
    curves = chart_html(
        sweep_figures.trial_learning_curves(report.rows(), report.winner["id"], report.metric),
        "Learning curves of all trials",
        f"The {report.metric} on the validation box over the epochs, every trial a line. Orange is the winner; a dot "
        "ends a trial that was stopped early.",
        wide=True,
    )
    return rendering.charts_html("How the trials learned", [curves])


def _worth(report: SweepReport) -> str:
    """What the settings and the speed are worth."""
    if report.winner is None:
        return ""
    rows, winner, metric = report.rows(), report.winner["id"], report.metric
    found = [
        chart_html(sweep_figures.scores_by_setting(rows, report.space, winner, metric), "Score against each setting", "The best "
              "score of each trial against each setting. Filled: trained to the end; hollow: stopped early, so that it "
              "might have come further. The bar is the median of a choice, orange the winner.", wide=True),
        chart_html(sweep_figures.parallel_coordinates(rows, report.space, winner, metric, report.higher), "Parallel coordinates",
              "Each trial as a line through its settings, from left to right, to its score: the better, the darker. "
              "Orange is the winner.", wide=True),
        chart_html(sweep_figures.scores_by_speed(rows, winner, metric), "Score against speed", "The best score of each trial "
              "against the tiles that it trained on in a second, at the sweep's load of the machine. Right and high "
              "is good: a slow winner is a poor one for a whole volume."),
    ]  # fmt: skip
    if report.importances:
        found.append(
            chart_html(sweep_figures.importance_chart(report.importances), "Importances", "How much each setting decides whether a "
                  "trial is among the best quarter (Optuna, PED-ANOVA). With few trials it is a hint, no more.")
        )  # fmt: skip
    return rendering.charts_html("What the settings are worth", found)


def _leaderboard(report: SweepReport) -> str:
    keys = list(dict.fromkeys(key for row in report.trials for key in row["values"] if key != "network"))
    heads = [
        "",
        "trial",
        report.metric,
        "epochs",
        "trained",
        "tiles/s",
        "parameters",
        "network",
        *map(_name, keys),
    ]
    rows = [
        [
            str(place),
            row["id"],
            "" if row["score"] is None else f"{row['score']:.3f}",
            str(row["epochs"]),
            ENDINGS.get(row["state"], row["state"]),
            "" if row["tiles_per_second"] is None else f"{row['tiles_per_second']:.1f}",
            "" if row["parameters"] is None else f"{row['parameters']:,}",
            row["network"],
            *(_value(row["values"].get(key)) for key in keys),
        ]
        for place, row in enumerate(report.trials, 1)
    ]
    return rendering.html_table("Leaderboard", heads, rows, numbers=(2, 3, 5, 6))


def _shown_settings(report: SweepReport) -> dict[str, Any]:
    """The settings that all trials share, and the space."""
    found = {key: value for key, value in report.settings.items() if key != "sweep"}
    space = {axis.key: f"{axis.kind} {json.dumps(list(axis.values))}" for axis in report.space}
    return {"searched": space, **found}


def _name(key: str) -> str:
    return (key.partition(".")[2] or key).replace("_", " ")


def _value(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else json.dumps(value)
