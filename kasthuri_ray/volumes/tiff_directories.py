"""The directories of a TIFF file, one a page: whether they are all there, and whether they are alike.

tifffile looks at few pages of a stack and takes the others to be like these.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tifffile

SIDE_IMAGE = 0b101  # of NewSubfileType: a smaller copy, or a mask
SUBFILE_TYPE, WIDTH, HEIGHT, ROWS_PER_STRIP = 254, 256, 257, 278
NEEDED_TAGS = (270, 273, 279, 324, 325)  # description, and the places of strips and tiles
LAYOUT = {  # how the pixels of a page are stored: name and default of each tag
    WIDTH: ("width", 0),
    HEIGHT: ("height", 0),
    258: ("bits a value", 1),
    259: ("compression", 1),
    262: ("photometric interpretation", 0),
    266: ("fill order", 1),
    277: ("samples", 1),
    ROWS_PER_STRIP: ("rows per strip", 2**32 - 1),
    284: ("planar configuration", 1),
    317: ("predictor", 1),
    322: ("tile width", 0),
    323: ("tile height", 0),
    339: ("sample format", 1),
}
FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of the values of a layout, by the kind of a tag
VALUE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # by the kind of a tag


@dataclass(frozen=True)
class TagEntry:
    """A tag in a directory: kind and number of its values, and the bytes that hold these or their place."""

    kind: int
    length: int
    stored: bytes

    @property
    def num_bytes(self) -> int:
        return self.length * VALUE_BYTES.get(self.kind, 1)


def count_whole_pages(file: tifffile.TiffFile) -> tuple[int, str | None]:
    """Return how many pages follow each other from the first, and how the file breaks off after them, if it does."""
    size, number = file.filehandle.size, 0
    for number, (offset, tags) in enumerate(_directories(file), 1):
        if tags is None:
            return number - 1, f"page {number} should begin at byte {offset}, but the file has {size} bytes"
        if not all(_is_there(file, tags[code]) for code in NEEDED_TAGS if code in tags):
            return number - 1, f"what page {number} states lies after the end of the file, {size} bytes"
    return number, None


def describe_odd_page(file: tifffile.TiffFile) -> str | None:
    """Return how the first page differs that is not stored as those before it; None if all are alike.

    Smaller copies and masks of other pages do not count.
    """
    first: dict[int, object] = {}
    for number, (_, tags) in enumerate(_directories(file), 1):
        if tags is None or any(value & SIDE_IMAGE for value in _values(file, tags.get(SUBFILE_TYPE))):
            continue
        layout = _layout(file, tags)
        first = first or layout
        for tag, (name, _) in LAYOUT.items():
            if layout[tag] != first[tag]:
                return f"page {number} is stored with {name} {layout[tag]}, the pages before it with {first[tag]}"
    return None


def _directories(file: tifffile.TiffFile) -> Iterator[tuple[int, dict[int, TagEntry] | None]]:
    """Yield offset and tags of each directory; None in place of the tags, and no more, where the file ends before."""
    tiff = file.tiff
    seen: set[int] = set()
    following = _read_numbers(file, 4 if tiff.offsetsize == 4 else 8, tiff.offsetformat)
    while following and following[0] and following[0] not in seen:
        offset = following[0]
        seen.add(offset)
        count = _read_numbers(file, offset, tiff.tagnoformat)
        stored = file.filehandle.read(count[0] * tiff.tagsize + tiff.offsetsize) if count else b""
        if not count or len(stored) < count[0] * tiff.tagsize + tiff.offsetsize:
            yield offset, None
            return
        entries = struct.iter_unpack(
            f"{tiff.byteorder}HH{tiff.offsetformat[-1]}{tiff.offsetsize}s", stored[: -tiff.offsetsize]
        )
        yield offset, {code: TagEntry(kind, length, value) for code, kind, length, value in entries}
        following = struct.unpack(tiff.offsetformat, stored[-tiff.offsetsize :])


def _read_numbers(file: tifffile.TiffFile, offset: int, format: str) -> tuple[int, ...]:
    """Return numbers at a place in a file; none if it ends before."""
    file.filehandle.seek(offset)
    stored = file.filehandle.read(struct.calcsize(format))
    return struct.unpack(format, stored) if len(stored) == struct.calcsize(format) else ()


def _place(file: tifffile.TiffFile, tag: TagEntry) -> int:
    """Return where the values of a tag begin that does not hold them."""
    return int(struct.unpack(file.tiff.offsetformat, tag.stored)[0])


def _is_there(file: tifffile.TiffFile, tag: TagEntry) -> bool:
    """Return whether all values of a tag are in the file."""
    return tag.num_bytes <= file.tiff.offsetsize or _place(file, tag) + tag.num_bytes <= file.filehandle.size


def _values(file: tifffile.TiffFile, tag: TagEntry | None) -> tuple[int, ...]:
    """Return the integers of a tag; none without one."""
    if tag is None or tag.kind not in FORMATS:
        return ()
    format = f"{file.tiff.byteorder}{tag.length}{FORMATS[tag.kind]}"
    if tag.num_bytes <= file.tiff.offsetsize:
        return struct.unpack(format, tag.stored[: tag.num_bytes])
    return _read_numbers(file, _place(file, tag), format)


def _layout(file: tifffile.TiffFile, tags: dict[int, TagEntry]) -> dict[int, object]:
    """Return the value of each tag of the layout, or a tuple of those of several samples that differ."""
    values = {tag: sorted(set(_values(file, tags.get(tag)))) or [default] for tag, (_, default) in LAYOUT.items()}
    values[ROWS_PER_STRIP] = [min(values[ROWS_PER_STRIP][0], values[HEIGHT][0])]
    return {tag: each[0] if len(each) == 1 else tuple(each) for tag, each in values.items()}
