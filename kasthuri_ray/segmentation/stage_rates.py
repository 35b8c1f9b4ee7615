"""What a segmentation waits for: network, decoding, computing or writing. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

STAGES = ("network", "decoding", "computing", "writing")


@dataclass(frozen=True)
class StageRates:
    """Million voxels of the box that each stage of a segmentation gets through in a second, if it were alone.

    Parameters
    ----------
    computing : float
        All actors, with their networks.
    network : float or None
        Voxels that arrive from a remote image; None if the image is not remote or was not timed.
    decoding : float or None
        All cores; None if the format was not measured.
    writing : float or None
        All cores.
    cores : float
        Number of cores.
    shares_cores : bool
        Whether the networks run on the same cores, and not on GPUs.
    """

    computing: float
    network: float | None
    decoding: float | None
    writing: float | None
    cores: float
    shares_cores: bool

    @property
    def mvoxels_per_second(self) -> float:
        """What all stages together get through.

        Stages that share cores take the sum of their times; the network and GPUs work beside them.
        """
        on_cores = [self.decoding, self.writing, self.computing if self.shares_cores else None]
        seconds = sum(1 / rate for rate in on_cores if rate is not None)
        beside = [self.network, None if self.shares_cores else self.computing]
        limits = [rate for rate in beside if rate is not None]
        return min([*limits, 1 / seconds] if seconds else limits)

    @property
    def waits_for(self) -> str:
        """The stage that the others wait for: one of `STAGES`."""
        total = self.mvoxels_per_second
        if self.network is not None and math.isclose(self.network, total):
            return "network"
        if not self.shares_cores and math.isclose(self.computing, total):
            return "computing"
        rates = {name: getattr(self, name) for name in ("decoding", "computing", "writing")}
        if not self.shares_cores:
            del rates["computing"]
        return min((name for name in rates if rates[name] is not None), key=lambda name: rates[name])

    @property
    def cores_needed(self) -> int | None:
        """Cores that decode and write what the GPUs compute; None if the networks share the cores."""
        rates = [rate for rate in (self.decoding, self.writing) if rate is not None]
        if self.shares_cores:
            return None
        return math.ceil(self.computing * sum(self.cores / rate for rate in rates))


def describe_stages(rates: StageRates) -> str:
    """Return the rates in a line for people.

    Parameters
    ----------
    rates : StageRates
        The rates.

    Returns
    -------
    str
        Such as `it will wait for computing: decoding 310, computing 2.4, writing 400 Mvoxels/s on 2 cores`.
    """
    known = ", ".join(f"{name} {getattr(rates, name):.3g}" for name in STAGES if getattr(rates, name) is not None)
    unknown = [name for name in ("decoding", "writing") if getattr(rates, name) is None]
    text = f"it will wait for {rates.waits_for}: {known} Mvoxels/s on {rates.cores:g} cores"
    if unknown:
        text += f"; {' and '.join(unknown)} of this format {'was' if len(unknown) == 1 else 'were'} not measured"
    if rates.cores_needed is not None and rates.cores_needed > rates.cores:
        text += f"; {rates.cores_needed} cores would keep the GPUs busy"
    return text
