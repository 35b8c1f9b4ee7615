"""What the tests of a cluster share: the files of `cluster/`, and hosts made of network namespaces."""

import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
TINY_TASK = {
    "name": "tiny_task",
    "image_chan": "phantom://em?shape=16,128,128&seed=7",
    "annotation_chan": "phantom://membrane?shape=16,128,128&seed=7",
    "xrange_vol": [0, 128],
    "yrange_vol": [0, 128],
    "z_train": [0, 8],
    "z_val": [8, 11],
    "z_test": [11, 16],
    "tile_size": [64, 64],
    "task_type": "membrane",
}
EPOCHS = 5
TINY_NETWORK = {
    **{"n_blocks": 2, "start_filters": 4, "optimizer": "AdamW", "learning_rate": 0.01, "early_stopping": 0},
    **{"epochs": EPOCHS, "batch_size": 4, "tiles_per_epoch": 32, "precision": "float32", "outweightfilename": "tiny"},
}
# Blocks slow enough that a strike meets the job at work, and held until all actors are there, whatever the machine.
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
        if image.dtype == torch.float32 and image.any():  # else it is rehearsed, or its reach is measured
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


def load(name: str) -> ModuleType:
    """A module beside this file, which cannot be imported by name."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def make_lab() -> Any:
    """Hosts in network namespaces; on the loopback where a person has no privileges to make them.

    Root and CI have them, so there nothing stands in. KASTHURI_TEST_HOSTS=loopback asks for the substitute.
    """
    lab = load("lab")
    if os.environ.get("KASTHURI_TEST_HOSTS") == "loopback":
        return load("loopback").Loopback()
    lacks = lab.missing()
    if not lacks:
        return lab.Lab()
    privileged = os.geteuid() == 0 or os.environ.get("CI")
    assert not privileged, f"network namespaces are needed, as root on Linux with iproute2: {lacks}"
    warnings.warn(f"hosts on the loopback stand in for hosts of their own: {lacks}", stacklevel=1)
    return load("loopback").Loopback()


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A head without CPUs, and the hosts anna and bert with two each; keys are in the nodes' environment.

    A file may say how long a block of its segmentations takes (`BLOCK_S`), and what the head is told (`ENV_OF_HEAD`).
    The hosts end with the file that needs them: an idle Ray takes a fifth of a core.
    """
    found = make_lab()
    found.env_of_nodes = dict(KEYS)
    try:
        found.build()
        found.start("head", "--num-cpus", "0", env=getattr(request.module, "ENV_OF_HEAD", {}))
        start_workers(found)
        write_inputs(found.work, found.shared, getattr(request.module, "BLOCK_S", BLOCK_S))
        yield found
    finally:
        found.destroy()


def start_workers(lab: Any, names: tuple[str, ...] = ("anna", "bert")) -> None:
    for name in names:
        lab.launch(name, "--num-cpus", "2")
    for name in names:
        lab.until_started(name)


def write_inputs(work: Path, shared: Path, block_seconds: float) -> None:
    """A task and a network that train in seconds; an image, a slow network of one's own, and its weights."""
    import numpy as np
    import torch
    import zarr

    (work / "tiny_task.json").write_text(json.dumps(TINY_TASK))
    (work / "tiny.json").write_text(json.dumps(TINY_NETWORK))
    code = SLOW_NETWORK.replace("{held}", str(shared / "held"))
    (work / "slow_network.py").write_text(code)
    slow = {"model": "slow_network.Slow", "model_args": {"seconds": block_seconds}}
    (work / "slow.json").write_text(json.dumps(slow))
    names: dict[str, Any] = {}
    exec(code, names)
    torch.manual_seed(0)
    torch.save(names["Slow"]().state_dict(), shared / "weights.pt")
    image = np.random.default_rng(0).integers(1, 250, SHAPE, np.uint8)
    zarr.create_array(shared / "em.zarr", data=image, chunks=(2, 64, 64))


@pytest.fixture(autouse=True)
def nothing_goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """A job that a test left running does not stand in the way of the next one."""
    yield
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").stop_jobs()


@pytest.fixture(scope="module")
def train(lab) -> list[Any]:
    """The arguments of a training of two ranks, but for its name."""
    common = ["--task", "tiny_task.json", "--network", "tiny.json", "--compile", "off"]
    return ["jobs/train.py", *common, "--num-workers", "2", "--storage", lab.shared / "runs"]


@pytest.fixture(scope="module")
def segment(lab) -> list[Any]:
    """The arguments of a segmentation by two actors, but for its output."""
    sizes = ",".join(map(str, BLOCK))
    common = ["--weights", lab.shared / "weights.pt", "--network", "slow.json", "--task", "synapse"]
    common += ["--image", lab.shared / "em.zarr", "--precision", "float32", "--compile", "off"]
    return ["jobs/segment.py", *common, "--shard", sizes, "--block", sizes, "--actors", "2"]


@pytest.fixture(scope="module")
def whole(lab, segment) -> dict[str, bytes]:
    """What a segmentation leaves that nothing befell, with an actor on each host."""
    out = lab.shared / "whole.zarr"
    job = begin_on_all(lab, *segment, "--output", out)
    assert job.wait() == "SUCCEEDED", job.log
    assert len(records(out)) == BLOCKS
    return content_of(out)


def begin_on_all(lab: Any, *command: object) -> Any:
    """A segmentation that was submitted; its blocks are held until there is an actor on each host."""
    held = lab.shared / "held"
    held.touch()
    try:
        job = lab.submit(*command)
        job.until(
            lambda: all(lab.processes(name, "ray::BlockWorker") for name in ("anna", "bert")), "an actor on each host"
        )
    finally:
        held.unlink()
    return job


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(output: Path) -> dict[str, int]:
    """The finished blocks and when they were recorded."""
    folder, found = Path(f"{output}.ledger/s0"), {}
    for path in folder.iterdir() if folder.exists() else ():
        try:
            found[path.name] = path.stat().st_mtime_ns
        except FileNotFoundError:  # being written
            continue
    return found


def history(run: Path) -> list[dict[str, str]]:
    import csv

    try:
        return list(csv.DictReader((run / "history.csv").read_text().splitlines()))
    except FileNotFoundError:
        return []


@pytest.fixture(scope="session")
def shop() -> Any:
    """The functions of this file, which cannot be imported by name."""
    from types import SimpleNamespace

    return SimpleNamespace(
        begin_on_all=begin_on_all,
        content_of=content_of,
        records=records,
        history=history,
        start_workers=start_workers,
        copy_package=load("lab").copy_package,
        wait_until=load("lab").wait_until,
        blocks=BLOCKS,
        epochs=EPOCHS,
        keys=KEYS,
        root=HERE.parents[1],
    )
