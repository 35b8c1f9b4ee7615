"""How an output is begun, gone on with, or begun anew: what is at its place, and whether it may be."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kasthuri_ray.segmentation import predictor
from kasthuri_ray.segmentation.existing import remove, what_is_there
from kasthuri_ray.segmentation.job import Job
from kasthuri_ray.segmentation.ledger import Ledger, differences
from kasthuri_ray.segmentation.plan import Plan
from kasthuri_ray.segmentation.predictor import Arithmetic, Machine
from kasthuri_ray.segmentation.prepare import Prepared
from kasthuri_ray.segmentation.staffing import Crew, num_that_fit
from kasthuri_ray.segmentation.tiling import phase_of
from kasthuri_ray.storage import Storage, open_storage

SPARED_BYTES = 500_000_000  # of a disk, for others


def absolute(path: str) -> str:
    """The path or URL as it is known by from now on."""
    return open_storage(path).path


def begun_with(output: str, ledger: Ledger) -> dict[str, Any] | None:
    """The record of the segmentation that was begun at `output`, None where nothing is there.

    Raises ValueError where something else is there, or half of a segmentation.
    """
    found, record = what_is_there(output), ledger.settings()
    if found is None and record is None:
        return None
    if found is not None and not found.ours:
        raise ValueError(f"{found.words}; choose another --output")
    if record is None:
        raise ValueError(
            f"{output} is a segmentation whose ledger, {ledger.storage.path}, is gone: nobody knows which blocks "
            "are done; --overwrite begins it anew"
        )
    if found is None and ledger.done("s0"):
        raise ValueError(
            f"the ledger {ledger.storage.path} says that blocks are done, and {output} is gone; --overwrite begins anew"
        )
    return record


def check_same(begun: dict[str, Any] | None, job: Job, output: str) -> None:
    """Raise a ValueError, with the difference, where the output was begun with other settings."""
    differ = differences(begun, job.record) if begun is not None else []
    if differ:
        shown = "\n  ".join(differ)
        raise ValueError(
            f"{output} was begun with other settings:\n  {shown}\nGive another --output, or those; --overwrite begins "
            "it anew"
        )


def arithmetic_of(begun: dict[str, Any], prepared: Prepared) -> Arithmetic:
    """How the blocks of a segmentation that was begun are computed. Raises ValueError for another device."""
    arithmetic = Arithmetic(**begun["arithmetic"])
    asked = prepared.settings.segment.device
    if asked not in ("auto", arithmetic.device):
        raise ValueError(f"the segmentation was begun on {arithmetic.device}, and --device is {asked}")
    return arithmetic


def decide(prepared: Prepared, gpu: bool) -> Arithmetic:
    """How blocks are computed on the kind of machine that the cluster has.

    Raises ValueError for tiles that the network cannot work with, and for blocks that do not fit in memory.
    """
    asked, network = prepared.settings.segment, prepared.network
    machine = machine_of_actors(gpu, asked.gpus_per_actor)
    shape = tuple(min(b, n) for b, n in zip(prepared.block, prepared.box.shape, strict=True))
    arithmetic = predictor.decide(
        network,
        prepared.settings.network.dim,
        replace(prepared.reach, margin=prepared.halo),
        machine,
        block=shape,  # type: ignore[arg-type]
        voxels=prepared.box.num_voxels,
        phase=phase_of(prepared.box.start, prepared.image.bounds.start, prepared.reach.factors),
        precision=asked.precision,
        compile=asked.compile,
        tile=tuple(asked.tile) if asked.tile else None,  # type: ignore[arg-type]
        batch=asked.batch,
        tta=asked.tta,
        share=asked.gpus_per_actor if gpu else 1.0,
    )
    needs = predictor.actor_bytes(
        network,
        prepared.settings.network.dim,
        arithmetic,
        shape,  # type: ignore[arg-type]
        prepared.halo,
        prepared.classes,
        prepared.image.dtype.itemsize,
    )
    if machine.device == "cpu" and needs > machine.memory_bytes:
        raise ValueError(
            f"an actor with blocks of {shape} and tiles of {arithmetic.tile} (z,y,x) needs {needs / 1e9:.1f} GB, and a "
            f"machine here has {machine.memory_bytes / 1e9:.1f} GB; give a smaller --block, or --tile"
        )
    return arithmetic


def machine_of_actors(gpu: bool, gpus_per_actor: float) -> Machine:
    """The kind of machine that actors will be on, seen from one of them."""
    import ray

    look: Any = ray.remote(num_cpus=0.1, num_gpus=gpus_per_actor if gpu else 0)(_machine)
    return ray.get(look.remote("cuda" if gpu else "cpu"), timeout=120)


def _machine(device: str) -> Machine:
    return Machine.here(device)


def room_for(crew: Crew) -> int:
    """For how many actors the cluster has room."""
    import ray

    return max(1, num_that_fit(crew.needs, ray.cluster_resources()))


def with_copy(job: Job, path: str) -> Job:
    """The job with a precomputed copy at an absolute path."""
    found = what_is_there(path)
    if found is not None and not found.ours:
        raise ValueError(f"{found.words}; choose another place for --precomputed")
    return replace(job, precomputed=path)


def check_room(output: str, plan: Plan) -> None:
    """Raise a ValueError where the disk has no room for what is left to be written, as it is estimated."""
    folder = open_storage(output).folder
    if folder is None:
        return
    there = next(parent for parent in [folder, *folder.parents] if parent.exists())
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{there} cannot be written to; choose another --output")
    free = shutil.disk_usage(there).free - SPARED_BYTES
    needed = plan.bytes_written * (1 - plan.done / plan.blocks)
    if needed > free:
        raise ValueError(
            f"{there} has room for {max(0, free) / 1e9:.2f} GB, and what is left of {output} will take about "
            f"{needed / 1e9:.2f} GB, compressed; free some space or choose another --output"
        )


def table_path(job: Job) -> str:
    """Where the table of objects lies."""
    return f"{job.output}.{job.task_type}s.csv" if job.task_type == "synapse" else f"{job.output}.objects.csv"


def beside(path: str) -> tuple[Storage, str]:
    """The storage and the name of a file."""
    folder, _, name = path.rpartition("/")
    return open_storage(folder), name


def write_plan(output: str, plan: Plan) -> None:
    """Write `<output>.plan.json`."""
    storage, name = beside(f"{output}.plan.json")
    storage.write_bytes(name, (json.dumps(plan.to_json(), indent=2) + "\n").encode())


def remove_all(output: str, job: Job) -> None:
    """Remove an earlier segmentation and all that lies beside it; its ledger's lock, which is ours now, stays."""
    found, ledger = what_is_there(output), Ledger.beside(output)
    if found is not None and not found.ours:
        raise ValueError(f"{found.words}; choose another --output")
    remove(output)
    for name in ledger.storage.list():
        if name != "lock.json":
            ledger.storage.delete(name)
    for path in (f"{output}.progress.json", table_path(job)):
        storage, name = beside(path)
        storage.delete(name)
    if job.precomputed and what_is_there(job.precomputed) is not None:
        remove(job.precomputed)


def command_again(program: str, given: Sequence[str]) -> str:
    """The command that goes on: the same, but that it does not begin anew."""
    return shlex.join(["python", program, *(word for word in given if word != "--overwrite")])
