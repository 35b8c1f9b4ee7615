"""A synthetic piece of cortex of any size: `phantom://em?shape=100,1024,1024&seed=0`, and what it is annotated with.

Nothing is stored: squares of a section are painted when a box asks for them, each always whole and from its place
alone, so that every box shows the same voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from kasthuri_ray.geometry import Box, Zyx
from kasthuri_ray.phantom.section import CHANNELS, SQUARE, VOXEL_NM, paint_section
from kasthuri_ray.volumes.volume import Volume

DEFAULT_SHAPE: Zyx = (100, 1024, 1024)
LARGEST: Zyx = (1850, 26624, 21504)  # the whole volume of Kasthuri et al. 2015
CHUNK: Zyx = (1, 256, 256)
SQUARES_KEPT = 256  # 12 MiB a process: an image and its annotation, read one after the other, are painted once

_painted = lru_cache(maxsize=SQUARES_KEPT)(paint_section)


@dataclass(kw_only=True)
class PhantomVolume(Volume):
    """One channel of the phantom that `seed` grows."""

    channel: int
    seed: int

    def _read(self, box: Box) -> np.ndarray:
        voxels = np.empty(box.shape, np.uint8)
        for part in box.cells((1, SQUARE, SQUARE)):
            z, row, column = part.start[0], part.start[1] // SQUARE, part.start[2] // SQUARE
            square = _painted(self.seed, z, row, column)[self.channel]
            voxels[part.slices(box.start)] = square[part.slices((z, row * SQUARE, column * SQUARE))[1:]]
        return voxels


def open_phantom(uri: str, mip: int | None = None) -> Volume:
    """The phantom that `uri` describes: uint8, 30 x 6 x 6 nm, from voxel 0,0,0 on; annotations are 0 and 1.

    uri: `phantom://CHANNEL?shape=z,y,x&seed=n`, CHANNEL one of em, membrane, synapse.
    mip: 0 or None; it has one resolution.

    Raises ValueError for a channel, parameter, shape or seed that there is not, with what there is.
    """
    parts = urlsplit(uri)
    if parts.scheme != "phantom" or parts.netloc not in CHANNELS or parts.path.strip("/") or parts.fragment:
        raise ValueError(f"{uri!r} is no phantom; phantom://CHANNEL?shape=z,y,x&seed=n has {', '.join(CHANNELS)}")
    if mip not in (None, 0):
        raise ValueError(f"resolution {mip} of {uri!r}: a phantom has one resolution, 0")
    given = _parameters(uri, parts.query)
    shape = _shape(uri, given["shape"]) if "shape" in given else DEFAULT_SHAPE
    seed = _seed(uri, given.get("seed", "0"))
    return PhantomVolume(
        uri=f"phantom://{parts.netloc}?shape={','.join(map(str, shape))}&seed={seed}",
        bounds=Box.at((0, 0, 0), shape),
        dtype=np.dtype(np.uint8),
        voxel_size_nm=(float(VOXEL_NM[0]), float(VOXEL_NM[1]), float(VOXEL_NM[2])),
        chunk=CHUNK,
        chunk_origin=(0, 0, 0),
        channel=CHANNELS.index(parts.netloc),
        seed=seed,
    )


def _parameters(uri: str, query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    for key, _ in pairs:
        if key not in ("shape", "seed"):
            raise ValueError(f"{uri!r}: a phantom has no parameter {key!r}; it has shape and seed")
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"{uri!r} gives a parameter twice")
    return dict(pairs)


def _shape(uri: str, text: str) -> Zyx:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{uri!r}: shape {text!r} is not three sizes in voxels, z,y,x, such as 100,1024,1024")
    z, y, x = (int(part) for part in parts)
    if not all(1 <= n <= most for n, most in zip((z, y, x), LARGEST, strict=True)):
        raise ValueError(f"{uri!r}: shape {text} is not between 1,1,1 and {','.join(map(str, LARGEST))} (z,y,x)")
    return z, y, x


def _seed(uri: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise ValueError(f"{uri!r}: seed {text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)
