"""Fixtures of the segmentation tests: tiny networks, a trained run, images, and jobs with and without Ray."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import torch

from kasthuri_ray import cli

ROOT = Path(__file__).resolve().parents[2]
VOXEL_SIZE_NM = (30.0, 6.0, 6.0)
TASK = {
    "name": "tiny_task",
    "task_type": "synapse",
    "image_chan": "not set",
    "annotation_chan": "phantom://synapse?shape=16,128,128",
    **{"xrange_vol": [0, 128], "yrange_vol": [0, 128], "z_train": [0, 8], "z_val": [8, 11], "z_test": [11, 16]},
}


# images, networks and runs


def make_image(shape, seed=0):
    """Return grey levels with coarse and fine structure, none of them 0."""
    rng = np.random.default_rng(seed)
    coarse = rng.random([-(-n // 7) for n in shape])
    for axis, n in enumerate(shape):
        coarse = coarse.repeat(7, axis).take(range(n), axis)
    return np.clip(20 + 180 * coarse + 55 * rng.random(shape), 1, 255).astype(np.uint8)


def compute_logits(network, image):
    """Return logits classes, z, y, x of grey levels z, y, x; in 2D a section is a tile."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).float().div(255)
    tensor = tensor[:, None] if network.dim == 2 else tensor[None, None]
    with torch.no_grad():
        logits = network(tensor).numpy()
    return logits.swapaxes(0, 1) if network.dim == 2 else logits[0]


def predict_in_one_pass(network, image):
    """Return foreground probabilities c, z, y, x of a whole image: mirrored, run through the network once, cropped."""
    from kasthuri_ray.models.receptive_field import find_receptive_field

    field = find_receptive_field(network, network.dim)
    pads = [
        (m, -(-(2 * m + n) // f) * f - m - n) for m, f, n in zip(field.margin, field.factors, image.shape, strict=True)
    ]
    logits = compute_logits(network, np.pad(image, pads, mode="reflect"))
    exp = np.exp(logits - logits.max(0))
    inside = tuple(slice(m, m + n) for m, n in zip(field.margin, image.shape, strict=True))
    return (exp / exp.sum(0))[(slice(1, None), *inside)]


@pytest.fixture(scope="session")
def one_pass() -> Callable[..., np.ndarray]:
    """Return `one_pass(network, image)`: the probabilities that any blocks must reproduce."""
    return predict_in_one_pass


@pytest.fixture(scope="session")
def tiny_network() -> Callable[..., Any]:
    """Return `tiny_network(**settings)`: random weights whose probabilities span 0.01 to 0.99."""
    from kasthuri_ray.models.unet import build_network

    def make(**settings):
        torch.manual_seed(3)
        network = build_network({"n_blocks": 2, "start_filters": 4, **settings}).eval()
        shape = (2, 96, 96) if network.dim == 2 else (16, 48, 48)
        logits = compute_logits(network, make_image(shape, seed=1))
        with torch.no_grad():
            spread = np.ptp(logits - logits[:1], axis=(1, 2, 3)).max()
            network.conv_final.weight.mul_(14 / spread)
            middle = torch.from_numpy(logits.reshape(len(logits), -1)).median(1).values
            network.conv_final.bias.copy_((network.conv_final.bias - middle) * (14 / spread))
        return network

    return make


@pytest.fixture(scope="session")
def write_run(tiny_network) -> Callable[..., Path]:
    """Return `write_run(folder, task={}, extra={}, **network)`: writes what the training of a tiny network leaves."""
    from kasthuri_ray.models.checkpoints import Checkpoint, checkpoint_bytes

    def write(folder: Path, task=None, extra=None, **network) -> Path:
        settings = {
            "task": TASK | (task or {}),
            "network": {"n_blocks": 2, "start_filters": 4, "precision": "float32", **network},
        }
        known = {"best": {"threshold": 0.4}, "image_intensity": [0.0, 255.0], "voxel_size_nm": list(VOXEL_SIZE_NM)}
        weights = tiny_network(**network).state_dict()
        (folder / "checkpoint").mkdir(parents=True)
        content = checkpoint_bytes(Checkpoint(weights, settings, **(known | (extra or {}))))
        (folder / "checkpoint/best.pt").write_bytes(content)
        return folder

    return write


@pytest.fixture(scope="session")
def run(tmp_path_factory, write_run) -> Path:
    """Write a run with the default tiny network; return its folder."""
    return write_run(tmp_path_factory.mktemp("run") / "run")


# volumes


def write_zarr(path: Path, array: np.ndarray, voxel_size_nm=VOXEL_SIZE_NM, chunk=(2, 64, 64)) -> str:
    import zarr

    stored = zarr.create_array(path, data=array, chunks=tuple(map(min, chunk, array.shape)))
    if voxel_size_nm is not None:
        stored.attrs["voxel_size_nm_zyx"] = list(voxel_size_nm)
    return str(path)


def write_precomputed(path: Path, array: np.ndarray, offset, voxel_size_nm=VOXEL_SIZE_NM) -> str:
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": str(path)},
            "multiscale_metadata": {"data_type": str(array.dtype), "num_channels": 1, "type": "image"},
            "scale_metadata": {
                "size": array.shape[::-1],
                "encoding": "raw",
                "chunk_size": [64, 64, 2],
                "resolution": voxel_size_nm[::-1],
                "voxel_offset": offset[::-1],
            },
        },
        create=True,
    ).result()
    store[ts.d["channel"][0]][ts.d["z", "y", "x"].transpose[:]].write(array).result()
    return str(path)


def write_pyramid(path: Path, levels: dict[str, tuple[np.ndarray, tuple[float, ...]]]) -> str:
    """Write an OME-Zarr group of arrays, each with its voxel size."""
    import zarr

    group = zarr.open_group(path, mode="w")
    datasets = []
    for name, (array, size) in levels.items():
        group.create_array(name, data=array, chunks=tuple(map(min, (2, 64, 64), array.shape)))
        datasets.append({"path": name, "coordinateTransformations": [{"type": "scale", "scale": list(size)}]})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return str(path)


@pytest.fixture(scope="session")
def stores() -> SimpleNamespace:
    """Return `stores.image(shape)` and the writers `stores.zarr(path, array, ...)`, `.precomputed` and `.pyramid`."""
    return SimpleNamespace(zarr=write_zarr, precomputed=write_precomputed, pyramid=write_pyramid, image=make_image)


@pytest.fixture(scope="module")
def em(tmp_path_factory, image) -> str:
    """Write the image of the test module as a zarr; return its path."""
    return write_zarr(tmp_path_factory.mktemp("em") / "em.zarr", image)


# jobs without Ray


@pytest.fixture(scope="session")
def prepare() -> Callable[..., Any]:
    """Return `prepare(run, lines=[], **segment)`: the inputs of a segmentation with these settings of `segment`.

    What it reports is appended to `lines`.
    """
    from kasthuri_ray.config.loading import GivenSettings, resolve_settings
    from kasthuri_ray.segmentation.ensemble import read_trained_networks
    from kasthuri_ray.segmentation.segmentation_inputs import prepare_segmentation
    from kasthuri_ray.segmentation.trained_network import build_trained_network

    def make(run: Path, lines=None, task=None, network=None, assignments=(), **segment):
        trained = read_trained_networks([str(run), *segment.get("more_weights", [])])
        base = (trained.where, trained.settings) if trained.settings else None
        flags = {"segment": {"cache": "none", "precision": "float32", "compile": "off", **segment}}
        settings = resolve_settings(GivenSettings(task, network, flags=flags, assignments=assignments), base=base)
        network = build_trained_network(settings, trained)
        return prepare_segmentation(settings, trained, network, (lines if lines is not None else []).append)

    return make


@pytest.fixture
def make_job(prepare) -> Callable[..., Any]:
    """Return `make_job(run, output, **segment)`: a job in float32, not compiled, on one thread."""
    from kasthuri_ray.inference.inference_settings import InferenceSettings
    from kasthuri_ray.inference.tiling import choose_tile_shape

    def make(run: Path, output: Path | str, tile=None, copy=None, **segment):
        inputs = prepare(run, **segment)
        dim, field = inputs.settings.network.dim, inputs.receptive_field
        tile = tile or choose_tile_shape(inputs.largest_block, field.margin, field.factors, 400_000, dim)
        inference = InferenceSettings("cpu", "float32", False, 1, tile, 1, inputs.settings.segment.tta)
        return inputs.make_job(str(output), inference, copy)

    return make


@pytest.fixture
def make_worker(monkeypatch) -> Callable[..., Any]:
    """Return `make_worker(job)`: a worker that is ready, in this process, whose memory and threads it leaves alone."""
    from kasthuri_ray.segmentation import block_segmenter
    from kasthuri_ray.segmentation.block_worker import BlockWorker

    monkeypatch.setattr(block_segmenter, "prepare_process", lambda inference: None)

    def make(job):
        worker = BlockWorker(job)
        worker.ready()
        return worker

    return make


@pytest.fixture
def run_job_here(make_worker) -> Callable[..., Any]:
    """Return `run_job_here(job)`: runs the job's phases in this process without Ray; returns the FinishedBlocks."""
    from kasthuri_ray.output.ome_zarr import OmeZarrOutput
    from kasthuri_ray.output.precomputed import PrecomputedCopy
    from kasthuri_ray.segmentation.finished_blocks import FinishedBlocks

    def run(job, worker=None):
        worker = worker or make_worker(job)
        finished = FinishedBlocks(worker.ledger)
        worker.ledger.start(job.record)
        OmeZarrOutput.create(job.output, job.spec)
        if job.precomputed:
            PrecomputedCopy.create(job.precomputed, job.spec)
        for name, phase in worker.phases.items():
            if phase.postponed:
                phase.prepare(finished.written(phase.source))
            for index in finished.pending(phase):
                finished.note_done(phase, index, not worker.work(name, index)["blank"])
        return finished

    return run


@pytest.fixture(scope="session")
def phases_of() -> Callable[..., dict[str, Any]]:
    """Return `phases_of(job)`: the phases of a job by their names."""
    from kasthuri_ray.segmentation.phases import job_phases

    return lambda job: {phase.name: phase for phase in job_phases(job)}


# the command, on the local Ray

CUT = ("--shard", "2,32,32", "--block", "2,32,64")
PLAIN = ("--precision", "float32", "--compile", "off", "--cache", "none")


@pytest.fixture(scope="session")
def segment_main(load_module):
    """Return `main` of jobs/segment.py."""
    return load_module(ROOT / "jobs/segment.py").main


@pytest.fixture(scope="session")
def large_image() -> np.ndarray:
    """Return an image with a pyramid of two levels, of 60 blocks with the flags `CUT`."""
    return make_image((4, 96, 600))


@pytest.fixture(scope="session")
def large_em(tmp_path_factory, large_image) -> str:
    """Write the large image as a zarr; return its path."""
    return write_zarr(tmp_path_factory.mktemp("em") / "em.zarr", large_image)


@pytest.fixture(scope="session")
def run_segment(segment_main, run, large_em) -> Callable[..., int]:
    """Return `run_segment(*arguments)`: runs the command in this process on the large image; returns its exit code."""

    def call(*arguments: object) -> int:
        words = [str(word) for word in (*PLAIN, *arguments)]
        weights = [] if "--weights" in words else ["--weights", str(run)]
        image = [] if "--image" in words else ["--image", large_em]
        return cli.run_job(segment_main, [*weights, *image, *words])

    return call


@pytest.fixture
def segment(run_segment, capsys) -> Callable[..., SimpleNamespace]:
    """Return `segment(*arguments, code=0)`: runs the command, checks its exit code, and returns what it printed.

    The result has `lines` of standard output and the text `err` of standard error.
    """

    def call(*arguments: object, code: int = 0) -> SimpleNamespace:
        exit_code = run_segment(*arguments)
        printed = capsys.readouterr()
        assert exit_code == code, printed.out + printed.err
        assert "Traceback" not in printed.out + printed.err
        return SimpleNamespace(lines=printed.out.splitlines(), err=printed.err)

    return call


@pytest.fixture(scope="session")
def whole_output(local_ray, run_segment, tmp_path_factory) -> Path:
    """Segment the large image with one actor, with everything that a job can write; return the path."""
    folder = tmp_path_factory.mktemp("whole")
    extras = ["--save-mask", "--objects", "--precomputed", folder / "copy"]
    assert run_segment("--output", folder / "out.zarr", *CUT, *extras, "--actors", 1) == 0
    return folder / "out.zarr"


# files


@pytest.fixture(scope="session")
def read_files() -> Callable[[Path], dict[str, bytes]]:
    """Return `read_files(folder)`: the content of every file below a folder, by its path."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="session")
def read_json() -> Callable[[Path], Any]:
    """Return `read_json(path)`."""
    return lambda path: json.loads(Path(path).read_text())


@pytest.fixture(scope="session")
def changed() -> Callable[..., Any]:
    """Return `changed(job, **fields)`: a dataclass with other values."""
    return replace
