"""Published weights as checkpoints: network, task, grey levels and training boxes follow from name and tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kasthuri_ray.errors import InputError
from kasthuri_ray.models.checkpoints import Checkpoint, read_checkpoint
from kasthuri_ray.storage.folder import read_uri
from kasthuri_ray.storage.published_files import SCHEME, is_published, list_published, read_published

PACKAGE_FOLDER = Path(__file__).parents[1]
TASKS = ("membrane", "synapse")
INTENSITY = [0.0, 255.0]  # the challenge divides by 255
VOXEL_SIZE_NM = [30.0, 6.0, 6.0]
IMAGE = "bossdb://Kasthuri/ac4/em/0"
# As volumes/recorded_image.py makes them of the public server's names of this image, and of it in all resolutions.
IDENTITY, PYRAMID = "7675292b5f3c214f3f369b1386537338", "fb40db1680fdc92b17953dc9101e0724"
CONVOLUTION_DIMENSIONS = {4: 2, 5: 3}  # axes of a weight, and of the image


def read_weights(path: str) -> Checkpoint:
    """Read the weights that `find_weights_file` named.

    Parameters
    ----------
    path : str
        A file: a path, `https://`, `s3://`, or `kasthuri://NAME` for published weights.

    Returns
    -------
    Checkpoint
        Published ones have the settings of their network and task, the grey levels and voxel size of their image, and
        the boxes that they learnt from.

    Raises
    ------
    InputError
        If the file holds no weights, or there are no such published ones.
    ConnectionError
        If published weights can neither be downloaded nor are in the cache.
    """
    if not is_published(path):
        return read_checkpoint(read_uri(path), path)
    if path.lower() == SCHEME:
        raise InputError(describe_published())
    data, name = read_published(path)
    return published_checkpoint(read_checkpoint(data, path).weights, name)


def describe_published() -> str:
    """Return the list of the published weights for people.

    Returns
    -------
    str
        Lines.
    """
    names, problem = list_published()
    note = [f"{problem}: these are those that are known"] if problem else []
    return "\n".join(["published weights of the Kasthuri Challenge:", *(f"  {SCHEME}{name}" for name in names), *note])


def published_checkpoint(weights: dict[str, Tensor], name: str) -> Checkpoint:
    """Return published weights with all that their name and their tensors say.

    Parameters
    ----------
    weights : dict of Tensor
        State dict.
    name : str
        Such as UNet_2D_attention_synapse.

    Returns
    -------
    Checkpoint
        As of a run on the challenge's task.

    Raises
    ------
    InputError
        If the name ends with no task of the challenge, or the tensors are not those of one of its networks.
    """
    task_type = next((each for each in TASKS if name.lower().endswith(f"_{each}")), None)
    if task_type is None:
        raise InputError(f"{SCHEME}{name}: its name ends with no task of the challenge, {' or '.join(TASKS)}")
    task = _read_json(f"taskconfig/{task_type}_task.json")
    network = {
        **_read_json("networkconfig/UNet_2D.json"),
        **network_of_tensors(weights, name),
        "outweightfilename": name,
    }
    return Checkpoint(
        weights,
        settings={"task": task, "network": network},
        image_intensity=INTENSITY,
        voxel_size_nm=VOXEL_SIZE_NM,
        learnt_from={"complete": True, "runs": [{"run": f"{SCHEME}{name}", "images": [_learnt_image(task)]}]},
    )


def network_of_tensors(weights: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """Return the settings of a network that its state dict shows.

    Parameters
    ----------
    weights : mapping of Tensor
        State dict of one of the challenge's networks.
    name : str
        For the message of an error.

    Returns
    -------
    dict
        `model_type`, `n_blocks`, `start_filters`, `in_channels`, `classes` and `dim`.
    """
    first, last = weights.get("down_blocks.0.conv1.weight"), weights.get("conv_final.weight")
    if first is None or last is None or first.ndim not in CONVOLUTION_DIMENSIONS:
        raise InputError(f"{SCHEME}{name} holds weights of a network that the challenge does not describe")
    blocks = {int(key.split(".")[1]) for key in weights if key.startswith("down_blocks.")}
    kinds = {"attention_gate": "attention", "res_block": "residual"}
    kind = next((kind for part, kind in kinds.items() if any(f".{part}." in key for key in weights)), "unet")
    return {
        "model_type": kind,
        "n_blocks": len(blocks),
        "start_filters": first.shape[0],
        "in_channels": first.shape[1],
        "classes": last.shape[0],
        "dim": CONVOLUTION_DIMENSIONS[first.ndim],
    }


def _learnt_image(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of the boxes for train and val of a task file of the challenge."""
    plane = [f"{start}:{stop}" for start, stop in (task["yrange_vol"], task["xrange_vol"])]
    boxes = {split: [",".join([f"{z[0]}:{z[1]}", *plane])] for split in ("train", "val") if (z := task[f"z_{split}"])}
    return {
        "image": IMAGE,
        "boxes": boxes,
        "boxes_nm": None,
        "voxel_size_nm": VOXEL_SIZE_NM,
        "corner_nm": [0.0, 0.0, 0.0],
        "first_voxel": [0, 0, 0],
        "identity": IDENTITY,
        "pyramid": PYRAMID,
        "rows": [],
    }


def _read_json(name: str) -> dict[str, Any]:
    return dict(json.loads((PACKAGE_FOLDER / name).read_text()))
