"""The blocks that a U-Net is built of. Submodules have the names of the published weights, so that these load."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kasthuri_ray.errors import InputError

NORMALIZATIONS = ("batch", "instance", "group", "none")
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "leaky": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU,
}  # fmt: skip
MAX_GROUPS = 8  # of a group norm; fewer where they do not divide the channels
CONV: dict[int, type[nn.Module]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL: dict[int, type[nn.Module]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
BATCH_NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM: dict[int, type[nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of a network have in common: values of the network file."""

    dim: int
    activation: str
    normalization: str
    model_type: str

    def conv(self, c_in: int, c_out: int, size: int = 3) -> nn.Module:
        """Return a convolution that keeps the shape."""
        return CONV[self.dim](c_in, c_out, size, padding=size // 2)

    def act(self) -> nn.Module:
        """Return the activation."""
        return ACTIVATIONS[self.activation]()

    def norm(self, channels: int) -> nn.Module:
        """Return the normalization."""
        return _make_norm(self.normalization, channels, self.dim)

    def res_block(self, channels: int) -> ResidualBlock | None:
        """Return the end of a block of a residual network; None for other networks."""
        return ResidualBlock(channels, self) if self.model_type == "residual" else None


class ResidualBlock(nn.Module):
    """Two convolutions whose output is added to the input; same channels, same shape."""

    def __init__(self, channels: int, style: BlockStyle) -> None:
        super().__init__()
        self.conv1 = style.conv(channels, channels)
        self.conv2 = style.conv(channels, channels)
        self.act = style.act()
        self.norm1 = style.norm(channels)
        self.norm2 = style.norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.norm1(self.act(self.conv1(x))))
        return self.norm2(self.act(x + y))


class DownBlock(nn.Module):
    """Two convolutions (and a residual block), then a max pool; returns (pooled, skip)."""

    def __init__(self, c_in: int, c_out: int, style: BlockStyle, pool: tuple | None) -> None:
        super().__init__()
        self.conv1 = style.conv(c_in, c_out)
        self.conv2 = style.conv(c_out, c_out)
        self.act = style.act()
        self.norm1 = style.norm(c_out)
        self.norm2 = style.norm(c_out)
        self.res_block = style.res_block(c_out)
        self.pool = MAX_POOL[style.dim](pool) if pool else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm1(self.act(self.conv1(x)))
        x = self.norm2(self.act(self.conv2(x)))
        if self.res_block is not None:
            x = self.res_block(x)
        return (self.pool(x) if self.pool is not None else x), x


class AttentionGate(nn.Module):
    """Weights for the upsampled features, from these features and the skip.

    Oktay et al. 2018, "Attention U-Net", arXiv:1804.03999, eq. 1-2, in the form of the published weights: the skip is
    the gating signal, and the upsampled features are gated.
    """

    def __init__(self, channels: int, style: BlockStyle) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.W_g = nn.Sequential(style.conv(channels, inner, 1), style.norm(inner))
        self.W_x = nn.Sequential(style.conv(channels, inner, 1), style.norm(inner))
        self.psi = nn.Sequential(style.conv(inner, 1, 1), style.norm(1), nn.Sigmoid())

    def forward(self, skip: Tensor, raw: Tensor) -> Tensor:
        return raw * self.psi(torch.relu(self.W_g(skip) + self.W_x(raw)))


class UpBlock(nn.Module):
    """A transposed convolution, concatenation with the skip, then two convolutions (and a residual block)."""

    def __init__(self, c_in: int, c_out: int, style: BlockStyle, pool: tuple) -> None:
        super().__init__()
        self.up = TRANSPOSED[style.dim](c_in, c_out, pool, stride=pool)
        # The published weights hold conv0, which is never called. Without requires_grad, DDP expects no gradient of it.
        self.conv0 = style.conv(c_in, c_out, 1).requires_grad_(False)
        self.conv1 = style.conv(2 * c_out, c_out)
        self.conv2 = style.conv(c_out, c_out)
        self.act = style.act()
        self.norm0 = style.norm(c_out)
        self.norm1 = style.norm(c_out)
        self.norm2 = style.norm(c_out)
        self.attention_gate = AttentionGate(c_out, style) if style.model_type == "attention" else None
        self.res_block = style.res_block(c_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        raw = self.up(x)
        up = self.norm0(self.act(raw))
        features = (up, skip) if self.attention_gate is None else (self.attention_gate(skip, raw), up)
        x = self.norm1(self.act(_convolve_both(self.conv1, *features)))
        x = self.norm2(self.act(self.conv2(x)))
        return self.res_block(x) if self.res_block is not None else x


def _convolve_both(conv: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Return `conv` of the channels of both inputs.

    In channels_last it is a sum of two convolutions: concatenating the inputs, and its gradient, made a training step
    1.5 to 2 times as long (measured on a CPU). Compiled, the concatenation is left to the compiler.
    """
    if torch.compiler.is_compiling() or not first.is_contiguous(memory_format=torch.channels_last):
        return conv(torch.cat([first, second], dim=1))
    assert isinstance(conv, nn.Conv2d)
    first_weight, second_weight = conv.weight[:, : first.shape[1]], conv.weight[:, first.shape[1] :]
    first_part = functional.conv2d(first, first_weight, conv.bias, padding=conv.padding)
    return first_part + functional.conv2d(second, second_weight, padding=conv.padding)


def _make_norm(name: str, channels: int, dim: int) -> nn.Module:
    groups = name.removeprefix("group")
    if name == "batch":
        return BATCH_NORM[dim](channels)
    if name == "instance":
        return INSTANCE_NORM[dim](channels)
    if name == "none":
        return nn.Identity()
    if name == "group" or (name.startswith("group") and groups.isdecimal() and int(groups) > 0):
        return nn.GroupNorm(math.gcd(int(groups or MAX_GROUPS), channels), channels)
    raise InputError(f"network.normalization is {name!r}; it can be {', '.join(NORMALIZATIONS)}")
