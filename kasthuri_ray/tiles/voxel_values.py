"""What the voxels of a task's volumes mean: its labels, and the grey levels that become black and white."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import SPLITS, TaskSettings
from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import LabelRule
from kasthuri_ray.tiles.sampling import SplitSources, TileSource, TrainTiles
from kasthuri_ray.volumes.background_labels import (
    MAX_SYNAPSE_SHARE,
    Annotation,
    find_background,
    foreground_share,
    merged_classes_note,
)
from kasthuri_ray.volumes.grey_range import DEFAULT_RANGE, STATED_RANGE, check_grey_range
from kasthuri_ray.volumes.intensity import intensity_window, is_measured_range
from kasthuri_ray.volumes.volume import Volume

NUM_INTENSITY_TILES = 32  # random tiles from which percentiles of grey levels are computed

AddNote = Callable[[str], None]


def choose_intensity(sources: Sequence[TileSource], task: TaskSettings, seed: int) -> tuple[float, float]:
    """Return the grey levels that become 0 and 255 in all volumes, from random tiles of the training boxes."""
    image = sources[0].image
    if not is_measured_range(task.image_intensity, image.dtype):
        return intensity_window(np.empty(0, image.dtype), image.dtype, task.image_intensity)
    tiles = TrainTiles(tuple(sources), task.tile, seed, 0.0, NUM_INTENSITY_TILES)
    addresses = [tiles.address(0, index) for index in range(NUM_INTENSITY_TILES)]
    sample = np.concatenate([sources[a.source].image.read(a.box).ravel() for a in addresses])
    return intensity_window(sample, image.dtype, task.image_intensity)


def check_training_range(
    sources: Sequence[TileSource], intensity: tuple[float, float], settings: Settings, add_note: AddNote
) -> None:
    """Compare the images of the training boxes with the range of grey levels, unless it was measured in them.

    Parameters
    ----------
    sources : sequence of TileSource
        Training boxes.
    intensity : tuple of float
        The grey levels that become 0 and 255.
    settings : Settings
        Settings of the run.
    add_note : callable
        Receives lines that a person should read.

    Raises
    ------
    InputError
        If the grey levels of an image do not fit a range that no person stated on the command line.
    """
    setting = settings.task.image_intensity
    if is_measured_range(setting, sources[0].image.dtype):
        return
    origin = DEFAULT_RANGE if setting is None else STATED_RANGE
    for image, boxes in _by_volume([(source.image, source.box) for source in sources]):
        for note in check_grey_range(image, boxes, intensity, origin, "task.image_intensity" in settings.typed):
            add_note(f"train: {note}")


def choose_label_rule(opened: SplitSources, settings: Settings, add_note: AddNote, *, is_new: bool) -> LabelRule:
    """Return what the labels of a task's annotations mean.

    Parameters
    ----------
    opened : mapping
        Boxes of all splits.
    settings : Settings
        Settings of the run.
    add_note : callable
        Receives lines that a person should read.
    is_new : bool
        Whether labels that mean "no object" are found out: a run that was begun before keeps its rule.

    Returns
    -------
    LabelRule
        The rule of all boxes.

    Raises
    ------
    InputError
        If an annotation cannot hold such labels, or if annotations differ in them.
    """
    task = settings.task
    rule = LabelRule.from_task(task.model_dump(), settings.network.classes)
    boxes = {split: _annotated_boxes(opened[split]) for split in SPLITS}
    if is_new:
        known = {volume.identity for volume, _ in boxes["train"]}
        others = [each for each in (*boxes["val"], *boxes["test"]) if each[0].identity not in known]
        rule, notes = find_background(rule, boxes["train"], others)
        merged = [merged_classes_note(rule, each) for each in boxes["train"]]
        for note in filter(None, [*notes, *merged]):
            add_note(note)
    for split in SPLITS:
        for annotation in boxes[split]:
            volume, _ = annotation
            rule.check_type(volume.dtype, volume.uri)
            if is_new:
                share = foreground_share(rule, annotation)  # refuses labels that are no classes
                if task.task_type == "synapse":
                    _note_much_foreground(split, annotation, share, add_note)
    return rule


def _annotated_boxes(sources: Sequence[TileSource]) -> list[tuple[Volume, list[Box]]]:
    return _by_volume([(source.annotation, source.box) for source in sources if source.annotation is not None])


def _by_volume(boxes: Sequence[tuple[Volume, Box]]) -> list[tuple[Volume, list[Box]]]:
    """Return each volume with all of its boxes; one that lies on the voxels of two images counts as two."""
    found: dict[tuple[str, Box], tuple[Volume, list[Box]]] = {}
    for volume, box in boxes:
        found.setdefault((volume.identity, volume.bounds), (volume, []))[1].append(box)
    return list(found.values())


def _note_much_foreground(split: str, annotation: Annotation, share: float, add_note: AddNote) -> None:
    if share > MAX_SYNAPSE_SHARE:
        volume, boxes = annotation
        add_note(
            f"{split}: {share:.0%} of a sample of {volume.uri} {boxes[0]} is foreground, much for synapses: check "
            "task.background and task.threshold_value"
        )
