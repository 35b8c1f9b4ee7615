"""Weights and checkpoints as bytes, read without running anything that they hold.

`pack` makes bytes of a state dict or a checkpoint; `unpack`, `read_checkpoint` and `read_weights` take them apart.
Where bytes come from and go to is the caller's. Needs torch alone.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

WRAPPED_IN = ("weights", "state_dict", "model_state_dict", "model")  # where other people's checkpoints keep weights

ZIP = b"PK\x03\x04"
BEFORE_TORCH_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
PLAIN = (type(None), bool, int, float, str, bytes)


_EXPECTED = "expected the .pt file of a run, or what torch.save(network.state_dict(), 'weights.pt') writes"


def find_weights_file(path: str) -> str:
    """The file that `--weights` means: of a run's folder its best checkpoint."""
    is_folder = os.path.isdir(path) or (path.startswith("s3://") and not path.endswith((".pt", ".pth")))
    return f"{path.rstrip('/')}/checkpoint/best.pt" if is_folder else path


@dataclass
class Checkpoint:
    """A network's weights, and what is known about them.

    weights: its state dict, on the CPU. settings: all settings of the run as plain values; None for a bare state dict.
    about: whatever else the checkpoint holds, by name.
    """

    weights: dict[str, Tensor]
    settings: dict[str, Any] | None = None
    about: dict[str, Any] = field(default_factory=dict)


def read_weights(data: bytes, where: str) -> dict[str, Tensor]:
    """The state dict in `data`, a bare one or a checkpoint's; errors as of `unpack`."""
    return read_checkpoint(data, where).weights


def read_checkpoint(data: bytes, where: str) -> Checkpoint:
    """The checkpoint in `data`; of a bare state dict the weights alone.

    A checkpoint is a dict with `weights` and `settings`; of other people's, the weights are found as well.
    Raises ValueError as `unpack` does, and where there are no weights.
    """
    content = load_checkpoint_bytes(data, where)
    wraps = [key for key in WRAPPED_IN if isinstance(content.get(key), dict)]
    if not wraps:
        return Checkpoint(_state_dict(content, where))
    about = {key: value for key, value in content.items() if key not in (wraps[0], "settings")}
    return Checkpoint(_state_dict(content[wraps[0]], where), content.get("settings"), about)


def check_finite_weights(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise a ValueError, naming the first, for weights that hold nan or infinity: they answer nothing else."""
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ValueError(
            f"{where} holds weights that are not finite (nan or infinity), in {broken[0]}{more}: their training "
            "diverged; give others"
        )


def load_checkpoint_bytes(data: bytes, where: str) -> dict[str, Any]:
    """The dict that `pack` or `torch.save` made `data` of, tensors on the CPU.

    Nothing in `data` is run: what is more than tensors and plain values is refused. `where` names the source in errors.
    Raises ValueError for that, and for bytes that are cut short, damaged, a web page or anything else.
    """
    _check_bytes(data, where)
    content = _loaded(data, where)
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds no state dict but {_described(content)}; {_EXPECTED}")
    return content


def checkpoint_bytes(content: Checkpoint | Mapping[str, Any]) -> bytes:
    """The bytes of a checkpoint, or of a dict, such as a bare state dict, as `torch.save` writes it.

    Tensors come to the CPU; equal content gives equal bytes. Raises ValueError, naming the place, for values that
    `unpack` would refuse: all but tensors, numbers, strings, None, and lists, tuples and dicts of these.
    """
    if isinstance(content, Checkpoint):
        content = {"weights": content.weights, "settings": content.settings, **content.about}
    buffer = io.BytesIO()
    torch.save(_plain(content, ""), buffer)
    return buffer.getvalue()


def _check_bytes(data: bytes, where: str) -> None:
    start = data[:200].lstrip()
    if not data:
        raise ValueError(f"{where} is empty; {_EXPECTED}")
    if start.startswith(b"<"):
        raise ValueError(f"{where} is a web page or an XML answer, no weights; it starts with {start[:60]!r}")
    if data.startswith(ZIP):
        _check_archive(data, where)
    elif not data.startswith(BEFORE_TORCH_1_6):
        raise ValueError(f"{where} is no file of torch; it starts with {data[:16]!r}; {_EXPECTED}")


def _check_archive(data: bytes, where: str) -> None:
    """Torch reads a tensor whose bytes have changed without a word; the archive's checksums tell."""
    try:
        broken = zipfile.ZipFile(io.BytesIO(data)).testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(f"{where} is cut short or damaged ({len(data)} bytes): {error}. Fetch it again") from error
    if broken:
        raise ValueError(f"{where} is damaged: the checksum of {broken} is wrong. Fetch it again")


def _loaded(data: bytes, where: str) -> Any:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise ValueError(
            f"{where} holds more than weights{what} and is refused, since reading it could run somebody's program; "
            f"{_EXPECTED}"
        ) from error
    except (RuntimeError, EOFError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{where} cannot be read as weights: {reason or type(error).__name__}; {_EXPECTED}") from error


def _state_dict(content: Any, where: str) -> dict[str, Tensor]:
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{where} holds no weights but {_described(content)}; {_EXPECTED}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{where} is no state dict: {key!r} is {_described(value)}, no tensor; {_EXPECTED}")
    return dict(content)


def _described(value: Any) -> str:
    name = "empty dict" if isinstance(value, dict) and not value else type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, Tensor):
        return _own(value.detach().cpu())
    if type(value) in PLAIN:
        return value
    if isinstance(value, Mapping):
        return {_plain(key, place): _plain(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{place}[{i}]") for i, item in enumerate(value))
    raise ValueError(
        f"{place or 'it'} is a {type(value).__module__}.{type(value).__name__}, which a checkpoint cannot hold; "
        "make it a tensor, a number, a string, or a list or dict of these"
    )


def _own(tensor: Tensor) -> Tensor:
    """The tensor with no more storage than it shows: torch.save writes the whole storage of a view."""
    shown = tensor.numel() * tensor.element_size()
    return tensor.clone() if tensor.untyped_storage().nbytes() > shown else tensor


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """What tells these weights from all others: of names, shapes, types and bytes, in the order of their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()
