"""U-Nets for inference, with each batch norm folded into the convolution behind it: `fold_network`.

A batch norm in eval mode is a scale and a shift of each channel. Convolutions are linear, so the scale moves into the
weights and the shift into the bias of the next convolution. Zero padding does not scale with the shift: at the borders
of its input a folded network differs from the original, no deeper than the receptive field. Use it where this margin is
discarded.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from kasthuri_ray.hardware import NUMBER_FORMATS
from kasthuri_ray.models.unet import UNet
from kasthuri_ray.models.unet_blocks import DownBlock, UpBlock

Conv = Any  # nn.Conv2d or nn.Conv3d, whose parameters have other types for mypy


@dataclass(frozen=True)
class ChannelAffine:
    """What a batch norm does to the channels of its input.

    Parameters
    ----------
    scale, shift : Tensor
        Of each channel: the output is `scale * x + shift`.
    mean : Tensor
        Of each channel of x over the training data.
    """

    scale: Tensor
    shift: Tensor
    mean: Tensor

    @classmethod
    def of_norm(cls, norm: nn.Module) -> ChannelAffine:
        """Return what a batch norm in eval mode does, in float64."""
        mean, variance, weight, bias = (
            cast(Tensor, getattr(norm, name)).detach().double()
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        scale = weight / torch.sqrt(variance + cast(float, norm.eps))
        return cls(scale, bias - mean * scale, mean)

    def with_sign(self, sign: Tensor) -> ChannelAffine:
        """Return the same for an input that was multiplied by `sign`, 1 or -1 for each channel."""
        return ChannelAffine(self.scale * sign, self.shift, self.mean * sign)


def can_fold(network: nn.Module) -> bool:
    """Return whether `fold_network` takes a network.

    Parameters
    ----------
    network : torch.nn.Module
        Any network.

    Returns
    -------
    bool
        Whether it is a `UNet` with batch norms, and without attention gates and residual blocks.
    """
    if not isinstance(network, UNet):
        return False
    blocks = [*network.down_blocks, *network.up_blocks]
    if any(block.res_block is not None or getattr(block, "attention_gate", None) is not None for block in blocks):
        return False
    return all(isinstance(block.norm1, nn.BatchNorm2d | nn.BatchNorm3d) for block in blocks)


def fold_network(network: nn.Module, precision: str) -> nn.Module:
    """Return a network for inference that computes the same with fewer passes over memory.

    Parameters
    ----------
    network : torch.nn.Module
        A `UNet` that `can_fold` takes; it is not changed.
    precision : str
        A key of `NUMBER_FORMATS`. In 16 bits the first convolution is computed in float32, since rounding would change
        the grey levels; the error of rounded weights is corrected on average, by the means that the batch norms keep
        (Nagel et al. 2019, arXiv:1906.04721, section 4.2).

    Returns
    -------
    torch.nn.Module
        Logits of the same shape, in `precision`, of float32 images, inside or outside of autocast. Farther than the
        receptive field from the borders of its input it equals the network, up to rounding.
    """
    assert isinstance(network, UNet), "can_fold takes it"
    return FoldedUNet(network, NUMBER_FORMATS[precision]).eval()


class FoldedUNet(nn.Module):
    """The U-Net that `fold_network` returns."""

    def __init__(self, network: UNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_channels, self.factors = network.in_channels, network.factors
        downs = [cast(DownBlock, block) for block in network.down_blocks]
        ups = [cast(UpBlock, block) for block in network.up_blocks]
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        affines: list[ChannelAffine] = []  # of the folded norms behind the levels
        for down in downs:
            block = FoldedDownBlock(down, affines[-1] if affines else None, dtype)
            self.down_blocks.append(block)
            affines.append(block.affine)
        norm = downs[-1].norm2
        for up, affine in zip(ups, reversed(affines[:-1]), strict=True):
            self.up_blocks.append(FoldedUpBlock(up, norm, affine, dtype))
            norm = up.norm2
        self.conv_final = _fold(network.conv_final, ChannelAffine.of_norm(norm), dtype)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        with torch.autocast(x.device.type, enabled=False):  # each layer has its number format already
            for down in self.down_blocks:
                x, skip = down(x)
                skips.append(skip)
            for up, skip in zip(self.up_blocks, reversed(skips[:-1]), strict=True):
                x = up(x, skip)
            return self.conv_final(x)


class FoldedDownBlock(nn.Module):
    """Two convolutions, then a max pool; returns (pooled, skip), both without the last batch norm.

    Where that norm has a negative scale, the largest value becomes the smallest. Such channels are negated before the
    pool.

    Attributes
    ----------
    affine : ChannelAffine
        What is left to do to both outputs.
    """

    sign: Tensor | None

    def __init__(self, block: DownBlock, affine: ChannelAffine | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.conv1 = _fold(block.conv1, affine, dtype if affine else torch.float32)
        self.conv2 = _fold(block.conv2, ChannelAffine.of_norm(block.norm1), dtype)
        self.act, self.pool = block.act, block.pool
        norm = ChannelAffine.of_norm(block.norm2)
        sign = torch.where(norm.scale < 0, -1.0, 1.0).to(norm.scale)
        negates = self.pool is not None and bool((sign < 0).any())
        self.affine = norm.with_sign(sign) if negates else norm
        self.register_buffer("sign", _over_channels(sign, block.conv2).to(dtype) if negates else None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.act(self.conv1(x)).to(self.dtype)
        x = self.act(self.conv2(x))
        if self.sign is not None:
            x = x * self.sign
        return (self.pool(x) if self.pool is not None else x), x


class FoldedUpBlock(nn.Module):
    """A transposed convolution, then two convolutions, the first of which is the sum of one for each of its inputs.

    The norm before the transposed convolution is computed: folded, its shift would differ from pixel to pixel.
    """

    def __init__(self, block: UpBlock, norm: nn.Module, skip: ChannelAffine, dtype: torch.dtype) -> None:
        super().__init__()
        up = ChannelAffine.of_norm(block.norm0)
        conv1: Conv = block.conv1
        parts = conv1.weight.detach().split((len(up.scale), len(skip.scale)), dim=1)
        up_weight, up_bias = _fold_weight(parts[0], up, dtype)
        skip_weight, skip_bias = _fold_weight(parts[1], skip, dtype)
        self.norm, self.act = norm, block.act
        self.up = copy.deepcopy(block.up).to(dtype)
        self.conv_up = _make_conv(conv1, up_weight, conv1.bias.detach() + up_bias + skip_bias)
        self.conv_skip = _make_conv(conv1, skip_weight, None)
        self.conv2 = _fold(block.conv2, ChannelAffine.of_norm(block.norm1), dtype)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.act(self.up(self.norm(x)))
        x = self.act(self.conv_up(x) + self.conv_skip(skip))
        return self.act(self.conv2(x))


def _fold(conv: Conv, affine: ChannelAffine | None, dtype: torch.dtype) -> Conv:
    """Return a convolution for inputs to which `affine` was not applied."""
    weight, bias = conv.weight.detach(), conv.bias.detach()
    if affine is None:
        return _make_conv(conv, weight.to(dtype), bias)
    folded, change = _fold_weight(weight, affine, dtype)
    return _make_conv(conv, folded, bias + change)


def _fold_weight(weight: Tensor, affine: ChannelAffine, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return weights (out, in, ...) for inputs without `affine`, and what to add to the bias, in float64."""

    def over_inputs(values: Tensor) -> Tensor:
        return values.view(1, -1, *[1] * (weight.ndim - 2))

    exact = weight.double() * over_inputs(affine.scale)
    rounded = exact.to(dtype)
    change = weight.double() * over_inputs(affine.shift) + (exact - rounded.double()) * over_inputs(affine.mean)
    return rounded, change.flatten(1).sum(1)


def _make_conv(like: Conv, weight: Tensor, bias: Tensor | None) -> Conv:
    """Return a convolution with other weights, in the number format of `weight`."""
    c_out, c_in, *kernel = weight.shape
    conv = type(like)(c_in, c_out, kernel, padding=like.padding, bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if bias is not None:
            conv.bias.copy_(bias)
    return conv


def _over_channels(values: Tensor, conv: Conv) -> Tensor:
    """Return values of the channels in the shape that multiplies the outputs of a convolution."""
    return values.view(1, -1, *[1] * (conv.weight.ndim - 2))
