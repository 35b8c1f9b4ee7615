"""Which score ranks objects best, and how many touching objects are one piece: measured on an output of segment.py.

    python jobs/segment.py --weights outputs/my_run --box 21:31,0:768,0:1024 --output val.zarr --objects
    python -m kasthuri_ray.benchmarks.object_scores val.zarr --annotation 'phantom://synapse?shape=80,2048,2048&seed=7'

Everything is held in memory, so the output is to be a box such as that of the validation. It has one class, and voxels
of the annotation above 0 are of it. Objects match by overlap, one to one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kasthuri_ray.config import defaults
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, parse_box
from kasthuri_ray.metrics.matching import LabelPairs, count_label_pairs
from kasthuri_ray.metrics.object_detection import find_objects
from kasthuri_ray.metrics.object_intervals import OutcomeUnits
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.metrics.one_to_one import FREE, match_one_to_one
from kasthuri_ray.output.object_labels import recorded_object_settings
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.progress import Reporter
from kasthuri_ray.volumes.opening import VolumeOpener

HIGH_PERCENTILE = 90


def object_scores(labels: np.ndarray, probability: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of objects that are compared.

    Parameters
    ----------
    labels : ndarray of int, (z, y, x)
        Objects 1, 2, ...; 0 for none.
    probability : ndarray of uint8, (z, y, x)
        255 is 1.

    Returns
    -------
    dict of str to ndarray of float
        By name of the score one value for each object.
    """
    inside = labels > 0
    order = np.argsort(labels[inside], kind="stable")
    values, ids = probability[inside][order] / 255, labels[inside][order]
    parts = np.split(values, np.flatnonzero(np.diff(ids)) + 1) if len(ids) else []
    functions: dict[str, Callable[[np.ndarray], Any]] = {
        "mean": np.mean,
        "median": np.median,
        f"{HIGH_PERCENTILE}th percentile": lambda part: np.percentile(part, HIGH_PERCENTILE),
        "highest": np.max,
        "sum": np.sum,
    }
    return {name: np.array([float(of(part)) for part in parts]) for name, of in functions.items()}


def ranked_average_precision(pairs: LabelPairs, scores: np.ndarray, num_true: int) -> float:
    """Return the average precision of objects that are ranked by a score.

    Parameters
    ----------
    pairs : LabelPairs
        Voxels that true and predicted objects share, both counted from 1.
    scores : ndarray of float
        Of the predicted objects.
    num_true : int
        Number of true objects.

    Returns
    -------
    float
        By overlap, one to one.
    """
    partners = np.full(num_true, FREE, np.int64)
    matched = match_one_to_one(pairs[0] - 1, pairs[1] - 1, pairs[2], scores)
    partners[matched.true] = matched.predicted
    units = OutcomeUnits.of(partners, scores, np.ones(num_true, bool), np.ones(len(scores), bool))
    return units.average_precision


def merged_objects(pairs: LabelPairs) -> int:
    """Return how many true objects share a predicted object with another true one.

    Parameters
    ----------
    pairs : LabelPairs
        Voxels that true and predicted objects share.

    Returns
    -------
    int
        True objects, each once.
    """
    predicted, counts = np.unique(pairs[1], return_counts=True)
    return len(np.unique(pairs[0][np.isin(pairs[1], predicted[counts > 1])]))


def measure_output(path: str, annotation: str) -> list[str]:
    """Return lines about an output: the average precision by each score, and the merged objects.

    Parameters
    ----------
    path : str
        Output of segment.py.
    annotation : str
        URI of the annotation.

    Returns
    -------
    list of str
        For the object settings of the output, and for every piece above their extent.
    """
    output = OmeZarrOutput.open(path)
    record, scale = output.spec.record, output.spec.levels[0].scale
    volume = VolumeOpener(None, None, defaults.CACHE_SIZE).open(annotation)
    box = parse_box(record["box"], volume.bounds)
    probability = output.probabilities.read(0, Box.at((0, 0, 0), box.shape))
    truth = np.where(volume.read(box) > 0, 255, 0).astype(np.uint8)
    chosen = recorded_object_settings(record, [record["threshold"]])
    pieces = replace(ObjectSettings.of_thresholds(chosen.extent), bridge_sections=chosen.bridge_sections)
    true_labels, true = find_objects(truth[None], ObjectSettings.of_thresholds([0.5]))
    lines = [f"{path}: {len(true)} true objects in {box}"]
    for title, settings in (("objects as chosen on val", chosen), ("every piece above the extent", pieces)):
        labels, table = find_objects(probability, settings, scale)
        pairs = count_label_pairs(true_labels, labels)
        scores = object_scores(labels, probability[0])
        shown = ", ".join(
            f"{name} {ranked_average_precision(pairs, each, len(true)):.3f}" for name, each in scores.items()
        )
        lines.append(f"  {title}: {len(table)} marked; average precision by {shown}")
        merged = merged_objects(pairs)
        lines.append(f"    {merged} of {len(true)} true objects share a piece with another ({merged / len(true):.1%})")
    return lines


def print_object_scores(arguments: Sequence[str]) -> None:
    """Print what is measured of each output."""
    parser = argparse.ArgumentParser(prog="object_scores", description=__doc__.partition("\n")[0])
    parser.add_argument("outputs", nargs="+", metavar="OUTPUT", help="outputs of segment.py")
    parser.add_argument("--annotation", required=True, metavar="URI", help="their annotation")
    options, reporter = parser.parse_args(arguments), Reporter()
    try:
        for output in options.outputs:
            for line in measure_output(output, options.annotation):
                reporter.print_line(line)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    print_object_scores(sys.argv[1:])
