"""Test sections to look at: the image, the truth, the prediction, and the errors tinted over the image."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kasthuri_ray.labels import IGNORE_LABEL

Rgb = tuple[int, int, int]

# After Okabe and Ito (Color Universal Design, 2008), the red a little brighter: told apart by every kind of colour
# vision, and by their brightness alone on a grey print.
FOUND_COLOUR: Rgb = (86, 180, 233)
MISSED_COLOUR: Rgb = (240, 98, 24)
WRONG_COLOUR: Rgb = (240, 228, 66)
LEGEND = ((FOUND_COLOUR, "found", "blue"), (MISSED_COLOUR, "missed", "red"), (WRONG_COLOUR, "wrongly marked", "yellow"))

OPACITY = 0.8
"""Of a tint: what lies below it stays visible."""
NUM_EXAMPLES = 6  # pictures on a page


@dataclass
class SectionResult:
    """One section of the test box and what the network made of it.

    z: the section's index in the volume. image: uint8 [y, x]. truth: uint8 [y, x] classes, 255 ignored, or None where
    there is no annotation. probability: of the foreground, [y, x], float 0 to 1 or uint8 0 to 255. box: the box that
    it was cut from, z,y,x, for the caption.
    """

    __test__ = False  # not a class of tests, whatever its name

    z: int
    image: np.ndarray
    truth: np.ndarray | None
    probability: np.ndarray
    box: str = ""

    @property
    def chance(self) -> np.ndarray:
        """The probability as float32 0 to 1, [y, x]."""
        scale = 255 if np.issubdtype(self.probability.dtype, np.integer) else 1
        return self.probability.astype(np.float32) / scale

    def outcomes(self, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(found, missed, wrong): booleans [y, x] at p >= threshold; nowhere true without a truth."""
        called = self.chance >= threshold
        if self.truth is None:
            nothing = np.zeros(called.shape, bool)
            return nothing, nothing, nothing
        true, kept = (self.truth > 0) & (self.truth != IGNORE_LABEL), self.truth != IGNORE_LABEL
        return called & true, ~called & true, called & ~true & kept

    def f1(self, threshold: float) -> float | None:
        """F1 of the foreground, None without a truth, and where neither truth nor prediction holds foreground."""
        found, missed, wrong = (int(mask.sum()) for mask in self.outcomes(threshold))
        return 2 * found / (2 * found + missed + wrong) if found + missed + wrong else None

    def panels(self, threshold: float) -> dict[str, np.ndarray]:
        """What to show, in order: uint8 [y, x, 3] by name: image, truth, prediction, errors (truth and errors only
        where there is a truth)."""
        panels = {"image": _grey(self.image)}
        if self.truth is not None:
            true = (self.truth > 0) & (self.truth != IGNORE_LABEL)
            panels["truth"] = _tint(self.image, (FOUND_COLOUR, true))
        panels["prediction"] = _tint(self.image, (FOUND_COLOUR, self.chance))
        if self.truth is not None:
            outcomes = self.outcomes(threshold)
            panels["errors"] = _tint(
                self.image, *((colour, mask) for (colour, _, _), mask in zip(LEGEND, outcomes, strict=True))
            )
        return panels


def rank_sections(slices: list[SectionResult], threshold: float) -> list[tuple[SectionResult, str]]:
    """The slices with what to call them: the best, the worst, then the others ("") by section.

    Only sections with an F1 can be best or worst, and only when there are two of them that differ.
    """
    scored = sorted((s for s in slices if s.f1(threshold) is not None), key=lambda s: (s.f1(threshold), -s.z))
    if len(scored) < 2 or scored[0].f1(threshold) == scored[-1].f1(threshold):
        return [(s, "") for s in sorted(slices, key=lambda s: s.z)]
    best, worst = scored[-1], scored[0]
    others = sorted((s for s in slices if s is not best and s is not worst), key=lambda s: s.z)
    return [(best, "best"), (worst, "worst"), *((s, "") for s in others)]


def encode_jpeg(panel: np.ndarray, side: int) -> bytes:
    """`panel` (uint8 [y, x, 3]) as JPEG, made smaller where its longer side is more than `side` pixels."""
    picture = Image.fromarray(panel)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    if (panel == panel[..., :1]).all():
        picture = picture.convert("L")
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80, subsampling=0)  # optimize=True fails on pure noise
    return out.getvalue()


def _grey(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, axis=2).astype(np.uint8)


def _tint(image: np.ndarray, *tints: tuple[Rgb, np.ndarray]) -> np.ndarray:
    """The image with each colour laid over it where its mask (boolean, or a share of the opacity) says so."""
    out = 30 + 0.48 * _grey(image).astype(np.float32)  # duller than the image: every tint is seen on black and on white
    for colour, mask in tints:
        alpha = (OPACITY * mask.astype(np.float32))[..., None]
        out = out * (1 - alpha) + np.asarray(colour, np.float32) * alpha
    return np.rint(out).astype(np.uint8)


def choose_examples(found: np.ndarray, missed: np.ndarray, wrong: np.ndarray, most: int = NUM_EXAMPLES) -> np.ndarray:
    """Return which of several pictures to show: the worst, the best, and evenly those between.

    A picture that a foreground object only touches (less than half of the mean foreground) says little and is left out.

    Parameters
    ----------
    found, missed, wrong : numpy.ndarray of int, shape (n,)
        Voxels of each picture.
    most : int
        Number of pictures to choose.

    Returns
    -------
    numpy.ndarray of int
        Indices of at most `most` pictures, by rising F1; evenly over all of them where none holds foreground.
    """
    true = found + missed
    if not true.any():
        return choose_evenly(np.arange(len(true)), most)
    shown = np.flatnonzero(true >= max(1.0, true[true > 0].mean() / 2))
    f1 = 2 * found[shown] / np.maximum(2 * found + missed + wrong, 1)[shown]
    return choose_evenly(shown[np.lexsort((shown, f1))], most)


def choose_evenly(items: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the items, the first and the last among them, at even distances."""
    return items[np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))]
