"""How far a network sees: `reach_of` gives the margin that a tile needs, and the pooling grid that it must keep to.

For our `UNet` it follows from its modules, whatever their weights; for any other network it is measured. Needs torch
alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.models.unet import DownBlock, UNet, UpBlock

Span = tuple[int, int]  # first and last voxel along one axis, both included

FACTORS = (1, 2, 4, 8, 16, 32)  # pooling grids that are looked for
SIDES = (4, 8, 16, 32, 64, 128)  # sizes that are tried across the axis that is measured
MOST_SIZE = 1024  # along the axis that is measured; in z a quarter of it
NORMALIZES_BY_TILE = (nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
BY_TILE = "the network normalizes by the tile ({}): its answers depend on the tile's size and place"
NO_GRID = (
    f"the network's answers do not move with the image, by any step of up to {FACTORS[-1]} voxels: they depend on the "
    "tile's place"
)
SEES_ALL = (
    "the network sees the whole tile along {}, up to the {} voxels that were tried: its answers depend on the tile's "
    "size and place"
)


_CONV = ("kernel_size", "stride", "padding", "dilation")


@dataclass(frozen=True)
class ReceptiveField:
    """What an output voxel depends on, in voxels z, y, x.

    margin: how far to each side, rounded up to the factors; z is 0 in 2D. factors: the cell of the pooling grid, which
    tiles must be whole multiples of and aligned to; z is 1 in 2D. sees: as margin, not rounded. exact: whether nothing
    outside the margin matters. note: what a person should know, "" if nothing.
    """

    margin: Zyx
    factors: Zyx
    sees: Zyx
    exact: bool = True
    note: str = ""

    def turned(self) -> ReceptiveField:
        """The same for a network that is also run on tiles whose y and x are exchanged."""
        across = [max(values[1:]) for values in (self.margin, self.factors, self.sees)]
        margin, factors, sees = (
            (values[0], n, n) for values, n in zip((self.margin, self.factors, self.sees), across, strict=True)
        )
        return ReceptiveField(margin, factors, sees, self.exact, self.note)


def find_receptive_field(network: nn.Module, dim: int, channels: int = 1) -> ReceptiveField:
    """How far `network` sees: an `nn.Module` that gives N, classes, [z], y, x for N, channels, [z], y, x.

    Computed over every place that a voxel can have in its pooling cell. Weights do not matter: a voxel counts where
    some weights would let it matter. The network itself is left as it is. Raises ValueError for a network that no tile
    of up to 128 voxels along each axis gets through.
    """
    if isinstance(network, UNet) and type(network).forward is UNet.forward:
        return _computed(network)
    return _measured(network, dim, channels)


def _reach(sees: Sequence[int], factors: Sequence[int], exact: bool, note: str) -> ReceptiveField:
    """A Reach from the values along the network's own axes."""
    fill = 3 - len(sees)
    margin = [-(-n // f) * f for n, f in zip(sees, factors, strict=True)]
    z0, z1 = (0,) * fill, (1,) * fill
    return ReceptiveField((*z0, *margin), (*z1, *factors), (*z0, *sees), exact, note)  # type: ignore[arg-type]


def _computed(network: UNet) -> ReceptiveField:
    sees = [
        max(_distance(network, axis, phase) for phase in range(factor)) for axis, factor in enumerate(network.factors)
    ]
    note = tile_normalization_note(network)
    return _reach(sees, network.factors, not note, note)


def _distance(network: UNet, axis: int, phase: int) -> int:
    """How far from the output voxel at `phase` of a pooling cell the farthest input voxel is that it depends on."""
    span = _through_conv((phase, phase), network.conv_final, axis)
    skips: list[Span] = []
    for up in reversed(list(network.up_blocks)):
        span = _through_block(span, up, axis)
        skips.append(span)  # of the features that were joined: at this level those of the skip
        span = _through_transposed(span, up.up, axis)  # type: ignore[arg-type]
    for number, down in enumerate(reversed(list(network.down_blocks))):
        if number:  # the deepest one has no pool and no skip
            low, high = _through_pool(span, down.pool, axis)  # type: ignore[arg-type]
            skip = skips.pop()
            span = min(low, skip[0]), max(high, skip[1])
        span = _through_block(span, down, axis)
    return max(phase - span[0], span[1] - phase)


def _through_block(span: Span, block: nn.Module, axis: int) -> Span:
    """Before the block's convolutions; a residual block's detour sees more than what goes past it."""
    assert isinstance(block, DownBlock | UpBlock)
    convs = [block.conv1, block.conv2]
    if block.res_block is not None:
        convs += [block.res_block.conv1, block.res_block.conv2]
    for conv in reversed(convs):
        span = _through_conv(span, conv, axis)
    return span


def _through_conv(span: Span, conv: nn.Module, axis: int) -> Span:
    kernel, stride, padding, dilation = (int(getattr(conv, key)[axis]) for key in _CONV)  # type: ignore[index]
    return span[0] * stride - padding, span[1] * stride - padding + dilation * (kernel - 1)


def _through_transposed(span: Span, conv: nn.Module, axis: int) -> Span:
    kernel, stride, padding, dilation = (int(getattr(conv, key)[axis]) for key in _CONV)  # type: ignore[index]
    return -(-(span[0] + padding - dilation * (kernel - 1)) // stride), (span[1] + padding) // stride


def _through_pool(span: Span, pool: nn.Module, axis: int) -> Span:
    size = int(pool.kernel_size[axis])  # type: ignore[index]
    assert pool.stride == pool.kernel_size
    return span[0] * size, span[1] * size + size - 1


def tile_normalization_note(network: nn.Module) -> str:
    """A note for a network with layers that take their mean and variance from the tile; "" for others."""
    for module in network.modules():
        if isinstance(module, NORMALIZES_BY_TILE) and not getattr(module, "track_running_stats", False):
            return BY_TILE.format("group norm" if isinstance(module, nn.GroupNorm) else "instance norm")
    return ""


def _measured(network: nn.Module, dim: int, channels: int) -> ReceptiveField:
    note = tile_normalization_note(network)
    probe = _Probe(_without_tile_norms(network), dim, channels)
    found = [probe.along(axis) for axis in range(dim)]
    factors = [factor or FACTORS[-1] for factor, _, _ in found]
    factors[-2:] = [max(factors[-2:])] * 2
    sees = [n for _, n, _ in found]
    whole = [("zyx"[-dim:][axis], size) for axis, (_, _, size) in enumerate(found) if size]
    if whole:
        axes, sizes = zip(*whole, strict=True)
        note = SEES_ALL.format(", ".join(axes), max(sizes))
    elif not all(factor for factor, _, _ in found):
        note = NO_GRID
    return _reach(sees, factors, not note, note)


def _without_tile_norms(network: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode, on the CPU, whose layers that normalize by the tile are taken out."""
    copied = copy.deepcopy(network).cpu().double().eval()
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, NORMALIZES_BY_TILE) and not getattr(child, "track_running_stats", False):
                setattr(module, name, nn.Identity())
    return copied


class _Probe:
    """A network that is asked which of its outputs change with which inputs."""

    def __init__(self, network: nn.Module, dim: int, channels: int) -> None:
        self.network, self.dim, self.channels = network, dim, channels
        self.generator = torch.Generator().manual_seed(0)
        self.side = self._find_side()

    def along(self, axis: int) -> tuple[int, int, int]:
        """Pooling factor (0 if there is none), how far it sees, and 0; where it sees all, the size that was tried."""
        most = MOST_SIZE // 4 if self.dim == 3 and axis == 0 else MOST_SIZE
        size = 2 * FACTORS[-1]
        while (seen := self._seen(axis, size, 0)) is None and size < most:
            size *= 2
        if seen is None:
            return self._working_factor(axis), size // 2 - FACTORS[-1], size
        size += 4 * FACTORS[-1]  # other places in the cell see up to a cell farther
        factor = self._factor(axis, size)
        every = [self._seen(axis, size, phase) for phase in range(factor or FACTORS[-1])]
        if any(span is None for span in every):  # sees farther from another place: try again with more room
            return self._working_factor(axis), size // 2 - FACTORS[-1], size
        return factor, max(max(span) for span in every if span is not None), 0

    def _seen(self, axis: int, size: int, phase: int) -> Span | None:
        """How far before and behind an input voxel outputs change; None where that reaches the tile's end."""
        place = size // 2 + phase
        image = self._image(axis, size)
        base = self._run(image)
        changed = torch.zeros(size, dtype=torch.bool)
        for image_changed in self._disturbed(image, axis, place):
            with_change = self._try(image_changed)
            if with_change is None:
                continue  # it refuses what is not a number
            differ = (with_change != base) | with_change.isnan()
            changed |= differ.movedim(2 + axis, 0).flatten(1).any(1)
        where = changed.nonzero().flatten()
        if len(where) == 0:
            return 0, 0
        first, last = int(where[0]), int(where[-1])
        return None if first == 0 or last == size - 1 else (max(0, place - first), max(0, last - place))

    def _disturbed(self, image: Tensor, axis: int, place: int) -> Iterator[Tensor]:
        for value in (math.nan, 1e4, -1e4):
            disturbed = image.clone()
            disturbed.select(2 + axis, place).fill_(value)
            yield disturbed

    def _factor(self, axis: int, size: int) -> int:
        """The smallest factor for which sizes work and a shift by it shifts the output, far from the tile's ends."""
        for factor in FACTORS:
            if self._shifts(axis, size, factor):
                return factor
        return 0

    def _shifts(self, axis: int, size: int, factor: int) -> bool:
        length = size + factor  # a multiple of the factor and of none of the larger ones
        long = self._image(axis, length + factor)
        spans = [self._seen(axis, size, phase) for phase in (0, factor)]
        if spans[0] != spans[1]:
            return False
        first, second = (self._try(long.narrow(2 + axis, start, length)) for start in (0, factor))
        if first is None or second is None:
            return False
        middle, width = size // 2 - FACTORS[-1], 2 * FACTORS[-1]
        one = first.narrow(2 + axis, middle + factor, width)
        other = second.narrow(2 + axis, middle, width)
        return bool(torch.allclose(one, other, rtol=1e-7, atol=1e-9 * float(one.abs().max())))

    def _working_factor(self, axis: int) -> int:
        """The smallest factor of which every multiple is a size that works."""
        for factor in FACTORS:
            sizes = (2 * FACTORS[-1] + factor, 2 * FACTORS[-1] + 3 * factor)
            if all(self._try(self._image(axis, size)) is not None for size in sizes):
                return factor
        return FACTORS[-1]

    def _find_side(self) -> int:
        for side in SIDES:
            self.side = side
            if all(self._try(self._image(axis, max(side, 2 * FACTORS[-1]))) is not None for axis in range(self.dim)):
                return side
        raise ValueError(
            f"the network gets through no tile of {', '.join(map(str, SIDES))} voxels along each axis; sizes must be "
            f"multiples of at most {FACTORS[-1]}"
        )

    def _image(self, axis: int, size: int) -> Tensor:
        shape = [self.side] * self.dim
        shape[axis] = size
        return torch.rand((1, self.channels, *shape), generator=self.generator, dtype=torch.float64)

    def _try(self, image: Tensor) -> Tensor | None:
        """The output, or None where the network refuses this size or gives another."""
        try:
            output = self._run(image)
        except Exception:  # whatever somebody else's network may raise
            return None
        return output if output.shape[2:] == image.shape[2:] else None

    @torch.no_grad()
    def _run(self, image: Tensor) -> Tensor:
        return self.network(image)
