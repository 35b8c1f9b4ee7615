"""What the tests of augmentation and of its transforms share."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`make_batch(dim, num_tiles, size)`: smooth random images, with labels where they are bright.

    Any change of place moves image and label together.
    """

    def make(dim: int, num_tiles: int = 6, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
        coarse = torch.rand(num_tiles, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        images = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
        images = images.clamp(0, 1)[:, : 4 if dim == 3 else 1]
        labels = (images > 0.5).to(torch.uint8)
        return (images[:, None], labels) if dim == 3 else (images, labels[:, 0])

    return make
