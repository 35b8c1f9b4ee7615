"""Pages of TIFF files, read by tile or strip: tifffile parses the file and decodes; Pillow decodes what it lacks."""

from __future__ import annotations

import io
import itertools
import math
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Zyx, ceil_div
from kasthuri_ray.volumes.grey_levels import PixelFormat

if TYPE_CHECKING:
    import tifffile

CACHE_BYTES = 64_000_000  # of decoded tiles and strips that an open file keeps
MIN_CHUNK_ROWS = 256  # rows of a page that are read at once, unless the page has fewer
MAX_SEGMENT_BYTES = 8_000_000  # of a compressed tile or strip that is decoded anew for every cutout
MAX_DECODERS = 64  # that are kept; there is one for each file
PIECE = 1024  # rows and columns of the chunks in which a page is cached whose tiles or strips are larger
JPEG = 7
T4_OPTIONS, T6_OPTIONS = 292, 293

Segment = tuple[str, int, int]  # path, offset and length of a stored tile or strip
# Returns depth, rows, columns, samples of a tile or strip from its bytes, its number and the JPEG tables of its page.
Decode = Callable[[bytes, int, bytes | None], np.ndarray]


@dataclass(frozen=True)
class Page:
    """A page of a TIFF file: where its tiles or strips are stored.

    Parameters
    ----------
    path : str
        File.
    keyframe : tifffile.TiffPage
        A page of the same layout, whose tags were read.
    offsets, counts : tuple of int
        First byte and number of bytes of each tile or strip.
    tables : bytes or None
        What its JPEG tiles or strips share.
    """

    path: str
    keyframe: tifffile.TiffPage
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    tables: bytes | None = None

    @classmethod
    def of(cls, page: tifffile.TiffPage | tifffile.TiffFrame | None) -> Page:
        """Return a page that tifffile has parsed."""
        assert page is not None
        assert page.keyframe is not None
        path = str(page.parent.filehandle.path)
        return cls(path, page.keyframe, page.dataoffsets, page.databytecounts, page.jpegtables)

    @property
    def is_complete(self) -> bool:
        """Whether all tiles or strips are in the file."""
        size = os.path.getsize(self.path)
        ends = (offset + count for offset, count in zip(self.offsets, self.counts, strict=False))
        needed = math.prod(_grid(self.keyframe))
        return len(self.counts) >= needed and min(self.counts[:needed]) > 0 and max(ends) <= size

    @cached_property
    def mapped_offset(self) -> int | None:
        """First byte of a page that is stored as an array; None if it is compressed or in pieces."""
        ends = [offset + count for offset, count in zip(self.offsets, self.counts, strict=True)]
        is_whole = self.keyframe.is_memmappable and ends[:-1] == list(self.offsets[1:])
        return self.offsets[0] if is_whole else None


class PageReader:
    """Reads parts of pages; the tiles and strips used last stay decoded. Many threads may use it."""

    def __init__(self) -> None:
        self._decoded: OrderedDict[Segment, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._decoders: dict[int, Decode] = {}  # by the keyframe

    def read(self, page: Page, depth: int, rows: slice, columns: slice) -> np.ndarray:
        """Return the values of a part of a page: rows, columns, samples.

        Parameters
        ----------
        page : Page
        depth : int
            Section of the page; 0 unless the page is a volume of its own.
        rows, columns : slice
            Within the page.
        """
        frame = page.keyframe
        samples, _, _, _, contiguous = frame.shaped
        offset = page.mapped_offset
        if offset is not None:
            stored = np.memmap(page.path, stored_dtype(frame), "r", offset, frame.shaped)
            return samples_last(stored[:, depth, rows, columns])
        values = np.empty((*_lengths(rows, columns), samples * contiguous), frame.dtype)
        for sample in range(samples):
            part = values[..., sample * contiguous : (sample + 1) * contiguous]
            self._read_segments(page, (sample, depth), (rows, columns), part)
        return values

    def _read_segments(
        self, page: Page, plane: tuple[int, int], ranges: tuple[slice, slice], values: np.ndarray
    ) -> None:
        """Fill `values` with a part of one plane, a sample and a section of a page."""
        tile = _segment_shape(page.keyframe)
        _, deep, down, across = _grid(page.keyframe)
        is_whole = _lengths(*ranges) == page.keyframe.shaped[2:4]
        steps = (range(part.start // n, ceil_div(part.stop, n)) for part, n in zip(ranges, tile[1:], strict=True))
        with open(page.path, "rb", buffering=0) as file:
            for row, column in itertools.product(*steps):
                number = ((plane[0] * deep + plane[1] // tile[0]) * down + row) * across + column
                segment = self._segment(page, number, file.fileno(), is_whole)[plane[1] % tile[0]]
                source, target = [], []
                for index, n, part in zip((row, column), tile[1:], ranges, strict=True):
                    low, high = max(part.start, index * n), min(part.stop, (index + 1) * n)
                    source.append(slice(low - index * n, high - index * n))
                    target.append(slice(low - part.start, high - part.start))
                values[tuple(target)] = segment[tuple(source)]

    def _segment(self, page: Page, number: int, file: int, is_whole: bool) -> np.ndarray:
        key = page.path, page.offsets[number], page.counts[number]
        with self._lock:
            if key in self._decoded:
                self._decoded.move_to_end(key)
                return self._decoded[key]
            decode = self._decoder(page)
        stored = os.pread(file, key[2], key[1])
        if len(stored) < key[2]:
            raise ValueError(f"{page.path} breaks off in tile or strip {number}")
        segment = decode(stored, number, page.tables)
        if segment.nbytes > CACHE_BYTES and is_whole:
            return segment  # the chunk cache keeps it
        with self._lock:
            self._decoded[key] = segment
            while len(self._decoded) > 1 and sum(each.nbytes for each in self._decoded.values()) > CACHE_BYTES:
                self._decoded.popitem(last=False)
        return segment

    def _decoder(self, page: Page) -> Decode:
        number = id(page.keyframe)  # the decoder refers to the keyframe, so that no other one gets its number
        if number not in self._decoders:
            if len(self._decoders) >= MAX_DECODERS:
                self._decoders.clear()
            self._decoders[number] = choose_decoder(page)
        return self._decoders[number]


def samples_last(values: np.ndarray) -> np.ndarray:
    """Return values of the axes sample, row, column, sample with one axis of samples, the last one."""
    moved = np.moveaxis(values, 0, 2)
    return moved.reshape(*moved.shape[:2], -1)


def pixel_format(frame: tifffile.TiffPage) -> PixelFormat:
    """Return what the tags of a page say about its pixels."""
    photometric = "unknown" if frame.photometric is None else str(getattr(frame.photometric, "name", "")).lower()
    bits = frame.bitspersample if isinstance(frame.bitspersample, int) else max(frame.bitspersample)
    dtype = np.dtype(frame.dtype) if frame.dtype is not None else np.dtype("V1")
    return PixelFormat(photometric, frame.samplesperpixel, dtype, bits, frame.colormap)


def page_chunk(page: Page) -> tuple[Zyx, bool]:
    """Return the shape of what is read at once of a page, and whether the page is decoded as a whole.

    It is a tile, or as many whole strips as have MIN_CHUNK_ROWS rows.
    """
    frame = page.keyframe
    rows, columns = _segment_shape(frame)[1:]
    if page.mapped_offset is None and rows * columns * frame.dtype.itemsize > MAX_SEGMENT_BYTES:  # type: ignore[union-attr]
        return (1, PIECE, PIECE), True
    if frame.is_tiled:
        return (1, rows, columns), False
    if page.mapped_offset is not None and rows * columns > MAX_SEGMENT_BYTES:
        rows = 1
    return (1, rows * ceil_div(MIN_CHUNK_ROWS, rows), columns), False


def codec_name(frame: tifffile.TiffPage) -> str:
    """Return how the tiles or strips of a page are stored, for messages."""
    compression, predictor = (getattr(each, "name", each) for each in (frame.compression, frame.predictor))
    return (
        f"{compression} of {frame.dtype}"
        if int(frame.predictor) == 1
        else f"{compression} ({predictor}) of {frame.dtype}"
    )


def choose_decoder(page: Page) -> Decode:
    """Return the function that decodes a page, tried out on its first tile or strip.

    Raises
    ------
    InputError
        If neither tifffile nor Pillow can decode it.
    """
    with open(page.path, "rb") as file:
        first = os.pread(file.fileno(), page.counts[0], page.offsets[0])
    causes = []
    for decode in (_tifffile_decoder(page), _pillow_decoder(page)):
        try:
            decode(first, 0, page.tables)
            return decode
        except Exception as error:  # a codec that is missing or that does not fit raises whatever it likes
            causes.append(str(error).strip() or type(error).__name__)
    raise InputError(
        f"{page.path} is compressed by {codec_name(page.keyframe)}, which cannot be decoded here ({causes[0]}): "
        "pip install imagecodecs, or convert the file"
    )


def _tifffile_decoder(page: Page) -> Decode:
    frame = page.keyframe

    def decode(data: bytes, number: int, tables: bytes | None) -> np.ndarray:
        jpeg = {"jpegtables": tables, "jpegheader": frame.jpegheader} if tables else {}
        decoded = frame.decode(data, number, **jpeg)[0]
        if decoded is None:
            raise ValueError("a tile or strip is empty")
        return decoded

    return decode


def _pillow_decoder(page: Page) -> Decode:
    """Return a decoder that unpacks the bytes with Pillow (LZW, zstd, fax), and the values here."""
    frame = page.keyframe
    bits = pixel_format(frame).bits
    fax = {tag: frame.tags[tag].value for tag in (T4_OPTIONS, T6_OPTIONS) if tag in frame.tags}

    def decode(data: bytes, number: int, tables: bytes | None) -> np.ndarray:
        shape = _decoded_shape(frame, number)
        rows, row_values = math.prod(shape[:2]), math.prod(shape[2:])
        if frame.compression == JPEG:
            return _unpack_jpeg(tables, data).reshape(shape)
        if frame.fillorder != 1 or bits not in (1, 8, 16, 32, 64):
            raise ValueError(f"{bits} bits a value, fill order {frame.fillorder}")
        tags = {256: row_values * max(1, bits // 8), 257: rows, 258: min(bits, 8), 259: int(frame.compression)} | fax
        unpacked = np.frombuffer(_unpack(data, tags), np.uint8)
        if bits == 1:
            return np.unpackbits(unpacked.reshape(rows, -1), axis=1, count=row_values).astype(bool).reshape(shape)
        return _unpredict(unpacked.view(stored_dtype(frame)), int(frame.predictor), shape)

    return decode


def lift_pixel_limit() -> None:
    """Lift Pillow's limit on the number of pixels, which is meant for pictures from strangers."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None


def _unpack(data: bytes, tags: dict[int, int]) -> bytes:
    """Return the bytes of a compressed strip: Pillow reads it as a TIFF of one strip of 1-bit or 8-bit pixels."""
    from PIL import Image

    lift_pixel_limit()
    tags = dict(sorted((tags | {262: 1, 273: 0, 277: 1, 278: tags[257], 279: len(data)}).items()))
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    with Image.open(io.BytesIO(header + entries + bytes(4) + data), formats=["TIFF"]) as image:
        return image.tobytes()


def _unpack_jpeg(tables: bytes | None, data: bytes) -> np.ndarray:
    from PIL import Image

    lift_pixel_limit()
    stream = data if tables is None else tables[:-2] + data[2:]
    with Image.open(io.BytesIO(stream), formats=["JPEG"]) as image:
        return np.asarray(image)


def _unpredict(values: np.ndarray, predictor: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return values whose rows were stored as differences (TIFF 6.0, section 14, and Technical Note 3)."""
    if predictor == 1:
        return values.reshape(shape)
    if predictor == 2 and values.dtype.kind in "ui":
        return np.cumsum(values.reshape(shape), axis=2, dtype=values.dtype.newbyteorder("="))
    if predictor == 3 and values.dtype.kind == "f":
        depth, rows, columns, samples = shape
        size = values.dtype.itemsize
        steps = values.view(np.uint8).reshape(depth * rows, columns * size, samples)
        planes = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(depth * rows, size, columns * samples)
        return np.ascontiguousarray(planes.swapaxes(1, 2)).view(values.dtype.newbyteorder(">")).reshape(shape)
    raise ValueError(f"predictor {predictor} of {values.dtype}")


def _segment_shape(frame: tifffile.TiffPage) -> tuple[int, int, int]:
    """Return depth, rows and columns of a tile or strip."""
    _, _, height, width, _ = frame.shaped
    if frame.is_tiled:
        return max(1, frame.tiledepth), frame.tilelength, frame.tilewidth
    return 1, min(frame.rowsperstrip, height), width


def _grid(frame: tifffile.TiffPage) -> tuple[int, int, int, int]:
    """Return the number of tiles or strips along samples, depth, rows and columns."""
    samples, depth, height, width, _ = frame.shaped
    deep, rows, columns = _segment_shape(frame)
    return samples, ceil_div(depth, deep), ceil_div(height, rows), ceil_div(width, columns)


def _decoded_shape(frame: tifffile.TiffPage, number: int) -> tuple[int, int, int, int]:
    """Return the shape of a decoded tile, or of a strip, of which the last one may be shorter."""
    deep, rows, columns = _segment_shape(frame)
    if not frame.is_tiled:
        rows = min(rows, frame.shaped[2] - number % _grid(frame)[2] * rows)
    return deep, rows, columns, frame.shaped[4]


def stored_dtype(frame: tifffile.TiffPage) -> np.dtype:
    """Return the type of the values of a page in the byte order of its file."""
    return np.dtype(frame.dtype).newbyteorder(frame.parent.byteorder)


def _lengths(*ranges: slice) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in ranges)


def open_tiff_file(path: str | Path, **options: Any) -> tifffile.TiffFile:
    """Return the open file; an OSError if it is no TIFF."""
    import tifffile

    try:
        return tifffile.TiffFile(path, **options)
    except (tifffile.TiffFileError, struct.error) as error:
        raise OSError(str(error)) from error
