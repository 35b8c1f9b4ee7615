"""The network that chunkflow runs in the benchmark of segmentation; chunkflow loads this file by its path.

chunkflow hands over patches of one section, [1, 1, 1, y, x], and wants probabilities of the foreground of that shape.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kasthuri_ray import hardware
from kasthuri_ray.benchmarks.predictor_processes import make_network

CPU = torch.device("cpu")


class SectionNetwork(nn.Module):
    """A 2D network on patches of one section, in a number format."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.network, self.precision = network, precision

    def forward(self, patch: Tensor) -> Tensor:
        """Return the probability of the foreground."""
        with hardware.autocast(self.precision, CPU):
            logits = self.network(patch[:, :, 0])
        return torch.softmax(logits.float(), dim=1)[:, 1:, None]


def load_model(name: str) -> nn.Module:
    """Return the network of a name such as `UNet_2D`, in the number format that suits this processor."""
    return SectionNetwork(make_network(name), hardware.RULES[hardware.processor_kind(CPU)].precision)
