"""Networks that a user wrote, named by their import path."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kasthuri_ray.errors import InputError
from kasthuri_ray.module_path import add_working_folder


def import_network(path: str, model_args: Any) -> nn.Module:
    """Import the `torch.nn.Module` class at `path` (`my_package.MyNet`) and call it with `model_args`.

    Raises InputError if it cannot be imported, is not such a class, or does not take these arguments.
    """
    module_name, _, class_name = path.rpartition(".")
    add_working_folder()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"network.model is {path!r}, and importing {module_name!r} failed: {error}. Install it, or put the folder "
            "that holds it on PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise InputError(
            f"network.model is {path!r}, and importing {module_name!r} failed: {type(error).__name__}: {error}"
        ) from error
    network_class = getattr(module, class_name, None)
    if network_class is None:
        similar = difflib.get_close_matches(class_name, dir(module), n=1)
        hint = f"; did you mean {similar[0]!r}?" if similar else ""
        where = getattr(module, "__file__", None) or module_name
        raise InputError(f"network.model is {path!r}, but {where} has no {class_name!r}{hint}")
    if not (isinstance(network_class, type) and issubclass(network_class, nn.Module)):
        raise InputError(f"network.model is {path!r}, which is not a subclass of torch.nn.Module")
    if not isinstance(model_args, Mapping):
        raise InputError(f"network.model_args is {model_args!r}; it must be an object of arguments for {path}")
    try:
        return network_class(**model_args)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{path} cannot be called with network.model_args {dict(model_args)!r}: {error}{_taken(network_class)}"
        ) from error


def _taken(network_class: type[nn.Module]) -> str:
    """Return what arguments a class takes, for messages; "" if that cannot be said."""
    try:
        parameters = inspect.signature(network_class).parameters.values()
    except (TypeError, ValueError):
        return ""
    names = [each.name if each.default is each.empty else f"{each.name}={each.default!r}" for each in parameters]
    return f". It takes {', '.join(names) or 'none'}"


def check_network_output(
    network: nn.Module, path: str, model_args: Any, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Raise InputError unless `network` turns a blank tile of `shape` into logits of shape `expected`."""
    called = f"{path} with network.model_args {dict(model_args)!r}"
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(shape))
    except Exception as error:  # a user's network may raise anything
        raise InputError(f"{called} failed on a tile of shape {shape}: {error}") from error
    finally:
        network.train()
    got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if got != expected:
        raise InputError(
            f"{called} returns {got} for a tile of shape {shape}; expected logits of shape {expected} (N, classes and "
            f"the size of the tile). Change network.model_args{_taken(type(network))}"
        )
