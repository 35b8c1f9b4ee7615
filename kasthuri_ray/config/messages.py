"""What is to be said of settings that are allowed one by one: what would change nothing, and what may surprise."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import SPLITS, SettingsSection, TaskSettings

TASK_TYPES = ("synapse", "membrane")  # of tasks that have defaults and words of their own
RUN_LOCATION = ("name", "storage")
SHOWN = 4  # settings that a note names


def check_volumes_used(task: TaskSettings, typed: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise a ValueError for an image or an annotation that was typed and that no region of the task would take.

    typed: layers of settings, each by its name (`--set ...`), the lowest first.
    """
    if task.boxes is None:
        return
    regions = [region for split in SPLITS for region in getattr(task.boxes, split)]
    own = {
        "image": all(region.image for region in regions),
        "annotation": all("annotation" in region.model_fields_set for region in regions),
    }
    for kind, of_its_own in own.items():
        names = [name for name, layer in typed if layer.get("task", {}).get(f"{kind}_chan")]
        if of_its_own and names:
            given = names[-1] if names[-1].startswith("--") else f"--{kind}"
            raise ValueError(
                f"{given} would change nothing: every region of task.boxes names an {kind} of its own. Change it "
                f'there, or leave "{kind}" out of the regions that {given} is meant for'
            )


def task_type_note(task: TaskSettings) -> dict[str, str]:
    """A note about a kind of task that is nearly one of those with defaults of their own."""
    near = difflib.get_close_matches(task.task_type.lower(), TASK_TYPES, n=1, cutoff=0.8)
    if task.task_type in TASK_TYPES or not near:
        return {}
    return {
        "task.task_type": f"task.task_type {task.task_type!r} is taken as a kind of its own, without what is known of "
        f"{near[0]!r}; did you mean that?"
    }


def override_notes(
    config: str, named: Mapping[str, str], without: Mapping[str, SettingsSection], settings: Settings
) -> dict[str, str]:
    """Notes about what the `--config` file says instead of files that were named beside it, and where it has the run
    lie.

    named: the files, by section. without: what each section would be without that file, where it can be without.
    """
    notes = {}
    for section, name in named.items():
        changes = _changes(section, without, settings)
        if changes:
            more = f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
            notes[section] = (
                f"{config} stands above --{section} {name}: {'; '.join([*changes.values()][:SHOWN])}{more} (--set "
                "stands above both)"
            )
    place = [words for key, words in _changes("train", without, settings).items() if key in RUN_LOCATION]
    if place:
        notes["train"] = f"{config} says where the run lies: {'; '.join(place)} (--name and --storage stand above it)"
    return notes


def _changes(section: str, without: Mapping[str, SettingsSection], settings: Settings) -> dict[str, str]:
    """How the settings of a section differ from what they would be, in words, by key."""
    if section not in without:
        return {}
    before, now = without[section], getattr(settings, section)
    shown = {name: of.model_dump(mode="json") for name, of in (("before", before), ("now", now))}
    return {
        key: f"{section}.{key} is {_short(shown['now'][key])}, not {_short(shown['before'][key])}"
        for key in shown["now"]
        if getattr(now, key) != getattr(before, key)
    }


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
