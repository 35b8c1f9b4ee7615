"""The page of a run: one HTML file that holds all it shows, to be looked at without a network, on a phone, on paper."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any

from kasthuri_ray.evaluation.metrics import (
    Counts,
    average_precision,
    background_everywhere_words,
    calls_background_everywhere,
    foreground_counts,
    precision_recall_at,
)
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.slices import LEGEND, TestSlice, jpeg, rank
from kasthuri_ray.reports.words import Foreground, bar_length_nm, duration, percent, share_words

LARGE, SMALL = 960, 480
"""Longest side in pixels of the panel of errors of the best and the worst section, and of all other panels."""


@dataclass
class RunReport:
    """What a page tells about a run.

    name: the run's. task_type: synapse, membrane or any other. network: its name.
    metrics: what metrics.json holds; "test" is None where there is no annotation for test.
    history: the rows of history.csv. counts: of the split `counts_of` ("test", or "val" without test).
    gallery: test sections. threshold: the one chosen on val. settings: sections of settings, as settings.json.
    notes: sentences to warn with. next_command: what to type next, if anything, and next_words: what for.
    num_tiles: tiles trained on; None works it out from the history.
    pixel_size_nm: (y, x) for a scale bar; None draws none.
    """

    name: str
    task_type: str
    network: str
    metrics: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    counts: Counts | None
    gallery: Sequence[TestSlice]
    threshold: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    next_words: str = ""
    next_command: str = ""
    counts_of: str = "test"
    num_tiles: int | None = None
    pixel_size_nm: tuple[float, float] | None = None

    @property
    def foreground(self) -> Foreground:
        return Foreground(self.task_type)

    @property
    def tested(self) -> bool:
        return self.metrics.get("test") is not None


def run_page(run: RunReport) -> str:
    """The page as HTML: everything in one file, no address of anything outside it."""
    body = [_header(run), _warnings(run), _headline_figures(run), _gallery(run), _learning(run), _certainty(run)]
    return document(f"{run.name}: {run.foreground.many}", "\n".join(filter(None, [*body, _next(run), _settings(run)])))


def document(title: str, body: str) -> str:
    """A whole HTML document with our style around `body` (HTML); `title` is text."""
    style = resources.files("kasthuri_ray.reports").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _header(run: RunReport) -> str:
    parts = [run.foreground.many.capitalize(), run.network, run.name]
    return (
        f'<header>\n<p class="run">{" · ".join(escape(part) for part in parts)}</p>\n'
        f"<h1>{escape(_headline(run))}</h1>\n"
        + "".join(f'<p class="lede">{escape(text)}</p>\n' for text in (_measured(run), _trained(run)) if text)
        + "</header>"
    )


def _headline(run: RunReport) -> str:
    """What the network can do, in a sentence."""
    if run.counts is None or not run.counts.num_voxels:
        return f"A network for {run.foreground.many}, trained and not yet measured."
    precision, recall = precision_recall_at(run.counts, run.threshold)
    if recall == 0:
        return f"The network finds none of the {run.foreground.name} voxels."
    return (
        f"The network finds {share_words(recall)} {run.foreground.name} voxels; "
        f"of those it marks, {share_words(precision)} are right."
    )


def _measured(run: RunReport) -> str:
    """On what the headline was measured, and how much of it is foreground."""
    if run.counts is None or not run.counts.num_voxels:
        return ""
    (found, wrong), (missed, right) = foreground_counts(run.counts, run.threshold)
    everything = found + wrong + missed + right
    box = "the test box, which it never saw" if run.counts_of == "test" else "the validation box, which chose its epoch"
    return (
        f"Measured on {everything:,} voxels of {box}. {run.foreground.fraction((found + missed) / everything)} "
        f"in the annotation, and {percent((found + wrong) / everything)} in the prediction."
    )


def _trained(run: RunReport) -> str:
    """What was trained on what, for how long, on how many tiles."""
    words = ["Trained"]
    task = run.settings.get("task") or {}
    if task.get("image_chan"):
        words.append(f"on {task['image_chan']}")
    if task.get("z_train"):
        words.append("(sections {} to {})".format(*task["z_train"]))
    epochs = run.metrics.get("epochs", len(run.history))
    words.append(f"for {epochs} epoch{'s' * (epochs != 1)}")
    tiles = run.num_tiles if run.num_tiles is not None else _tiles_of(run.history)
    if tiles:
        words[-1] += f", {tiles:,} tiles in all"
    if run.metrics.get("seconds"):
        words[-1] += f", in {duration(run.metrics['seconds'])}"
    best = run.metrics.get("best_epoch")
    return " ".join(words) + (f"; the weights are those of epoch {best}, the best on validation." if best else ".")


def _tiles_of(history: Sequence[Mapping[str, Any]]) -> int:
    return round(sum(float(r.get("seconds") or 0) * float(r.get("tiles_per_second") or 0) for r in history))


def _warnings(run: RunReport) -> str:
    """What a person must know before believing the figures; empty where there is nothing."""
    notes = list(run.notes)
    if run.counts is not None and calls_background_everywhere(run.counts):
        notes.insert(0, background_everywhere_words(run.counts, run.foreground.name))
    if not run.tested:
        notes.insert(0, "This task has no annotation for test: nothing here was measured on sections kept apart.")
    paragraphs = "".join(f"<p>{escape(note)}</p>\n" for note in dict.fromkeys(notes))
    return f'<aside class="notes" aria-label="Notes">\n{paragraphs}</aside>' if paragraphs else ""


def _headline_figures(run: RunReport) -> str:
    split = "test" if run.tested else "val"
    figures_of = run.metrics.get(split)
    if not figures_of:
        return ""
    entries = [("F1", figures_of["foreground_f1"], f"at threshold {run.threshold:.2f}, chosen on validation")]
    if run.counts is not None and run.counts_of == split:
        precision, recall = precision_recall_at(run.counts, run.threshold)
        entries += [("recall", recall, f"of the {run.foreground.name} voxels are found")]
        entries += [("precision", precision, "of the marked voxels are right")]
    entries += [("average precision", figures_of["average_precision"], "over all thresholds")]
    iou = figures_of["iou"][1:]
    entries += [("IoU", sum(iou) / len(iou), "overlap, taking the likeliest class")]
    cells = "".join(
        f'<div><dt>{name}</dt><dd><b>{value:.3f}</b><span class="soft">{escape(words)}</span></dd></div>\n'
        for name, value, words in entries
    )
    return f'<dl class="figures" aria-label="Figures on {split}">\n{cells}</dl>'


def _gallery(run: RunReport) -> str:
    if not run.gallery:
        return ""
    ranked = rank(list(run.gallery), run.threshold)
    colours = "".join(f'<li><i style="background: rgb{c}"></i>{label} ({word})</li>\n' for c, label, word in LEGEND)
    legend = f'<ul class="legend" aria-label="Colours of the errors">\n{colours}</ul>\n'
    if all(section.truth is None for section in run.gallery):
        legend = ""  # no errors are shown
    slices = "\n".join(_slice(run, section, rating) for section, rating in ranked)
    return (
        "<section>\n<h2>What it sees</h2>\n"
        f"<p>{'Test' if run.tested else 'Validation'} sections as the microscope took them, and what the network made "
        "of them. In truth and prediction blue is the foreground: the paler, the less sure.</p>\n"
        f"{legend}{slices}\n</section>"
    )


def _slice(run: RunReport, section: TestSlice, rating: str) -> str:
    """One section: its panels and a caption; the best and the worst with the errors large."""
    panels = section.panels(run.threshold)
    kind = "large" if rating and len(panels) == 4 else "few" if len(panels) < 4 else ""
    pictures = []
    for name, pixels in panels.items():
        data = jpeg(pixels, LARGE if kind == "large" and name == "errors" else SMALL)
        bar = _scale_bar(run, section) if name in ("image", "errors") else ""
        pictures.append(
            f'<div class="panel {name}"><img alt="{escape(f"{name}, section z {section.z}")}" '
            f'src="data:image/jpeg;base64,{base64.b64encode(data).decode()}"><span>{name}</span>{bar}</div>\n'
        )
    caption = f"<figcaption>{_caption(run, section, rating)}</figcaption>\n"
    inside, after = (caption, "") if kind == "large" else ("", caption)
    return f'<figure class="slice {kind}">\n<div class="panels">\n{"".join(pictures)}{inside}</div>\n{after}</figure>'


def _caption(run: RunReport, section: TestSlice, rating: str) -> str:
    f1 = section.f1(run.threshold)
    title = f"Section z {section.z}" if not rating else f"The {rating} section, z\u00a0{section.z}"
    if section.truth is None:
        words = "no annotation to compare with."
    elif f1 is None:
        words = f"no {run.foreground.name} here, and none marked."
    else:
        found, missed, wrong = (int(mask.sum()) for mask in section.outcomes(run.threshold))
        words = f"F1 {f1:.3f}. {found:,} pixels found, {missed:,} missed, {wrong:,} wrongly marked."
    box = f" Box {section.box}." if section.box else ""
    return f"<b>{escape(title)}{'' if rating else ':'}</b> {escape(words + box)}"


def _scale_bar(run: RunReport, section: TestSlice) -> str:
    if run.pixel_size_nm is None:
        return ""
    width = section.image.shape[1] * run.pixel_size_nm[1]
    length = bar_length_nm(width)
    words = f"{length:g} nm" if length < 1000 else f"{length / 1000:g} µm"
    return f'<span class="bar" style="width: {100 * length / width:.2f}%">{words}</span>'


def _learning(run: RunReport) -> str:
    if not run.history:
        return ""
    best = run.metrics.get("best_epoch")
    charts = [
        _chart(figures.loss_curve(run.history, best), "Loss over the epochs", "Loss on the training tiles and on the "
               "validation box, and the learning rate. Lower is better; where validation rises while training falls, "
               "the network learns by heart."),
        _chart(figures.score_curve(run.history, best), "Validation scores over the epochs", "F1 of the foreground at "
               "each epoch's best threshold, and average precision. The epoch with the highest average precision is "
               "the one that was kept."),
    ]  # fmt: skip
    return _charts("How it learned", charts)


def _certainty(run: RunReport) -> str:
    if run.counts is None or not run.counts.num_voxels:
        return ""
    where = "test" if run.counts_of == "test" else "validation"
    names = ["background", run.foreground.name]
    (found, wrong), (missed, right) = foreground_counts(run.counts, run.threshold)
    charts = [
        _chart(figures.precision_recall(run.counts, run.threshold), "Precision over recall", "How many of the marked "
               f"voxels are right, over how many of the {run.foreground.name} voxels are found, on the {where} box, "
               "as the threshold falls. The dot is the threshold chosen on validation; average precision is the area "
               f"below, {average_precision(run.counts):.3f}. Pale: equal F1."),
        _chart(figures.confusion([[right, wrong], [missed, found]], names), "Confusion", f"Voxels of the {where} box "
               f"at threshold {run.threshold:.2f}: the share of each row, and the count."),
    ]  # fmt: skip
    if run.counts.classes > 2:
        every = ["background", *(f"class {index}" for index in range(1, run.counts.classes))]
        charts.append(_chart(figures.confusion(run.counts.confusion, every), "Confusion of all classes",
                             "Every class, by the likeliest."))  # fmt: skip
    return _charts("Where it errs", charts)


def _charts(title: str, charts: Iterable[str]) -> str:
    return f'<section>\n<h2>{title}</h2>\n<div class="charts">\n{"".join(charts)}</div>\n</section>'


def _chart(figure: Any, title: str, caption: str) -> str:
    return (
        f'<figure class="chart">\n{figures.svg(figure, title)}\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n'
    )


def _next(run: RunReport) -> str:
    if not run.next_command:
        return ""
    command = f"<pre><code>{escape(run.next_command)}</code></pre>"
    return f"<section>\n<h2>What to do next</h2>\n<p>{escape(run.next_words)}</p>\n{command}\n</section>"


def _settings(run: RunReport) -> str:
    """All settings, folded away: a table a section."""
    if not run.settings:
        return ""
    sections = {key: value for key, value in run.settings.items() if isinstance(value, Mapping)}
    alone = {key: value for key, value in run.settings.items() if key not in sections}
    tables = []
    for name, entries in {**sections, **({"other": alone} if alone else {})}.items():
        rows = "".join(
            f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(_shown(value))}</td></tr>\n'
            for key, value in entries.items()
        )
        tables.append(f"<table>\n<caption>{escape(name)}</caption>\n<tbody>\n{rows}</tbody>\n</table>\n")
    return f'<details>\n<summary>Settings</summary>\n<div class="settings">\n{"".join(tables)}</div>\n</details>'


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
