"""Object settings that were chosen for a network, on what they rest, and the score cut for a wanted precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kasthuri_ray.metrics.object_settings import ObjectSettings

MIN_OBJECTS = 10  # of val, on which settings can be chosen
SHOWN_PRECISIONS = (0.8, 0.9, 0.95)  # for which the page says what they cost


@dataclass(frozen=True)
class ClassChoice:
    """What the object settings of a class rest on.

    Parameters
    ----------
    source : str
        "val" if they were chosen there; "annotation" if the smallest size follows from the annotation of the training
        boxes; "threshold" if there is nothing to follow from.
    num_true : int
        Objects of the annotation of val.
    num_annotated : int
        Whole objects of the training boxes from which a smallest size followed.
    scores : sequence of float
        Score of each object that is found in val.
    verdicts : sequence of bool
        Whether it overlaps a true object that no other one is matched to.
    """

    source: str
    num_true: int
    num_annotated: int = 0
    scores: Sequence[float] = ()
    verdicts: Sequence[bool] = ()

    @property
    def outcome(self) -> dict[str, float]:
        """Precision, recall and F1 of all objects that are found in val."""
        return self._outcome(len(self.verdicts), sum(self.verdicts))

    def _outcome(self, num_found: int, num_right: int) -> dict[str, float]:
        total = num_found + self.num_true
        return {
            "precision": num_right / num_found if num_found else 0.0,
            "recall": num_right / self.num_true if self.num_true else 0.0,
            "f1": 2 * num_right / total if total else 0.0,
        }

    def cut_at(self, precision: float) -> dict[str, float] | None:
        """Return the lowest score from which on objects have a precision.

        Parameters
        ----------
        precision : float
            Smallest share of right ones among the objects of val with at least this score.

        Returns
        -------
        dict or None
            `min_score`, and `precision`, `recall` and `f1` on val; None if no score reaches the precision.
        """
        scores, verdicts = np.array(self.scores, float), np.array(self.verdicts, bool)
        order = np.argsort(-scores, kind="stable")
        scores, num_right = scores[order], np.cumsum(verdicts[order])
        is_last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # of equal scores
        reached = np.flatnonzero(is_last & (num_right >= precision * np.arange(1, len(scores) + 1)))
        if not len(reached):
            return None
        last = int(reached[-1])
        return {"min_score": float(scores[last]), **self._outcome(last + 1, int(num_right[last]))}

    @property
    def highest_precision(self) -> float:
        """The highest precision that any score reaches on val."""
        shares = (self.cut_at(share) for share in sorted({*np.linspace(0, 1, 101).tolist()}, reverse=True))
        return next((found["precision"] for found in shares if found is not None), 0.0)


@dataclass(frozen=True)
class ObjectChoice:
    """Object settings of a network.

    Parameters
    ----------
    settings : ObjectSettings
        The settings.
    classes : mapping
        What they rest on, for each class with objects, by its name.
    numbers : mapping
        Number of each of these classes, from 1.
    voxel_size_nm : sequence of float or None
        Of val, z, y, x.
    """

    settings: ObjectSettings
    classes: Mapping[str, ClassChoice]
    numbers: Mapping[str, int]
    voxel_size_nm: Sequence[float] | None = None

    @classmethod
    def from_plain(cls, record: Mapping[str, Any] | None) -> ObjectChoice | None:
        """Return what `to_plain` returned; None for None."""
        if record is None:
            return None
        classes = {name: ClassChoice(**choice) for name, choice in record["classes"].items()}
        return cls(ObjectSettings(**record["settings"]), classes, record["numbers"], record["voxel_size_nm"])

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        size = self.voxel_size_nm
        return {
            "settings": self.settings.to_plain(),
            "classes": {name: _plain_choice(choice) for name, choice in self.classes.items()},
            "numbers": dict(self.numbers),
            "voxel_size_nm": None if size is None else list(size),
        }

    def to_metrics(self) -> dict[str, Any]:
        """Return what metrics.json and the page say."""
        settings, rows = self.settings, dict[str, Any]()
        for name, choice in self.classes.items():
            index = self.numbers[name] - 1
            rows[name] = {
                "seed": settings.seed[index],
                "extent": settings.extent[index],
                "min_size_nm3" if settings.is_nm3 else "min_size_voxels": settings.min_size[index],
                "chosen_from": choice.source,
                "num_val": choice.num_true,
                "num_annotated": choice.num_annotated,
                "val": choice.outcome,
                "at_precision": {f"{share:g}": choice.cut_at(share) for share in SHOWN_PRECISIONS},
            }
        return rows

    def at_precision(self, precision: float) -> ObjectSettings:
        """Return the settings with the score cut of each class that reaches a precision on val.

        Parameters
        ----------
        precision : float
            Smallest share of right objects.

        Returns
        -------
        ObjectSettings
            With `min_score`.

        Raises
        ------
        ValueError
            If the objects of a class do not reach it; the message says what they reach.
        """
        min_score = list(self.settings.min_score)
        for name, choice in self.classes.items():
            found = choice.cut_at(precision)
            if found is None:
                raise ValueError(
                    f"the {len(choice.scores)} objects of the class {name} that were found in val reach at most a "
                    f"precision of {math.floor(100 * choice.highest_precision) / 100:g}"
                )
            min_score[self.numbers[name] - 1] = found["min_score"]
        return replace(self.settings, min_score=tuple(min_score))


def _plain_choice(choice: ClassChoice) -> dict[str, Any]:
    return {
        "source": choice.source,
        "num_true": choice.num_true,
        "num_annotated": choice.num_annotated,
        "scores": [float(score) for score in choice.scores],
        "verdicts": [bool(verdict) for verdict in choice.verdicts],
    }
