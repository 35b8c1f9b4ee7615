"""Files that are one section each: a TIFF of one page, or a PNG or JPEG, which Pillow decodes as a whole."""

from __future__ import annotations

import os
import struct
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Zyx
from kasthuri_ray.volumes.grey_levels import GreyRule, PixelFormat, choose_grey_rule
from kasthuri_ray.volumes.place import Place, StatedSize
from kasthuri_ray.volumes.section_names import classify_section_name
from kasthuri_ray.volumes.tiff_directories import count_whole_pages
from kasthuri_ray.volumes.tiff_metadata import (
    ORIENTATION,
    incomplete_error,
    orientation_note,
    tiff_place,
    tiff_voxel_size,
    turned_note,
)
from kasthuri_ray.volumes.tiff_pages import (
    PIECE,
    Page,
    codec_name,
    lift_pixel_limit,
    open_tiff_file,
    page_chunk,
    pixel_format,
)

if TYPE_CHECKING:
    import tifffile

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY = 0  # a colour type of PNG
LARGE_BYTES = 64_000_000  # of a decoded picture; a process decodes one such at a time
BAND_ROWS = 512  # rows that are copied at once
DTYPES = {"L": "uint8", "LA": "uint8", "RGB": "uint8", "RGBA": "uint8", "P": "uint8", "1": "bool", "I;16": "uint16"}
PHOTOMETRIC = {"P": "palette", "RGB": "rgb", "RGBA": "rgb"}

_decoding = threading.Lock()


@dataclass(frozen=True)
class SectionHeader:
    """What a volume has to know about a section.

    Parameters
    ----------
    path : str
        File.
    shape : tuple of int
        Rows and columns.
    dtype : np.dtype
        Type of the voxels.
    rule : GreyRule
        How stored values become voxels.
    note : str or None
        Line for a person; it begins with the path.
    chunk : tuple of int
        What is read at once: 1, rows, columns.
    is_decoded_whole : bool
        Whether any read decodes the whole section.
    codec : str
        How it is compressed; empty if it is not.
    voxel_size : StatedSize or None
        Voxel size, if the file states it.
    place : Place or None
        As of a `Volume`.
    """

    path: str
    shape: tuple[int, int]
    dtype: np.dtype
    rule: GreyRule
    note: str | None
    chunk: Zyx
    is_decoded_whole: bool
    codec: str = ""
    voxel_size: StatedSize | None = None
    place: Place | None = None


@dataclass(frozen=True)
class TiffSection:
    """A TIFF of one page whose tags were read."""

    header: SectionHeader
    page: Page


@dataclass(frozen=True)
class PictureSection:
    """A PNG or JPEG whose header was read.

    Parameters
    ----------
    header : SectionHeader
    stored_dtype : np.dtype
        Type of the values that Pillow decodes.
    divisor : int
        Pillow spreads values of 2 and 4 bits over 0 to 255; labels are divided by this.
    """

    header: SectionHeader
    stored_dtype: np.dtype
    divisor: int

    def read(self) -> np.ndarray:
        """Return all voxels, rows and columns."""
        height, width = self.header.shape
        voxels = np.empty(self.header.shape, self.header.dtype)
        is_large = height * width * self.stored_dtype.itemsize > LARGE_BYTES
        with _decoding if is_large else nullcontext(), _open_image(self.header.path) as image:
            image.load()
            for first in range(0, height, BAND_ROWS):
                last = min(first + BAND_ROWS, height)
                band = np.asarray(image.crop((0, first, width, last)), self.stored_dtype)
                voxels[first:last] = self.header.rule.apply(band.reshape(last - first, width, -1))
        return voxels if self.divisor == 1 else voxels // self.divisor


def open_section(path: str, labels: bool) -> TiffSection | PictureSection:
    """Return a section whose header was read.

    Raises
    ------
    InputError
        If the file is incomplete, or not one picture of one channel.
    """
    return _open_tiff(path, labels) if classify_section_name(path) == "TIFF" else _open_picture(path, labels)


def _open_tiff(path: str, labels: bool) -> TiffSection:
    """Open a TIFF; of its metadata only voxel size and place count, not the files of which OME-XML says it is one."""
    try:
        file = open_tiff_file(path)
    except OSError as error:
        raise InputError(f"{path} is not a complete TIFF file: {error}") from error
    with file:
        broken = count_whole_pages(file)[1]
        if broken:
            raise incomplete_error(path, 0, 1, broken)
        frame = file.pages.first
        num_pages = sum(not getattr(page, "is_reduced", False) for page in file.pages) * frame.shaped[1]
        if num_pages > 1:
            raise InputError(
                f"{path} holds {num_pages} pages; a section is a file of one page; a stack is opened by itself"
            )
        page = Page.of(frame)
        if not page.is_complete:
            raise incomplete_error(path, 0, 1, "its pixels are not all in the file")
        rule, note = choose_grey_rule(pixel_format(frame), labels, path)
        size = tiff_voxel_size(file)
        chunk, is_decoded_whole = page_chunk(page)
        header = SectionHeader(
            path=path,
            shape=frame.shaped[2:4],
            dtype=rule.dtype(frame.dtype),
            rule=rule,
            note=note or orientation_note(frame, path) or _axes_note(file, path),
            chunk=chunk,
            is_decoded_whole=is_decoded_whole,
            codec="" if page.mapped_offset is not None else codec_name(frame),
            voxel_size=size,
            place=tiff_place(file, size and size.size_nm),
        )
        return TiffSection(header, page)


def _axes_note(file: tifffile.TiffFile, path: str) -> str | None:
    """Return a line about a section whose rows are x, as tifffile's metadata say."""
    axes = "".join(str(metadata.get("axes", "")) for metadata in file.shaped_metadata or ()).upper()
    if axes.replace("S", "")[-2:] != "XY":
        return None
    return f"{path}: it states the axes {axes}; its rows are read as y, its columns as x, unless ?axes=zxy turns them"


def _open_picture(path: str, labels: bool) -> PictureSection:
    bits, colour = _png_header(path)
    with _open_image(path) as image:
        if image.mode not in DTYPES or (bits == 16 and colour != GREY):
            what = f"{bits} bits a value" if bits == 16 else f"pixels of the kind {image.mode}"
            raise InputError(f"{path} has {what}; a section holds grey levels, or labels, in one channel")
        if (num_frames := getattr(image, "n_frames", 1)) > 1:
            raise InputError(f"{path} holds {num_frames} pictures; in a folder of sections each file is one section")
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3).T if image.mode == "P" else None
        dtype, photometric = np.dtype(DTYPES[image.mode]), PHOTOMETRIC.get(image.mode, "minisblack")
        pixels = PixelFormat(photometric, len(image.getbands()), dtype, 8 * dtype.itemsize, palette)
        rule, note = choose_grey_rule(pixels, labels, path)
        note = note or _exif_note(image, path)
        shape = image.height, image.width
    header = SectionHeader(path, shape, rule.dtype(dtype), rule, note, (1, PIECE, PIECE), True)
    return PictureSection(header, dtype, {2: 85, 4: 17}.get(bits, 1) if labels and colour == GREY else 1)


def _exif_note(image: Image.Image, path: str) -> str | None:
    """Return a line about an orientation that EXIF states, which is not applied."""
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    stated = exif.get(ORIENTATION, 1)
    return None if stated == 1 else turned_note(stated, path)


def _open_image(path: str) -> Image.Image:
    """Open a file with Pillow; an InputError if it is of another kind."""
    lift_pixel_limit()
    try:
        return Image.open(path, formats=["PNG", "JPEG"])
    except Image.UnidentifiedImageError:
        raise InputError(f"{path} is not a complete PNG or JPEG file") from None


def _png_header(path: str) -> tuple[int, int]:
    """Return bits a value and colour type of a PNG file, 8 and 0 for other files; InputError if its end is missing."""
    with open(path, "rb") as file:
        header = file.read(26)
        if header[:8] != PNG_SIGNATURE or len(header) < 26:
            return 8, GREY
        file.seek(-12, os.SEEK_END)
        if file.read(12)[4:8] == b"IEND":
            return header[24], header[25]
        file.seek(8)
        while (start := file.read(8))[4:] != b"IEND":
            if len(start) < 8:
                size = os.path.getsize(path)
                raise InputError(f"{path} is incomplete: it breaks off after {size} bytes. Copy it again")
            file.seek(struct.unpack(">I", start[:4])[0] + 4, 1)
    return header[24], header[25]
