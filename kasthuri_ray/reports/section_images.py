"""Images of example sections: the image, the truth, the prediction, and the errors in colours over the image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.class_map import classes_at

Rgb = tuple[int, int, int]

# After Okabe and Ito (Color Universal Design, 2008), the vermilion a little brighter: distinct for every kind of colour
# vision, and by brightness alone on a grey print.
FOUND_COLOUR: Rgb = (86, 180, 233)
MISSED_COLOUR: Rgb = (240, 98, 24)
WRONG_COLOUR: Rgb = (240, 228, 66)
# Colour, outcome of a voxel, name of the colour.
LEGEND = (
    (FOUND_COLOUR, "found", "blue"),
    (MISSED_COLOUR, "missed", "orange"),
    (WRONG_COLOUR, "wrongly marked", "yellow"),
)

# Of several classes: none is the colour of an outcome but the last; the first four after Okabe and Ito as well.
CLASS_COLOURS: tuple[Rgb, ...] = (
    *((230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (148, 103, 189), (140, 86, 75), (86, 180, 233)),
)
HATCH_COLOUR: Rgb = (150, 150, 150)
HATCH_PERIOD, HATCH_WIDTH = 10, 2  # pixels along x

OPACITY = 0.8  # of a tint: the image stays visible below it

NUM_EXAMPLES = 6  # sections or tiles on a page


@dataclass
class SectionResult:
    """One section, or a part of one, with its annotation and its prediction.

    Parameters
    ----------
    z : int
        Index of the section in the volume.
    image : numpy.ndarray of uint8, shape (y, x)
        Grey levels.
    truth : numpy.ndarray of uint8, shape (y, x), or None
        Class of each pixel, 255 where it is ignored; None without an annotation.
    probability : numpy.ndarray, shape (classes - 1, y, x)
        Probability of class 1, 2, ..., float from 0 to 1 or uint8 from 0 to 255.
    thresholds : sequence of float
        Probability from which a pixel can be of each of these classes, 0 to 1.
    box : str
        The voxels that are shown, z,y,x, for the caption.
    """

    z: int
    image: np.ndarray
    truth: np.ndarray | None
    probability: np.ndarray
    thresholds: Sequence[float]
    box: str = ""

    @cached_property
    def predicted(self) -> np.ndarray:
        """Class of each pixel at the thresholds, uint8 [y, x]."""
        return classes_at(self.probability, self.thresholds)

    @cached_property
    def outcomes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(found, missed, wrong), disjoint booleans [y, x]; all False without a truth.

        A pixel of a class that is predicted as another class is shown as wrong.
        """
        if self.truth is None:
            nowhere = np.zeros(self.predicted.shape, bool)
            return nowhere, nowhere, nowhere
        kept = self.truth != IGNORE_LABEL
        marked, true = self.predicted > 0, (self.truth > 0) & kept
        found = true & (self.predicted == self.truth)
        return found, true & ~marked, marked & ~found & kept

    @cached_property
    def num_outcomes(self) -> tuple[int, int, int]:
        """Numbers of pixels that are found, missed and wrong: one that is predicted as another class is both."""
        found, missed, wrong = (int(mask.sum()) for mask in self.outcomes)
        if self.truth is not None:
            missed = int(((self.truth > 0) & (self.truth != IGNORE_LABEL)).sum()) - found
        return found, missed, wrong

    @property
    def is_hatched(self) -> bool:
        """Whether pixels are ignored, which the pictures hatch."""
        return self.truth is not None and bool((self.truth == IGNORE_LABEL).any())

    @property
    def f1(self) -> float | None:
        """F1 of the pixels; None without a truth, or if truth and prediction hold no foreground."""
        found, missed, wrong = self.num_outcomes
        return 2 * found / (2 * found + missed + wrong) if found + missed + wrong else None

    def panels(self) -> dict[str, np.ndarray]:
        """Return the pictures to show, in order, uint8 [y, x, 3]: image, truth, prediction, errors.

        Without a truth there are no truth and no errors. Pixels that are ignored are hatched.
        """
        panels = {"image": grey_to_rgb(self.image)}
        colours = class_colours(len(self.probability))
        if self.truth is not None:
            masks = (self.truth == number for number in range(1, len(colours) + 1))
            panels["truth"] = hatch(tint(self.image, *zip(colours, masks, strict=True)), self.truth == IGNORE_LABEL)
        panels["prediction"] = tint(self.image, *zip(colours, self._shares(), strict=True))
        if self.truth is not None:
            errors = ((colour, mask) for (colour, _, _), mask in zip(LEGEND, self.outcomes, strict=True))
            panels["errors"] = hatch(tint(self.image, *errors), self.truth == IGNORE_LABEL)
        return panels

    def _shares(self) -> np.ndarray:
        """Return the probability of the most probable class of each pixel, 0 for the others: float32 [c, y, x]."""
        scale = 255 if np.issubdtype(self.probability.dtype, np.integer) else 1
        is_highest = self.probability.argmax(0) == np.arange(len(self.probability))[:, None, None]
        return is_highest * self.probability.astype(np.float32) / scale


def class_colours(num_classes: int) -> list[Rgb]:
    """Return a colour for each of several foreground classes; that of found pixels for a single one."""
    if num_classes == 1:
        return [FOUND_COLOUR]
    return [CLASS_COLOURS[number % len(CLASS_COLOURS)] for number in range(num_classes)]


def rank_sections(sections: list[SectionResult]) -> list[tuple[SectionResult, str]]:
    """Return the sections with their rating: the best, the worst, then the others ("") by z.

    Only sections with an F1 can be best or worst, and only if at least two of them differ.
    """
    scored = sorted((s for s in sections if s.f1 is not None), key=lambda s: (s.f1, -s.z))
    if len(scored) < 2 or scored[0].f1 == scored[-1].f1:
        return [(s, "") for s in sorted(sections, key=lambda s: s.z)]
    best, worst = scored[-1], scored[0]
    others = sorted((s for s in sections if s is not best and s is not worst), key=lambda s: s.z)
    return [(best, "best"), (worst, "worst"), *((s, "") for s in others)]


def hatch(panel: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a picture, uint8 [y, x, 3], with diagonal lines over the pixels of a mask."""
    if not mask.any():
        return panel
    diagonal = np.arange(mask.shape[0])[:, None] + np.arange(mask.shape[1])
    lines = mask & (diagonal % HATCH_PERIOD < HATCH_WIDTH)
    hatched = panel.copy()
    hatched[lines] = HATCH_COLOUR
    return hatched


def encode_jpeg(panel: np.ndarray, max_side: int) -> bytes:
    """Return `panel` (uint8 [y, x, 3]) as JPEG, scaled down if its longer side has more than `max_side` pixels."""
    picture = Image.fromarray(panel)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    if (panel == panel[..., :1]).all():
        picture = picture.convert("L")
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80, subsampling=0)  # optimize=True fails on pure noise
    return out.getvalue()


def grey_to_rgb(image: np.ndarray) -> np.ndarray:
    """Return grey levels [y, x] as a picture, uint8 [y, x, 3]."""
    return np.repeat(image[..., None], 3, axis=2).astype(np.uint8)


def tint(image: np.ndarray, *tints: tuple[Rgb, np.ndarray]) -> np.ndarray:
    """Return the image with each colour over it, where its mask is True or by the mask's share of the opacity."""
    # Less contrast than in the image: every tint is visible on black and on white.
    out = 30 + 0.48 * grey_to_rgb(image).astype(np.float32)
    for colour, mask in tints:
        alpha = (OPACITY * mask.astype(np.float32))[..., None]
        out = out * (1 - alpha) + np.asarray(colour, np.float32) * alpha
    return np.rint(out).astype(np.uint8)


def choose_examples(
    found: np.ndarray, missed: np.ndarray, wrong: np.ndarray, num_examples: int = NUM_EXAMPLES
) -> np.ndarray:
    """Return which pictures to show: the worst, the best, and an even choice between them.

    Pictures with less than half of the mean foreground are left out: an object that only touches a picture says little.

    Parameters
    ----------
    found, missed, wrong : numpy.ndarray of int, shape (n,)
        Voxels of each picture by outcome: true positives, false negatives, false positives.
    num_examples : int
        Number of pictures to choose.

    Returns
    -------
    numpy.ndarray of int
        Indices of at most `num_examples` pictures, by rising F1; spread over all pictures if none holds foreground.
    """
    true = found + missed
    if not true.any():
        return choose_evenly(np.arange(len(true)), num_examples)
    shown = np.flatnonzero(true >= max(1.0, true[true > 0].mean() / 2))
    f1 = 2 * found[shown] / np.maximum(2 * found + missed + wrong, 1)[shown]
    return choose_evenly(shown[np.lexsort((shown, f1))], num_examples)


def choose_evenly(items: np.ndarray, num_items: int) -> np.ndarray:
    """Return items at even distances, among them the first and the last.

    Parameters
    ----------
    items : numpy.ndarray, shape (n,)
        What to choose from.
    num_items : int
        Number of items to choose.

    Returns
    -------
    numpy.ndarray
        At most `num_items` of the items, in their order.
    """
    return items[np.unique(np.linspace(0, len(items) - 1, min(num_items, len(items))).round().astype(int))]
