"""The class of each voxel, from the probabilities of the classes and a threshold for each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def classes_at(probability: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return the class of each voxel.

    Parameters
    ----------
    probability : ndarray of uint8 or float, (classes - 1, ...)
        Probability of class 1, 2, ...; uint8 255 is 1.
    thresholds : sequence of float
        A voxel can be of a class from this probability on; one for each of these classes.

    Returns
    -------
    ndarray of uint8, (...)
        The most probable of the classes that reach their thresholds, the first of equal ones; 0 if none does.
    """
    classes = np.zeros(probability.shape[1:], np.uint8)
    highest = None  # probability of the class so far, only needed for a second class
    for number, (of_class, threshold) in enumerate(zip(probability, thresholds, strict=True), start=1):
        reached = of_class >= (lowest_value(threshold) if of_class.dtype == np.uint8 else threshold)
        if highest is None:
            classes, highest = reached.view(np.uint8), of_class
            continue
        chosen = reached & ((classes == 0) | (of_class > highest))
        classes[chosen] = number
        highest = np.where(chosen, of_class, highest)
    return classes


def lowest_value(threshold: float) -> int:
    """Return the lowest byte v whose probability v / 255 is at least a threshold.

    Parameters
    ----------
    threshold : float
        Probability.

    Returns
    -------
    int
        0 to 255, or 256 if no byte reaches the threshold.
    """
    foreground = np.flatnonzero(np.arange(256) / 255 >= threshold)
    return int(foreground[0]) if foreground.size else 256
