"""Page of a volume: what was understood of an image and of its annotation, with sections of both, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.reports.examples import Panel, make_panel, make_scale_bar
from kasthuri_ray.reports.rendering import render, view_steps
from kasthuri_ray.reports.section_images import FOUND_COLOUR, WRONG_COLOUR, grey_to_rgb, tint

PAGE_MARK = '<meta name="generator" content="kasthuri_ray, page of a volume">'  # in every such page, and in no other
PICTURE_PIXELS = 800  # longest side
NO_IMAGE_GREY = 128  # below an annotation that is shown alone

Table = tuple[str, Sequence[tuple[str, str]]]  # caption, and rows of name and value


@dataclass(frozen=True)
class ShownSection:
    """One section, or a part of one.

    Parameters
    ----------
    z : int
        Index of the section in its volume.
    box : str
        The voxels that are shown, z,y,x.
    volume : str
        Whose voxels the box counts: image or annotation.
    image : ndarray of uint8, shape (y, x), or None
        Grey levels; None for an annotation that is shown alone.
    classes : ndarray of uint8, shape (y, x), or None
        Class of each voxel, 255 where it is ignored; None without an annotation.
    """

    z: int
    box: str
    volume: str
    image: np.ndarray | None
    classes: np.ndarray | None

    def pictures(self) -> dict[str, np.ndarray]:
        """Return the pictures to show, in order: the image, and the annotation over it."""
        pictures = {} if self.image is None else {"image": grey_to_rgb(self.image)}
        if self.classes is not None:
            below = np.full(self.classes.shape, NO_IMAGE_GREY, np.uint8) if self.image is None else self.image
            ignored = self.classes == IGNORE_LABEL
            pictures["annotation"] = tint(below, (FOUND_COLOUR, (self.classes > 0) & ~ignored), (WRONG_COLOUR, ignored))
        return pictures


@dataclass
class VolumeReport:
    """What the page of a volume shows.

    Parameters
    ----------
    name : str
        Name of the image.
    headline : str
        The outcome in a sentence.
    tables : sequence of (str, rows)
        What was understood, by volume.
    problems : sequence of str
        What has to be corrected before the volumes can be used.
    notes : sequence of str
        What a person should know.
    sections : sequence of ShownSection
        Sections, or parts of them.
    pixel_size_nm : tuple of float, optional
        (y, x) for a scale bar, in nm; None draws none.
    task_type : str
        What the title names.
    view_flags : sequence of str
        Flags of jobs/view.py that show the volume; none without a command.
    """

    name: str
    headline: str
    tables: Sequence[Table]
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    sections: Sequence[ShownSection] = ()
    pixel_size_nm: tuple[float, float] | None = None
    task_type: str = "volume"
    view_flags: Sequence[str] = ()

    def lines(self) -> list[str]:
        """Return the same as text, for a terminal."""
        width = max(len(name) for _, rows in self.tables for name, _ in rows)
        lines = []
        for caption, rows in self.tables:
            lines += [caption, *(f"  {name:{width}}  {value}" for name, value in rows)]
        return [*lines, *(f"note  {note}" for note in self.notes), *(f"fix   {problem}" for problem in self.problems)]


def volume_page(report: VolumeReport) -> str:
    """Return the page as HTML: one file with everything in it and no links.

    Parameters
    ----------
    report : VolumeReport
        What to show.

    Returns
    -------
    str
        A whole HTML document.
    """
    return render(
        "volume.html.jinja",
        report,
        page_mark=PAGE_MARK,
        shown=[(section, _make_panels(section, report.pixel_size_nm)) for section in report.sections],
        has_ignored=any(s.classes is not None and (s.classes == IGNORE_LABEL).any() for s in report.sections),
        colours={"foreground": FOUND_COLOUR, "ignored": WRONG_COLOUR},
        next_steps=view_steps(*report.view_flags),
        settings={},
    )


def _make_panels(section: ShownSection, pixel_size_nm: tuple[float, float] | None) -> list[Panel]:
    pictures = section.pictures()
    width = next(iter(pictures.values())).shape[1]
    scale_bar = None if pixel_size_nm is None else make_scale_bar(width * pixel_size_nm[1])
    return [make_panel(name, pixels, PICTURE_PIXELS, scale_bar) for name, pixels in pictures.items()]
