"""Render the pages from the templates in `templates/`, where their sentences and tables are."""

from __future__ import annotations

import functools
import html
import json
import re
import shlex
import statistics
from collections.abc import Mapping
from typing import Any, Protocol

import jinja2

from kasthuri_ray.config.network import UNET_SETTINGS
from kasthuri_ray.progress import format_count, format_duration
from kasthuri_ray.reports.figures import figure_svg
from kasthuri_ray.reports.learnt_text import learnt_percent
from kasthuri_ray.reports.section_images import LEGEND
from kasthuri_ray.reports.sweep_figures import format_setting, setting_name

COMMAND_FLAG = re.compile(r"(?<![\w-])--[a-z]+(-[a-z0-9]+)*")

PLURALS = {"synapse": "synapses", "membrane": "membranes"}

# Shares that are easy to picture, as (so many, of so many).
SIMPLE_SHARES = (*((n, 10) for n in range(1, 10)), (1, 4), (1, 3), (2, 3), (3, 4))


class Report(Protocol):
    """What every page shows. task_type: synapse, membrane or any other word for the foreground."""

    name: str
    task_type: str


def view_steps(*flags: str) -> list[tuple[str, str]]:
    """Return the step that shows a result in the viewer, for the list of what to do next.

    Parameters
    ----------
    *flags : str
        Words after `jobs/view.py`, such as "--run" and a path; none for a result that cannot be shown.

    Returns
    -------
    list of (str, str)
        A text and a command.
    """
    return [("Look at it in the viewer:", shlex.join(["python", "jobs/view.py", *flags]))] if flags else []


def render(template: str, report: Report, **values: Any) -> str:
    """Return a page as HTML: one file with everything in it and no links.

    template: name of a file. values: what it shows besides the report; see `base.html.jinja` for what all pages need.
    """
    name = foreground_name(report.task_type)
    page = _environment().get_template(template)
    return page.render(report=report, name=name, plural=PLURALS.get(name, name), **values)


def settings_in_use(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return sections of settings; of a network of one's own without those of our U-Nets."""
    network = settings.get("network")
    if not isinstance(network, Mapping) or "." not in str(network.get("model", "")):
        return settings
    return {**settings, "network": {key: value for key, value in network.items() if key not in UNET_SETTINGS}}


@functools.cache
def _environment() -> jinja2.Environment:
    """Return the environment of the templates. Undefined names are errors, and text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kasthuri_ray.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["legend"] = LEGEND
    environment.filters |= {
        "code_flags": code_flags,
        "count": format_count,
        "duration": format_duration,
        "in_use": settings_in_use,
        "fixed": lambda value, digits: f"{value:.{digits}f}",
        "interval": lambda interval: f"{interval[0]:.3f} to {interval[1]:.3f}",
        "learnt_share": learnt_percent,
        "json": functools.partial(json.dumps, default=str),
        "mean": statistics.fmean,
        "percent": format_percent,
        "setting": format_setting,
        "setting_name": setting_name,
        "share": describe_share,
        "svg": figure_svg,
        "thousands": "{:,}".format,
        "thresholds": format_thresholds,
    }
    return environment


def foreground_name(task_type: str) -> str:
    """Return the name of what a task looks for, as in '8 of 10 synapse voxels'."""
    return task_type.replace("_", " ").strip() or "foreground"


def format_thresholds(value: float | list[float]) -> str:
    """Return one threshold, or those of several classes, with two digits.

    Parameters
    ----------
    value : float or list of float
        Probabilities.

    Returns
    -------
    str
        Such as `0.50, 0.25`.
    """
    return ", ".join(f"{each:.2f}" for each in (value if isinstance(value, list) else [value]))


def code_flags(text: str) -> str:
    """Return a text as HTML in which the flags of commands are code, which no line break divides after its dashes."""
    return COMMAND_FLAG.sub(r"<code>\g<0></code>", html.escape(text))


def format_percent(share: float, digits: int | None = None) -> str:
    """Return a share as a percentage; by default with one digit, and with two if it is small."""
    if digits is None:
        digits = 1 if share == 0 or share >= 0.01 else 2
    return f"{share:.{digits}%}"


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
