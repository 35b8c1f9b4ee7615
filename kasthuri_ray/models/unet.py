"""The five U-Nets in one: `UNet`, what `build_network` makes of a network file, and strict loading of weights.

`models` needs torch and nothing else of this package. The order inside a block is convolution, activation, then
normalization, and every submodule carries the name under which the published weights keep it, so they load strictly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kasthuri_ray.models.user_network import check_network_output, import_network

MODEL_TYPES = ("unet", "attention", "residual", "depth")
NORMALIZATIONS = ("batch", "instance", "group", "none")
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
MAX_GROUPS = 8  # groups of a group norm; fewer where the channels do not divide
DEPTH_BLOCKS = 5  # what model_type "depth" means where n_blocks is not given
PLAIN_BLOCKS = 4
WRAPPERS = ("module.", "_orig_mod.")  # what DDP and torch.compile put before every key

CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
BATCH_NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def pooling_factors(n_blocks: int = PLAIN_BLOCKS, dim: int = 2, pool_z: int = 0) -> tuple[int, int, int]:
    """What a tile's z, y, x must be multiples of; z is 1 in 2D.

    `n_blocks` blocks pool `n_blocks - 1` times, each by 2 in y and x. In 3D the first `pool_z` pools leave z alone.
    """
    num_pools = n_blocks - 1
    z = 2 ** max(0, num_pools - pool_z) if dim == 3 else 1
    return z, 2**num_pools, 2**num_pools


def check_shape(shape: Sequence[int], factors: Sequence[int]) -> None:
    """Raise a ValueError that names shapes that work if `shape` is not whole multiples of `factors` (same axes)."""
    if all(n > 0 and n % f == 0 for n, f in zip(shape, factors, strict=True)):
        return
    axes = ", ".join("zyx"[-len(shape) :])
    smaller = tuple(max(f, n // f * f) for n, f in zip(shape, factors, strict=True))
    larger = tuple(max(f, -(-n // f) * f) for n, f in zip(shape, factors, strict=True))
    work = f"{smaller} or {larger}" if smaller != larger else f"{larger}"
    raise ValueError(
        f"a tile of {axes} = {tuple(shape)} cannot be pooled: the network halves it down to multiples of "
        f"{tuple(factors)}; {work} would work"
    )


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to what came in; same channels, same shape."""

    def __init__(self, channels: int, dim: int, activation: str, normalization: str) -> None:
        super().__init__()
        self.conv1 = CONV[dim](channels, channels, 3, padding=1)
        self.conv2 = CONV[dim](channels, channels, 3, padding=1)
        self.act = ACTIVATIONS[activation]()
        self.norm1 = _norm(normalization, channels, dim)
        self.norm2 = _norm(normalization, channels, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.norm1(self.act(self.conv1(x))))
        return self.norm2(self.act(x + y))


class DownBlock(nn.Module):
    """Two convolutions (and a residual block), then a max pool: gives (pooled, skip)."""

    def __init__(
        self, c_in: int, c_out: int, dim: int, activation: str, normalization: str, residual: bool, pool: tuple | None
    ) -> None:
        super().__init__()
        self.conv1 = CONV[dim](c_in, c_out, 3, padding=1)
        self.conv2 = CONV[dim](c_out, c_out, 3, padding=1)
        self.act = ACTIVATIONS[activation]()
        self.norm1 = _norm(normalization, c_out, dim)
        self.norm2 = _norm(normalization, c_out, dim)
        self.res_block = ResidualBlock(c_out, dim, activation, normalization) if residual else None
        self.pool = MAX_POOL[dim](pool) if pool else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm1(self.act(self.conv1(x)))
        x = self.norm2(self.act(self.conv2(x)))
        if self.res_block is not None:
            x = self.res_block(x)
        return (self.pool(x) if self.pool is not None else x), x


class AttentionGate(nn.Module):
    """Weighs the upsampled features by where they agree with the skip.

    Oktay et al. 2018, "Attention U-Net", arXiv:1804.03999, eq. 1-2, as the published weights have it: the skip takes
    the place of the gating signal and the upsampled features are what is gated.
    """

    def __init__(self, channels: int, dim: int, normalization: str) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.W_g = nn.Sequential(CONV[dim](channels, inner, 1), _norm(normalization, inner, dim))
        self.W_x = nn.Sequential(CONV[dim](channels, inner, 1), _norm(normalization, inner, dim))
        self.psi = nn.Sequential(CONV[dim](inner, 1, 1), _norm(normalization, 1, dim), nn.Sigmoid())

    def forward(self, skip: Tensor, raw: Tensor) -> Tensor:
        return raw * self.psi(torch.relu(self.W_g(skip) + self.W_x(raw)))


class UpBlock(nn.Module):
    """Doubles the size, joins the skip, then two convolutions (and a residual block)."""

    def __init__(
        self, c_in: int, c_out: int, dim: int, activation: str, normalization: str, model_type: str, pool: tuple
    ) -> None:
        super().__init__()
        self.up = TRANSPOSED[dim](c_in, c_out, pool, stride=pool)
        # Published weights carry conv0, and nothing ever calls it: without a gradient, DDP does not wait for one.
        self.conv0 = CONV[dim](c_in, c_out, 1).requires_grad_(False)
        self.conv1 = CONV[dim](2 * c_out, c_out, 3, padding=1)
        self.conv2 = CONV[dim](c_out, c_out, 3, padding=1)
        self.act = ACTIVATIONS[activation]()
        self.norm0 = _norm(normalization, c_out, dim)
        self.norm1 = _norm(normalization, c_out, dim)
        self.norm2 = _norm(normalization, c_out, dim)
        self.attention_gate = AttentionGate(c_out, dim, normalization) if model_type == "attention" else None
        self.res_block = ResidualBlock(c_out, dim, activation, normalization) if model_type == "residual" else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        raw = self.up(x)
        up = self.norm0(self.act(raw))
        both = (up, skip) if self.attention_gate is None else (self.attention_gate(skip, raw), up)
        x = self.norm1(self.act(_convolve_both(self.conv1, *both)))
        x = self.norm2(self.act(self.conv2(x)))
        return self.res_block(x) if self.res_block is not None else x


def _convolve_both(conv: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """`conv` over the channels of both.

    With channels last as a sum: a copy that holds both, and its gradient, made a training step 1.5 to 2 times as long
    (measured on a CPU). A compiler does with the copy what it can.
    """
    if torch.compiler.is_compiling() or not first.is_contiguous(memory_format=torch.channels_last):
        return conv(torch.cat([first, second], dim=1))
    assert isinstance(conv, nn.Conv2d)
    of_first, of_second = conv.weight[:, : first.shape[1]], conv.weight[:, first.shape[1] :]
    part = functional.conv2d(first, of_first, conv.bias, padding=conv.padding)
    return part + functional.conv2d(second, of_second, padding=conv.padding)


class UNet(nn.Module):
    """Logits N, classes, [z], y, x from images N, in_channels, [z], y, x (floats in 0..1), of the same size.

    `model_type`: `unet`; `attention` (the skip reaches the decoder through a gate alone); `residual` (a residual block
    ends every block); `depth` (`unet` with 5 blocks where `n_blocks` is not given). `pool_z`: in 3D, the first `pool_z`
    pools leave z alone, for sections that are thicker than a pixel is wide. `normalization` may also be `group4`, say.
    Sizes must be multiples of `factors` (axes as in the input). Raises ValueError for settings that make no network.
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
        _one_of("dim", dim, (2, 3))
        _one_of("model_type", model_type, MODEL_TYPES)
        _one_of("activation", activation, tuple(ACTIVATIONS))
        _check_conv_mode(conv_mode)
        for name, value in (
            ("in_channels", in_channels), ("classes", classes), ("n_blocks", n_blocks), ("start_filters", start_filters)
        ):  # fmt: skip
            _at_least(name, value, 1)
        _at_least("pool_z", pool_z, 0)
        self.in_channels, self.classes, self.dim = in_channels, classes, dim
        self.factors = pooling_factors(n_blocks, dim, pool_z)[-dim:]
        filters = [start_filters * 2**level for level in range(n_blocks)]
        pools = [(1 if level < pool_z else 2, 2, 2)[-dim:] for level in range(n_blocks - 1)]
        shared = (dim, activation, normalization)
        self.down_blocks = nn.ModuleList(
            DownBlock(c_in, c_out, *shared, model_type == "residual", pool)
            for c_in, c_out, pool in zip([in_channels, *filters[:-1]], filters, [*pools, None], strict=True)
        )
        self.up_blocks = nn.ModuleList(
            UpBlock(2 * c_out, c_out, *shared, model_type, pool)
            for c_out, pool in zip(reversed(filters[:-1]), reversed(pools), strict=True)
        )
        self.conv_final = CONV[dim](start_filters, classes, 1)
        self.apply(_initialise)

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


def build_network(settings: Mapping[str, Any], tile_shape: Sequence[int] | None = None) -> nn.Module:
    """The network that a network file's keys describe, on the CPU, in training mode, with fresh weights.

    `model` without a dot is a label; with one it is the import path of a `torch.nn.Module` class, which is called with
    `model_args` and tried on a blank tile: it must give N, classes and the tile's own size. `tile_shape` ([z], y, x) is
    the size of that tile (default 64 x 64, in 3D 16 x 64 x 64). Raises ValueError in words for whatever does not fit.
    """
    model = str(settings.get("model") or "")
    if "." not in model:
        names = ("in_channels", "classes", "n_blocks", "start_filters", "activation", "normalization", "conv_mode")
        given = {name: settings[name] for name in (*names, "dim", "pool_z") if settings.get(name) is not None}
        return UNet(**given, model_type=settings.get("model_type") or "unet")
    network = import_network(model, settings.get("model_args") or {})
    dim, classes = settings.get("dim") or 2, settings.get("classes") or 2
    size = tuple(tile_shape or (16, 64, 64)[-dim:])
    check_network_output(network, model, (1, settings.get("in_channels") or 1, *size), (1, classes, *size))
    return network


def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into `network`, strictly; prefixes that DDP and torch.compile add are taken off.

    Raises ValueError that names the first keys and shapes that differ, for weights of another network.
    """
    inside = {_inside(key): key for key in network.state_dict()}
    own = dict(zip(inside, network.state_dict().values(), strict=True))
    state = {_inside(key): value for key, value in state.items()}
    differ = [key for key in own if key in state and own[key].shape != state[key].shape]
    problems = [
        _first("it lacks", [key for key in own if key not in state]),
        _first("it has and the network lacks", [key for key in state if key not in own]),
        _first("other shapes", [f"{k} {tuple(state[k].shape)}, expected {tuple(own[k].shape)}" for k in differ]),
    ]
    if any(problems):
        raise ValueError(
            "these are weights of another network: " + "; ".join(filter(None, problems)) + ". Give the network file "
            "that they were trained with (model_type, n_blocks, dim, start_filters, classes)"
        )
    network.load_state_dict({inside[key]: value for key, value in state.items()})


def _inside(key: str) -> str:
    """A key as the bare network names it, without what DDP and torch.compile put before it."""
    while key.startswith(WRAPPERS):
        key = key.partition(".")[2]
    return key


def _first(what: str, names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"{what} {', '.join(islice(names, count))}{more}" if names else ""


def _norm(name: str, channels: int, dim: int) -> nn.Module:
    groups = name.removeprefix("group")
    if name == "batch":
        return BATCH_NORM[dim](channels)
    if name == "instance":
        return INSTANCE_NORM[dim](channels)
    if name == "none":
        return nn.Identity()
    if name == "group" or (name.startswith("group") and groups.isdecimal() and int(groups) > 0):
        return nn.GroupNorm(math.gcd(int(groups or MAX_GROUPS), channels), channels)
    raise ValueError(f"network.normalization is {name!r}; it can be {', '.join(NORMALIZATIONS)}")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _one_of(name: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"network.{name} is {value!r}; it can be {', '.join(map(str, allowed))}")


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"network.{name} is {value!r}; it must be a whole number of at least {least}")


def _check_conv_mode(conv_mode: str) -> None:
    if conv_mode == "valid":
        raise ValueError(
            "network.conv_mode is 'valid', which would give a smaller output than the tile and its labels; use 'same'"
        )
    _one_of("conv_mode", conv_mode, ("same",))
