"""Probabilities of blocks: `Predictor` runs a network over the tiles of a block.

The result equals one pass over the whole volume, mirrored at its ends, whatever the block and the tiles (in float32,
uncompiled; otherwise up to differences in rounding between wider and narrower tiles).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from kasthuri_ray import hardware, process_resources
from kasthuri_ray.errors import CompilationFailed, GpuMemoryTooSmall
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.inference.inference_settings import InferenceSettings, tile_margin
from kasthuri_ray.inference.tiling import ChunkGrid, Tile, VolumePart, plan_tiles, tiles_to_compute
from kasthuri_ray.models.compilation import compile_network
from kasthuri_ray.models.folded_unet import fold_network
from kasthuri_ray.models.receptive_field import ReceptiveField

# Tile shapes (several for blocks at the end of the volume) that are compiled. One more is an error, since torch would
# continue uncompiled, which changes bytes.
MAX_COMPILED_SHAPES = 64
PIECE_VOXELS = 1 << 17  # turned into probabilities at once on a CPU, so that they stay in its cache

View = tuple[bool, bool, bool]  # flip y, flip x, then transpose y and x
IDENTITY: View = (False, False, False)
VIEWS: tuple[View, ...] = tuple((y, x, yx) for y in (False, True) for x in (False, True) for yx in (False, True))

Quantized = tuple[Tensor, Tensor]  # probabilities of a core, uint8 c, z, y, x; whether all of them are finite


def prepare_process(settings: InferenceSettings) -> None:
    """Configure the allocator, the threads and the number format of this process, before its first tensor.

    Parameters
    ----------
    settings : InferenceSettings
        Device, and threads on the CPU.
    """
    if settings.device == "cpu":
        process_resources.configure_allocator()
        torch.set_num_threads(settings.threads)
    elif settings.precision == "float32":
        torch.backends.cudnn.allow_tf32 = False  # by default convolutions round float32 to 10 bits of mantissa


class Predictor:
    """Computes the probabilities of blocks.

    With test-time augmentation (tta) probabilities are the mean over 8 flips and transpositions in the plane. A tile is
    transformed as a whole. Since it is whole cells of the pooling grid and has the wider margin on all sides, each view
    is exact.

    Parameters
    ----------
    network : torch.nn.Module
        Returns (N, classes, [z], y, x). It is moved to the device and set to eval mode.
    dim : int
        2 (sections are computed one by one) or 3.
    classes : int
        Number of classes, background included.
    receptive_field : ReceptiveField
        Of the network.
    settings : InferenceSettings
        How the network is run.
    halo : tuple of int, optional
        Context around blocks, z, y, x. Where it is smaller than the margin of the receptive field, results are inexact.

    Raises
    ------
    CompilationFailed
        If the network is to be compiled and this machine has no compiler.
    GpuMemoryTooSmall
        If the weights do not fit on the GPU.
    """

    def __init__(
        self,
        network: nn.Module,
        dim: int,
        classes: int,
        receptive_field: ReceptiveField,
        settings: InferenceSettings,
        halo: Zyx | None = None,
    ) -> None:
        self.dim, self.classes, self.settings = dim, classes, settings
        self.receptive_field = receptive_field.widened_for_tta() if settings.tta else receptive_field
        self.margin = tile_margin(self.receptive_field, halo)
        self.device = torch.device(settings.device)
        with _translate_torch_errors(settings):
            memory_format = hardware.memory_format(dim, self.device)
            if settings.fold:
                network = fold_network(network, settings.precision)
            network = network.eval().to(self.device, memory_format=memory_format)  # type: ignore[call-overload]
            self.network: Callable[[Tensor], Tensor] = network
            if settings.compile:
                self.network = _compile(network, self.device)

    def tiles(self, block: Box, bounds: Box) -> list[Tile]:
        """Return the tiles of a block."""
        return plan_tiles(block, bounds.start, self.margin, self.receptive_field.factors, self.settings.tile)

    def predict(
        self,
        part: VolumePart,
        block: Box,
        keep: np.ndarray | None = None,
        grid: ChunkGrid | None = None,
        on_voxels: Callable[[int], None] = lambda voxels: None,
    ) -> np.ndarray:
        """Return the probabilities of a block.

        Parameters
        ----------
        part : VolumePart
            Grey levels of the block and its halo, uint8.
        block : Box
            The block.
        keep : ndarray of bool, (z, y, x), optional
            Chunks of the block to compute, in the order of `grid.boxes`; the others are 0. By default all.
        grid : ChunkGrid, optional
            The chunks; needed with `keep`.
        on_voxels : callable
            Gets the number of voxels of each batch after it was computed.

        Returns
        -------
        ndarray of uint8, (c, z, y, x)
            255 p, rounded half to even, with a channel for each foreground class.

        Raises
        ------
        GpuMemoryTooSmall
            If a batch does not fit in the memory of the GPU.
        CompilationFailed
            If the network cannot be compiled on this machine.
        FloatingPointError
            If an output of the network is not finite.
        ValueError
            If the voxels of `part` are not uint8 or not of the shape of its box.
        """
        _check_block(part, block)
        tiles = self.tiles(block, part.bounds)
        probabilities = np.zeros((self.classes - 1, *block.shape), np.uint8)
        discarded = []
        if keep is not None:
            assert grid is not None, "keep needs grid"
            tiles = tiles_to_compute(tiles, block, grid, keep)
            discarded = list(grid.boxes(block)[~keep])
        with torch.inference_mode(), _translate_torch_errors(self.settings):
            self._run_tiles(probabilities, tiles, part, block, on_voxels)
        for chunk_box in discarded:
            probabilities[(slice(None), *chunk_box.slices(block.start))] = 0
        return probabilities

    def _run_tiles(
        self,
        probabilities: np.ndarray,
        tiles: Sequence[Tile],
        part: VolumePart,
        block: Box,
        on_voxels: Callable[[int], None],
    ) -> None:
        """Run the tiles and write their cores. On a GPU, a batch is gathered while the one before it is computed."""
        write_previous: Callable[[], None] = lambda: None  # noqa: E731
        for start in range(0, len(tiles), self.settings.batch):
            batch = tiles[start : start + self.settings.batch]
            inputs = part.gather([tile.input for tile in batch], self.settings.batch)
            cores = self._compute_cores(inputs, batch)
            write_previous()
            write_previous = partial(_write_cores, probabilities, block, batch, cores, self._record_event())
            on_voxels(inputs.size)
        write_previous()

    def _record_event(self) -> torch.cuda.Event | None:
        """Return an event that is reached when the GPU has done all the work that was queued so far."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _compute_cores(self, inputs: np.ndarray, tiles: Sequence[Tile]) -> list[Quantized]:
        """Return the core of each tile; from a GPU the copies may not be finished when this returns."""
        image = torch.from_numpy(inputs)
        if self.device.type == "cuda":
            image = image.pin_memory().to(self.device, non_blocking=True)
        if self.dim == 3:
            image = image.unsqueeze(1)  # in 2D the one section is the channel
        if not self.settings.tta:
            logits = self._logits(image, IDENTITY)
            cores = [_quantize_logits(_core_logits(logits[i], tile), self.device) for i, tile in enumerate(tiles)]
        else:
            cores = [_quantize(mean) for mean in self._mean_over_views(image, tiles)]
        return [(core.to("cpu", non_blocking=True), finite.to("cpu", non_blocking=True)) for core, finite in cores]

    def _mean_over_views(self, image: Tensor, tiles: Sequence[Tile]) -> list[Tensor]:
        sums: list[Tensor] = []
        for view in VIEWS:
            logits = self._logits(image, view)
            parts = [_foreground_probabilities(_core_logits(logits[i], tile)) for i, tile in enumerate(tiles)]
            sums = [total.add_(part) for total, part in zip(sums, parts, strict=True)] if sums else parts
        return [total.div_(len(VIEWS)) for total in sums]

    def _logits(self, image: Tensor, view: View) -> Tensor:
        """Return the network's logits of uint8 N, 1, [z], y, x, scaled as in training, computed in a view."""
        memory_format = hardware.memory_format(self.dim, self.device)
        transformed = apply_view(image, view).contiguous(memory_format=memory_format)
        with hardware.autocast(self.settings.precision, self.device):
            logits = self.network(transformed.float().div_(255))
        return undo_view(logits, view)


def _core_logits(logits: Tensor, tile: Tile) -> Tensor:
    """Return the logits of a tile's core, classes, z, y, x, from those of the tile, which have no z in 2D."""
    if logits.ndim == 3:
        logits = logits.unsqueeze(1)
    return logits[(slice(None), *tile.core.slices(tile.input.start))]


def _foreground_probabilities(logits: Tensor) -> Tensor:
    """Return the probabilities of all classes but the background, float32, of logits classes, ..."""
    return torch.softmax(logits.float().contiguous(), dim=0)[1:]


def _quantize_logits(logits: Tensor, device: torch.device) -> Quantized:
    """Return quantized probabilities of logits classes, z, y, x; on a CPU computed in pieces of rows."""
    if device.type != "cpu":
        return _quantize(_foreground_probabilities(logits))
    result = torch.empty((logits.shape[0] - 1, *logits.shape[1:]), dtype=torch.uint8)
    all_finite = torch.ones((), dtype=torch.bool)
    rows = max(1, PIECE_VOXELS // logits.shape[-1])
    for z in range(logits.shape[1]):
        for part, target in zip(logits[:, z].split(rows, dim=1), result[:, z].split(rows, dim=1), strict=True):
            quantized, finite = _quantize(_foreground_probabilities(part))
            target.copy_(quantized)
            all_finite &= finite
    return result, all_finite


def _quantize(probabilities: Tensor) -> Quantized:
    """Return 255 p as uint8, rounded half to even, and whether all are finite. The argument is overwritten."""
    finite = probabilities.sum().isfinite()
    return probabilities.mul_(255).round_().to(torch.uint8), finite


def _write_cores(
    probabilities: np.ndarray,
    block: Box,
    tiles: Sequence[Tile],
    cores: Sequence[Quantized],
    computed: torch.cuda.Event | None,
) -> None:
    if computed is not None:
        computed.synchronize()
    for tile, (core, finite) in zip(tiles, cores, strict=True):
        if not finite:
            raise FloatingPointError(
                f"outputs of the network are not finite in {tile.core}: are these the weights of this network?"
            )
        probabilities[(slice(None), *tile.core.slices(block.start))] = core.numpy()


def apply_view(image: Tensor, view: View) -> Tensor:
    """Flip and transpose images in the plane.

    Parameters
    ----------
    image : Tensor
        ..., y, x.
    view : tuple of bool
        One of VIEWS.

    Returns
    -------
    Tensor
        ..., y, x, or ..., x, y if the view transposes.
    """
    axes = [axis for axis, flip in zip((-2, -1), view, strict=False) if flip]
    flipped = image.flip(axes) if axes else image
    return flipped.transpose(-2, -1) if view[2] else flipped


def undo_view(image: Tensor, view: View) -> Tensor:
    """Return what `apply_view` was called with.

    Parameters
    ----------
    image : Tensor
        What it returned, or what was computed from that voxel by voxel.
    view : tuple of bool
        One of VIEWS.

    Returns
    -------
    Tensor
        ..., y, x.
    """
    flipped = image.transpose(-2, -1) if view[2] else image
    return apply_view(flipped, (view[0], view[1], False))


def _check_block(part: VolumePart, block: Box) -> None:
    voxels, box = part.voxels, part.box
    if voxels.dtype != np.uint8 or voxels.shape != box.shape:
        raise ValueError(f"expected uint8 voxels of shape {box.shape} for {box}, got {voxels.dtype} {voxels.shape}")
    if not (part.bounds.contains(box) and box.contains(block)):
        raise ValueError(f"block {block} must be in the box {box} that was read, and that in the volume {part.bounds}")


def _compile(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the network, to be compiled at its first call for each shape, with its weights as constants."""
    if hardware.find_compiler() is None and device.type == "cpu":
        raise CompilationFailed("there is no C++ compiler with Python's headers on this machine")
    compiled = compile_network(network)
    limits = {"recompile_limit": MAX_COMPILED_SHAPES, "fail_on_recompile_limit_hit": True}

    def run(image: Tensor) -> Tensor:
        with torch._inductor.config.patch(freezing=True), torch._dynamo.config.patch(limits):
            return compiled(image)

    return run


@contextmanager
def _translate_torch_errors(settings: InferenceSettings) -> Iterator[None]:
    """Raise `GpuMemoryTooSmall` or `CompilationFailed` for what this machine cannot do; pass on other errors."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GpuMemoryTooSmall(
            f"the memory of the GPU is too small for {settings.batch} tile(s) of {settings.tile} in "
            f"{settings.precision}; choose smaller ones with --tile or --batch: {error}"
        ) from error
    except Exception as error:
        if not settings.compile or not _is_compiler_error(error):
            raise
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise CompilationFailed(f"the network cannot be compiled on this machine: {reason}") from error


def _is_compiler_error(error: BaseException) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))
