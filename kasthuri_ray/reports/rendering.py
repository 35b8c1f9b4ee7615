"""Parts of HTML that all pages share: header, warnings, scores, charts, tables, example sections, settings."""

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

from kasthuri_ray.metrics.thresholds import precision_recall_at
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.reports import figures
from kasthuri_ray.reports.section_images import LEGEND, SectionResult, encode_jpeg, rank_sections

COMMAND_FLAG = re.compile(r"(?<![\w-])--[a-z]+(-[a-z]+)*")

# Longest side of a picture in pixels: of the errors of the best and the worst section, and of all others.
LARGE_PANEL_PIXELS, SMALL_PANEL_PIXELS = 960, 480

IOU_MEANING = "mean IoU of the foreground classes, each voxel assigned its most likely class (argmax, no threshold)"

PLURALS = {"synapse": "synapses", "membrane": "membranes"}

# Shares that are easy to picture, as (so many, of so many).
SIMPLE_SHARES = (*((n, 10) for n in range(1, 10)), (1, 4), (1, 3), (2, 3), (3, 4))


@dataclass(frozen=True)
class ForegroundName:
    """Name of what a task looks for. task_type: synapse, membrane, or any other word."""

    task_type: str

    @property
    def name(self) -> str:
        """Name of one, as in '8 of 10 synapse voxels'."""
        return self.task_type.replace("_", " ").strip() or "foreground"

    @property
    def plural(self) -> str:
        """Name of several."""
        return PLURALS.get(self.name, self.name)

    def fractions_sentence(self, annotated: float, predicted: float) -> str:
        """Return a sentence that compares the shares of foreground voxels in annotation and prediction."""
        return (
            f"The fraction of {self.name} voxels is {format_percent(annotated)} in the annotation and "
            f"{format_percent(predicted)} in the prediction."
        )


@dataclass(frozen=True)
class Gallery:
    """Example sections, or parts of them.

    threshold: probability from which a voxel counts as foreground. pixel_size_nm: (y, x) for a scale bar; None draws
    none. noun: what one example is, in a caption.
    """

    sections: Sequence[SectionResult]
    threshold: float
    foreground: ForegroundName
    pixel_size_nm: tuple[float, float] | None = None
    noun: str = "section"

    def html(self, title: str) -> str:
        """Return the section of the page, "" without examples. title: what the examples are, as text."""
        if not self.sections:
            return ""
        ranked = rank_sections(list(self.sections), self.threshold)
        examples = "\n".join(self._example_html(section, rating) for section, rating in ranked)
        return (
            f"<section>\n<h2>Examples</h2>\n<p>{escape(self._explanation(title))}</p>\n"
            f"{self._legend()}{examples}\n</section>"
        )

    @property
    def _any_truth(self) -> bool:
        return any(section.truth is not None for section in self.sections)

    def _explanation(self, title: str) -> str:
        blue = f"Blue marks {self.foreground.name} voxels; in the prediction, a paler blue means a lower probability."
        if not self._any_truth:
            return f"{title}: the image and the prediction. {blue}"
        return (
            f"{title}: the image, the annotation (truth), the prediction, and its errors. {blue} Colours of the errors:"
        )

    def _legend(self) -> str:
        if not self._any_truth:
            return ""
        colours = "".join(
            f'<li><i style="background: rgb{colour}"></i>{outcome} ({name})</li>\n' for colour, outcome, name in LEGEND
        )
        return f'<ul class="legend" aria-label="Colours of the errors">\n{colours}</ul>\n'

    def _example_html(self, section: SectionResult, rating: str) -> str:
        """Return the panels of one section and a caption; the best and the worst have a large panel of errors."""
        panels = section.panels(self.threshold)
        layout = "large" if rating and len(panels) == 4 else "few" if len(panels) < 4 else ""
        pictures = []
        for name, pixels in panels.items():
            large = layout == "large" and name == "errors"
            data = encode_jpeg(pixels, LARGE_PANEL_PIXELS if large else SMALL_PANEL_PIXELS)
            bar = self._scale_bar(section) if name in ("image", "errors") else ""
            pictures.append(
                f'<div class="panel {name}"><img alt="{escape(f"{name}, section z {section.z}")}" '
                f'src="data:image/jpeg;base64,{base64.b64encode(data).decode()}"><span>{name}</span>{bar}</div>\n'
            )
        caption = f"<figcaption>{self._caption(section, rating)}</figcaption>\n"
        inside, below = (caption, "") if layout == "large" else ("", caption)
        content = f'<div class="panels">\n{"".join(pictures)}{inside}</div>\n{below}'
        return f'<figure class="slice {layout}">\n{content}</figure>'

    def _caption(self, section: SectionResult, rating: str) -> str:
        f1 = section.f1(self.threshold)
        part = "Section z" if self.noun == "section" else f"{self.noun.capitalize()} of section z"
        title = f"{part} {section.z}" if not rating else f"The {rating} {self.noun}, z\u00a0{section.z}"
        if section.truth is None:
            text = "no annotation to compare with."
        elif f1 is None:
            text = f"no {self.foreground.name} in the annotation, and none marked."
        else:
            found, missed, wrong = (int(mask.sum()) for mask in section.outcomes(self.threshold))
            text = f"F1 {f1:.3f}. {found:,} pixels found, {missed:,} missed, {wrong:,} wrongly marked."
        box = f" Box {section.box} (z,y,x)." if section.box else ""
        return f"<b>{escape(title)}{'' if rating else ':'}</b> {escape(text + box)}"

    def _scale_bar(self, section: SectionResult) -> str:
        if self.pixel_size_nm is None:
            return ""
        width_nm = section.image.shape[1] * self.pixel_size_nm[1]
        bar_nm = scale_bar_nm(width_nm)
        label = f"{bar_nm:g} nm" if bar_nm < 1000 else f"{bar_nm / 1000:g} µm"
        return f'<span class="bar" style="width: {100 * bar_nm / width_nm:.2f}%">{label}</span>'


def html_document(title: str, parts: Iterable[str]) -> str:
    """Return a whole HTML document in our style. title: text; parts: HTML, empty ones are left out."""
    body = "\n".join(filter(None, parts))
    style = resources.files("kasthuri_ray.reports").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def page_header(context: Sequence[str], headline: str, paragraphs: Sequence[str]) -> str:
    """Return the head of a page. context: what the page is about, in small type above the headline."""
    return (
        f'<header>\n<p class="context">{" · ".join(escape(part) for part in context)}</p>\n'
        f"<h1>{escape(headline)}</h1>\n"
        + "".join(f'<p class="lede">{escape(text)}</p>\n' for text in paragraphs if text)
        + "</header>"
    )


def warning_notes(texts: Iterable[str]) -> str:
    """Return a box of warnings, each once; "" without any."""
    paragraphs = "".join(f"<p>{COMMAND_FLAG.sub(_flag_html, escape(text))}</p>\n" for text in dict.fromkeys(texts))
    return f'<aside class="notes" aria-label="Warnings">\n{paragraphs}</aside>' if paragraphs else ""


def _flag_html(flag: re.Match[str]) -> str:
    """Return a flag as code, which no line break divides after its dashes."""
    return f"<code>{flag[0]}</code>"


def score_cells(scores: Iterable[tuple[str, str, str]], label: str) -> str:
    """Return scores in a row, in large type: (name, value, what it means)."""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt>"
        f'<dd><b>{escape(value)}</b><span class="soft">{escape(meaning)}</span></dd></div>\n'
        for name, value, meaning in scores
    )
    return f'<dl class="scores" aria-label="{escape(label)}">\n{cells}</dl>'


def charts_html(title: str, charts: Iterable[str]) -> str:
    """Return a titled section of charts."""
    return f'<section>\n<h2>{title}</h2>\n<div class="charts">\n{"".join(charts)}</div>\n</section>'


def chart_html(figure: Figure, title: str, caption: str, wide: bool = False) -> str:
    """Return a figure with its caption. title: text for screen readers; wide: as wide as the page."""
    layout, picture = "chart wide" if wide else "chart", figures.figure_svg(figure, title)
    return f'<figure class="{layout}">\n{picture}\n<figcaption>{escape(caption)}</figcaption>\n</figure>\n'


def html_table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Container[int] = ()) -> str:
    """Return a table that scrolls sideways if it is too wide. numbers: columns that are aligned to the right."""

    def cell(tag: str, column: int, text: str) -> str:
        return f"<{tag}{' class=number' if column in numbers else ''}>{escape(text)}</{tag}>"

    head = "".join(cell("th", column, text) for column, text in enumerate(heads))
    body = "".join(f"<tr>{''.join(cell('td', column, text) for column, text in enumerate(row))}</tr>\n" for row in rows)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    return f'<section>\n<h2>{escape(title)}</h2>\n<div class="wide-table" tabindex="0">\n{table}\n</div>\n</section>'


def next_steps(steps: Iterable[tuple[str, str]]) -> str:
    """Return what to type next, as pairs of a text and a command; "" without a command."""
    shown = "".join(
        f"<p>{escape(text)}</p>\n<pre><code>{escape(command)}</code></pre>\n" for text, command in steps if command
    )
    return f"<section>\n<h2>What to do next</h2>\n{shown}</section>" if shown else ""


def settings_tables(settings: Mapping[str, Any]) -> str:
    """Return all settings, folded away, one table a section; "" without settings."""
    if not settings:
        return ""
    sections = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    others = {key: value for key, value in settings.items() if key not in sections}
    tables = []
    for name, entries in {**sections, **({"other": others} if others else {})}.items():
        rows = "".join(
            f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(_setting_text(value))}</td></tr>\n'
            for key, value in entries.items()
        )
        tables.append(f"<table>\n<caption>{escape(name)}</caption>\n<tbody>\n{rows}</tbody>\n</table>\n")
    return f'<details>\n<summary>Settings</summary>\n<div class="settings">\n{"".join(tables)}</div>\n</details>'


def _setting_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def voxel_headline(
    counts: VoxelCounts, threshold: float, foreground: ForegroundName, subject: str = "The network"
) -> str:
    """Return a sentence about how many voxels the subject finds, and how many of those that it marks are correct."""
    precision, recall = precision_recall_at(counts, threshold)
    if recall == 0:
        return f"{subject} finds none of the {foreground.name} voxels."
    return (
        f"{subject} finds {describe_share(recall)} {foreground.name} voxels; "
        f"of the voxels that it marks, {describe_share(precision)} are correct."
    )


def only_background_warning(counts: VoxelCounts, foreground: str = "foreground") -> str:
    """Return the warning for a network that `predicts_only_background`."""
    true, everything = int(counts.confusion[1:].sum()), counts.num_voxels
    return (
        f"The network predicts background everywhere: it marks none of {everything:,} voxels as {foreground}, although "
        f"{true:,} of them ({true / everything:.2%}) are. Its accuracy of {1 - true / everything:.2%} therefore means "
        "nothing. Try a loss that gives the foreground more weight (network.loss), a higher task.foreground_share, or "
        "more epochs."
    )


def format_percent(share: float) -> str:
    """Return a share as a percentage, with one more digit if it is small."""
    return f"{share:.1%}" if share == 0 or share >= 0.01 else f"{share:.2%}"


def describe_share(share: float) -> str:
    """Return a share that is easy to picture: 'about 8 of 10', 'about 2 of 3', '97 of 100'.

    'all' and 'none' stand for exactly 1 and 0.
    """
    if share in (0, 1):
        return "all" if share else "none"
    if not 0.005 <= share < 0.995:
        return "fewer than 1 of 100" if share < 0.5 else "more than 99 of 100"
    if not 0.09 <= share <= 0.92:
        return f"{round(100 * share)} of 100"
    part, of = min(SIMPLE_SHARES, key=lambda pair: abs(pair[0] / pair[1] - share))
    return f"about {part} of {of}"


def scale_bar_nm(width_nm: float) -> float:
    """Return the length of a scale bar: 1, 2 or 5 times a power of ten, at most a quarter of the picture's width."""
    power = 10.0 ** math.floor(math.log10(width_nm / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= width_nm / 4)
