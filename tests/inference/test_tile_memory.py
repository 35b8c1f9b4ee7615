"""The memory that a network takes, measured on small tiles."""

from kasthuri_ray.inference.tile_memory import activation_bytes_per_voxel, measure_activations
from kasthuri_ray.models.unet import UNet


def test_activations_are_measured_at_their_peak():
    network = UNet(start_filters=8, n_blocks=1, normalization="none", classes=2).eval()
    live_bytes, largest = measure_activations(network, "float32", 2)
    # Image, first convolution, its activation, second convolution: 1 + 8 + 8 (+ 8) numbers of 4 bytes.
    assert 4 * 16 <= live_bytes <= 4 * 26
    assert largest == 8
    assert activation_bytes_per_voxel(network, "float32", 2) == live_bytes
    bf16_bytes, _ = measure_activations(network, "bf16", 2)
    assert bf16_bytes < 0.7 * live_bytes
