"""The criteria by which a predicted object counts as a true one: overlap, IoU, and distance of the centroids.

All are one-to-one matchings of as many objects as possible, see `one_to_one`. They differ in the candidate pairs:

- overlap: the objects share a voxel;
- iou: their intersection over union is more than a half, as in panoptic quality (Kirillov et al., CVPR 2019,
  arXiv:1801.00868). Above a half an object has at most one candidate;
- centroid: their centroids are at most so many nm apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from kasthuri_ray.config import defaults
from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.matching import MATCHING_IOU, SMALL_VOXELS, LabelPairs, label_pair_iou
from kasthuri_ray.metrics.object_outcomes import ObjectOutcomes
from kasthuri_ray.metrics.objects import ObjectTable
from kasthuri_ray.metrics.one_to_one import FREE, MatchedPairs, match_one_to_one


@dataclass(frozen=True)
class ObjectCriteria:
    """What the matching of objects needs to know of the box that is compared.

    Parameters
    ----------
    box : Box
        What is compared; `ObjectTable.is_cut` says which objects it cuts.
    voxel_size_nm : sequence of float or None
        Size of a voxel, z, y, x. Without it there is no matching by centroids.
    centroid_radius_nm : float
        Largest distance of the centroids of partners.
    """

    box: Box
    voxel_size_nm: Sequence[float] | None = None
    centroid_radius_nm: float = defaults.CENTROID_RADIUS_NM

    def judge(self, true: ObjectTable, predicted: ObjectTable, pairs: LabelPairs) -> ObjectOutcomes:
        """Match the objects of one class by each criterion.

        Parameters
        ----------
        true, predicted : ObjectTable
            The objects, with probabilities.
        pairs : LabelPairs
            Voxels that each true and each predicted object share; numbered from 1, in the order of the tables.

        Returns
        -------
        ObjectOutcomes
            The partners of the objects, and what the scores need besides.
        """
        scores = predicted.mean_probability
        shared = (pairs[0] - 1, pairs[1] - 1, pairs[2])
        iou = label_pair_iou(pairs, true.size_voxels, predicted.size_voxels)
        right = iou > MATCHING_IOU
        matched = {
            "overlap": match_one_to_one(*shared, scores),
            "iou": match_one_to_one(shared[0][right], shared[1][right], iou[right], scores),
        }
        if self.voxel_size_nm is not None:
            matched["centroid"] = self._match_centroids(true, predicted, scores)
        return ObjectOutcomes(
            partners={name: _partners(each, len(true)) for name, each in matched.items()},
            scores=scores,
            true_is_cut=true.is_cut(self.box),
            predicted_is_cut=predicted.is_cut(self.box),
            is_small=predicted.size_voxels < SMALL_VOXELS,
            centroid_radius_nm=None if self.voxel_size_nm is None else self.centroid_radius_nm,
        )

    def _match_centroids(self, true: ObjectTable, predicted: ObjectTable, scores: np.ndarray) -> MatchedPairs:
        if not len(true) or not len(predicted):
            return match_one_to_one(*(np.zeros(0, np.int64),) * 3)
        trees = (cKDTree(table.centroid * np.array(self.voxel_size_nm)) for table in (true, predicted))
        near = next(trees).sparse_distance_matrix(next(trees), self.centroid_radius_nm, output_type="ndarray")
        closeness = 2 * self.centroid_radius_nm - near["v"]  # above 0, the larger the closer
        return match_one_to_one(near["i"], near["j"], closeness, scores)


def _partners(matched: MatchedPairs, num_true: int) -> np.ndarray:
    partners = np.full(num_true, FREE, np.int64)
    partners[matched.true] = matched.predicted
    return partners
