"""Precision of the objects of an output from the verdicts of a review: no annotation is needed.

Objects that were drawn at random are weighted by the sizes of their strata. Those that a person chose are counted
only where none were drawn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.errors import InputError, InputNotFound, missing_is_bad_input
from kasthuri_ray.evaluation.evaluate import EvaluateResult
from kasthuri_ray.evaluation.provenance import output_group_path
from kasthuri_ray.metrics.review_precision import PrecisionEstimate, Stratum, estimate_precision
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.reviewed_file import KEEP, REJECT, UNSURE, ReviewedObject, read_reviewed
from kasthuri_ray.output.side_files import object_table_path, read_object_table
from kasthuri_ray.progress import Reporter, format_count
from kasthuri_ray.storage.folder import open_storage

CHOSEN = "chosen by hand"  # the one stratum of a file without a random draw
NOT_WITH_REVIEWED = ("instances", "box", "threshold", "resample", "voxel_size")


@missing_is_bad_input()
def evaluate_reviewed(settings: EvaluateSettings, reporter: Reporter) -> EvaluateResult:
    """Estimate the precision of an output's objects, print it, and write it beside the file of the verdicts.

    Parameters
    ----------
    settings : EvaluateSettings
        `prediction`, `reviewed` and `out` are read.
    reporter : Reporter
        Shows the result.

    Returns
    -------
    EvaluateResult
        Path of the JSON file, and what it holds.

    Raises
    ------
    InputError
        If the file is of another output or of other objects of it, or holds no verdict.
    """
    assert settings.reviewed is not None
    _check_flags(settings)
    objects = read_reviewed(settings.reviewed)
    num_objects = _check_objects(settings, objects)
    metrics = review_metrics(objects, num_objects)
    out = settings.out or f"{settings.reviewed.removesuffix('.csv')}.evaluation"
    storage = open_storage(out)
    if any(name != "reviewed.json" for name in storage.list_folder()):
        raise InputError(f"{storage.path} holds something else than the evaluation of a review; give another --out")
    reporter.print_result(storage.path)
    storage.write_bytes("reviewed.json", (json.dumps(metrics, indent=2) + "\n").encode())
    for line in review_lines(metrics):
        reporter.print_line(line)
    reporter.print_result(storage.path)
    return EvaluateResult(storage.path, metrics)


def _check_flags(settings: EvaluateSettings) -> None:
    given = [f"--{name.replace('_', '-')}" for name in NOT_WITH_REVIEWED if getattr(settings, name)]
    if given:
        raise InputError(f"{', '.join(given)}: not with --reviewed, whose objects are those of the whole output")


def _check_objects(settings: EvaluateSettings, objects: Sequence[ReviewedObject]) -> int:
    """Return the number of objects of the prediction, after a check that those of the file were drawn from them."""
    group = output_group_path(settings.prediction)
    if group is None:
        raise InputError(f"{settings.prediction} is no output of jobs/segment.py, whose objects are reviewed")
    output = OmeZarrOutput.open(group)
    path = object_table_path(output.path, output.spec.channels)
    try:
        sizes = {int(row["id"]): int(row["size_voxels"]) for row in read_object_table(path)}
    except FileNotFoundError:
        raise InputNotFound(f"{path}, the table of the objects of {settings.prediction}, does not exist") from None
    for each in objects:
        if sizes.get(each.id) != each.size_voxels:
            raise InputError(
                f"{settings.reviewed} is not of {settings.prediction}: its object {each.id} has {each.size_voxels} "
                f"voxels, {path} says {sizes.get(each.id, 'that there is none')}"
            )
    num_sampled = sum(_stratum_sizes(objects).values())
    if num_sampled not in (0, len(sizes)):
        raise InputError(
            f"{settings.reviewed} is not of {settings.prediction}: its objects were drawn from "
            f"{format_count(num_sampled, 'object')}, and {path} has {len(sizes)}. Draw from these with jobs/view.py "
            "--review N, after you moved the file away"
        )
    return len(sizes)


def _stratum_sizes(objects: Sequence[ReviewedObject]) -> dict[str, int]:
    """Return the number of all objects of each stratum from which some were drawn; empty without a random draw."""
    return {each.stratum: each.stratum_size for each in objects if each.is_drawn}


def review_metrics(objects: Sequence[ReviewedObject], num_objects: int) -> dict[str, Any]:
    """Return the figures of a review.

    Parameters
    ----------
    objects : sequence of ReviewedObject
        What was drawn and looked at.
    num_objects : int
        Number of all objects of the output.

    Returns
    -------
    dict
        `precision` with `low` and `high` leaves the unsure objects out; `unsure_as_right` and `unsure_as_wrong` count
        them as one or the other.

    Raises
    ------
    InputError
        If there is no verdict.
    """
    drawn = [each for each in objects if each.is_drawn]
    counted = [each for each in (drawn or objects) if each.verdict]
    if not counted:
        raise InputError("the file holds no verdict yet: look at objects with jobs/view.py --review")
    sizes = _stratum_sizes(objects) or {CHOSEN: max(num_objects, len(counted))}

    def estimate(right: tuple[str, ...], wrong: tuple[str, ...]) -> dict[str, float] | None:
        found = estimate_precision([_stratum(name, size, counted, right, wrong) for name, size in sizes.items()])
        return None if found is None else _rounded(found)

    return {
        "precision": estimate((KEEP,), (REJECT,)),
        "unsure_as_right": estimate((KEEP, UNSURE), (REJECT,)),
        "unsure_as_wrong": estimate((KEEP,), (REJECT, UNSURE)),
        "verdicts": {name: sum(each.verdict == name for each in counted) for name in (KEEP, REJECT, UNSURE)},
        "drawn": len(drawn),
        "objects": num_objects,
        "is_random": bool(drawn),
    }


def _stratum(
    name: str, size: int, objects: Sequence[ReviewedObject], right: Sequence[str], wrong: Sequence[str]
) -> Stratum:
    """Return the counts of a stratum. Objects that were left out as unsure do not count among its objects either."""
    own = [each.verdict for each in objects if (each.stratum or CHOSEN) == name]
    num_right, num_wrong = sum(each in right for each in own), sum(each in wrong for each in own)
    return Stratum(max(num_right + num_wrong, size - (len(own) - num_right - num_wrong)), num_right, num_wrong)


def _rounded(estimate: PrecisionEstimate) -> dict[str, float]:
    return {name: round(value, 6) for name, value in asdict(estimate).items()}


def review_lines(metrics: dict[str, Any]) -> list[str]:
    """Return the figures of a review for people.

    Parameters
    ----------
    metrics : dict
        As of `review_metrics`.

    Returns
    -------
    list of str
        One line each.
    """
    verdicts = metrics["verdicts"]
    seen = sum(verdicts.values())
    of = (
        f"{seen} of {metrics['drawn']} objects that were drawn"
        if metrics["is_random"]
        else format_count(seen, "object")
    )
    lines = [f"reviewed: {of}, from {format_count(metrics['objects'], 'object')}; " + ", ".join(
        f"{count} {name}" for name, count in verdicts.items()
    )]  # fmt: skip
    if metrics["precision"] is not None:
        lines.append(f"precision {_interval_text(metrics['precision'])}, without the unsure ones")
    if verdicts[UNSURE]:
        lines.append(f"all unsure ones right: precision {_interval_text(metrics['unsure_as_right'])}")
        lines.append(f"all unsure ones wrong: precision {_interval_text(metrics['unsure_as_wrong'])}")
    if not metrics["is_random"]:
        lines.append(
            "warning: these objects were chosen by hand, so that the figure says little about the others; "
            "jobs/view.py --review N draws them at random"
        )
    return lines


def _interval_text(estimate: dict[str, float]) -> str:
    return f"{estimate['precision']:.3f} (95% interval {estimate['low']:.3f} to {estimate['high']:.3f})"
