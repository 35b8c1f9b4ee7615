"""The five U-Nets as one class, `UNet`; networks from network files, `build_network`; strict loading of weights.

The order inside a block is convolution, activation, normalization. Submodules have the names of the published weights,
so that these load strictly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor, nn

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import ceil_div
from kasthuri_ray.models.unet_blocks import ACTIVATIONS, CONV, BlockStyle, DownBlock, UpBlock
from kasthuri_ray.models.user_network import check_network_output, import_network

MODEL_TYPES = ("unet", "attention", "residual", "depth")
DEPTH_BLOCKS = 5  # default n_blocks for the model_type "depth"
PLAIN_BLOCKS = 4  # default n_blocks otherwise
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # that DDP and torch.compile put before every key


def pooling_factors(n_blocks: int = PLAIN_BLOCKS, dim: int = 2, pool_z: int = 0) -> tuple[int, int, int]:
    """Return what the size of a tile must be a multiple of, along z, y, x.

    `n_blocks` blocks pool `n_blocks - 1` times, each time by 2 along y and x.

    Parameters
    ----------
    n_blocks : int
        Number of resolution levels of the U-Net.
    dim : int
        2 or 3.
    pool_z : int
        In 3D, the first `pool_z` pools leave z as it is.

    Returns
    -------
    tuple of int
        Factors along z, y, x; z is 1 in 2D.
    """
    num_pools = n_blocks - 1
    z = 2 ** max(0, num_pools - pool_z) if dim == 3 else 1
    return z, 2**num_pools, 2**num_pools


def check_shape(shape: Sequence[int], factors: Sequence[int]) -> None:
    """Check that the size of a tile is a multiple of the pooling factors.

    Parameters
    ----------
    shape : sequence of int
        Size of a tile along [z], y, x.
    factors : sequence of int
        Pooling factors along the same axes.

    Raises
    ------
    InputError
        If it is not. The message names the nearest sizes that work.
    """
    if all(n > 0 and n % f == 0 for n, f in zip(shape, factors, strict=True)):
        return
    axes = ", ".join("zyx"[-len(shape) :])
    smaller = tuple(max(f, n // f * f) for n, f in zip(shape, factors, strict=True))
    larger = tuple(max(f, ceil_div(n, f) * f) for n, f in zip(shape, factors, strict=True))
    nearest = f"{smaller} or {larger}" if smaller != larger else f"{larger}"
    raise InputError(
        f"a tile of {axes} = {tuple(shape)} cannot be pooled: the network takes multiples of {tuple(factors)}; "
        f"{nearest} would work"
    )


class UNet(nn.Module):
    """U-Net: logits (N, classes, [z], y, x) from images (N, in_channels, [z], y, x) of the same size.

    Images are floats from 0 to 1. Sizes must be multiples of the attribute `factors`, which has the axes of the image.

    Parameters
    ----------
    in_channels, classes : int
        Channels of the image and of the logits.
    n_blocks : int, optional
        Number of resolution levels; by default 4, or 5 for the model type `depth`.
    start_filters : int
        Filters of the first level; each level has twice as many as the one before.
    activation : str
        One of `ACTIVATIONS`.
    normalization : str
        One of `NORMALIZATIONS`, or `group` with a number of groups, such as `group4`.
    conv_mode : str
        `same`.
    dim : int
        2 or 3.
    model_type : str
        `unet`; `attention` (attention gates on the skips); `residual` (every block ends in a residual block); `depth`
        (a deeper `unet`).
    pool_z : int
        In 3D, the first `pool_z` pools leave z as it is, for sections that are thicker than a pixel is wide.

    Raises
    ------
    InputError
        If a setting has another value.
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 2,
        n_blocks: int | None = None,
        start_filters: int = 32,
        activation: str = "relu",
        normalization: str = "batch",
        conv_mode: str = "same",
        dim: int = 2,
        model_type: str = "unet",
        pool_z: int = 0,
    ) -> None:
        super().__init__()
        if n_blocks is None:
            n_blocks = DEPTH_BLOCKS if model_type == "depth" else PLAIN_BLOCKS
        _check_one_of("dim", dim, (2, 3))
        _check_one_of("model_type", model_type, MODEL_TYPES)
        _check_one_of("activation", activation, tuple(ACTIVATIONS))
        _check_conv_mode(conv_mode)
        for name, value in (
            ("in_channels", in_channels), ("classes", classes), ("n_blocks", n_blocks), ("start_filters", start_filters)
        ):  # fmt: skip
            _check_at_least(name, value, 1)
        _check_at_least("pool_z", pool_z, 0)
        self.in_channels, self.classes, self.dim = in_channels, classes, dim
        self.factors = pooling_factors(n_blocks, dim, pool_z)[-dim:]
        filters = [start_filters * 2**level for level in range(n_blocks)]
        pools = [(1 if level < pool_z else 2, 2, 2)[-dim:] for level in range(n_blocks - 1)]
        style = BlockStyle(dim, activation, normalization, model_type)
        self.down_blocks = nn.ModuleList(
            DownBlock(c_in, c_out, style, pool)
            for c_in, c_out, pool in zip([in_channels, *filters[:-1]], filters, [*pools, None], strict=True)
        )
        self.up_blocks = nn.ModuleList(
            UpBlock(2 * c_out, c_out, style, pool)
            for c_out, pool in zip(reversed(filters[:-1]), reversed(pools), strict=True)
        )
        self.conv_final = CONV[dim](start_filters, classes, 1)
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        skips = []
        for down in self.down_blocks:
            x, skip = down(x)
            skips.append(skip)
        for up, skip in zip(self.up_blocks, reversed(skips[:-1]), strict=True):
            x = up(x, skip)
        return self.conv_final(x)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != self.dim + 2 or x.shape[1] != self.in_channels:
            axes = ", ".join("zyx"[-self.dim :])
            raise ValueError(
                f"a {self.dim}D network with {self.in_channels} input channel(s) takes N, {self.in_channels}, {axes}; "
                f"got {tuple(x.shape)}"
            )
        check_shape(x.shape[2:], self.factors)


def is_plain_unet(network: nn.Module) -> bool:
    """Return whether a network is a `UNet` that computes nothing else, so that its layers are known.

    Parameters
    ----------
    network : torch.nn.Module
        Any network.

    Returns
    -------
    bool
        False for subclasses with a `forward` of their own.
    """
    return isinstance(network, UNet) and type(network).forward is UNet.forward


def build_network(settings: Mapping[str, Any], tile_shape: Sequence[int] | None = None) -> nn.Module:
    """Build the network of a network file, on the CPU, in training mode, with new weights.

    Parameters
    ----------
    settings : mapping
        The keys of a network file. If `model` contains no dot it is a label, and the network is a `UNet`. Otherwise it
        is the import path of a `torch.nn.Module` class, which is called with `model_args` and tried on a blank tile: it
        must return (N, classes, [z], y, x) of the size of the tile.
    tile_shape : sequence of int, optional
        Size of that tile along [z], y, x; by default 64 x 64, in 3D 16 x 64 x 64.

    Returns
    -------
    torch.nn.Module
        The network.

    Raises
    ------
    InputError
        If a setting is wrong, or the class cannot be imported, called or run.
    """
    model = str(settings.get("model") or "")
    if "." not in model:
        names = ("in_channels", "classes", "n_blocks", "start_filters", "activation", "normalization", "conv_mode")
        arguments = {name: settings[name] for name in (*names, "dim", "pool_z") if settings.get(name) is not None}
        return UNet(**arguments, model_type=settings.get("model_type") or "unet")
    model_args = settings.get("model_args") or {}
    network = import_network(model, model_args)
    dim, classes = settings.get("dim") or 2, settings.get("classes") or 2
    size = tuple(tile_shape or (16, 64, 64)[-dim:])
    check_network_output(network, model, model_args, (1, settings.get("in_channels") or 1, *size), (1, classes, *size))
    return network


def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights into a network, strictly. Prefixes that DDP and torch.compile add to keys are removed.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    state : mapping of str to Tensor
        State dict.

    Raises
    ------
    InputError
        If keys or shapes differ. The message names the first of them.
    """
    network_keys = {_unwrapped_key(key): key for key in network.state_dict()}
    expected = dict(zip(network_keys, network.state_dict().values(), strict=True))
    state = {_unwrapped_key(key): value for key, value in state.items()}
    differ = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    shapes = [f"{key} {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}" for key in differ]
    problems = [
        _list_first("missing keys", [key for key in expected if key not in state]),
        _list_first("unexpected keys", [key for key in state if key not in expected]),
        _list_first("other shapes", shapes),
    ]
    if any(problems):
        own = "model_type, n_blocks, dim, start_filters, classes"
        decisive = own if isinstance(network, UNet) else "network.model and network.model_args"
        raise InputError(
            "these are weights of another network: " + "; ".join(filter(None, problems)) + ". Give the network file "
            f"that they were trained with ({decisive})"
        )
    network.load_state_dict({network_keys[key]: value for key, value in state.items()})


def _unwrapped_key(key: str) -> str:
    """Return the key without the prefixes of DDP and torch.compile."""
    while key.startswith(WRAPPER_PREFIXES):
        key = key.partition(".")[2]
    return key


def _list_first(label: str, names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{label} {', '.join(islice(names, count))}{more}" if names else ""


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_one_of(name: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise InputError(f"network.{name} is {value!r}; it can be {', '.join(map(str, allowed))}")


def _check_at_least(name: str, value: int, minimum: int) -> None:
    if not isinstance(value, int) or value < minimum:
        raise InputError(f"network.{name} is {value!r}; it must be a whole number of at least {minimum}")


def _check_conv_mode(conv_mode: str) -> None:
    if conv_mode == "valid":
        raise InputError(
            "network.conv_mode is 'valid', whose output would be smaller than the tile and its labels; use 'same'"
        )
    _check_one_of("conv_mode", conv_mode, ("same",))
