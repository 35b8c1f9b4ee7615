from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from kasthuri_ray.errors import CompilationFailed, GpuMemoryTooSmall
from kasthuri_ray.geometry import Box
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.inference.predictor import VIEWS, Predictor
from kasthuri_ray.inference.tiling import ChunkGrid, VolumePart, blank_chunk_mask
from kasthuri_ray.models.folded_unet import can_fold
from kasthuri_ray.models.receptive_field import ReceptiveField, find_receptive_field
from kasthuri_ray.models.unet import UNet, load_weights

SEED = Path(__file__).parent.parent / "models" / "seed_unet"
NETWORKS = {
    "UNet_2D": {},
    "UNet_2D_attention": {"model_type": "attention"},
    "UNet_2D_residual": {"model_type": "residual"},
    "UNet_2D_depth": {"model_type": "depth"},
    "UNet_3D": {"dim": 3},
    "shallow_3D": {"dim": 3, "n_blocks": 3, "pool_z": 1},
    "tiny_3D": {"dim": 3, "n_blocks": 2},
    "attention_3D": {"dim": 3, "n_blocks": 2, "model_type": "attention"},
    "residual_3D": {"dim": 3, "n_blocks": 2, "model_type": "residual", "pool_z": 1},
    "depth_3D": {"dim": 3, "n_blocks": 2, "model_type": "depth"},
    "three_classes": {"classes": 3, "n_blocks": 3},
}
EAGER = InferenceSettings(device="cpu", precision="float32", compile=False, threads=1, tile=(1, 1, 1), batch=1)


def random_image(shape, seed=0):
    """Return blobs and noise, so that near and far voxels matter."""
    rng = np.random.default_rng(seed)
    coarse = rng.random([-(-n // 6) for n in shape])
    for axis, n in enumerate(shape):
        coarse = coarse.repeat(6, axis).take(range(n), axis)
    return np.clip(200 * coarse + 55 * rng.random(shape), 0, 255).astype(np.uint8)


def build(name):
    return UNet(start_filters=4, **NETWORKS[name])


@cache
def network_of(name):
    """Return a network of 4 filters whose probabilities span 0.01 to 0.99 over the volume of its case."""
    torch.manual_seed(0)
    network = build(name).eval()
    if (SEED / f"{name}.pt").exists():
        load_weights(network, torch.load(SEED / f"{name}.pt", weights_only=True))
    final = network.conv_final
    with torch.no_grad():
        for up in network.up_blocks:  # increase the effect of distant voxels
            up.up.weight.mul_(3)
        margin = find_receptive_field(network, network.dim).margin
        logits = one_pass(network, random_image(CASES[name][0]), margin, activation=np.asarray)
        final.weight.sub_(final.weight[:1].clone())
        final.bias.sub_(final.bias[:1].clone())
        for number, values in enumerate(logits[1:] - logits[:1], 1):
            low, high = np.quantile(values, [0.02, 0.98])
            final.weight[number].mul_(12 / (high - low))
            final.bias[number].sub_((low + high) / 2).mul_(12 / (high - low))
    return network


@cache
def receptive_field_of(name):
    return find_receptive_field(network_of(name), network_of(name).dim)


def softmax(logits):
    return torch.softmax(torch.from_numpy(np.ascontiguousarray(logits)), 0).numpy()[1:]


def logits_of(network, image, precision="float32"):
    """Return logits classes, z, y, x of grey levels z, y, x; in 2D a section is a tile."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).float().div(255)
    tensor = tensor[:, None] if network.dim == 2 else tensor[None, None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = network(tensor).float().numpy()
    return logits.swapaxes(0, 1) if network.dim == 2 else logits[0]


def one_pass(network, image, margin, precision="float32", view=(False, False, False), activation=softmax):
    """Return probabilities c, z, y, x of a whole volume: mirrored, transformed, run once, transformed back, cropped."""
    factors = (1,) * (3 - network.dim) + tuple(network.factors)
    pads = [(m, -(-(2 * m + n) // f) * f - m - n) for m, f, n in zip(margin, factors, image.shape, strict=True)]
    assert all(before % f == 0 and m <= after for (before, after), m, f in zip(pads, margin, factors, strict=True))
    axes = [axis for axis, flip in zip((-2, -1), view, strict=False) if flip]
    padded = np.flip(np.pad(image, pads, mode="reflect"), axes)
    logits = logits_of(network, padded.swapaxes(-2, -1) if view[2] else padded, precision)
    p = np.flip(activation(logits.swapaxes(-2, -1) if view[2] else logits), axes)
    return p[(slice(None), *(slice(m, m + n) for m, n in zip(margin, image.shape, strict=True)))]


@cache
def expected_of(name, precision="float32"):
    return one_pass(network_of(name), random_image(CASES[name][0]), receptive_field_of(name).margin, precision)


def blockwise(predictor, image, bounds, whole, block, halo=None):
    """Return the probabilities of `whole`, computed block by block."""
    halo = halo or predictor.margin
    result = np.full((predictor.classes - 1, *whole.shape), 255, np.uint8)
    for each in whole.cells(block, whole.start):
        box = each.grown(halo).intersect(bounds)
        voxels = image[box.slices(bounds.start)]
        result[(slice(None), *each.slices(whole.start))] = predictor.predict(VolumePart(voxels, box, bounds), each)
    return result


def difference(predicted, probabilities):
    return np.abs(predicted.astype(int) - np.rint(255 * probabilities).astype(int))


CASES = {
    # network: volume, its first voxel, the part that is segmented, block, largest tile
    "UNet_2D": ((2, 150, 83), (3, 5, 1), ((3, 5, 1), (5, 155, 84)), (2, 64, 50), (1, 160, 176)),
    "UNet_2D_attention": ((1, 90, 130), (0, 0, 0), ((0, 11, 3), (1, 90, 130)), (1, 79, 40), (1, 144, 128)),
    "UNet_2D_residual": ((1, 61, 120), (0, 3, 3), ((0, 3, 3), (1, 64, 123)), (1, 64, 64), (1, 240, 224)),
    "UNet_2D_depth": ((1, 40, 170), (9, 0, 2), ((9, 0, 2), (10, 40, 172)), (1, 40, 96), (1, 272, 288)),
    "UNet_3D": ((5, 8, 16), (2, 1, 3), ((2, 1, 3), (7, 9, 19)), (5, 8, 8), (128, 120, 120)),
    "shallow_3D": ((5, 20, 25), (1, 2, 3), ((1, 2, 3), (6, 22, 28)), (4, 20, 16), (32, 64, 72)),
    "tiny_3D": ((7, 14, 9), (1, 2, 3), ((1, 3, 3), (7, 16, 12)), (6, 8, 9), (26, 30, 34)),
    "attention_3D": ((8, 5, 11), (1, 1, 1), ((1, 1, 2), (9, 6, 12)), (3, 5, 6), (30, 26, 28)),
    "residual_3D": ((3, 14, 9), (0, 2, 3), ((0, 3, 3), (3, 16, 12)), (2, 8, 9), (34, 44, 50)),
    "depth_3D": ((7, 9, 14), (1, 0, 0), ((1, 0, 0), (8, 9, 14)), (7, 4, 8), (32, 30, 28)),
    "three_classes": ((2, 50, 45), (0, 0, 7), ((0, 2, 7), (2, 50, 52)), (1, 25, 45), (1, 68, 80)),
}


def predictor_of(name, halo=None, **changes):
    network = network_of(name)
    settings = replace(EAGER, **{"tile": CASES[name][4]} | changes)
    return Predictor(network, network.dim, network.classes, receptive_field_of(name), settings, halo)


@pytest.mark.parametrize(
    ("name", "fold"),
    [
        pytest.param(name, fold, marks=[pytest.mark.slow] if name == "UNet_3D" else [])  # its tiles are 120 wide
        for name in CASES
        for fold in (False, True)
        if not fold or can_fold(build(name))
    ],
)
def test_blockwise_equals_one_pass_over_the_volume_and_half_the_halo_does_not(name, fold):
    shape, start, part, block, _ = CASES[name]
    bounds, whole, image = Box.at(start, shape), Box(*part), random_image(shape)
    expected = expected_of(name)[(slice(None), *whole.slices(start))]
    assert expected.min() < 0.01
    assert expected.max() > 0.99
    predicted = blockwise(predictor_of(name, fold=fold), image, bounds, whole, block)
    assert difference(predicted, expected).max() <= 1
    half = tuple(m // 2 for m in receptive_field_of(name).margin)
    assert difference(blockwise(predictor_of(name, half), image, bounds, whole, block), expected).max() > 1


@pytest.mark.parametrize(
    ("part", "block", "tile"),
    [
        (((3, 5, 1), (5, 155, 84)), (64, 512, 512), (1, 280, 200)),
        (((4, 30, 22), (5, 99, 80)), (1, 17, 40), (1, 120, 120)),
    ],
)
def test_the_shapes_of_blocks_and_tiles_do_not_matter(part, block, tile):
    shape, start, *_ = CASES["UNet_2D"]
    whole = Box(*part)
    predicted = blockwise(predictor_of("UNet_2D", tile=tile), random_image(shape), Box.at(start, shape), whole, block)
    assert difference(predicted, expected_of("UNet_2D")[(slice(None), *whole.slices(start))]).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1, 20), (1, 2, 1), (3, 7, 5)])
def test_volumes_smaller_than_a_margin_are_mirrored_repeatedly(shape):
    bounds, image = Box.at((1, 2, 3), shape), random_image(shape)
    predicted = blockwise(predictor_of("UNet_2D"), image, bounds, bounds, shape)
    assert difference(predicted, one_pass(network_of("UNet_2D"), image, (0, 56, 56))).max() <= 1


def test_bf16_blockwise_equals_bf16_in_one_pass():
    shape, start, *_ = CASES["UNet_2D"]
    bounds = Box.at(start, shape)
    predicted = blockwise(predictor_of("UNet_2D", precision="bf16"), random_image(shape), bounds, bounds, (2, 80, 83))
    differ = difference(predicted, expected_of("UNet_2D", "bf16"))
    assert (differ <= 3).mean() >= 0.999
    assert difference(predicted, expected_of("UNet_2D")).max() > 3  # it was computed in bf16


def test_batches_do_not_matter_and_the_last_one_is_filled():
    shape, start, *_ = CASES["UNet_2D"]
    bounds, num_voxels = Box.at(start, shape), []
    predictor = predictor_of("UNet_2D", batch=5, tile=(1, 192, 160))
    sizes = []
    predictor.network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    predicted = predictor.predict(VolumePart(random_image(shape), bounds, bounds), bounds, on_voxels=num_voxels.append)
    predictor.network._forward_pre_hooks.clear()
    assert difference(predicted, expected_of("UNet_2D")).max() <= 1
    num_tiles = len(predictor.tiles(bounds, bounds))
    assert num_tiles % 5 != 0
    assert len(sizes) == -(-num_tiles // 5)
    assert len(set(sizes)) == 1  # the last batch is computed like the others
    assert sum(num_voxels) == len(sizes) * math.prod(sizes[0])


@pytest.mark.parametrize("name", ["three_classes", "tiny_3D"])
def test_tta_is_the_mean_over_flips_and_transpositions(name):
    shape, start, part, block, _ = CASES[name]
    bounds, whole = Box.at(start, shape), Box(*part)
    views = [
        one_pass(network_of(name), random_image(shape), receptive_field_of(name).margin, view=view) for view in VIEWS
    ]
    assert len(set(VIEWS)) == 8
    assert all(np.abs(view - views[0]).max() > 0.05 for view in views[1:])
    predicted = blockwise(predictor_of(name, tta=True), random_image(shape), bounds, whole, block)
    assert difference(predicted, np.mean(views, axis=0)[(slice(None), *whole.slices(start))]).max() <= 1


def test_blank_chunks_are_zero_and_all_others_are_unchanged():
    bounds = Box((2, 3, 5), (4, 163, 205))
    image = np.zeros(bounds.shape, np.uint8)
    image[0, :30, :50] = random_image((30, 50))
    margin, chunk = receptive_field_of("UNet_2D").margin, (2, 20, 30)
    part, grid = VolumePart(image, bounds, bounds), ChunkGrid(chunk, bounds.start)
    predictor = predictor_of("UNet_2D", tile=(1, 152, 160))
    blank = blank_chunk_mask(part, bounds, grid, margin, 0)
    num_voxels = []
    predicted = predictor.predict(part, bounds, ~blank, grid, num_voxels.append)
    full = predictor.predict(part, bounds)
    mask = np.kron(blank, np.ones(chunk, bool))[tuple(map(slice, bounds.shape))]
    assert 0 < blank.sum() < blank.size
    assert (full[0][mask] != 0).any()  # the network predicts something for blank images
    assert (predicted[0][mask] == 0).all()
    np.testing.assert_array_equal(predicted[0][~mask], full[0][~mask])
    assert len(num_voxels) < len(predictor.tiles(bounds, bounds))
    num_voxels.clear()
    nothing = predictor.predict(part, bounds, np.zeros_like(blank), grid, num_voxels.append)
    assert not nothing.any()
    assert not num_voxels


def test_the_same_voxels_have_the_same_bytes_and_the_input_is_not_changed():
    shape, start, *_ = CASES["UNet_2D"]
    bounds, image = Box.at(start, shape), random_image(shape)
    image.flags.writeable = False  # as voxels from a cache
    predictor = predictor_of("UNet_2D", precision="bf16")
    one, other = (predictor.predict(VolumePart(image, bounds, bounds), bounds) for _ in range(2))
    np.testing.assert_array_equal(one, other)


class ShiftDifference(nn.Module):
    """A user's network with a radius of 6 voxels along x alone, whose output follows a formula."""

    def forward(self, x):
        return torch.cat([torch.zeros_like(x), (x.roll(6, -1) - x.roll(-6, -1)) * 8], 1)


def test_a_users_network_is_run_unchanged():
    network = ShiftDifference()
    field = ReceptiveField((0, 0, 6), (1, 1, 1), (0, 0, 6))
    image = random_image((2, 9, 40))
    bounds = Box.at((0, 0, 0), image.shape)
    padded = np.pad(image, ((0, 0), (0, 0), (6, 6)), mode="reflect").astype(np.float32) / 255
    expected = 1 / (1 + np.exp(-8 * (padded[..., :-12] - padded[..., 12:])))
    predicted = blockwise(
        Predictor(network, 2, 2, field, replace(EAGER, tile=(1, 4, 24))), image, bounds, bounds, (1, 5, 20)
    )
    assert difference(predicted, expected[None]).max() <= 1


def test_a_folded_network_in_bf16_is_as_near_to_float32_as_autocast():
    shape, start, *_ = CASES["UNet_2D"]
    bounds, image = Box.at(start, shape), random_image(shape)
    plain, folded = (
        difference(
            blockwise(predictor_of("UNet_2D", precision="bf16", fold=fold), image, bounds, bounds, (2, 80, 83)),
            expected_of("UNet_2D"),
        )
        for fold in (False, True)
    )
    assert (folded <= 5).mean() >= (plain <= 5).mean()
    assert folded.max() > 1  # it was computed in bf16


def test_wrong_voxels_wrong_boxes_and_infinite_outputs_are_refused():
    predictor, bounds = predictor_of("UNet_2D"), Box((0, 0, 0), (1, 20, 20))
    with pytest.raises(ValueError, match=r"expected uint8 voxels of shape \(1, 20, 20\).*got uint16 \(1, 20, 20\)"):
        predictor.predict(VolumePart(np.zeros((1, 20, 20), np.uint16), bounds, bounds), bounds)
    with pytest.raises(ValueError, match="block 0:1,0:20,0:20 must be in the box 0:1,0:20,0:19"):
        predictor.predict(VolumePart(np.zeros((1, 20, 19), np.uint8), Box((0, 0, 0), (1, 20, 19)), bounds), bounds)
    broken = UNet(start_filters=2, n_blocks=1)
    nn.init.constant_(broken.conv_final.bias, math.nan)
    predictor = Predictor(broken, 2, 2, find_receptive_field(broken, 2), replace(EAGER, tile=(1, 24, 24)))
    with pytest.raises(FloatingPointError, match=r"not finite in 0:1,0:20,0:20: are these the weights"):
        predictor.predict(VolumePart(np.zeros((1, 20, 20), np.uint8), bounds, bounds), bounds)


def test_a_gpu_without_enough_memory_is_an_error_that_names_tile_and_batch():
    predictor, bounds = predictor_of("UNet_2D"), Box((0, 0, 0), (1, 20, 20))

    def out_of_memory(image):
        raise torch.OutOfMemoryError("CUDA out of memory")

    predictor.network = out_of_memory
    with pytest.raises(GpuMemoryTooSmall, match=r"1 tile\(s\) of \(1, 160, 176\) in float32; .*--tile or --batch"):
        predictor.predict(VolumePart(np.zeros((1, 20, 20), np.uint8), bounds, bounds), bounds)


def test_compiled_equals_eager_up_to_rounding_and_is_never_silently_uncompiled(monkeypatch):
    monkeypatch.setattr("kasthuri_ray.inference.predictor.MAX_COMPILED_SHAPES", 1)
    torch._dynamo.reset()  # shapes that other tests compiled count too
    torch.manual_seed(0)
    network = UNet(start_filters=2, n_blocks=1).eval()
    with torch.no_grad():
        network.conv_final.weight.mul_(20)
    image, field = random_image((2, 40, 50)), find_receptive_field(network, 2)
    bounds = Box.at((0, 0, 0), image.shape)
    settings = replace(EAGER, tile=(1, 48, 64))
    eager = Predictor(network, 2, 2, field, settings).predict(VolumePart(image, bounds, bounds), bounds)
    compiled = Predictor(network, 2, 2, field, replace(settings, compile=True))
    predicted = compiled.predict(VolumePart(image, bounds, bounds), bounds)
    assert np.ptp(predicted) > 50
    assert difference(predicted, eager / 255).max() <= 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._inductor.config.freezing  # no setting of torch is left changed
    smaller = Box.at((0, 0, 0), (1, 8, 8))
    with pytest.raises(CompilationFailed, match="recompile"):
        compiled.predict(VolumePart(image, bounds, bounds), smaller)


def test_a_machine_that_cannot_compile_is_an_error_and_never_runs_uncompiled(monkeypatch):
    network, bounds = UNet(start_filters=2, n_blocks=1), Box((0, 0, 0), (1, 24, 24))
    settings = replace(EAGER, tile=(1, 32, 32), compile=True)
    with monkeypatch.context() as patch:
        patch.setattr("kasthuri_ray.hardware.find_compiler", lambda: None)
        with pytest.raises(CompilationFailed, match="no C\\+\\+ compiler"):
            Predictor(network, 2, 2, find_receptive_field(network, 2), settings)
    predictor = Predictor(network, 2, 2, find_receptive_field(network, 2), settings)

    def broken(graph, example):
        raise RuntimeError("no such instruction")

    predictor.network = torch.compile(network, dynamic=False, backend=broken)
    with pytest.raises(CompilationFailed, match=r"cannot be compiled on this machine: .*no such instruction$"):
        predictor.predict(VolumePart(np.zeros((1, 24, 24), np.uint8), bounds, bounds), bounds)
