"""What became of each true and each predicted object, and the scores of objects that follow from it.

The outcomes of several boxes, classes or folds are pooled before they are scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kasthuri_ray.metrics.matching import MATCHING_IOU
from kasthuri_ray.metrics.object_intervals import OutcomeUnits
from kasthuri_ray.metrics.one_to_one import FREE

CRITERIA = ("overlap", "iou", "centroid")
RANKED_BY = "overlap"  # the criterion of `average_precision`


@dataclass(frozen=True, eq=False)
class ObjectOutcomes:
    """The true and the predicted objects of a class, or of several together, and their partners.

    Parameters
    ----------
    partners : mapping of str to ndarray of int64, (true objects,)
        For each criterion the predicted object that is the partner of each true one, counted from 0, or FREE.
    scores : ndarray of float, (predicted objects,)
        Their mean probability.
    true_is_cut, predicted_is_cut : ndarray of bool
        Whether they touch a face of the box.
    is_small : ndarray of bool, (predicted objects,)
        Whether they have fewer than `matching.SMALL_VOXELS` voxels.
    centroid_radius_nm : float or None
        Of the criterion `centroid`; None without a voxel size, and then without that criterion.
    """

    partners: Mapping[str, np.ndarray]
    scores: np.ndarray
    true_is_cut: np.ndarray
    predicted_is_cut: np.ndarray
    is_small: np.ndarray
    centroid_radius_nm: float | None = None

    def is_found(self, criterion: str) -> np.ndarray:
        """Return which true objects have a partner; bool, (true objects,)."""
        return self.partners[criterion] != FREE

    def is_right(self, criterion: str) -> np.ndarray:
        """Return which predicted objects have a partner; bool, (predicted objects,)."""
        return self.true_partners(criterion) != FREE

    def true_partners(self, criterion: str) -> np.ndarray:
        """Return the partner of each predicted object, counted from 0, or FREE."""
        partners, found = np.full(len(self.scores), FREE, np.int64), np.flatnonzero(self.is_found(criterion))
        partners[self.partners[criterion][found]] = found
        return partners

    def units(self, criterion: str, only_whole: bool) -> OutcomeUnits:
        """Return the outcomes by one criterion, of all objects or of those that are not cut."""
        left_out = self.true_is_cut & only_whole, self.predicted_is_cut & only_whole
        return OutcomeUnits.of(self.partners[criterion], self.scores, *(~each for each in left_out))


def pool_outcomes(parts: Iterable[ObjectOutcomes]) -> ObjectOutcomes:
    """Return the outcomes of several boxes or classes together.

    Parameters
    ----------
    parts : iterable of ObjectOutcomes
        At least one. A criterion that one of them lacks is left out.

    Returns
    -------
    ObjectOutcomes
        Their objects one after another.
    """
    pooled, *others = parts
    for other in others:
        shift = len(pooled.scores)
        names = [name for name in pooled.partners if name in other.partners]
        moved = {name: np.where(other.is_found(name), other.partners[name] + shift, FREE) for name in names}
        pooled = ObjectOutcomes(
            partners={name: np.concatenate([pooled.partners[name], moved[name]]) for name in names},
            centroid_radius_nm=pooled.centroid_radius_nm if "centroid" in names else None,
            **{
                key: np.concatenate([getattr(pooled, key), getattr(other, key)])
                for key in ("scores", "true_is_cut", "predicted_is_cut", "is_small")
            },
        )
    return pooled


def object_metrics(outcomes: ObjectOutcomes) -> dict[str, Any]:
    """Return the scores of objects, for JSON.

    Parameters
    ----------
    outcomes : ObjectOutcomes
        Of all boxes and classes that are scored together.

    Returns
    -------
    dict
        `precision`, `recall` and `f1` by IoU, `num_true`, `num_predicted`, `num_small` (predicted objects of under
        SMALL_VOXELS) and `matching_iou`; `by`, the scores by each criterion, None for one that is not known;
        `average_precision`; and `whole`, the same of the objects that touch no face of the box. 95% intervals have the
        name of their score and `_interval`.

    Notes
    -----
    `average_precision` is the sum of (R_n - R_{n-1}) P_n over the cuts of the score, from the highest to the lowest.
    Precision P_n and recall R_n are those of a maximum one-to-one matching by overlap of the objects that reach the cut
    (`one_to_one.match_one_to_one`).

    A whole object whose partner is cut counts as found, or as right: `whole` leaves objects out, and matches none anew.
    """
    return {**_metrics_of(outcomes, False), "whole": _metrics_of(outcomes, True)}


def _metrics_of(outcomes: ObjectOutcomes, only_whole: bool) -> dict[str, Any]:
    units = {name: outcomes.units(name, only_whole) for name in outcomes.partners}
    by: dict[str, Any] = {name: units[name].metrics() if name in units else None for name in CRITERIA}
    if by["centroid"] is not None:
        by["centroid"]["radius_nm"] = outcomes.centroid_radius_nm
    is_small = outcomes.is_small & ~outcomes.predicted_is_cut if only_whole else outcomes.is_small
    iou, ranked = by["iou"], units[RANKED_BY]
    return {
        **{key: iou[key] for key in ("precision", "recall", "f1")},
        "num_true": units["iou"].num_true,
        "num_predicted": units["iou"].num_predicted,
        "num_small": int(is_small.sum()),
        "matching_iou": MATCHING_IOU,
        "by": by,
        **ranked.average_precision_metrics(),
    }
