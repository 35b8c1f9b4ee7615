"""The network over tiles: a block's voxels become its probabilities. `Predictor`.

Equal to one pass over the whole volume, mirrored at its ends, whatever the block and the tiles (float32, uncompiled;
otherwise up to what wider or narrower tiles change in rounding). Needs torch and numpy, neither Ray nor pydantic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from kasthuri_ray import hardware
from kasthuri_ray.errors import CompilationFailed, GpuMemoryTooSmall
from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.inference.inference_settings import tile_margin
from kasthuri_ray.inference.memory import InferenceSettings
from kasthuri_ray.inference.tiling import Tile, chunk_grid, mirror_indices, plan_tiles, tiles_to_compute
from kasthuri_ray.models.receptive_field import ReceptiveField

# Shapes of tiles (several for blocks at the volume's end) that are compiled for; one more is an error, since torch
# would go on uncompiled, which changes bytes.
MAX_COMPILED_SHAPES = 64
PIECE = 1 << 17  # voxels turned into probabilities at once on a CPU: they stay in its cache
View = tuple[bool, bool, bool]  # flip y, flip x, then exchange y and x
AS_IT_IS: View = (False, False, False)
TURNS: tuple[View, ...] = tuple((y, x, turn) for y in (False, True) for x in (False, True) for turn in (False, True))
Answer = tuple[Tensor, Tensor]  # a core's probabilities, uint8 c, z, y, x; whether all are numbers


def prepare_process(arithmetic: InferenceSettings) -> None:
    """Set this process up, before its first tensor: memory that is kept, and threads."""
    if arithmetic.device == "cpu":
        hardware.configure_allocator()
        torch.set_num_threads(arithmetic.threads)


class Predictor:
    """Probabilities of blocks; see `predict`.

    network: gives N, classes, [z], y, x; it is moved to the device and put in eval mode. dim: 2 (sections one by one)
    or 3. classes: with the background. reach: of the network (`reach_of`). halo: a smaller one than the reach, which
    is inexact. With tta the probabilities are the mean over 8 flips and turns in the plane: a tile is turned as a
    whole, and since it is whole cells of the pooling grid and keeps the wider margin on all sides, each view is exact.
    """

    def __init__(
        self,
        network: nn.Module,
        dim: int,
        classes: int,
        reach: ReceptiveField,
        arithmetic: InferenceSettings,
        halo: Zyx | None = None,
    ) -> None:
        self.dim, self.classes, self.arithmetic = dim, classes, arithmetic
        self.reach = reach.turned() if arithmetic.tta else reach
        self.margin = tile_margin(self.reach, halo)
        self.device = torch.device(arithmetic.device)
        with _errors_in_words(arithmetic):
            layout = hardware.memory_format(dim, self.device)
            network = network.eval().to(self.device, memory_format=layout)  # type: ignore[call-overload]
            self.network: Callable[[Tensor], Tensor] = network
            if arithmetic.compile:
                self.network = _compiled(network, self.device)

    def tiles(self, block: Box, bounds: Box) -> list[Tile]:
        """The tiles of a block."""
        return plan_tiles(block, bounds.start, self.margin, self.reach.factors, self.arithmetic.tile)

    def predict(
        self,
        voxels: np.ndarray,
        box: Box,
        block: Box,
        bounds: Box,
        keep: np.ndarray | None = None,
        chunk: Zyx | None = None,
        chunk_origin: Zyx | None = None,
        on_voxels: Callable[[int], None] = lambda voxels: None,
    ) -> np.ndarray:
        """The block's probabilities: uint8 c, z, y, x, one channel a foreground class, 255 p rounded (half to even).

        voxels: uint8 grey levels of `box`, which is the block grown by its halo and cut to `bounds`, the volume. The
        image is mirrored at the volume's ends; where the halo is smaller than the reach, what would lie beyond it is
        mirrored as well. keep: which of the block's chunks are wanted (bool z, y, x, as `tiling.chunk_grid`; with
        `chunk` and `chunk_origin`); the others are 0. on_voxels: told after each batch how many went through.

        Raises CardTooSmall and CannotCompile; FloatingPointError where the network answers with what is not a number;
        ValueError for voxels that are not uint8 or not of their box.
        """
        _check(voxels, box, block, bounds)
        tiles = self.tiles(block, bounds)
        found = np.zeros((self.classes - 1, *block.shape), np.uint8)
        blank = []
        if keep is not None:
            assert chunk is not None and chunk_origin is not None, "keep needs chunk and chunk_origin"  # noqa: PT018
            tiles = tiles_to_compute(tiles, block, chunk, chunk_origin, keep)
            blank = list(chunk_grid(block, chunk, chunk_origin)[~keep])
        with torch.inference_mode(), _errors_in_words(self.arithmetic):
            self._fill(found, tiles, _Source(voxels, box, bounds), block, on_voxels)
        for unwanted in blank:
            found[(slice(None), *unwanted.slices(block.start))] = 0
        return found

    def _fill(
        self, found: np.ndarray, tiles: Sequence[Tile], source: _Source, block: Box, on_voxels: Callable[[int], None]
    ) -> None:
        """Run the tiles and write their cores; on a card, a batch is gathered while the one before it is computed."""
        write: Callable[[], None] = lambda: None  # noqa: E731
        for start in range(0, len(tiles), self.arithmetic.batch):
            batch = tiles[start : start + self.arithmetic.batch]
            images = source.gather([tile.input for tile in batch], self.arithmetic.batch)
            answers = self._answers(images, batch)
            write()
            write = partial(_write, found, block, batch, answers, self._mark())
            on_voxels(images.size)
        write()

    def _mark(self) -> torch.cuda.Event | None:
        """What is reached when the card has done all that it was told so far."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _answers(self, images: np.ndarray, tiles: Sequence[Tile]) -> list[Answer]:
        """Of each tile's core; from a card they may still be on their way when this returns."""
        image = torch.from_numpy(images)
        if self.device.type == "cuda":
            image = image.pin_memory().to(self.device, non_blocking=True)
        if self.dim == 3:
            image = image.unsqueeze(1)  # in 2D the one section is the channel
        if not self.arithmetic.tta:
            logits = self._logits(image, AS_IT_IS)
            answers = [_quantised(_core(logits[i], tile), self.device) for i, tile in enumerate(tiles)]
        else:
            answers = [_rounded(mean) for mean in self._mean_over_turns(image, tiles)]
        return [(answer.to("cpu", non_blocking=True), fine.to("cpu", non_blocking=True)) for answer, fine in answers]

    def _mean_over_turns(self, image: Tensor, tiles: Sequence[Tile]) -> list[Tensor]:
        sums: list[Tensor] = []
        for view in TURNS:
            logits = self._logits(image, view)
            parts = [_foreground(_core(logits[i], tile)) for i, tile in enumerate(tiles)]
            sums = [whole.add_(part) for whole, part in zip(sums, parts, strict=True)] if sums else parts
        return [whole.div_(len(TURNS)) for whole in sums]

    def _logits(self, image: Tensor, view: View) -> Tensor:
        """The network's answer to uint8 N, 1, [z], y, x, scaled as in training; turned, and turned back."""
        turned = _turn(image, view).contiguous(memory_format=hardware.memory_format(self.dim, self.device))
        with hardware.autocast(self.arithmetic.precision, self.device):
            logits = self.network(turned.float().div_(255))
        return _turn_back(logits, view)


class _Source:
    """The image around a block: `voxels` of `box`, of a volume that is mirrored at `bounds`."""

    def __init__(self, voxels: np.ndarray, box: Box, bounds: Box) -> None:
        self.voxels, self.box, self.bounds = voxels, box, bounds

    def gather(self, boxes: Sequence[Box], count: int) -> np.ndarray:
        """uint8 `count`, z, y, x: the boxes, and the last of them again where there are fewer."""
        images = np.empty((count, *boxes[0].shape), np.uint8)
        for number, image in enumerate(images):
            self._fill(image, boxes[min(number, len(boxes) - 1)])
        return images

    def _fill(self, image: np.ndarray, box: Box) -> None:
        part = self.voxels
        for axis in range(3):
            places = np.arange(box.start[axis], box.stop[axis])
            for within in (self.bounds, self.box):
                places = mirror_indices(places, within.start[axis], within.stop[axis])
            part = _taken(part, places - self.box.start[axis], axis)
        image[...] = part


def _taken(array: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """`array` at `places` along an axis: a view where they follow each other."""
    if (np.diff(places) == 1).all():
        return array[(slice(None),) * axis + (slice(places[0], places[-1] + 1),)]
    return array.take(places, axis)


def _core(logits: Tensor, tile: Tile) -> Tensor:
    """The logits of a tile's core: classes, z, y, x; those of a section have no z."""
    if logits.ndim == 3:
        logits = logits.unsqueeze(1)
    return logits[(slice(None), *tile.core.slices(tile.input.start))]


def _foreground(logits: Tensor) -> Tensor:
    """Probabilities of all classes but the background, float32, from classes first."""
    return torch.softmax(logits.float().contiguous(), dim=0)[1:]


def _quantised(logits: Tensor, device: torch.device) -> Answer:
    """As `_rounded`, from logits classes, z, y, x; on a CPU in pieces of rows."""
    if device.type != "cpu":
        return _rounded(_foreground(logits))
    answer = torch.empty((logits.shape[0] - 1, *logits.shape[1:]), dtype=torch.uint8)
    fine = torch.ones((), dtype=torch.bool)
    rows = max(1, PIECE // logits.shape[-1])
    for z in range(logits.shape[1]):
        for part, target in zip(logits[:, z].split(rows, dim=1), answer[:, z].split(rows, dim=1), strict=True):
            rounded, fine_here = _rounded(_foreground(part))
            target.copy_(rounded)
            fine &= fine_here
    return answer, fine


def _rounded(probabilities: Tensor) -> Answer:
    """uint8 of 255 p, half to even, and whether all are numbers; what was given is overwritten."""
    fine = probabilities.sum().isfinite()
    return probabilities.mul_(255).round_().to(torch.uint8), fine


def _write(
    found: np.ndarray, block: Box, tiles: Sequence[Tile], answers: Sequence[Answer], ready: torch.cuda.Event | None
) -> None:
    if ready is not None:
        ready.synchronize()
    for tile, (answer, fine) in zip(tiles, answers, strict=True):
        if not fine:
            raise FloatingPointError(
                f"the network answers with numbers that are not finite in {tile.core}: are these its weights?"
            )
        found[(slice(None), *tile.core.slices(block.start))] = answer.numpy()


def _turn(image: Tensor, view: View) -> Tensor:
    axes = [axis for axis, flip in zip((-2, -1), view, strict=False) if flip]
    flipped = image.flip(axes) if axes else image
    return flipped.transpose(-2, -1) if view[2] else flipped


def _turn_back(image: Tensor, view: View) -> Tensor:
    back = image.transpose(-2, -1) if view[2] else image
    return _turn(back, (view[0], view[1], False))


def _check(voxels: np.ndarray, box: Box, block: Box, bounds: Box) -> None:
    if voxels.dtype != np.uint8 or voxels.shape != box.shape:
        raise ValueError(f"expected uint8 voxels of shape {box.shape} for {box}, got {voxels.dtype} {voxels.shape}")
    if not (bounds.contains(box) and box.contains(block)):
        raise ValueError(f"block {block} must lie in {box}, what was read, and that in the volume, {bounds}")


def _compiled(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """`network`, compiled at its first call for each shape; its weights become constants."""
    if hardware.find_compiler() is None and device.type == "cpu":
        raise CompilationFailed("there is no C++ compiler with Python's headers on this machine")
    compiled = torch.compile(network, dynamic=False)
    limits = {"recompile_limit": MAX_COMPILED_SHAPES, "fail_on_recompile_limit_hit": True}

    def run(image: Tensor) -> Tensor:
        with torch._inductor.config.patch(freezing=True), torch._dynamo.config.patch(limits):
            return compiled(image)

    return run


@contextmanager
def _errors_in_words(arithmetic: InferenceSettings) -> Iterator[None]:
    """What this machine cannot do, told from what is wrong with a block."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GpuMemoryTooSmall(
            f"the card's memory is too small for {arithmetic.batch} tile(s) of {arithmetic.tile} in "
            f"{arithmetic.precision}; choose smaller ones with --tile or --batch: {error}"
        ) from error
    except Exception as error:
        if not arithmetic.compile or not _is_of_compiler(error):
            raise
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise CompilationFailed(f"the network cannot be compiled on this machine: {reason}") from error


def _is_of_compiler(error: BaseException) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))
