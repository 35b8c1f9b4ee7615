"""Example sections as the pages show them: pictures as data URLs, scale bars, and the numbers of a caption."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.reports.section_images import SectionResult, encode_jpeg, rank_sections

# Longest side of a picture in pixels: of the errors of the best and the worst section, and of all others.
LARGE_PANEL_PIXELS, SMALL_PANEL_PIXELS = 960, 480


@dataclass(frozen=True)
class ScaleBar:
    """Scale bar. percent: of the picture's width. length: with its unit."""

    percent: float
    length: str


@dataclass(frozen=True)
class Panel:
    """Picture of an example. source: a data URL."""

    name: str
    source: str
    scale_bar: ScaleBar | None


@dataclass(frozen=True)
class Example:
    """Section, or a part of one, with its pictures.

    rating: best, worst or "". layout: "large" beside a large picture of the errors, "few" for less than four pictures,
    or "". f1: None without foreground. found, missed, wrong: numbers of pixels. is_hatched: whether some are
    not labelled.
    """

    z: int
    box: str
    rating: str
    layout: str
    panels: list[Panel]
    has_truth: bool
    f1: float | None
    found: int
    missed: int
    wrong: int
    is_hatched: bool


def make_examples(sections: Sequence[SectionResult], pixel_size_nm: tuple[float, float] | None) -> list[Example]:
    """Return the examples in the order of the page: the best, the worst, the others.

    pixel_size_nm: (y, x) for scale bars; None draws none.
    """
    return [_make_example(section, rating, pixel_size_nm) for section, rating in rank_sections(list(sections))]


def _make_example(section: SectionResult, rating: str, pixel_size_nm: tuple[float, float] | None) -> Example:
    pictures = section.panels()
    layout = "few" if len(pictures) < 4 else "large" if rating else ""
    scale_bar = None if pixel_size_nm is None else make_scale_bar(section.image.shape[1] * pixel_size_nm[1])
    panels = []
    for name, pixels in pictures.items():
        max_side = LARGE_PANEL_PIXELS if layout == "large" and name == "errors" else SMALL_PANEL_PIXELS
        panels.append(make_panel(name, pixels, max_side, scale_bar if name in ("image", "errors") else None))
    return Example(
        section.z,
        section.box,
        rating,
        layout,
        panels,
        section.truth is not None,
        section.f1,
        *section.num_outcomes,
        section.is_hatched,
    )


def make_panel(name: str, pixels: np.ndarray, max_side: int, scale_bar: ScaleBar | None) -> Panel:
    """Return a picture (uint8 [y, x, 3]) as a panel, with at most `max_side` pixels along its longer side."""
    data = base64.b64encode(encode_jpeg(pixels, max_side)).decode()
    return Panel(name, f"data:image/jpeg;base64,{data}", scale_bar)


def make_scale_bar(width_nm: float) -> ScaleBar:
    """Return a scale bar: 1, 2 or 5 times a power of ten, at most a quarter of the picture's width."""
    power = 10.0 ** math.floor(math.log10(width_nm / 4))
    length_nm = max(step * power for step in (1, 2, 5) if step * power <= width_nm / 4)
    length = f"{length_nm:g} nm" if length_nm < 1000 else f"{length_nm / 1000:g} µm"
    return ScaleBar(100 * length_nm / width_nm, length)
