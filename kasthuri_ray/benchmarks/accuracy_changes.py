"""How a trained network of the accuracy study finds its test box again in an image that is changed.

The network, its threshold and its object settings stay as they are. What changes is what differs between microscopes:
contrast, brightness, blur, noise, and the size of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from kasthuri_ray.geometry import Box, per_axis

WHITE = 255.0


@dataclass(frozen=True)
class ImageChange:
    """A change of an image.

    Parameters
    ----------
    change : callable
        Takes and returns grey levels, float32 z, y, x, from 0 to 255.
    zoom : float
        Factor by which y and x are enlarged afterwards: pixels are smaller by it.
    """

    change: Callable[[np.ndarray], np.ndarray] = lambda image: image
    zoom: float = 1.0

    def image(self, image: np.ndarray) -> np.ndarray:
        """Return the changed image, uint8."""
        changed = self.change(image.astype(np.float32)).clip(0, WHITE)
        return np.rint(_resize(changed, self.zoom, "bilinear")).astype(np.uint8)

    def truth(self, truth: np.ndarray) -> np.ndarray:
        """Return the annotation of the changed image."""
        return _resize(truth, self.zoom, "nearest-exact")

    def box(self, box: Box) -> Box:
        """Return where a box is in the changed image."""
        scale = (1.0, self.zoom, self.zoom)
        return Box(*(per_axis(lambda n, factor: round(n * factor), corner, scale) for corner in (box.start, box.stop)))


def _resize(array: np.ndarray, zoom: float, mode: str) -> np.ndarray:
    if zoom == 1:
        return array
    size = [round(n * zoom) for n in array.shape[1:]]
    tensor = torch.from_numpy(array)[:, None].float()
    antialias = {"antialias": True} if mode == "bilinear" else {}
    return interpolate(tensor, size, mode=mode, **antialias)[:, 0].numpy().astype(array.dtype)


def _scale_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    mean = image.mean()
    return mean + factor * (image - mean)


def _shift(image: np.ndarray, levels: float) -> np.ndarray:
    return image + levels


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(image, (0, sigma, sigma))


def _add_noise(image: np.ndarray, sigma: float) -> np.ndarray:
    return image + np.random.default_rng(0).normal(0, sigma, image.shape).astype(np.float32)


def _bend(image: np.ndarray, exponent: float) -> np.ndarray:
    return WHITE * (image / WHITE) ** exponent


CHANGES = {
    "none": ImageChange(),
    "contrast 0.6": ImageChange(partial(_scale_contrast, factor=0.6)),
    "contrast 0.8": ImageChange(partial(_scale_contrast, factor=0.8)),
    "contrast 1.3": ImageChange(partial(_scale_contrast, factor=1.3)),
    "brightness -30": ImageChange(partial(_shift, levels=-30)),
    "brightness +30": ImageChange(partial(_shift, levels=30)),
    "gamma 0.7": ImageChange(partial(_bend, exponent=0.7)),
    "gamma 1.4": ImageChange(partial(_bend, exponent=1.4)),
    "blur 1": ImageChange(partial(_blur, sigma=1.0)),
    "blur 1.5": ImageChange(partial(_blur, sigma=1.5)),
    "noise 10": ImageChange(partial(_add_noise, sigma=10)),
    "noise 20": ImageChange(partial(_add_noise, sigma=20)),
    "zoom 0.75": ImageChange(zoom=0.75),
    "zoom 0.87": ImageChange(zoom=0.87),
    "zoom 1.15": ImageChange(zoom=1.15),
    "zoom 1.33": ImageChange(zoom=1.33),
}
