"""The phantom as a volume: a synthetic piece of cortex of any size, `phantom://em?shape=100,1024,1024&seed=0`.

Its other channels are its annotations. Squares of a section are painted when a box asks for them, always whole and as a
function of their position alone, so that every box shows the same voxels. The chunk cache keeps them for other
processes.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, Zyx, per_axis
from kasthuri_ray.phantom.section import CHANNELS, SQUARE, VOXEL_NM, paint_section
from kasthuri_ray.volumes.chunk_cache import ChunkCache
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.volume import Volume

DEFAULT_SHAPE: Zyx = (100, 1024, 1024)
MAX_SHAPE: Zyx = (1850, 26624, 21504)  # the whole volume of Kasthuri et al. 2015
CHUNK: Zyx = (1, 256, 256)
SQUARE_BYTES = len(CHANNELS) * SQUARE**2
PAINTING = "phantom-1"  # folder of the cache; squares that are painted otherwise get another
# 48 MiB a process. An image and its annotation are painted once, and so is a box that tiles are drawn from at random:
# the training box of a phantom task has 960 squares.
MAX_CACHED_SQUARES = 1024

# One thread of a process paints at a time: many short steps in numpy, between which threads would wait for each other.
# Eight threads take three times as long for a square as one does.
_painting = threading.Lock()


@dataclass(kw_only=True)
class PhantomVolume(Volume):
    """One channel of the phantom.

    Parameters
    ----------
    channel : int
        Index of the channel in `CHANNELS`.
    seed : int
        Seed that the whole phantom follows from.
    cache : ChunkCache or None
        Keeps painted squares on the disk of this node: painting one takes 6 ms, reading it 0.3 ms.
    """

    channel: int
    seed: int
    cache: ChunkCache | None = None

    def _read(self, box: Box) -> np.ndarray:
        voxels = np.empty(box.shape, np.uint8)
        for part in box.cells((1, SQUARE, SQUARE)):
            z, row, column = part.start[0], part.start[1] // SQUARE, part.start[2] // SQUARE
            with _painting:
                square = find_square(self.cache, self.seed, z, row, column)[self.channel]
            voxels[part.slices(box.start)] = square[part.slices((z, row * SQUARE, column * SQUARE))[1:]]
        return voxels


@lru_cache(maxsize=MAX_CACHED_SQUARES)
def find_square(cache: ChunkCache | None, seed: int, z: int, row: int, column: int) -> np.ndarray:
    """Return a square as `paint_section` paints it, from the cache if it is there.

    Parameters
    ----------
    cache : ChunkCache or None
        Where squares are kept.
    seed, z, row, column : int
        As of `paint_section`.

    Returns
    -------
    np.ndarray
        Voxels of type uint8, (channel, y, x), with the channels of CHANNELS.
    """
    if cache is None:
        return paint_section(seed, z, row, column)
    key = f"{PAINTING}/{seed}/{z}_{row}_{column}.chunk"
    if (stored := cache.get(key, SQUARE_BYTES)) is None:
        with cache.locked(key):  # another process may be painting it
            if (stored := cache.get(key, SQUARE_BYTES)) is None:
                square = paint_section(seed, z, row, column)
                cache.put(key, square)
                return square
    return np.frombuffer(stored, np.uint8).reshape(len(CHANNELS), SQUARE, SQUARE)


def open_phantom(uri: str, mip: int | None = None, cache: ChunkCache | None = None) -> Volume:
    """Open the phantom that a URI describes.

    Parameters
    ----------
    uri : str
        `phantom://CHANNEL?shape=z,y,x&seed=n` with CHANNEL one of em, membrane, synapse. The shape is in voxels,
        100,1024,1024 by default; the seed is 0 by default.
    mip : int or None
        0 or None: a phantom has one resolution.
    cache : ChunkCache or None
        Keeps painted squares.

    Returns
    -------
    Volume
        A volume of uint8 that starts at voxel 0, 0, 0, with voxels of 30 x 6 x 6 nm (z, y, x). Annotations are 0 and 1.

    Raises
    ------
    InputError
        If there is no such channel, parameter, shape, seed or resolution; the message says what there is.
    """
    parts = urlsplit(uri)
    if parts.scheme != "phantom" or parts.netloc not in CHANNELS or parts.path.strip("/") or parts.fragment:
        raise InputError(
            f"{uri!r} is not a phantom; in phantom://CHANNEL?shape=z,y,x&seed=n CHANNEL is one of {', '.join(CHANNELS)}"
        )
    if mip not in (None, 0):
        raise InputError(f"resolution {mip} of {uri!r}: a phantom has one resolution, 0")
    parameters = _parse_parameters(uri, parts.query)
    shape = _parse_shape(uri, parameters["shape"]) if "shape" in parameters else DEFAULT_SHAPE
    seed = _parse_seed(uri, parameters.get("seed", "0"))
    return PhantomVolume(
        uri=f"phantom://{parts.netloc}?shape={','.join(map(str, shape))}&seed={seed}",
        bounds=Box.at((0, 0, 0), shape),
        dtype=np.dtype(np.uint8),
        voxel_size_nm=per_axis(float, VOXEL_NM),
        voxel_size_source="phantom",
        format="phantom",
        stored_axes="z,y,x",
        place=Place((0.0, 0.0, 0.0), "corner", "phantom"),
        chunk=CHUNK,
        chunk_origin=(0, 0, 0),
        channel=CHANNELS.index(parts.netloc),
        seed=seed,
        cache=cache,
    )


def _parse_parameters(uri: str, query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    for key, _ in pairs:
        if key not in ("shape", "seed"):
            raise InputError(f"{uri!r}: a phantom has no parameter {key!r}; it has shape and seed")
    if len(dict(pairs)) != len(pairs):
        raise InputError(f"{uri!r} names a parameter twice")
    return dict(pairs)


def _parse_shape(uri: str, text: str) -> Zyx:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise InputError(f"{uri!r}: shape {text!r} is not three sizes in voxels, z,y,x, such as 100,1024,1024")
    shape = per_axis(int, parts)
    if not all(1 <= length <= limit for length, limit in zip(shape, MAX_SHAPE, strict=True)):
        raise InputError(f"{uri!r}: shape {text} is not between 1,1,1 and {','.join(map(str, MAX_SHAPE))} (z,y,x)")
    return shape


def _parse_seed(uri: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise InputError(f"{uri!r}: seed {text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)
