"""What the pages of runs and of evaluations are made of: pieces of HTML, each from what it is told."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from matplotlib.figure import Figure

from kasthuri_ray.metrics.voxel_counts import VoxelCounts, precision_recall_at
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.section_images import LEGEND, SectionResult, encode_jpeg, rank_sections

FLAG = re.compile(r"(?<![\w-])--[a-z]+(-[a-z]+)*")  # of a command line
LARGE, SMALL = 960, 480
"""Longest side in pixels of the panel of errors of the best and the worst, and of all other panels."""


PLURALS = {"synapse": "synapses", "membrane": "membranes"}
PARTS = (*((n, 10) for n in range(1, 10)), (1, 4), (1, 3), (2, 3), (3, 4))
"""The shares that are easily pictured, as (so many, of so many)."""


def html_document(title: str, body: str) -> str:
    """A whole HTML document with our style around `body` (HTML); `title` is text."""
    style = resources.files("kasthuri_ray.reports").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def voxel_headline(counts: VoxelCounts, threshold: float, foreground: ForegroundName) -> str:
    """What a network can do, in a sentence about voxels."""
    precision, recall = precision_recall_at(counts, threshold)
    if recall == 0:
        return f"The network finds none of the {foreground.name} voxels."
    return (
        f"The network finds {share_words(recall)} {foreground.name} voxels; "
        f"of those it marks, {share_words(precision)} are right."
    )


def page_header(over: Sequence[str], headline: str, ledes: Sequence[str]) -> str:
    """The head of a page; over: small words above the headline."""
    return (
        f'<header>\n<p class="run">{" · ".join(escape(part) for part in over)}</p>\n'
        f"<h1>{escape(headline)}</h1>\n"
        + "".join(f'<p class="lede">{escape(text)}</p>\n' for text in ledes if text)
        + "</header>"
    )


def warning_notes(texts: Iterable[str]) -> str:
    """What a person must know before believing the figures; empty where there is nothing."""
    paragraphs = "".join(f"<p>{FLAG.sub(_code, escape(text))}</p>\n" for text in dict.fromkeys(texts))
    return f'<aside class="notes" aria-label="Notes">\n{paragraphs}</aside>' if paragraphs else ""


def _code(flag: re.Match[str]) -> str:
    """A flag in one piece: a line would break after its dashes."""
    return f"<code>{flag[0]}</code>"


def figure_cells(entries: Iterable[tuple[str, str, str]], label: str) -> str:
    """Large figures in a row: (name, figure, what it means)."""
    shown = "".join(
        f'<div><dt>{escape(name)}</dt><dd><b>{escape(figure)}</b><span class="soft">{escape(words)}</span></dd></div>\n'
        for name, figure, words in entries
    )
    return f'<dl class="figures" aria-label="{escape(label)}">\n{shown}</dl>'


def charts_html(title: str, charts: Iterable[str]) -> str:
    return f'<section>\n<h2>{title}</h2>\n<div class="charts">\n{"".join(charts)}</div>\n</section>'


def chart_html(figure: Figure, title: str, caption: str, wide: bool = False) -> str:
    """A figure with its caption; wide: across the page."""
    kind, picture = "chart wide" if wide else "chart", figures.figure_svg(figure, title)
    return f'<figure class="{kind}">\n{picture}\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n'


def html_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Container[int] = ()) -> str:
    """A table of text, which scrolls sideways where it is too wide. numbers: columns that are flush right."""

    def cell(tag: str, column: int, text: str) -> str:
        return f"<{tag}{' class=number' if column in numbers else ''}>{escape(text)}</{tag}>"

    head = "".join(cell("th", column, text) for column, text in enumerate(heads))
    body = "".join(f"<tr>{''.join(cell('td', column, text) for column, text in enumerate(row))}</tr>\n" for row in rows)
    shown = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    return f'<section>\n<h2>{escape(title)}</h2>\n<div class="board" tabindex="0">\n{shown}\n</div>\n</section>'


def next_step(words: str, command: str) -> str:
    """What to type next; empty without a command."""
    return next_steps([(words, command)])


def next_steps(steps: Iterable[tuple[str, str]]) -> str:
    """What to type next, each with words that say what for; empty without a command."""
    shown = "".join(
        f"<p>{escape(words)}</p>\n<pre><code>{escape(command)}</code></pre>\n" for words, command in steps if command
    )
    return f"<section>\n<h2>What to do next</h2>\n{shown}</section>" if shown else ""


def settings_tables(settings: Mapping[str, Any]) -> str:
    """All settings, folded away: a table a section."""
    if not settings:
        return ""
    sections = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    alone = {key: value for key, value in settings.items() if key not in sections}
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


@dataclass(frozen=True)
class ForegroundName:
    """What a task looks for, in words. `task_type`: synapse, membrane, or any other word."""

    task_type: str

    @property
    def name(self) -> str:
        """As in '8 of 10 synapse voxels'."""
        return self.task_type.replace("_", " ").strip() or "foreground"

    @property
    def many(self) -> str:
        return PLURALS.get(self.name, self.name)

    def fraction(self, share: float) -> str:
        """The beginning of a sentence: 'The membrane fraction is 21.3%', 'Synapses are 0.72% of them'."""
        if self.name in ("synapse", "membrane"):
            return (
                f"The membrane fraction is {percent(share)}"
                if self.name == "membrane"
                else f"Synapses are {percent(share)} of them"
            )
        return f"The share of {self.name} is {percent(share)}"


@dataclass(frozen=True)
class Gallery:
    """Sections, or parts of them, to look at. threshold: from which a voxel is called foreground. pixel_size_nm: (y, x)
    for a scale bar; None draws none. noun: what each of them is."""

    sections: Sequence[SectionResult]
    threshold: float
    foreground: ForegroundName
    pixel_size_nm: tuple[float, float] | None = None
    noun: str = "section"

    def html(self, words: str) -> str:
        """A part of the page; empty without sections. words: text that says what they are."""
        if not self.sections:
            return ""
        colours = "".join(f'<li><i style="background: rgb{c}"></i>{label} ({word})</li>\n' for c, label, word in LEGEND)
        legend = f'<ul class="legend" aria-label="Colours of the errors">\n{colours}</ul>\n'
        if all(section.truth is None for section in self.sections):
            legend = ""  # no errors are shown
        slices = "\n".join(self._slice(*each) for each in rank_sections(list(self.sections), self.threshold))
        return f"<section>\n<h2>What it sees</h2>\n<p>{escape(words)}</p>\n{legend}{slices}\n</section>"

    def _slice(self, section: SectionResult, rating: str) -> str:
        """One section: its panels and a caption; the best and the worst with the errors large."""
        panels = section.panels(self.threshold)
        kind = "large" if rating and len(panels) == 4 else "few" if len(panels) < 4 else ""
        pictures = []
        for name, pixels in panels.items():
            data = encode_jpeg(pixels, LARGE if kind == "large" and name == "errors" else SMALL)
            bar = self._scale_bar(section) if name in ("image", "errors") else ""
            pictures.append(
                f'<div class="panel {name}"><img alt="{escape(f"{name}, section z {section.z}")}" '
                f'src="data:image/jpeg;base64,{base64.b64encode(data).decode()}"><span>{name}</span>{bar}</div>\n'
            )
        caption = f"<figcaption>{self._caption(section, rating)}</figcaption>\n"
        inside, after = (caption, "") if kind == "large" else ("", caption)
        return (
            f'<figure class="slice {kind}">\n<div class="panels">\n{"".join(pictures)}{inside}</div>\n{after}</figure>'
        )

    def _caption(self, section: SectionResult, rating: str) -> str:
        f1 = section.f1(self.threshold)
        part = "Section z" if self.noun == "section" else f"{self.noun.capitalize()} of section z"
        title = f"{part} {section.z}" if not rating else f"The {rating} {self.noun}, z\u00a0{section.z}"
        if section.truth is None:
            words = "no annotation to compare with."
        elif f1 is None:
            words = f"no {self.foreground.name} here, and none marked."
        else:
            found, missed, wrong = (int(mask.sum()) for mask in section.outcomes(self.threshold))
            words = f"F1 {f1:.3f}. {found:,} pixels found, {missed:,} missed, {wrong:,} wrongly marked."
        box = f" Box {section.box}." if section.box else ""
        return f"<b>{escape(title)}{'' if rating else ':'}</b> {escape(words + box)}"

    def _scale_bar(self, section: SectionResult) -> str:
        if self.pixel_size_nm is None:
            return ""
        width = section.image.shape[1] * self.pixel_size_nm[1]
        length = scale_bar_nm(width)
        words = f"{length:g} nm" if length < 1000 else f"{length / 1000:g} µm"
        return f'<span class="bar" style="width: {100 * length / width:.2f}%">{words}</span>'


def percent(share: float) -> str:
    """A share as a percentage; one more digit where it is small."""
    return f"{share:.1%}" if share == 0 or share >= 0.01 else f"{share:.2%}"


def share_words(share: float) -> str:
    """A share to picture: 'about 8 of 10', 'about 2 of 3', '97 of 100'; 'all' and 'none' are said of 1 and 0 alone."""
    if share in (0, 1):
        return "all" if share else "none"
    if not 0.005 <= share < 0.995:
        return "fewer than 1 of 100" if share < 0.5 else "more than 99 of 100"
    if not 0.09 <= share <= 0.92:
        return f"{round(100 * share)} of 100"
    part, of = min(PARTS, key=lambda pair: abs(pair[0] / pair[1] - share))
    return f"about {part} of {of}"


def scale_bar_nm(width_nm: float) -> float:
    """The length of a scale bar for a picture `width_nm` wide: 1, 2 or 5 times a power of ten, at most a quarter."""
    power = 10.0 ** math.floor(math.log10(width_nm / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= width_nm / 4)


def only_background_warning(counts: VoxelCounts, foreground: str = "foreground") -> str:
    """What to tell a person when `calls_background_everywhere`."""
    true, everything = int(counts.confusion[1:].sum()), counts.num_voxels
    return (
        f"The network answers background everywhere: it calls none of {everything:,} voxels {foreground}, though "
        f"{true:,} of them ({true / everything:.2%}) are. Its accuracy of {1 - true / everything:.2%} says nothing. "
        "Try a loss that weighs the foreground (network.loss), a higher task.foreground_share, or more epochs."
    )
