"""Weights and checkpoints as bytes, read without running any code that they contain.

`checkpoint_bytes` serializes a state dict or a checkpoint, `read_checkpoint` reads both. The caller decides where the
bytes come from and go to.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.storage.local_paths import BEST_FILE

OWN_KEY = "weights"  # under which our checkpoints store their weights
WRAPPER_KEYS = (OWN_KEY, "state_dict", "model_state_dict", "model")  # and those of other programs
LEFT_OUT_IF_NONE = (
    "resume",
    "annotated_objects",
    "learnt_from",
    "temperature",
    "objects",
)  # of the entries of our checkpoints
PLAIN_TYPES = (type(None), bool, int, float, str, bytes)

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # of files written before torch 1.6, pickled

_EXPECTED = "expected the .pt file of a run, or what torch.save(network.state_dict(), 'weights.pt') writes"


@dataclass
class Checkpoint:
    """The weights of a network, and what is known about them; a bare state dict has nothing but weights.

    Parameters
    ----------
    weights : dict of str to Tensor
        State dict, on the CPU.
    settings : dict, optional
        All settings of the run, as plain values.
    best : dict, optional
        The best epoch so far: its number, scores and threshold.
    image_intensity : list of float, optional
        Grey levels of the training image that became 0 and 255.
    voxel_size_nm : list of float, optional
        Voxel size of the training image, z, y, x.
    resume : dict, optional
        All that resuming the run needs; in `last.pt` alone.
    annotated_objects : dict, optional
        Objects of the annotation of the training boxes, see `metrics.object_density.AnnotatedObjects`.
    learnt_from : dict, optional
        What the network learnt from, see `volumes.learnt_from.LearntFrom`.
    temperature : float, optional
        By which the logits of these weights have been divided, see `training.temperature`; in `best.pt` of a finished
        run alone.
    objects : dict, optional
        How its objects are found, see `metrics.object_choice.ObjectChoice`; in `best.pt` of a finished run alone.
    """

    weights: dict[str, Tensor]
    settings: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    image_intensity: list[float] | None = None
    voxel_size_nm: list[float] | None = None
    resume: dict[str, Any] | None = None
    annotated_objects: dict[str, Any] | None = None
    learnt_from: dict[str, Any] | None = None
    temperature: float | None = None
    objects: dict[str, Any] | None = None

    @property
    def threshold(self) -> float | None:
        """Probability that the best epoch chose on its validation box; None if unknown."""
        return (self.best or {}).get("threshold")

    def to_plain(self) -> dict[str, Any]:
        """Return the content of the file."""
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in content.items() if name not in LEFT_OUT_IF_NONE or value is not None}


def find_weights_file(path: str, flag: str = "--weights") -> str:
    """Return the file that `--weights` means.

    Parameters
    ----------
    path : str
        A weights file or the folder of a run, as a path or a URL.
    flag : str
        The flag in messages.

    Returns
    -------
    str
        `path`, or the best checkpoint in it if it is the folder of a run.

    Raises
    ------
    InputNotFound
        For a folder of this machine that is no run, such as that of a sweep, or of all runs. The message names a run
        in it.
    """
    if path.startswith("s3://") and not path.endswith((".pt", ".pth")):
        return f"{path.rstrip('/')}/{BEST_FILE}"
    if not os.path.isdir(path):
        return path
    file = os.path.join(path, BEST_FILE)
    if os.path.exists(file):
        return file
    folder = os.path.abspath(path)
    runs = [name for name in ("best", *sorted(os.listdir(path))) if os.path.exists(f"{folder}/{name}/{BEST_FILE}")]
    hint = f"; did you mean {folder}/{runs[0]}?" if runs else ""
    raise InputNotFound(f"{flag}: there is no {folder}/{BEST_FILE}, so {path} is not the folder of a run{hint}")


def read_checkpoint(data: bytes, source: str) -> Checkpoint:
    """Read a checkpoint from its bytes.

    A checkpoint is a dict with `weights` and `settings`. Weights under the usual keys of other programs
    (`state_dict`, `model_state_dict`, `model`) are found as well.

    Parameters
    ----------
    data : bytes
        A checkpoint, or a bare state dict.
    source : str
        Path or URL of `data`, for messages.

    Returns
    -------
    Checkpoint
        Of a bare state dict, and of a checkpoint of another program, the weights alone.

    Raises
    ------
    InputError
        If `data` holds no weights, anything but tensors and plain values, which could run code, or bytes that are
        truncated, damaged, a web page or of another format. The message names `source`.
    """
    _check_bytes(data, source)
    content = _load_safely(data, source)
    if not isinstance(content, dict):
        raise InputError(f"{source} holds {_describe_type(content)} instead of a state dict; {_EXPECTED}")
    wrapper = next((key for key in WRAPPER_KEYS if isinstance(content.get(key), dict)), None)
    if wrapper != OWN_KEY:
        return Checkpoint(_check_state_dict(content if wrapper is None else content[wrapper], source))
    known: dict[str, Any] = {each.name: content.get(each.name) for each in fields(Checkpoint)}
    return Checkpoint(**{**known, "weights": _check_state_dict(content["weights"], source)})


def check_finite_weights(weights: Mapping[str, Tensor], source: str) -> None:
    """Check that weights are finite; a network with others outputs nothing but nan.

    Parameters
    ----------
    weights : mapping of str to Tensor
        State dict.
    source : str
        Path or URL of the weights, for the message.

    Raises
    ------
    InputError
        If a weight is nan or infinite. The message names the first tensor that holds one.
    """
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise InputError(
            f"{source} holds weights that are not finite (nan or infinity), in {broken[0]}{more}: their training "
            "diverged; use other weights"
        )


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of the names, shapes, types and bytes of weights.

    Parameters
    ----------
    weights : mapping of str to Tensor
        State dict, in any order and on any device.

    Returns
    -------
    str
        128 bits of BLAKE2b as hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()


def checkpoint_bytes(content: Checkpoint | Mapping[str, Any]) -> bytes:
    """Serialize a checkpoint, or a dict such as a bare state dict, as `torch.save` does.

    Parameters
    ----------
    content : Checkpoint or mapping
        Tensors, numbers, strings, bytes, None, and lists, tuples and dicts of these. Tensors may be on any device.

    Returns
    -------
    bytes
        The bytes of a `.pt` file; equal for equal content.

    Raises
    ------
    InputError
        If `content` holds a value that could not be read again safely. The message says where.
    """
    if isinstance(content, Checkpoint):
        content = content.to_plain()
    buffer = io.BytesIO()
    torch.save(_to_plain(content, ""), buffer)
    return buffer.getvalue()


def _check_bytes(data: bytes, source: str) -> None:
    start = data[:200].lstrip()
    if not data:
        raise InputError(f"{source} is empty; {_EXPECTED}")
    if start.startswith(b"<"):
        raise InputError(f"{source} is a web page or an XML document, not weights; it starts with {start[:60]!r}")
    if data.startswith(ZIP_MAGIC):
        _check_archive(data, source)
    elif not data.startswith(LEGACY_MAGIC):
        raise InputError(f"{source} is not a file that torch.save wrote; it starts with {data[:16]!r}; {_EXPECTED}")


def _check_archive(data: bytes, source: str) -> None:
    """Verify the checksums of the archive: torch reads changed bytes of a tensor without an error."""
    try:
        broken = zipfile.ZipFile(io.BytesIO(data)).testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise InputError(f"{source} is truncated or damaged ({len(data)} bytes): {error}. Fetch it again") from error
    if broken:
        raise InputError(f"{source} is damaged: the checksum of {broken} is wrong. Fetch it again")


def _load_safely(data: bytes, source: str) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        class_name = re.search(r"GLOBAL (\S+)", str(error))
        detail = f" ({class_name[1]})" if class_name else ""
        raise InputError(
            f"{source} holds more than weights{detail} and is refused, since reading it could run arbitrary code; "
            f"{_EXPECTED}"
        ) from error
    except (RuntimeError, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        message = f"{source} cannot be read as weights: {reason or type(error).__name__}; {_EXPECTED}"
        raise InputError(message) from error


def _check_state_dict(content: Any, source: str) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise InputError(f"{source} holds {_describe_type(content)} instead of weights; {_EXPECTED}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{source} is not a state dict: {key!r} is {_describe_type(value)}, not a tensor; {_EXPECTED}"
            )
    return dict(content)


def _describe_type(value: Any) -> str:
    name = "empty dict" if isinstance(value, dict) and not value else type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _to_plain(value: Any, location: str) -> Any:
    if isinstance(value, Tensor):
        return _shrink_storage(value.detach().cpu())
    if type(value) in PLAIN_TYPES:
        return value
    if isinstance(value, Mapping):
        return {
            _to_plain(key, location): _to_plain(item, f"{location}.{key}".lstrip(".")) for key, item in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(_to_plain(item, f"{location}[{i}]") for i, item in enumerate(value))
    raise ValueError(
        f"{location or 'the content'} is a {type(value).__module__}.{type(value).__name__}, which a checkpoint cannot "
        "hold; make it a tensor, a number, a string, or a list or dict of these"
    )


def _shrink_storage(tensor: Tensor) -> Tensor:
    """Return the tensor without unused storage: torch.save writes the whole storage of a view."""
    used = tensor.numel() * tensor.element_size()
    return tensor.clone() if tensor.untyped_storage().nbytes() > used else tensor
