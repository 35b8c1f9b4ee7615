"""N5 blocks in LZ4, as the Java library writes them: decoded with numcodecs, so that tensorstore reads them as raw."""

from __future__ import annotations

import struct

from numcodecs.lz4 import LZ4

from kasthuri_ray.errors import VolumeError

MAGIC = b"LZ4Block"
HEADER = struct.Struct("<8sBIII")  # magic, method and level, compressed and original length, checksum
STORED, COMPRESSED = 0x10, 0x20  # methods


def lz4_to_raw(block: bytes) -> bytes:
    """Return an N5 block of compression `lz4` as one of compression `raw`.

    Parameters
    ----------
    block : bytes
        Content of the block's file: a header, and the stream of lz4-java's LZ4BlockOutputStream.

    Returns
    -------
    bytes

    Raises
    ------
    VolumeError
        If the stream is broken.
    """
    mode, rank = struct.unpack_from(">HH", block)
    start = 4 + 4 * rank + (4 if mode == 1 else 0)
    return block[:start] + _decode_stream(block[start:])


def _decode_stream(stream: bytes) -> bytes:
    """Return the content of a stream: parts, each with a header, up to an empty one."""
    parts, position = [], 0
    while position + HEADER.size <= len(stream):
        magic, token, length, original, _ = HEADER.unpack_from(stream, position)
        position += HEADER.size
        if magic != MAGIC:
            raise VolumeError("an N5 block in LZ4 is broken: its stream has no header where one was expected")
        if original == 0:
            break
        part = stream[position : position + length]
        position += length
        if token & 0xF0 == COMPRESSED:
            part = bytes(LZ4().decode(struct.pack("<I", original) + part))  # numcodecs puts the length first
        if len(part) != original:
            raise VolumeError(f"an N5 block in LZ4 is broken: {len(part)} bytes in place of {original}")
        parts.append(part)
    return b"".join(parts)
