"""Ray Train's setup of a single worker: it needs no process group, and where it is set up no torch.

The process that Ray Train controls the workers from imports this module, so nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray.train.backend import BackendConfig


@dataclass
class SingleWorkerConfig(BackendConfig):
    """A setup that does nothing, in place of Ray's `TorchConfig`.

    Parameters
    ----------
    backend : str
        What `TorchTrainer` would choose: the library by which ranks exchange gradients.
    """

    backend: str = "none"
