"""What the tests of segmentation share: tiny networks, a run that trained one, images, and jobs without Ray."""

import importlib.util
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

ROOT = Path(__file__).resolve().parents[2]
VOXEL_NM = (30.0, 6.0, 6.0)
TASK = {
    "name": "tiny_task",
    "task_type": "synapse",
    "image_chan": "to be said",
    "annotation_chan": "phantom://synapse?shape=16,128,128",
    **{"xrange_vol": [0, 128], "yrange_vol": [0, 128], "z_train": [0, 8], "z_val": [8, 11], "z_test": [11, 16]},
}


def image_of(shape, seed=0):
    """Grey levels with coarse and fine structure, none of them 0."""
    rng = np.random.default_rng(seed)
    coarse = rng.random([-(-n // 7) for n in shape])
    for axis, n in enumerate(shape):
        coarse = coarse.repeat(7, axis).take(range(n), axis)
    return np.clip(20 + 180 * coarse + 55 * rng.random(shape), 1, 255).astype(np.uint8)


def logits_of(network, image):
    """Logits classes, z, y, x of grey levels z, y, x; in 2D a section is a tile."""
    tensor = torch.from_numpy(np.ascontiguousarray(image)).float().div(255)
    tensor = tensor[:, None] if network.dim == 2 else tensor[None, None]
    with torch.no_grad():
        logits = network(tensor).numpy()
    return logits.swapaxes(0, 1) if network.dim == 2 else logits[0]


def one_pass(network, image):
    """Probabilities c, z, y, x of the foreground of a whole image: mirrored, run once, cropped."""
    from kasthuri_ray.models.receptive_field import find_receptive_field

    reach = find_receptive_field(network, network.dim)
    pads = [
        (m, -(-(2 * m + n) // f) * f - m - n) for m, f, n in zip(reach.margin, reach.factors, image.shape, strict=True)
    ]
    logits = logits_of(network, np.pad(image, pads, mode="reflect"))
    exp = np.exp(logits - logits.max(0))
    inside = tuple(slice(m, m + n) for m, n in zip(reach.margin, image.shape, strict=True))
    return (exp / exp.sum(0))[(slice(1, None), *inside)]


@pytest.fixture(scope="session")
def oracle() -> Callable[..., np.ndarray]:
    return one_pass


@pytest.fixture(scope="session")
def tiny_network() -> Callable[..., Any]:
    """`tiny_network(**settings)`: random weights whose probabilities span 0.01 to 0.99."""
    from kasthuri_ray.models.unet import build_network

    def make(**settings):
        torch.manual_seed(3)
        network = build_network({"n_blocks": 2, "start_filters": 4, **settings}).eval()
        shape = (2, 96, 96) if network.dim == 2 else (16, 48, 48)
        logits = logits_of(network, image_of(shape, seed=1))
        with torch.no_grad():
            spread = np.ptp(logits - logits[:1], axis=(1, 2, 3)).max()
            network.conv_final.weight.mul_(14 / spread)
            middle = torch.from_numpy(logits.reshape(len(logits), -1)).median(1).values
            network.conv_final.bias.copy_((network.conv_final.bias - middle) * (14 / spread))
        return network

    return make


@pytest.fixture(scope="session")
def write_run(tiny_network) -> Callable[..., Path]:
    """`write_run(folder, task={}, about={}, **network)`: what training leaves of a tiny network; gives the folder."""
    from kasthuri_ray.models.checkpoints import Checkpoint, checkpoint_bytes

    def write(folder: Path, task=None, about=None, **network) -> Path:
        settings = {
            "task": TASK | (task or {}),
            "network": {"n_blocks": 2, "start_filters": 4, "precision": "float32", **network},
        }
        known = {"best": {"threshold": 0.4}, "image_intensity": [0.0, 255.0], "voxel_size_nm": list(VOXEL_NM)}
        weights = tiny_network(**network).state_dict()
        (folder / "checkpoint").mkdir(parents=True)
        content = checkpoint_bytes(Checkpoint(weights, settings, known | (about or {})))
        (folder / "checkpoint/best.pt").write_bytes(content)
        return folder

    return write


def write_zarr(path: Path, array: np.ndarray, voxel_size=VOXEL_NM, chunk=(2, 64, 64)) -> str:
    import zarr

    stored = zarr.create_array(path, data=array, chunks=tuple(map(min, chunk, array.shape)))
    if voxel_size is not None:
        stored.attrs["voxel_size_nm_zyx"] = list(voxel_size)
    return str(path)


def write_precomputed(path: Path, array: np.ndarray, offset, voxel_size=VOXEL_NM) -> str:
    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": str(path)},
            "multiscale_metadata": {"data_type": str(array.dtype), "num_channels": 1, "type": "image"},
            "scale_metadata": {
                "size": array.shape[::-1],
                "encoding": "raw",
                "chunk_size": [64, 64, 2],
                "resolution": voxel_size[::-1],
                "voxel_offset": offset[::-1],
            },
        },
        create=True,
    ).result()
    store[ts.d["channel"][0]][ts.d["z", "y", "x"].transpose[:]].write(array).result()
    return str(path)


def write_pyramid(path: Path, levels: dict[str, tuple[np.ndarray, tuple[float, ...]]]) -> str:
    """An OME-Zarr group of arrays with their voxel sizes."""
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
    """`stores.zarr(path, array, ...)`, `stores.precomputed`, `stores.pyramid`, `stores.image(shape)`."""
    return SimpleNamespace(zarr=write_zarr, precomputed=write_precomputed, pyramid=write_pyramid, image=image_of)


@pytest.fixture(scope="session")
def segment_main():
    """`main` of jobs/segment.py."""
    spec = importlib.util.spec_from_file_location("segment_job", ROOT / "jobs/segment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="session")
def prepared_for() -> Callable[..., Any]:
    """`prepared_for(run, said=[], **segment)`: what `prepare` makes of flags; keys are settings of `segment`."""
    from kasthuri_ray.config.loading import resolve_settings
    from kasthuri_ray.segmentation.segmentation_inputs import prepare_segmentation
    from kasthuri_ray.segmentation.trained_network import read_trained_network

    def make(run: Path, said=None, task=None, network=None, assignments=(), **segment):
        trained = read_trained_network(str(run))
        base = (trained.where, trained.settings) if trained.settings else None
        flags = {"segment": {"cache": "none", "precision": "float32", "compile": "off", **segment}}
        settings = resolve_settings(task, network, base=base, flags=flags, assignments=assignments)
        return prepare_segmentation(settings, trained, (said if said is not None else []).append)

    return make


@pytest.fixture
def job_of(prepared_for) -> Callable[..., Any]:
    """`job_of(run, output, **segment)`: a job in float32, eager, on one thread."""
    from kasthuri_ray.inference.memory import InferenceSettings
    from kasthuri_ray.inference.tiling import choose_tile_shape

    def make(run: Path, output: Path | str, tile=None, copy=None, **segment):
        prepared = prepared_for(run, **segment)
        dim = prepared.settings.network.dim
        tile = tile or choose_tile_shape(
            prepared.whole_block, prepared.reach.margin, prepared.reach.factors, 400_000, dim
        )
        arithmetic = InferenceSettings("cpu", "float32", False, 1, tile, 1, prepared.settings.segment.tta)
        return prepared.job(str(output), arithmetic, copy)

    return make


@pytest.fixture
def segmenter_of(monkeypatch) -> Callable[..., Any]:
    """`segmenter_of(job)`: an actor's inside, ready, in this process, whose memory and threads it leaves alone."""
    from kasthuri_ray.segmentation import block_worker

    monkeypatch.setattr(block_worker, "prepare_process", lambda arithmetic: None)

    def make(job):
        segmenter = block_worker.BlockWorker(job)
        segmenter.ready()
        return segmenter

    return make


@pytest.fixture
def done_here(segmenter_of) -> Callable[..., Any]:
    """`done_here(job)`: the job's phases, done in this process without Ray; gives the Todo that it left."""
    from kasthuri_ray.output.ome_zarr import OmeZarrOutput
    from kasthuri_ray.output.precomputed import PrecomputedCopy
    from kasthuri_ray.segmentation.segmentation_job import BlockTracker, job_phases

    def do(job, segmenter=None):
        segmenter = segmenter or segmenter_of(job)
        todo = BlockTracker(job, segmenter.ledger)
        segmenter.ledger.begin(job.record)
        OmeZarrOutput.create(job.output, job.spec)
        if job.precomputed:
            PrecomputedCopy.create(job.precomputed, job.spec)
        for phase in job_phases(job):
            for index in todo.pending(phase):
                todo.note_done(phase, index, not segmenter.work(phase, index)["blank"])
        return todo

    return do


@pytest.fixture(scope="session")
def content_of() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder, by its path."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="session")
def read_json() -> Callable[[Path], Any]:
    return lambda path: json.loads(Path(path).read_text())


@pytest.fixture(scope="session")
def changed() -> Callable[..., Any]:
    """`changed(job, **fields)`: a dataclass with other values."""
    return replace
