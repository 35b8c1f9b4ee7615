"""Networks of other people, named by their import path."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def import_network(path: str, model_args: Any) -> nn.Module:
    """The `torch.nn.Module` class at `path` (`my_package.MyNet`), called with `model_args`.

    Raises ValueError in words where it cannot be imported, is something else, or does not take these arguments.
    """
    module_name, _, class_name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"network.model is {path!r}, and importing {module_name!r} failed: {error}. Install it, or put the folder "
            "that holds it on PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:  # whatever somebody else's module may raise
        raise ValueError(
            f"network.model is {path!r}, and importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    made = getattr(module, class_name, None)
    if made is None:
        near = difflib.get_close_matches(class_name, dir(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"network.model is {path!r}, but {module_name!r} has no {class_name!r}{hint}")
    if not (isinstance(made, type) and issubclass(made, nn.Module)):
        raise ValueError(f"network.model is {path!r}, which is not a class made from torch.nn.Module")
    if not isinstance(model_args, Mapping):
        raise ValueError(f"network.model_args is {model_args!r}; it must be an object of arguments for {path}")
    try:
        return made(**model_args)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be made with network.model_args {dict(model_args)!r}: {error}") from error


def check_network_output(network: nn.Module, path: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ValueError unless `network` turns a blank tile of `shape` into logits of shape `expected`."""
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(shape))
    except Exception as error:  # whatever somebody else's network may raise
        raise ValueError(f"{path} failed on a tile of shape {shape}: {error}") from error
    finally:
        network.train()
    got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if got != expected:
        raise ValueError(
            f"{path} gives {got} for a tile of shape {shape}; expected logits of shape {expected} "
            "(N, classes and the tile's own size)"
        )
