"""What is shown of an evaluation: prediction, annotation, and the objects that were found, missed and wrong."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.evaluation.provenance import output_group_path, read_provenance
from kasthuri_ray.geometry import Nm, per_axis
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.viewer.layer_maker import LayerMaker
from kasthuri_ray.viewer.layers import Point, PointLayer, VoxelLayer
from kasthuri_ray.viewer.output_scene import OutputParts, open_output_parts
from kasthuri_ray.volumes.volume import Volume

RESULT_FILE, MATCHES_FILE = "evaluation.json", "matches.csv"
OUTCOMES = {"found": "#40ff40", "missed": "#ff40ff", "wrong": "#ff9020"}
VERDICT_COLUMN = "verdict"


@dataclass(frozen=True, eq=False)
class EvaluationParts:
    """What is known of an evaluation.

    Parameters
    ----------
    image : Volume or None
        The image; None if it is not known.
    voxel_layers, point_layers : tuple
        In the order in which they are drawn.
    output : OutputParts or None
        The prediction, if jobs/segment.py made it.
    """

    image: Volume | None
    voxel_layers: tuple[VoxelLayer, ...]
    point_layers: tuple[PointLayer, ...]
    output: OutputParts | None = None


def open_evaluation_parts(
    path: str, image_uri: str | None, annotation_uri: str | None, maker: LayerMaker
) -> EvaluationParts:
    """Open the volumes of an evaluation, and its objects.

    Parameters
    ----------
    path : str
        Folder of the results of jobs/evaluate.py.
    image_uri, annotation_uri : str or None
        Volumes in place of those of the evaluation.
    maker : LayerMaker
        Makes the layers.

    Returns
    -------
    EvaluationParts
        The layers.

    Raises
    ------
    InputNotFound
        If there is no evaluation in the folder.
    """
    storage = open_storage(path)
    result = storage.read_json(RESULT_FILE)
    if result is None or "prediction" not in result or "annotation" not in result:
        raise InputNotFound(f"{storage.path} holds no {RESULT_FILE} of an evaluation; jobs/evaluate.py writes it")
    prediction, annotation = str(result["prediction"]), annotation_uri or str(result["annotation"])
    rows = read_matches(path)
    if rows is None:
        maker.add_note(f"there is no {MATCHES_FILE} in {storage.path}: no objects to jump to; evaluate again to get it")
    shift = centroid_shift(maker.opener.open(annotation, labels=True, name="--annotation"))
    if read_provenance(prediction):
        output = open_output_parts(str(output_group_path(prediction)), image_uri, annotation, maker)
        points = match_layers(rows or [], shift)
        hidden = [replace(layer, is_visible=False) for layer in output.point_layers]
        return EvaluationParts(output.image, output.voxel_layers, (*hidden, *points), output)
    image, layers = None, list[VoxelLayer]()
    if image_uri is not None:
        image, image_layer = maker.image_layer(image_uri)
        layers.append(image_layer)
    fixed, predicted = maker.image_layer(prediction, "--prediction")
    layers.append(replace(predicted, name="prediction", style="overlay", public_url=None))
    layers.append(maker.annotation_layer(annotation, image or fixed))
    return EvaluationParts(image or fixed, tuple(layers), tuple(match_layers(rows or [], shift)))


def read_matches(folder: str) -> list[dict[str, str]] | None:
    """Return the rows of `matches.csv` in the folder of an evaluation; None if there is no such file."""
    try:
        text = open_storage(folder).read_bytes(MATCHES_FILE).decode()
    except FileNotFoundError:
        return None
    reader = csv.DictReader(text.splitlines())
    if VERDICT_COLUMN not in (reader.fieldnames or ()):
        raise InputError(f"{folder}/{MATCHES_FILE} has no column {VERDICT_COLUMN}; evaluate again")
    return list(reader)


def match_layers(rows: Sequence[dict[str, Any]], shift: Nm) -> list[PointLayer]:
    """Return layers of points: true objects that were found and missed, and predicted ones that are wrong.

    Parameters
    ----------
    rows : sequence of dict
        Rows of `matches.csv`.
    shift : tuple of float
        From the centroids to the middles of the objects.

    Returns
    -------
    list of PointLayer
        Found, missed, wrong. Of a pair the true object is shown.
    """
    points = {outcome: list[Point]() for outcome in OUTCOMES}
    for number, row in enumerate(rows, 1):
        if row[VERDICT_COLUMN] in points:
            points[row[VERDICT_COLUMN]].append(_match_point(number, row, shift))
    return [PointLayer(outcome, points[outcome], color) for outcome, color in OUTCOMES.items()]


def _match_point(number: int, row: dict[str, Any], shift: Nm) -> Point:
    unit = "nm" if "centroid_z_nm" in row else "voxels"
    place = per_axis(lambda axis, by: float(row[f"centroid_{axis}_{unit}"]) + by, "zyx", shift)
    partner = f", partner {row['partner']}" if row.get("partner") else ""
    name = f" {row['class']}" if row.get("class") else ""
    return Point(number, place, f"{row[VERDICT_COLUMN]}{name} {row['id']}{partner}")


def centroid_shift(volume: Volume) -> Nm:
    """Return what leads from a centroid, a mean of voxel indices at the stated place of voxel 0, to the middle there.

    Parameters
    ----------
    volume : Volume
        Whose voxels the centroids count.

    Returns
    -------
    tuple of float
        Half a voxel, unless the volume states where the middle of voxel 0 is.
    """
    if volume.voxel_size_nm is not None and volume.place is not None and volume.place.anchor == "middle":
        return 0.0, 0.0, 0.0
    return per_axis(lambda size: 0.5 * size, volume.voxel_size_nm or (1.0, 1.0, 1.0))
