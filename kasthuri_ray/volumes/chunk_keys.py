"""Names of the objects that hold the chunks (or shards) of an array: pure functions on its metadata."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ChunkKeys:
    """The grid of stored objects of an array, in the order of its stored axes, and their names.

    Parameters
    ----------
    origin, shape, chunk : tuple of int
        First voxel of the array, its shape, and the shape of an object.
    prefix, separator : str
        A name is the prefix and the indices, joined by the separator.
    ranges : bool
        Whether a name holds ranges of voxels, as in precomputed, in place of indices.
    sharding : mapping or None
        How chunks of precomputed are put into shards; their names are then numbers of 8 bytes.
    """

    origin: tuple[int, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    prefix: str = ""
    separator: str = "/"
    ranges: bool = False
    sharding: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, driver: str, metadata: Mapping[str, Any], scale_index: int = 0) -> ChunkKeys:
        """Return the keys of an array.

        Parameters
        ----------
        driver : str
            Format, as the name of a tensorstore driver.
        metadata : mapping
            Content of `.zarray`, `zarr.json`, `attributes.json` or `info`.
        scale_index : int
            Resolution, of precomputed.

        Returns
        -------
        ChunkKeys
            Of shards in zarr 3, and of chunks in precomputed, sharded or not.
        """
        if driver == "neuroglancer_precomputed":
            scale = metadata["scales"][scale_index]
            origin = tuple(scale.get("voxel_offset", (0, 0, 0)))
            chunk = tuple(scale["chunk_sizes"][0])
            prefix, sharding = f"{scale['key'].rstrip('/')}/", scale.get("sharding")
            return cls(origin, tuple(scale["size"]), chunk, prefix, "_", ranges=not sharding, sharding=sharding)
        if driver == "n5":
            shape, chunk, prefix, separator = metadata["dimensions"], metadata["blockSize"], "", "/"
        elif driver == "zarr":
            shape, chunk = metadata["shape"], metadata["chunks"]
            prefix, separator = "", metadata.get("dimension_separator", ".")
        else:
            shape, chunk = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
            encoding = metadata["chunk_key_encoding"]
            default = "/" if encoding["name"] == "default" else "."
            separator = encoding.get("configuration", {}).get("separator", default)
            prefix = f"c{separator}" if encoding["name"] == "default" else ""
        return cls((0,) * len(shape), tuple(shape), tuple(chunk), prefix, separator)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of objects along each stored axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    def kvstore(self, base: dict[str, Any]) -> dict[str, Any]:
        """Return the spec of the key-value store that has these names, from that of the array's folder."""
        if self.sharding is None:
            return base
        inside = {**base, "path": f"{base.get('path', '')}{self.prefix}"}
        return {"driver": "neuroglancer_uint64_sharded", "metadata": dict(self.sharding), "base": inside}

    def name(self, index: Sequence[int]) -> str | bytes:
        """Return the name of an object by its indices."""
        if self.sharding is not None:
            return self._morton_code(index).to_bytes(8, "big")
        if not self.ranges:
            return self.prefix + self.separator.join(map(str, index))
        starts = [i * c for i, c in zip(index, self.chunk, strict=True)]
        stops = [min(a + c, n) for a, c, n in zip(starts, self.chunk, self.shape, strict=True)]
        parts = [f"{a + o}-{b + o}" for a, b, o in zip(starts, stops, self.origin, strict=True)]
        return self.prefix + self.separator.join(parts)

    def _morton_code(self, index: Sequence[int]) -> int:
        """Return the number of a chunk in a sharded scale: the bits of its indices, x, y, z in turn."""
        bits = [(n - 1).bit_length() for n in self.counts]
        code = position = 0
        for bit in range(max(bits)):
            for i, count in zip(index, bits, strict=True):
                if bit < count:
                    code |= (i >> bit & 1) << position
                    position += 1
        return code

    def names(self, ranges: Sequence[tuple[int, int]]) -> Iterator[str | bytes]:
        """Yield the names of the objects that hold voxels of a half-open range along each stored axis."""
        indices = [
            range((a - o) // c, -(-(b - o) // c)) for (a, b), o, c in zip(ranges, self.origin, self.chunk, strict=True)
        ]
        return map(self.name, itertools.product(*indices))

    def samples(self, count: int) -> list[Any]:
        """Return the names of some objects that are spread over the array: the middle one, corners, and others."""
        total = 1
        for n in self.counts:
            total *= n
        numbers = {total // 2, 0, total - 1, *(total * i // count for i in range(count))}
        return [self.name(self._index(number)) for number in sorted(numbers)][: count + 3]

    def _index(self, number: int) -> list[int]:
        index: list[int] = []
        for n in reversed(self.counts):
            number, i = divmod(number, n)
            index.insert(0, i)
        return index
