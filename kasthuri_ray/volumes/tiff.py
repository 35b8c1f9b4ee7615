"""TIFF stacks: the pages of one file, or of the files of an OME-TIFF, are the sections of a volume."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Zyx, per_axis
from kasthuri_ray.volumes.axes import ABSENT, CHANNELS, choose_axes, lengths_along
from kasthuri_ray.volumes.file_volume import FileVolume, Reader, content_id, fill_sections, local_path, volume_fields
from kasthuri_ray.volumes.grey_levels import GreyRule, choose_grey_rule
from kasthuri_ray.volumes.place import size_fields
from kasthuri_ray.volumes.tiff_directories import count_whole_pages, describe_odd_page
from kasthuri_ray.volumes.tiff_metadata import (
    calibration_note,
    incomplete_error,
    missing_ome_files,
    names_axes,
    ome_master_file,
    orientation_note,
    promised_pages,
    tiff_place,
    tiff_voxel_size,
)
from kasthuri_ray.volumes.tiff_pages import (
    Page,
    PageReader,
    choose_decoder,
    open_tiff_file,
    page_chunk,
    pixel_format,
    samples_last,
    stored_dtype,
)
from kasthuri_ray.volumes.uri_options import UriOptions
from kasthuri_ray.volumes.volume import Volume

if TYPE_CHECKING:
    import tifffile

PLANAR_ADVICE = "; if its {} planes are sections, name the axes: ?axes={}"


@dataclass(kw_only=True)
class TiffVolume(FileVolume):
    """A TIFF stack; its stored axes are the sections, the rows and the columns.

    Parameters
    ----------
    path : str
        The file, or one file of an OME-TIFF.
    rule : GreyRule
        How stored values become voxels.
    samples_are_sections : bool
        Whether the values of a pixel are its sections, as in a stack of three that was saved as red, green and blue.
    """

    path: str
    rule: GreyRule
    samples_are_sections: bool

    def _open(self) -> Reader:
        series = _complete_series(_open_series(self.path), self.uri)
        return _StackReader(series, self.rule, self.samples_are_sections).read


class _StackReader:
    """Reads a stack whose stored axes are sections, rows and columns."""

    def __init__(self, series: tifffile.TiffPageSeries, rule: GreyRule, samples_are_sections: bool) -> None:
        frame = series.keyframe
        self.rule, self.samples_are_sections = rule, samples_are_sections
        self.per_page = frame.samplesperpixel if samples_are_sections else frame.shaped[1]
        self.pages = [Page.of(page) for page in series.pages]
        self.reader = PageReader()
        self.mapped: np.ndarray | None = None  # all pages, each with samples, depth, rows, columns, samples
        if series.dataoffset is not None:
            shape = (_num_pages(series), *frame.shaped)
            self.mapped = np.memmap(self.pages[0].path, stored_dtype(frame), "r", series.dataoffset, shape)

    def read(self, ranges: tuple[slice, ...]) -> np.ndarray:
        sections, rows, columns = ranges
        if self.mapped is not None and self.mapped.shape[1] == self.mapped.shape[5] == 1:
            stack = self.mapped.reshape(-1, *self.mapped.shape[3:])
            return self.rule.apply(stack[ranges])
        numbers = range(sections.start, sections.stop)
        return fill_sections((self._read_section(z, rows, columns) for z in numbers), len(numbers))

    def _read_section(self, z: int, rows: slice, columns: slice) -> np.ndarray:
        page, part = divmod(z, self.per_page)
        depth = 0 if self.samples_are_sections else part
        if self.mapped is not None:
            values = samples_last(self.mapped[page, :, depth, rows, columns])
        else:
            values = self.reader.read(self.pages[page], depth, rows, columns)
        return values[..., part] if self.samples_are_sections else self.rule.apply(values)


def open_tiff(name: str, uri: str, options: UriOptions, labels: bool) -> Volume:
    """Open a TIFF stack; parameters and errors as of `open_file_volume`."""
    path = local_path(name, uri)
    _check_unbroken(path, uri)
    with _open_series(path) as file:
        series = _complete_series(file, uri)
        frame = series.keyframe
        axes, as_sections, axes_note = _choose_plane_axes(series, options.axes, uri)
        pixels = pixel_format(frame)
        if as_sections:
            pixels = replace(pixels, photometric="minisblack", samples=1)
        rule, grey_note = choose_grey_rule(pixels, labels, uri)
        first = Page.of(frame)
        if first.mapped_offset is None:
            choose_decoder(first)
        chunk, is_decoded_whole = page_chunk(first)
        planes = _num_pages(series) * (frame.samplesperpixel if as_sections else frame.shaped[1])
        size = tiff_voxel_size(file)
        place = tiff_place(file, size and size.size_nm)
        if options.axes and names_axes(file):
            stated = _choose_plane_axes(series, None, uri)[0]
            size, place = size and size.turned(stated, axes), place and place.turned(stated, axes)
        paths = sorted({Page.of(page).path for page in series.pages})
        notes = (axes_note, grey_note, orientation_note(frame, uri), calibration_note(file, uri))
        shape, dtype = (planes, *frame.shaped[2:4]), rule.dtype(frame.dtype)
        volume = TiffVolume(
            **volume_fields(uri, shape, axes, dtype, chunk, options),
            **size_fields(size),
            format="OME-TIFF" if file.is_ome else "ImageJ TIFF" if file.is_imagej else "TIFF stack",
            place=place,
            decode_shape=lengths_along(axes, (1, *shape[1:])) if is_decoded_whole else None,
            source_id=content_id(paths, options.axes, labels, *([] if _ends_in_yx(series) else [axes])),
            notes=tuple(note for note in notes if note),
            path=str(path),
            rule=rule,
            samples_are_sections=as_sections,
        )
        if rule.samples >= 3:
            _check_grey(volume, series)
        return volume


def _open_series(path: str | Path) -> tifffile.TiffFile:
    """Return the open file; pages that were written one by one, each with its own shape, become one stack."""
    file = open_tiff_file(path)
    try:
        is_split = len(file.series) > 1 and file.is_shaped
    except RuntimeError as error:  # of tifffile, about pages that are not alike
        raise _odd_page_error(str(path), describe_odd_page(file) or str(error)) from error
    if is_split:
        file.close()
        return open_tiff_file(path, is_shaped=False)
    return file


def _odd_page_error(uri: str, odd: str) -> InputError:
    return InputError(f"{uri}: {odd}; the pages of a stack are stored alike. Save it again, for instance with Fiji")


def _num_pages(series: tifffile.TiffPageSeries) -> int:
    return math.prod(series.shape) // math.prod(series.keyframe.shaped)


def _complete_series(file: tifffile.TiffFile, uri: str) -> tifffile.TiffPageSeries:
    """Return the stack in a file; raise an InputError with both counts if pages are missing."""
    master = ome_master_file(file)
    if master is not None:
        raise InputError(f"{uri} is one part of an OME-TIFF of several files; open the whole: {master}")
    images = [series for series in file.series if not (series.keyframe.is_reduced or series.keyframe.is_mask)]
    images = images or file.series
    if len({series.shape for series in images}) > 1:
        shapes = ", ".join(str(series.shape) for series in images[:5])
        raise InputError(f"{uri} holds {len(images)} images, shapes {shapes}; a volume is one stack of pages")
    if odd := describe_odd_page(file):
        raise _odd_page_error(uri, odd)
    if len(images) > 1:
        raise InputError(f"{uri} holds {len(images)} images of one shape; a volume is one stack of pages")
    series = images[0]
    _check_files_alike(series, uri)
    num_found, expected = _num_complete(series), max(_num_pages(series), promised_pages(file) or 0)
    if num_found < expected:
        missing = missing_ome_files(file)
        cause = f"there is no {', '.join(missing)} beside it" if missing else ""
        num_pages = 0 if missing else sum(Page.of(page).is_complete for page in file.pages)
        raise incomplete_error(uri, max(num_found, num_pages, _num_behind_first(file)), expected, cause)
    return series


def _check_files_alike(series: tifffile.TiffPageSeries, uri: str) -> None:
    """Raise an InputError if a file of an OME-TIFF of several files holds pages of another size, type or meaning."""
    frames = {id(page.keyframe): page.keyframe for page in series.pages if page is not None and page.keyframe}
    usual = _page_kind(series.keyframe)
    for frame in frames.values():
        if _page_kind(frame) != usual:
            path = frame.parent.filehandle.path
            raise InputError(f"{uri}: {path} holds pages of {_page_kind(frame)}, not of {usual}")


def _page_kind(frame: tifffile.TiffPage) -> str:
    pixels = pixel_format(frame)
    return f"{' x '.join(map(str, frame.shape))} {pixels.dtype} ({pixels.photometric})"


def _check_unbroken(path: Path, uri: str) -> None:
    """Raise an InputError with both counts, as far as they are known, if a file was cut off."""
    with open_tiff_file(path) as file:
        num_pages, cause = count_whole_pages(file)
        if cause:
            found = sum(Page.of(file.pages[number]).is_complete for number in range(num_pages))
            raise incomplete_error(uri, found, promised_pages(file) if num_pages else None, cause)


def _num_behind_first(file: tifffile.TiffFile) -> int:
    """Return how many sections of an ImageJ stack fit into the file where only the first one has a header."""
    first = file.pages.first
    if not file.is_imagej or len(file.pages) > 1 or first.compression != 1:
        return 0
    return (file.filehandle.size - first.dataoffsets[0]) // max(1, first.nbytes)


def _num_complete(series: tifffile.TiffPageSeries) -> int:
    """Return how many pages of a stack are in their files from the first byte to the last."""
    frame, pages = series.keyframe, series.pages
    if len(pages) == 1 and series.dataoffset is not None:  # one page stands for all, which follow each other
        stored = frame.parent.filehandle.size - series.dataoffset
        return min(_num_pages(series), stored // max(1, frame.nbytes))
    return sum(page is not None and Page.of(page).is_complete for page in pages)


def _choose_plane_axes(series: tifffile.TiffPageSeries, option: str | None, uri: str) -> tuple[Zyx, bool, str | None]:
    """Return which of sections, rows and columns are z, y, x, whether samples are sections, and a line about it."""
    names, shape, samples = _plane_axes(series), series.shape, series.keyframe.samplesperpixel
    as_sections = False
    if "s" in names and samples > 1:
        sample = names.index("s")
        as_sections = option is not None and len(option) == len(names) and option[sample] == "z"
        if not as_sections:
            option = option and (option[:sample] + option[sample + 1 :] if len(option) == len(names) else option)
            names, shape = names.replace("s", ""), shape[:sample] + shape[sample + 1 :]
    planes = [axis for axis, name in enumerate(names) if name not in "yx"]
    longer = [axis for axis in planes if shape[axis] > 1]
    note, stored = None, list(names)
    if option is None and len(longer) == 1:
        if names[longer[0]] in (*CHANNELS, "t"):
            note = f"{uri}: the axes are {names.upper()}, shape {tuple(shape)}; {names[longer[0]].upper()} is read as z"
        stored[longer[0]] = "z"
        stored = ["q" if name == "z" and axis != longer[0] else name for axis, name in enumerate(stored)]
    if names.count("y") != 1 or names.count("x") != 1:
        raise InputError(f"{uri} has axes {series.axes} of shape {series.shape}; a volume has axes z, y, x")
    chosen = choose_axes(shape, uri, names=stored, option=option)
    page = tuple(series.keyframe.shaped[2:4])
    kept = [axis for axis in range(len(names)) if not (as_sections and names[axis] == "s")]
    if tuple(shape[axis] for axis in kept[-2:]) != page:  # an axis of length 1, without a name, follows those of a page
        kept = [axis for axis in kept if shape[axis] > 1 or names[axis] in "yx"]
    in_page = kept[-2:]
    if sum(axis not in (*in_page, ABSENT) for axis in chosen) > 1:
        raise InputError(f"{uri}: axes={option} does not fit a TIFF with axes {series.axes}, whose pages hold two axes")
    if tuple(shape[axis] for axis in in_page) != page:
        raise InputError(f"{uri} has axes {series.axes} of shape {series.shape}, but pages of {page}; save it again")
    position = {in_page[0]: 1, in_page[1]: 2, ABSENT: ABSENT}
    return per_axis(lambda axis: position.get(axis, 0), chosen), as_sections, note


def _ends_in_yx(series: tifffile.TiffPageSeries) -> bool:
    return _plane_axes(series).replace("s", "").rstrip("q").endswith("yx")


def _plane_axes(series: tifffile.TiffPageSeries) -> str:
    """Return the names of a stack's axes, of which `s` is that of the samples, whatever the file calls it."""
    names, samples = series.axes.lower(), series.keyframe.samplesperpixel
    others = [axis for axis, name in enumerate(names) if name not in "yx" and series.shape[axis] == samples]
    if samples == 1 or "s" in names or len(others) != 1:
        return names
    return f"{names[: others[0]]}s{names[others[0] + 1 :]}"


def _check_grey(volume: TiffVolume, series: tifffile.TiffPageSeries) -> None:
    """Raise an InputError if the first, the middle or the last section has a colour where it is read first."""
    last = _num_pages(series) - 1
    rows, columns = (slice(0, length) for length in series.keyframe.shaped[2:4])
    rows = slice(0, min(rows.stop, 512))
    reader = _StackReader(series, volume.rule, False)
    for z in sorted({0, last // 2, last}):
        try:
            reader.read((slice(z, z + 1), rows, columns))
        except ValueError as error:
            advice = PLANAR_ADVICE.format(volume.rule.samples, _plane_axes(series).replace("s", "z"))
            is_flat = len(series.shape) == 3
            raise InputError(f"{volume.uri}, section {z}: {error}{advice if is_flat else ''}") from None
