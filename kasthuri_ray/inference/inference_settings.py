"""What changes a voxel's arithmetic, decided once for a whole job: `decide`. Needs torch and numpy alone.

A rule from the network, the settings and the kind of machine, never a stopwatch: every actor, and every run that goes
on, computes the same bytes.
"""

from __future__ import annotations

import math

from torch import nn

from kasthuri_ray.geometry import Zyx
from kasthuri_ray.hardware import Machine, choose_actor_threads, count_parameters, should_compile_inference
from kasthuri_ray.inference.memory import InferenceSettings, _max_voxels
from kasthuri_ray.inference.tiling import check_tile_shape, choose_tile_shape
from kasthuri_ray.models.receptive_field import ReceptiveField


def choose_inference_settings(
    network: nn.Module,
    dim: int,
    reach: ReceptiveField,
    machine: Machine,
    *,
    block: Zyx,
    voxels: int,
    phase: Zyx = (0, 0, 0),
    halo: Zyx | None = None,
    precision: str = "auto",
    compile: str = "auto",
    tile: Zyx | None = None,
    batch: int | None = None,
    tta: bool = False,
    share: float = 1.0,
) -> InferenceSettings:
    """How to run the network on machines of this kind.

    block: the shape of a whole block; phase: where it begins in the pooling grid (`tiling.phase_of`). voxels: how many
    the job computes. halo: where it is smaller than the reach, as `Predictor` takes it. precision, compile, tile,
    batch: of the user, auto or None for the rule. share: of a card that an actor has. Raises ValueError for a tile
    that the network cannot work with.
    """
    reach = reach.turned() if tta else reach
    margin = tile_margin(reach, halo)
    if precision == "auto":
        precision = "bf16" if machine.bf16 else "float32"
    threads = choose_actor_threads(machine.cpus) if machine.device == "cpu" else 1
    most = _max_voxels(network, dim, precision, machine, threads, share)
    if tile is None:
        chosen = choose_tile_shape(block, margin, reach.factors, most, dim, phase)
    else:
        chosen = check_tile_shape(tile, margin, reach.factors, dim)
    if batch is None:
        batch = max(1, min(most // math.prod(chosen), block[0])) if machine.device == "cuda" and dim == 2 else 1
    return InferenceSettings(
        device=machine.device,
        precision=precision,
        compile=should_compile_inference(compile, machine, voxels * count_parameters(network) * (8 if tta else 1)),
        threads=threads,
        tile=chosen,
        batch=batch,
        tta=tta,
    )


def tile_margin(reach: ReceptiveField, halo: Zyx | None) -> Zyx:
    """The margin of tiles: as far as the network sees, or no farther than a halo that was asked for."""
    return reach.margin if halo is None else tuple(map(min, reach.margin, halo))  # type: ignore[return-value]
