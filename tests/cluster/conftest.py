"""Fixtures for the tests on several hosts: a Ray cluster, and jobs that train and segment on it."""

import csv
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
EPOCHS = 5
TINY_NETWORK = {
    **{"n_blocks": 2, "start_filters": 4, "optimizer": "AdamW", "learning_rate": 0.01, "early_stopping": 0},
    **{"epochs": EPOCHS, "batch_size": 4, "tiles_per_epoch": 32, "precision": "float32", "outweightfilename": "tiny"},
}
# Blocks are slow, so that a fault always hits a running job, and are held until all actors are ready.
BLOCK_S = 0.05
SLOW_NETWORK = """
import time
from pathlib import Path
import torch
from torch import nn

HELD = Path("{held}")

class Slow(nn.Module):
    def __init__(self, in_channels=1, classes=2, seconds=0.0):
        super().__init__()
        self.seconds = seconds
        self.layer = nn.Conv2d(in_channels, classes, 3, padding=1)

    def forward(self, image):
        if image.dtype == torch.float32 and image.any():  # not a warm-up, nor the measurement of the receptive field
            time.sleep(self.seconds)
            while HELD.exists():
                time.sleep(0.05)
        return self.layer(image)
"""
BLOCK, SHAPE = (2, 32, 32), (4, 128, 640)
BLOCKS = 2 * 4 * 20
KEYS = {
    "BOSSDB_TOKEN": "boss-token-3b1f0c77d2",
    "AWS_SECRET_ACCESS_KEY": "cloud-key-91c4e8aa05",
    "AWS_ACCESS_KEY_ID": "k",
}


def import_neighbour(name: str) -> ModuleType:
    """Import a module of this folder, which is not on the path."""
    if str(HERE) not in sys.path:
        sys.path.append(str(HERE))
    return importlib.import_module(name)


def make_cluster() -> Any:
    """Return hosts in network namespaces, or hosts on the loopback if the user may not create namespaces.

    Root and CI may, so they never get the substitute. KASTHURI_TEST_HOSTS=loopback requests it.
    """
    virtual_cluster = import_neighbour("virtual_cluster")
    if os.environ.get("KASTHURI_TEST_HOSTS") == "loopback":
        return import_neighbour("loopback").LoopbackCluster()
    missing = virtual_cluster.missing_requirement()
    if not missing:
        return virtual_cluster.VirtualCluster()
    privileged = os.geteuid() == 0 or os.environ.get("CI")
    assert not privileged, f"network namespaces are needed, as root on Linux with iproute2: {missing}"
    warnings.warn(f"hosts on the loopback replace hosts in network namespaces: {missing}", stacklevel=1)
    return import_neighbour("loopback").LoopbackCluster()


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, tiny_task: dict[str, Any]) -> Iterator[Any]:
    """Start a head without CPUs, and the hosts anna and bert with two CPUs each; keys are in the nodes' environment.

    A test module may set the duration of a block (`BLOCK_S`) and the environment of the head (`HEAD_ENV`). The hosts
    end with the module, because an idle Ray takes a fifth of a core.
    """
    cluster = make_cluster()
    cluster.node_env = dict(KEYS)
    try:
        cluster.build()
        cluster.start("head", "--num-cpus", "0", env=getattr(request.module, "HEAD_ENV", {}))
        start_workers(cluster)
        (cluster.working_dir / "tiny_task.json").write_text(json.dumps(tiny_task))
        write_inputs(cluster.working_dir, cluster.shared, getattr(request.module, "BLOCK_S", BLOCK_S))
        yield cluster
    finally:
        cluster.destroy()


def start_workers(cluster: Any, names: tuple[str, ...] = ("anna", "bert")) -> None:
    for name in names:
        cluster.launch(name, "--num-cpus", "2")
    for name in names:
        cluster.wait_until_started(name)


def write_inputs(working_dir: Path, shared: Path, block_seconds: float) -> None:
    """Write a network that trains in seconds, an image, and a slow user network with its weights."""
    import numpy as np
    import torch
    import zarr

    (working_dir / "tiny.json").write_text(json.dumps(TINY_NETWORK))
    code = SLOW_NETWORK.replace("{held}", str(shared / "held"))
    (working_dir / "slow_network.py").write_text(code)
    slow = {"model": "slow_network.Slow", "model_args": {"seconds": block_seconds}}
    (working_dir / "slow.json").write_text(json.dumps(slow))
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    torch.manual_seed(0)
    torch.save(namespace["Slow"]().state_dict(), shared / "weights.pt")
    image = np.random.default_rng(0).integers(1, 250, SHAPE, np.uint8)
    zarr.create_array(shared / "em.zarr", data=image, chunks=(2, 64, 64))


@pytest.fixture(autouse=True)
def stop_remaining_jobs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stop the jobs that a test left running, so that they do not disturb the next test."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").stop_jobs()


@pytest.fixture(scope="module")
def train_command(cluster) -> list[Any]:
    """Return the arguments of a training with two workers, without its name."""
    common = ["--task", "tiny_task.json", "--network", "tiny.json", "--compile", "off"]
    return ["jobs/train.py", *common, "--num-workers", "2", "--storage", cluster.shared / "runs"]


@pytest.fixture(scope="module")
def segment_command(cluster) -> list[Any]:
    """Return the arguments of a segmentation by two actors, without its output."""
    sizes = ",".join(map(str, BLOCK))
    common = ["--weights", cluster.shared / "weights.pt", "--network", "slow.json", "--task", "synapse"]
    common += ["--image", cluster.shared / "em.zarr", "--precision", "float32", "--compile", "off"]
    return ["jobs/segment.py", *common, "--shard", sizes, "--block", sizes, "--actors", "2"]


@pytest.fixture(scope="module")
def expected_output(cluster, segment_command) -> dict[str, bytes]:
    """Return the output of a segmentation without faults, with an actor on each host."""
    out = cluster.shared / "whole.zarr"
    job = submit_on_all_hosts(cluster, *segment_command, "--output", out)
    assert job.wait() == "SUCCEEDED", job.log
    assert len(records(out)) == BLOCKS
    return content_of(out)


def submit_on_all_hosts(cluster: Any, *command: object) -> Any:
    """Submit a segmentation, and hold its blocks until an actor runs on each host."""
    held = cluster.shared / "held"
    held.touch()
    try:
        job = cluster.submit(*command)
        job.wait_until(
            lambda: all(cluster.processes(name, "ray::BlockWorker") for name in ("anna", "bert")),
            "an actor on each host",
        )
    finally:
        held.unlink()
    return job


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(output: Path) -> dict[str, int]:
    """Return the records of the finished blocks and their times."""
    folder, times = Path(f"{output}.ledger/s0"), {}
    for path in folder.iterdir() if folder.exists() else ():
        try:
            times[path.name] = path.stat().st_mtime_ns
        except FileNotFoundError:  # being written
            continue
    return times


def read_history(run: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    except FileNotFoundError:
        return []


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """Return the functions and constants of this file; tests cannot import them."""
    virtual_cluster = import_neighbour("virtual_cluster")
    return SimpleNamespace(
        submit_on_all_hosts=submit_on_all_hosts,
        content_of=content_of,
        records=records,
        read_history=read_history,
        start_workers=start_workers,
        copy_package=virtual_cluster.copy_package,
        wait_until=virtual_cluster.wait_until,
        blocks=BLOCKS,
        epochs=EPOCHS,
        keys=KEYS,
        root=HERE.parents[1],
    )
