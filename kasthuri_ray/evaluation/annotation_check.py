"""What the labels of an annotation mean, and how much of it is foreground, from a sample of its voxels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kasthuri_ray.config.task import TaskSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.labels import IDS_ADVICE, IGNORE_LABEL, LabelRule, is_any_of, to_classes
from kasthuri_ray.reports.volume_page import Table
from kasthuri_ray.volumes.background_labels import MAX_SYNAPSE_SHARE, find_background
from kasthuri_ray.volumes.description import MAX_LISTED, VolumeDescription, describe_volume, share_text
from kasthuri_ray.volumes.value_sample import ValueCounts, ValueSample
from kasthuri_ray.volumes.volume import Volume

AddLine = Callable[[str], None]


@dataclass(frozen=True)
class CheckedAnnotation:
    """What was understood of an annotation.

    Parameters
    ----------
    table : (str, rows)
        For people.
    rule : LabelRule
        What its labels mean.
    sample : ValueSample
        A sample of its labels.
    foreground : str
        How much of it is foreground, for people.
    """

    table: Table
    rule: LabelRule
    sample: ValueSample
    foreground: str


def check_annotation(
    annotation: Volume, task: TaskSettings | None, add_note: AddLine, add_problem: AddLine
) -> CheckedAnnotation:
    """Read a sample of an annotation, and return what it means.

    Parameters
    ----------
    annotation : Volume
        The annotation.
    task : TaskSettings or None
        Says what the labels mean; None takes every label above 0 as foreground.
    add_note, add_problem : callable
        Receive a line that a person should know, and one about what has to be corrected.

    Returns
    -------
    CheckedAnnotation
        What was understood.

    Raises
    ------
    VolumeError
        If the source fails.
    """
    described = describe_volume(annotation)
    rule = LabelRule(threshold_value=0.0) if task is None else LabelRule.from_task(task.model_dump(), num_classes=2)
    try:
        rule, notes = find_background(rule, [(annotation, [annotation.bounds])])
    except InputError as error:
        add_problem(str(error))
        notes = []
    for note in notes:
        add_note(note)
    rule = _with_classes(rule, described.sample.total)
    if described.is_empty:
        add_note(f"no chunk of {described.uri} was found: all of it counts as {annotation.fill_value:g}")
    try:
        rule.check_type(annotation.dtype, described.uri)
        share, ignored = _measure_shares(described, rule)
    except InputError as error:
        add_problem(str(error))
        rows = [("foreground", "unknown: the labels do not fit the task")]
        foreground = "its labels do not fit the task"
    else:
        by = "without --task" if task is None else f"by the task {task.name}"
        counted = "labelled voxels of the sample" if ignored else "sample"
        rows = [("foreground", f"{share_text(share)} of the {counted}; {by}: {rule_text(rule)}")]
        rows += [("ignored", f"{share_text(ignored)} of the sample")] if ignored else []
        foreground = f"{share_text(share)} of {'its labelled voxels' if ignored else 'it'} is foreground"
        if task is None and not rule.background and _has_other_labels(described.sample.total):
            add_note(f"a training takes labels 0 and 1 alone. {IDS_ADVICE}")
        if share == 1:
            add_note("no voxel of the sample is background, which a network cannot learn from: are these ids of cells?")
        if share > MAX_SYNAPSE_SHARE and task is not None and task.task_type == "synapse":
            add_note(f"{foreground}, much for synapses: check task.background and task.threshold_value")
    table = f"annotation {described.uri}", [*described.rows(), *rows]
    return CheckedAnnotation(table, rule, described.sample, foreground)


def _measure_shares(described: VolumeDescription, rule: LabelRule) -> tuple[float, float]:
    """Return the shares of foreground, among voxels that are not ignored, and of ignored voxels.

    Raise an InputError if a label is no class.
    """
    values = described.sample.total
    if values.num_nan:
        raise InputError(f"{described.uri} holds nan, which is neither foreground nor background")
    classes = to_classes(values.values, rule, described.uri, values.counts)
    counted = classes != IGNORE_LABEL
    return values.share((classes > 0) & counted, among=counted), values.share(~counted)


def _has_other_labels(values: ValueCounts) -> bool:
    """Return whether there are labels that a task of two classes refuses."""
    return bool(((values.values != 0) & (values.values != 1)).any())


def _with_classes(rule: LabelRule, values: ValueCounts) -> LabelRule:
    """Return a rule of labels that are classes with as many classes as a few labels from 0 on show."""
    if rule.background or rule.classes is not None or rule.threshold_value is not None:
        return rule
    labels = values.values
    if rule.ignored:
        labels = labels[~is_any_of(labels, rule.ignored)]
    highest = int(labels[-1]) if len(labels) else 0
    return replace(rule, num_classes=highest + 1) if 2 <= highest < MAX_LISTED else rule


def rule_text(rule: LabelRule) -> str:
    """Return what labels mean, for people."""
    if rule.background:
        return f"every label but {', '.join(map(str, rule.background))} is foreground"
    if rule.threshold_value is not None:
        return f"labels above {rule.threshold_value:g} are foreground"
    if rule.classes is not None:
        named = ", ".join(f"{label} is class {number}" for label, number in rule.classes)
        return f"by task.labels: {named}"
    if rule.num_classes == 2:
        return "label 1 is foreground"
    return f"labels are classes, 1 to {rule.num_classes - 1} are foreground (network.classes={rule.num_classes})"
