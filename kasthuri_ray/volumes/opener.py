"""Opening volumes as the flags of a job say: `--boss`, `--cache`, `--cache-size`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kasthuri_ray.volumes import Volume, open_volume
from kasthuri_ray.volumes.cache import open_cache

Nm = tuple[float, float, float]


class Opener:
    """Opens each volume once, all by the same options and through the same cache.

    boss: a file of BossDB options, None for public data. cache, cache_size: as of `open_cache`. Raises what
    `open_volume` raises, and ValueError or FileNotFoundError for a file of options that is none.
    """

    def __init__(self, boss: str | None, cache: str | None, cache_size: str) -> None:
        self.boss = read_boss(boss)
        self.cache = open_cache(cache, cache_size)
        self._opened: dict[tuple[str, int | None, Nm | None], Volume] = {}

    def open(self, uri: str, mip: int | None = None, voxel_size_nm: Nm | None = None) -> Volume:
        """The volume; see `open_volume`."""
        key = (uri, mip, voxel_size_nm)
        if key not in self._opened:
            self._opened[key] = open_volume(uri, mip=mip, boss=self.boss, cache=self.cache, voxel_size_nm=voxel_size_nm)
        return self._opened[key]


def read_boss(path: str | None) -> dict[str, Any] | None:
    """The options in a `--boss` file; None without one."""
    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"--boss {path}: there is no such file") from None
    except (OSError, ValueError) as error:
        # The text is not shown: it holds a token.
        raise ValueError(f"--boss {path} is not readable as JSON ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise ValueError(f"--boss {path} holds no JSON object with protocol, host and token")
    return found
