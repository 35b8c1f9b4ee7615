"""What one node sees: its shared memory and cards, the storage, the image. Runs on every node; knows nothing of Ray."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kasthuri_ray.geometry import Box
from kasthuri_ray.storage import open_storage
from kasthuri_ray.volumes import open_volume
from kasthuri_ray.volumes.cache import open_cache
from kasthuri_ray.volumes.threads import call_within

SHM = Path("/dev/shm")
IMAGE_S = 45.0  # for one voxel of the image, from a server that may be busy
MARK = b"kasthuri_ray was here\n"


@dataclass(frozen=True)
class Request:
    """What every node is asked to look at.

    storage: a folder made for this check, in which the driver has left a file named `driver`. image: a URI, None leaves
    it out. boss: options of BossDB, whose token is in no repr.
    """

    storage: str
    image: str | None
    boss: Mapping[str, Any] | None = field(repr=False)
    cache: str | None = None
    cache_size: str = "20GB"


@dataclass(frozen=True)
class Sight:
    """What a node saw. Where something was wrong, `storage` and `image` are what, else empty.

    cards: names of the GPUs that torch sees. devices: GPUs that the machine has. image_seconds: for the first voxel.
    cache_free_bytes: of the disk that will hold the cache; None without one.
    """

    shm_bytes: int | None
    cards: tuple[str, ...]
    devices: int
    storage: str
    image: str
    image_seconds: float
    cache_free_bytes: int | None


def look(request: Request, name: str, has_gpus: bool) -> Sight:
    """What this node sees. name: of the file that it leaves in the storage. has_gpus: whether Ray says so."""
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    begin = time.perf_counter()
    image = _words(lambda: read_voxel(request))
    seconds = time.perf_counter() - begin
    return Sight(
        shm_bytes=shutil.disk_usage(SHM).total if SHM.is_dir() else None,
        cards=_cards() if has_gpus or devices else (),
        devices=devices,
        storage=_words(lambda: leave_mark(request.storage, name)),
        image=image,
        image_seconds=seconds,
        cache_free_bytes=_free_of_cache(request),
    )


def _words(look: Callable[[], None]) -> str:
    """What goes wrong, in one line; empty if nothing does."""
    try:
        look()
    except Exception as error:
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    return ""


def leave_mark(storage: str, name: str) -> None:
    """See the driver's file in the storage, and write one beside it, which the driver will look for."""
    folder = open_storage(storage)
    try:
        folder.read_bytes("driver")
    except FileNotFoundError:
        raise FileNotFoundError("it does not see what the other nodes write there") from None
    folder.write_bytes(name, MARK)


def read_voxel(request: Request) -> None:
    """Open the image and read its first voxel."""
    if request.image is None:
        return
    image = request.image

    def read() -> None:
        volume = open_volume(image, boss=request.boss)
        volume.read(Box.at(volume.bounds.start, (1, 1, 1)))

    call_within(IMAGE_S, read)


def _cards() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))


def _free_of_cache(request: Request) -> int | None:
    cache = open_cache(request.cache, request.cache_size)
    if cache is None:
        return None
    folder = next(parent for parent in [cache.folder, *cache.folder.parents] if parent.exists())
    return shutil.disk_usage(folder).free
