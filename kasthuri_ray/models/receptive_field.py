"""The receptive field of a network: the margin that tiles need, and the pooling grid that they must be aligned to.

`find_receptive_field` computes it for a `UNet` from its modules, whatever their weights, and measures it for any other
network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Zyx, ceil_div
from kasthuri_ray.models.unet import UNet, is_plain_unet
from kasthuri_ray.models.unet_blocks import DownBlock, UpBlock

Span = tuple[int, int]  # first and last voxel along one axis, both included

# Of the measurement.
POOLING_FACTORS = (1, 2, 4, 8, 16, 32)  # that are tried
SIDES = (4, 8, 16, 32, 64, 128)  # sizes of a tile that are tried, across the measured axis
MAX_SIZE = 1024  # of a tile along the measured axis; a quarter of it along z

TILE_NORMALIZATIONS = (nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
NORMALIZES_BY_TILE = (
    "the network uses {} normalization, whose statistics depend on the tile: its outputs depend on the size and the "
    "position of the tile"
)
NO_POOLING_GRID = (
    f"the network's outputs do not shift with the image, by any step of up to {POOLING_FACTORS[-1]} voxels: they "
    "depend on the position of the tile"
)
SEES_WHOLE_TILE = (
    "the network sees the whole tile along {}, up to the {} voxels that were tried: its outputs depend on the size and "
    "the position of the tile"
)

_CONV = ("kernel_size", "stride", "padding", "dilation")


@dataclass(frozen=True)
class ReceptiveField:
    """The input voxels that an output voxel depends on, along z, y, x.

    Parameters
    ----------
    margin : tuple of int
        `radius`, rounded up to `factors`: the context that a tile needs on each side. 0 along z in 2D.
    factors : tuple of int
        A cell of the pooling grid. Tiles must be whole cells and aligned to the grid. 1 along z in 2D.
    radius : tuple of int
        Distance to the farthest input voxel that can matter.
    exact : bool
        Whether nothing outside of the margin matters.
    note : str
        What the user should know about the network, "" for nothing.
    """

    margin: Zyx
    factors: Zyx
    radius: Zyx
    exact: bool = True
    note: str = ""

    def widened_for_tta(self) -> ReceptiveField:
        """Return the receptive field for test-time augmentation, which also runs tiles with y and x exchanged."""
        margin, factors, radius = (
            (values[0], max(values[1:]), max(values[1:])) for values in (self.margin, self.factors, self.radius)
        )
        return ReceptiveField(margin, factors, radius, self.exact, self.note)


def find_receptive_field(network: nn.Module, dim: int, channels: int = 1) -> ReceptiveField:
    """Compute the receptive field of a `UNet`, or measure that of another network.

    It holds for every position of a voxel in its pooling cell. Weights do not matter: a voxel counts if it would matter
    for some weights.

    Parameters
    ----------
    network : torch.nn.Module
        Returns (N, classes, [z], y, x) for (N, channels, [z], y, x). It is not changed.
    dim : int
        2 or 3.
    channels : int
        Channels of the input.

    Returns
    -------
    ReceptiveField
        The receptive field of the network.

    Raises
    ------
    InputError
        If the network takes no tile of up to 128 voxels along each axis.
    """
    if is_plain_unet(network):
        return _compute(cast(UNet, network))
    return _measure(network, dim, channels)


def tile_normalization_note(network: nn.Module) -> str:
    """Return a note on layers that take their mean and variance from the tile.

    Parameters
    ----------
    network : torch.nn.Module
        Any network.

    Returns
    -------
    str
        The note, "" for a network without such layers.
    """
    for module in network.modules():
        if _normalizes_by_tile(module):
            return NORMALIZES_BY_TILE.format("group" if isinstance(module, nn.GroupNorm) else "instance")
    return ""


def _normalizes_by_tile(module: nn.Module) -> bool:
    return isinstance(module, TILE_NORMALIZATIONS) and not getattr(module, "track_running_stats", False)


def _receptive_field(radius: Sequence[int], factors: Sequence[int], exact: bool, note: str) -> ReceptiveField:
    """Return the receptive field from values along the network's own axes, [z], y, x."""
    margin = [ceil_div(n, f) * f for n, f in zip(radius, factors, strict=True)]
    return ReceptiveField(_as_zyx(margin, 0), _as_zyx(factors, 1), _as_zyx(radius, 0), exact, note)


def _as_zyx(values: Sequence[int], z_in_2d: int) -> Zyx:
    z, y, x = values if len(values) == 3 else (z_in_2d, *values)
    return z, y, x


def _compute(network: UNet) -> ReceptiveField:
    radius = [
        max(_distance(network, axis, phase) for phase in range(factor)) for axis, factor in enumerate(network.factors)
    ]
    note = tile_normalization_note(network)
    return _receptive_field(radius, network.factors, not note, note)


def _distance(network: UNet, axis: int, phase: int) -> int:
    """Return the distance from the output voxel at `phase` of a pooling cell to the farthest input voxel."""
    span = _through_conv((phase, phase), network.conv_final, axis)
    skips: list[Span] = []
    for up in reversed(list(network.up_blocks)):
        assert isinstance(up, UpBlock)
        span = _through_block(span, up, axis)
        skips.append(span)  # of the concatenated features: those of the skip are at this level
        span = _through_transposed(span, up.up, axis)
    for down in reversed(list(network.down_blocks)):
        assert isinstance(down, DownBlock)
        if down.pool is not None:  # the deepest block has no pool and no skip
            low, high = _through_pool(span, down.pool, axis)
            skip = skips.pop()
            span = min(low, skip[0]), max(high, skip[1])
        span = _through_block(span, down, axis)
    return max(phase - span[0], span[1] - phase)


def _through_block(span: Span, block: DownBlock | UpBlock, axis: int) -> Span:
    """Return the span before the convolutions of a block; the longer path through a residual block counts."""
    convs = [block.conv1, block.conv2]
    if block.res_block is not None:
        convs += [block.res_block.conv1, block.res_block.conv2]
    for conv in reversed(convs):
        span = _through_conv(span, conv, axis)
    return span


def _through_conv(span: Span, conv: nn.Module, axis: int) -> Span:
    kernel, stride, padding, dilation = (int(getattr(conv, key)[axis]) for key in _CONV)
    return span[0] * stride - padding, span[1] * stride - padding + dilation * (kernel - 1)


def _through_transposed(span: Span, conv: nn.Module, axis: int) -> Span:
    kernel, stride, padding, dilation = (int(getattr(conv, key)[axis]) for key in _CONV)
    return ceil_div(span[0] + padding - dilation * (kernel - 1), stride), (span[1] + padding) // stride


def _through_pool(span: Span, pool: nn.Module, axis: int) -> Span:
    assert isinstance(pool, nn.MaxPool2d | nn.MaxPool3d)
    assert isinstance(pool.kernel_size, tuple)
    assert pool.stride == pool.kernel_size
    size = pool.kernel_size[axis]
    return span[0] * size, span[1] * size + size - 1


def _measure(network: nn.Module, dim: int, channels: int) -> ReceptiveField:
    note = tile_normalization_note(network)
    probe = _Probe(_without_tile_normalization(network), dim, channels)
    results = [probe.measure_axis(axis) for axis in range(dim)]
    factors = [factor or POOLING_FACTORS[-1] for factor, _, _ in results]
    factors[-2:] = [max(factors[-2:])] * 2
    radius = [n for _, n, _ in results]
    unlimited = [("zyx"[-dim:][axis], size) for axis, (_, _, size) in enumerate(results) if size]
    if unlimited:
        axes, sizes = zip(*unlimited, strict=True)
        note = SEES_WHOLE_TILE.format(", ".join(axes), max(sizes))
    elif not all(factor for factor, _, _ in results):
        note = NO_POOLING_GRID
    return _receptive_field(radius, factors, not note, note)


def _without_tile_normalization(network: nn.Module) -> nn.Module:
    """Return a copy in float64 and eval mode, on the CPU, without the layers that normalize by the tile."""
    copied = copy.deepcopy(network).cpu().double().eval()
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if _normalizes_by_tile(child):
                setattr(module, name, nn.Identity())
    return copied


class _Probe:
    """Measures which outputs of a network change with which inputs."""

    def __init__(self, network: nn.Module, dim: int, channels: int) -> None:
        self.network, self.dim, self.channels = network, dim, channels
        self.generator = torch.Generator().manual_seed(0)
        self.side = self._find_side()

    def measure_axis(self, axis: int) -> tuple[int, int, int]:
        """Return the pooling factor, the radius and 0.

        The factor is 0 if there is no pooling grid. If the radius has no limit the last value is the largest size that
        was tried.
        """
        max_size = MAX_SIZE // 4 if self.dim == 3 and axis == 0 else MAX_SIZE
        size = 2 * POOLING_FACTORS[-1]
        while (span := self._changed_span(axis, size, 0)) is None and size < max_size:
            size *= 2
        if span is None:
            return self._accepted_factor(axis), size // 2 - POOLING_FACTORS[-1], size
        size += 4 * POOLING_FACTORS[-1]  # from other positions in the cell a voxel sees up to a cell farther
        factor = self._find_factor(axis, size)
        spans = [self._changed_span(axis, size, phase) for phase in range(factor or POOLING_FACTORS[-1])]
        if any(span is None for span in spans):  # from one of the positions it sees all of the tile
            return self._accepted_factor(axis), size // 2 - POOLING_FACTORS[-1], size
        return factor, max(max(span) for span in spans if span is not None), 0

    def _changed_span(self, axis: int, size: int, phase: int) -> Span | None:
        """Return how far before and after an input voxel outputs change; None if up to the end of the tile."""
        position = size // 2 + phase
        image = self._random_image(axis, size)
        before = self._run(image)
        changed = torch.zeros(size, dtype=torch.bool)
        for disturbed in self._disturbed_images(image, axis, position):
            after = self._try_run(disturbed)
            if after is None:
                continue  # the network refuses nan
            differs = (after != before) | after.isnan()
            changed |= differs.movedim(2 + axis, 0).flatten(1).any(1)
        indices = changed.nonzero().flatten()
        if len(indices) == 0:
            return 0, 0
        first, last = int(indices[0]), int(indices[-1])
        return None if first == 0 or last == size - 1 else (max(0, position - first), max(0, last - position))

    def _disturbed_images(self, image: Tensor, axis: int, position: int) -> Iterator[Tensor]:
        for value in (math.nan, 1e4, -1e4):
            disturbed = image.clone()
            disturbed.select(2 + axis, position).fill_(value)
            yield disturbed

    def _find_factor(self, axis: int, size: int) -> int:
        """Return the smallest factor by which a shift of the input shifts the output; 0 if there is none."""
        for factor in POOLING_FACTORS:
            if self._shifts_by(axis, size, factor):
                return factor
        return 0

    def _shifts_by(self, axis: int, size: int, factor: int) -> bool:
        """Return whether a shifted input has a shifted output, far from the ends of the tile."""
        length = size + factor  # a multiple of the factor, and of no larger one
        image = self._random_image(axis, length + factor)
        spans = [self._changed_span(axis, size, phase) for phase in (0, factor)]
        if spans[0] != spans[1]:
            return False
        first, second = (self._try_run(image.narrow(2 + axis, start, length)) for start in (0, factor))
        if first is None or second is None:
            return False
        middle, width = size // 2 - POOLING_FACTORS[-1], 2 * POOLING_FACTORS[-1]
        one = first.narrow(2 + axis, middle + factor, width)
        other = second.narrow(2 + axis, middle, width)
        return bool(torch.allclose(one, other, rtol=1e-7, atol=1e-9 * float(one.abs().max())))

    def _accepted_factor(self, axis: int) -> int:
        """Return the smallest factor of which the network accepts every multiple as a size."""
        for factor in POOLING_FACTORS:
            sizes = (2 * POOLING_FACTORS[-1] + factor, 2 * POOLING_FACTORS[-1] + 3 * factor)
            if all(self._try_run(self._random_image(axis, size)) is not None for size in sizes):
                return factor
        return POOLING_FACTORS[-1]

    def _find_side(self) -> int:
        for side in SIDES:
            self.side = side
            sizes = [max(side, 2 * POOLING_FACTORS[-1])] * self.dim
            if all(self._try_run(self._random_image(axis, n)) is not None for axis, n in enumerate(sizes)):
                return side
        raise InputError(
            f"the network takes no tile of {', '.join(map(str, SIDES))} voxels along each axis; sizes must be "
            f"multiples of at most {POOLING_FACTORS[-1]}"
        )

    def _random_image(self, axis: int, size: int) -> Tensor:
        shape = [self.side] * self.dim
        shape[axis] = size
        return torch.rand((1, self.channels, *shape), generator=self.generator, dtype=torch.float64)

    def _try_run(self, image: Tensor) -> Tensor | None:
        """Return the output, or None if the network refuses this size or returns another."""
        try:
            output = self._run(image)
        except Exception:  # a user's network may raise anything
            return None
        return output if output.shape[2:] == image.shape[2:] else None

    @torch.no_grad()
    def _run(self, image: Tensor) -> Tensor:
        return self.network(image)
