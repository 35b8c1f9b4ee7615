"""The folder of an evaluation: a record of what was compared and how, and whether another evaluation may replace it."""

from __future__ import annotations

import contextlib
import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from kasthuri_ray.config.differences import record_differences
from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.evaluation.comparison_inputs import ComparisonInputs
from kasthuri_ray.storage.storage import Storage
from kasthuri_ray.storage.uris import absolute_uri, redact_secrets

RECORD_FILE, RECORD_KEY = "settings.json", "evaluate"
RESULT_FILE = "evaluation.json"
OWN_FILES = (RESULT_FILE, RECORD_FILE, "index.html", "matches.csv", "*.png")  # * matches folders too
ARRAYS = "arrays"  # copies of arrays that are given in Python
STAGING = "unfinished"  # where an evaluation is written before it takes the place of an earlier one
MAX_NAMES = 5  # that a message lists
EARLIER_KEYS = ("prediction", "annotation", "box", "threshold", "instances")  # of evaluation.json without a record


def evaluation_record(inputs: ComparisonInputs, settings: EvaluateSettings) -> dict[str, Any]:
    """Return everything that decides the figures of an evaluation, as plain values without secrets.

    Parameters
    ----------
    inputs : ComparisonInputs
        What is compared.
    settings : EvaluateSettings
        What was given.

    Returns
    -------
    dict
        Volumes, weights of the prediction, box, thresholds, the meaning of the labels, and how objects are found.
    """
    comparison = inputs.comparison
    thresholds = list(comparison.thresholds)
    record = {
        "prediction": _volume_name(settings.prediction),
        "weights": inputs.provenance.get("weights"),
        "annotation": _volume_name(settings.annotation),
        "instances": settings.instances and _volume_name(settings.instances),
        "box": str(comparison.box),
        "threshold": thresholds if len(thresholds) > 1 else thresholds[0],
        "task_type": inputs.rule.task_type,
        "classes": list(comparison.class_names),
        "labels": asdict(comparison.labels),
        "voxel_size": settings.voxel_size,
        "resample": settings.resample,
        "centroid_radius_nm": settings.centroid_radius_nm,
        "objects": None if comparison.object_settings is None else comparison.object_settings.to_plain(),
        "object_image": comparison.object_ids is not None,
    }
    return json.loads(json.dumps(record))  # as it is read again: tuples are lists


def check_evaluation_folder(storage: Storage, record: Mapping[str, Any], overwrite: bool) -> None:
    """Check that an evaluation may be written to a folder: it is empty, or holds the same evaluation.

    Parameters
    ----------
    storage : Storage
        The folder.
    record : mapping
        Of the evaluation that is about to start, see `evaluation_record`.
    overwrite : bool
        Whether another evaluation may be replaced.

    Raises
    ------
    InputError
        If it holds an evaluation of other settings and `overwrite` is false, with the differences; or anything else.
    """
    names = [name for name in storage.list_folder() if name not in (ARRAYS, STAGING)]
    if not names:
        return
    before = _read_record(storage)
    if before is None:
        listed = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
        raise InputError(f"{storage.path} is no folder of an evaluation, it holds {listed}; give another --out")
    differences = record_differences(before, {key: record[key] for key in before if key in record})
    if differences and not overwrite:
        lines = "\n  ".join(differences)
        raise InputError(
            f"{storage.path} holds another evaluation:\n  {lines}\nGive this one a folder of its own with --out DIR, "
            "or replace the other with --overwrite."
        )


@contextlib.contextmanager
def replaced_evaluation(storage: Storage, record: Mapping[str, Any]) -> Iterator[Storage]:
    """Write an evaluation aside; once it is whole, it takes the place of an earlier one.

    Parameters
    ----------
    storage : Storage
        The folder of the evaluation.
    record : mapping
        See `evaluation_record`.

    Yields
    ------
    Storage
        Where the files are to be written. If that fails, the earlier evaluation stays as it was.
    """
    staging = storage.child(STAGING)
    _remove_folder(staging)  # of an evaluation that was killed
    try:
        staging.write_bytes(RECORD_FILE, (json.dumps({RECORD_KEY: record}, indent=2) + "\n").encode())
        yield staging
        _move_files(staging, storage)
    finally:
        _remove_folder(staging)


def _move_files(staging: Storage, storage: Storage) -> None:
    """Replace the files of an evaluation by new ones, the result last, and delete those that it has no more."""
    new = staging.list_files()
    for name in storage.list_files():
        is_own = any(fnmatch.fnmatch(name, own) for own in OWN_FILES)
        if is_own and name not in new and not name.startswith((f"{ARRAYS}/", f"{STAGING}/")):
            storage.delete(name)
    for name in sorted(new, key=lambda name: (name == RESULT_FILE, name == RECORD_FILE)):
        staging.move(name, storage)


def _remove_folder(storage: Storage) -> None:
    if storage.list_folder():
        storage.remove_folder()
    storage.remove_if_empty()


def _read_record(storage: Storage) -> dict[str, Any] | None:
    """Return the record of the evaluation in a folder, of an earlier version a part of it; None if there is none."""
    record = (storage.read_json(RECORD_FILE) or {}).get(RECORD_KEY)
    if isinstance(record, dict):
        return record
    result = storage.read_json(RESULT_FILE)
    if result is None:
        return None
    earlier = {key: result[key] for key in EARLIER_KEYS if key in result}
    volumes = ("prediction", "annotation", "instances")
    return {key: _volume_name(value) if key in volumes else value for key, value in earlier.items()}


def _volume_name(uri: str) -> str:
    return redact_secrets(absolute_uri(uri)).rstrip("/")
