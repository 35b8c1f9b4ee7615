"""Figures in words: plain, and never better than the figures are."""

from __future__ import annotations

import math
from dataclasses import dataclass

PLURALS = {"synapse": "synapses", "membrane": "membranes"}
PARTS = (*((n, 10) for n in range(1, 10)), (1, 4), (1, 3), (2, 3), (3, 4))
"""The shares that are easily pictured, as (so many, of so many)."""


@dataclass(frozen=True)
class Foreground:
    """What a task looks for, in words. `task_type`: synapse, membrane, or any other word."""

    task_type: str

    @property
    def name(self) -> str:
        """As in '8 of 10 synapse voxels'."""
        return self.task_type.replace("_", " ").strip() or "foreground"

    @property
    def many(self) -> str:
        return PLURALS.get(self.name, self.name)

    def fraction(self, share: float) -> str:
        """The beginning of a sentence: 'The membrane fraction is 21.3%', 'Synapses are 0.72% of them'."""
        if self.name in ("synapse", "membrane"):
            return (
                f"The membrane fraction is {percent(share)}"
                if self.name == "membrane"
                else f"Synapses are {percent(share)} of them"
            )
        return f"The share of {self.name} is {percent(share)}"


def percent(share: float) -> str:
    """A share as a percentage; one more digit where it is small."""
    return f"{share:.1%}" if share == 0 or share >= 0.01 else f"{share:.2%}"


def share_words(share: float) -> str:
    """A share to picture: 'about 8 of 10', 'about 2 of 3', '97 of 100'; 'all' and 'none' are said of 1 and 0 alone."""
    if share in (0, 1):
        return "all" if share else "none"
    if not 0.005 <= share < 0.995:
        return "fewer than 1 of 100" if share < 0.5 else "more than 99 of 100"
    if not 0.09 <= share <= 0.92:
        return f"{round(100 * share)} of 100"
    part, of = min(PARTS, key=lambda pair: abs(pair[0] / pair[1] - share))
    return f"about {part} of {of}"


def duration(seconds: float) -> str:
    """'45 seconds', '12 minutes', '3.4 hours'."""
    if seconds < 90:
        return f"{max(1, round(seconds))} second{'s' * (round(seconds) > 1)}"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def bar_length_nm(width_nm: float) -> float:
    """The length of a scale bar for a picture `width_nm` wide: 1, 2 or 5 times a power of ten, at most a quarter."""
    power = 10.0 ** math.floor(math.log10(width_nm / 4))
    return max(step * power for step in (1, 2, 5) if step * power <= width_nm / 4)
