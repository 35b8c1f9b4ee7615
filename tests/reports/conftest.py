"""A random prediction with its truth, a small section with known errors, and the text of a page."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest

from kasthuri_ray.metrics.object_outcomes import ObjectOutcomes, object_metrics
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.reports.section_images import SectionResult


@pytest.fixture(scope="session")
def random_prediction():
    """`random_prediction(...)` returns counts and sections of a prediction that is right for most voxels."""

    def make(threshold=0.5, num_sections=6, side=48):
        rng = np.random.default_rng(0)
        truth = (rng.random((num_sections, side, side)) < 0.1).astype(np.uint8)
        noise = rng.normal(0, 0.12, truth.shape) + np.linspace(-0.1, 0.1, num_sections)[:, None, None]
        probability = np.clip(0.3 + 0.35 * truth + noise, 0, 1)
        counts = VoxelCounts.zeros()
        counts.add(probability[None], probability >= threshold, truth)
        image = rng.integers(0, 255, truth.shape, dtype=np.uint8)
        sections = [
            SectionResult(90 + z, image[z], truth[z], probability[None, z], [threshold], f"{90 + z}:{91 + z},:,:")
            for z in range(num_sections)
        ]
        return counts, sections

    return make


@pytest.fixture(scope="session")
def make_section():
    """`make_section(...)` returns a section of 8 x 8 pixels with known outcomes.

    Column 0 is found, column 1 missed, and `num_wrong` columns from column 4 on are wrongly marked.
    """

    def make(num_wrong=0, truth=True, z=3):
        labels = np.zeros((8, 8), np.uint8)
        labels[:, :2] = 1
        probability = np.zeros((8, 8), np.float32)
        probability[:, 0] = 0.9
        probability[:, 4 : 4 + num_wrong] = 0.9
        return SectionResult(z, np.full((8, 8), 128, np.uint8), labels if truth else None, probability[None], [0.5])

    return make


@pytest.fixture(scope="session")
def page_text():
    """`page_text(page)` returns the text of an HTML page, without its styles."""

    def text(page):
        page = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
        return re.sub(r"\s+", " ", html.unescape(page))

    return text


@pytest.fixture
def make_object_metrics():
    """Return a function that makes the scores of objects, of which so many are partners by each criterion."""

    def make(num_true: int, num_predicted: int, overlapping: int = 0, alike: int = 0, centroids: int = 0):
        numbers = np.arange(num_true)
        pairs = {"overlap": overlapping, "iou": alike, "centroid": centroids}
        return object_metrics(
            ObjectOutcomes(
                partners={name: np.where(numbers < number, numbers, -1) for name, number in pairs.items()},
                scores=np.linspace(1, 0.5, num_predicted),
                true_is_cut=numbers % 2 == 0,
                predicted_is_cut=np.arange(num_predicted) % 2 == 0,
                is_small=np.zeros(num_predicted, bool),
                centroid_radius_nm=150.0,
            )
        )

    return make
