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

    def joined(self, other: ChannelAffine) -> ChannelAffine:
        """Return that of the channels of both."""
        return ChannelAffine(
            torch.cat([self.scale, other.scale]),
            torch.cat([self.shift, other.shift]),
            torch.cat([self.mean, other.mean]),
        )

    def of_multiples(self, factor: Tensor) -> ChannelAffine:
        """Return the same for an input that was multiplied by `factor`, a number for each channel."""
        return ChannelAffine(self.scale / factor, self.shift, self.mean * factor)


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
        self.act, self.pool = block.act, block.pool
        self.conv1, inner = _fold_before(
            block.norm1, block.conv1, affine, dtype if affine else torch.float32, block.act
        )
        self.conv2, norm = _fold_before(block.norm2, block.conv2, inner, dtype, block.act if block.pool else None)
        sign = torch.where(norm.scale < 0, -1.0, 1.0).to(norm.scale)
        negates = self.pool is not None and bool((sign < 0).any())
        self.affine = norm.of_multiples(sign) if negates else norm
        self.register_buffer("sign", _over_channels(sign, self.conv2.weight).to(dtype) if negates else None)

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
        self.norm, self.act = norm, block.act
        self.up = copy.deepcopy(block.up).to(dtype)
        both = ChannelAffine.of_norm(block.norm0).joined(skip)
        conv1, inner = _fold_before(block.norm1, block.conv1, both, dtype, block.act)
        self.conv_up = _make_conv(conv1, conv1.weight[:, : -len(skip.scale)], conv1.bias)
        self.conv_skip = _make_conv(conv1, conv1.weight[:, -len(skip.scale) :], None)
        self.conv2 = _fold(block.conv2, inner, dtype)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.act(self.up(self.norm(x)))
        x = self.act(self.conv_up(x) + self.conv_skip(skip))
        return self.act(self.conv2(x))


def _fold_before(
    norm: nn.Module, conv: Conv, affine: ChannelAffine | None, dtype: torch.dtype, act: nn.Module | None
) -> tuple[Conv, ChannelAffine]:
    """Fold a convolution that `act` and `norm` follow; return it, and what the norm does to its output.

    In 16 bits a rounded bias would shift a channel everywhere, which matters most in the first levels. If the
    activation keeps positive factors, each output is multiplied by the number next to 1 that makes its bias exact.
    """
    factor = torch.ones_like(conv.bias, dtype=torch.float64)
    if isinstance(act, nn.ReLU | nn.LeakyReLU):
        bias = _fold(conv, affine, torch.float64).bias.detach()
        rounded = bias.to(dtype).double()
        factor = torch.where(rounded * bias > 0, rounded / bias, 1.0)
    return _fold(conv, affine, dtype, factor), ChannelAffine.of_norm(norm).of_multiples(factor)


def _fold(conv: Conv, affine: ChannelAffine | None, dtype: torch.dtype, factor: Tensor | float = 1.0) -> Conv:
    """Return a convolution for inputs to which `affine` was not applied, its outputs multiplied by `factor`."""
    weight, bias = conv.weight.detach().double(), conv.bias.detach().double()
    mean = weight.new_zeros(weight.shape[1])
    if affine is not None:
        bias = bias + (weight * _over_channels(affine.shift, weight)).flatten(1).sum(1)
        weight, mean = weight * _over_channels(affine.scale, weight), affine.mean
    weight = (weight.transpose(0, -1) * factor).transpose(0, -1)
    return _make_conv(conv, *_round(weight, bias * factor, mean, dtype))


def _round(weight: Tensor, bias: Tensor, mean: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return weights and bias in another number format, rounded so that the mean of each output stays as it is.

    The rounded bias alone would shift a channel everywhere. The shift is balanced by weights that are rounded to the
    other side: first those to which both sides are equally near.

    Parameters
    ----------
    weight, bias : Tensor
        Weights (out, in, ...) and bias (out), float64.
    mean : Tensor
        Mean of each input channel.
    dtype : torch.dtype
        The number format.
    """
    rounded, rounded_bias = weight.to(dtype), bias.to(dtype)
    if dtype.itemsize > 2:
        return rounded, rounded_bias
    error = weight - rounded.double()
    other = _neighbor(rounded, error)
    gain = ((other - rounded).double() * _over_channels(mean, weight)).flatten(1)  # of the mean of an output
    missing = bias - rounded_bias.double() + (error * _over_channels(mean, weight)).flatten(1).sum(1)
    missing = missing[:, None]
    cost = (other.double() - weight).abs().flatten(1) - error.abs().flatten(1)
    cost = torch.where((gain * missing > 0) & (error != 0).flatten(1), cost / gain.abs(), torch.inf)
    order = cost.argsort(dim=1)
    sums = gain.gather(1, order).cumsum(1)
    taken = (sums.abs() <= missing.abs()) & cost.gather(1, order).isfinite()
    flips = torch.zeros_like(taken).scatter(1, order, taken).view_as(weight)
    return torch.where(flips, other, rounded), rounded_bias


def _neighbor(values: Tensor, direction: Tensor) -> Tensor:
    """Return the next larger number of a 16-bit format where `direction` is positive, else the next smaller one."""
    steps = torch.where((direction > 0) == (values > 0), 1, -1).to(torch.int16)
    return (values.view(torch.int16) + steps).view(values.dtype)


def _make_conv(like: Conv, weight: Tensor, bias: Tensor | None) -> Conv:
    """Return a convolution with other weights, in the number format of `weight`."""
    c_out, c_in, *kernel = weight.shape
    conv = type(like)(c_in, c_out, kernel, padding=like.padding, bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if bias is not None:
            conv.bias.copy_(bias)
    return conv


def _over_channels(values: Tensor, like: Tensor) -> Tensor:
    """Return values of channels in the shape that multiplies tensors like one, whose channels are dimension 1."""
    return values.view(1, -1, *[1] * (like.ndim - 2))
