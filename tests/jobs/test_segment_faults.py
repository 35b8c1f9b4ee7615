"""The long trials: whatever is killed, at whatever moment, nothing is lost, little is done again, no byte differs."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

TRIALS = int(os.environ.get("KASTHURI_FAULT_TRIALS", "100"))
FAULTS = ("actor", "raylet", "driver", "everything")
SHAPE, BLOCK = (4, 128, 640), (2, 32, 32)
BLOCKS = 2 * 4 * 20
ACTORS, IN_FLIGHT = 2, 3  # blocks that each actor has in hand
TRIAL_S = 400
SCRIPT = "jobs/segment.py"
# Blocks slow enough that a strike meets the job at work, whatever the machine.
NETWORK = """
import time
import torch
from torch import nn

class Slow(nn.Module):
    def __init__(self, in_channels=1, classes=2):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, classes, 3, padding=1)

    def forward(self, image):
        time.sleep(0.02 if image.dtype == torch.float32 else 0)  # not while its reach is measured
        return self.layer(image)
"""
# A voxel that no other image holds makes the network raise, or end its process.
MAGIC = """
import os
from torch import nn

class Magic(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Conv2d(1, 2, 1), how

    def forward(self, image):
        if image.eq(1).any():
            if self.how == "die":
                os._exit(1)
            raise RuntimeError("this voxel is too much")
        return self.layer(image)
"""


def write_inputs(folder: Path, code: str, model: str, **model_args: object) -> list[object]:
    """An image, a network of one's own and its weights in a folder; the arguments that name them."""
    import importlib.util

    import torch
    import zarr

    folder.mkdir(parents=True, exist_ok=True)
    module, _, name = model.partition(".")
    (folder / f"{module}.py").write_text(code)
    spec = importlib.util.spec_from_file_location(module, folder / f"{module}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    torch.manual_seed(0)
    torch.save(getattr(loaded, name)(**model_args).state_dict(), folder / "weights.pt")
    (folder / "net.json").write_text(json.dumps({"model": model, "model_args": model_args}))
    image = np.random.default_rng(0).integers(1, 250, SHAPE, np.uint8)
    zarr.create_array(folder / "em.zarr", data=image, chunks=(2, 64, 64))
    arguments = ["--weights", folder / "weights.pt", "--network", folder / "net.json", "--task", "synapse"]
    arguments += ["--image", folder / "em.zarr", "--precision", "float32", "--compile", "off"]
    sizes = ",".join(map(str, BLOCK))
    return [*arguments, "--shard", sizes, "--block", sizes]


@pytest.fixture
def nodes(clean_env, request):
    """A cluster of two nodes, each a session of processes: `head` and `second`; what was killed is begun anew."""
    tools = _tools(request)
    folder = Path(tempfile.mkdtemp(prefix="kr", dir="/tmp"))
    path = f"{Path(sys.executable).parent}:{clean_env['PATH']}"
    env = clean_env | {"PATH": path, "RAY_AUTH_MODE": "disabled"}
    found = SimpleNamespace(head=None, second=None, address="", number=0)
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory", str(100 * 2**20)]

    def head() -> None:
        found.number += 1
        (port,) = tools.free_ports(1)
        found.address = f"127.0.0.1:{port}"
        command = [*ray, "--head", "--port", port, "--num-cpus", "2", "--include-dashboard", "false"]
        command += ["--ray-client-server-port", tools.free_ports(1)[0], "--temp-dir", str(folder / str(found.number))]
        found.head = tools.started(command, env, folder / "head.log")

    def second() -> None:
        command = [*ray, "--address", found.address, "--num-cpus", "2"]
        found.second = tools.started(command, env, folder / "second.log")

    def lives(node: subprocess.Popen | None) -> bool:
        """Whether it has its raylet: `ray start` itself ends a moment later."""
        return node is not None and node.poll() is None and bool(named(found, node.pid, "raylet/raylet"))

    def heal() -> None:
        """Whatever is gone is begun anew."""
        whole = lives(found.head)
        for node in (found.head, found.second):
            if node is not None and not (whole and lives(node)):
                tools.end_session(node)
        if not whole:
            head()
        if not lives(found.second):
            second()

    found.heal, found.tools = heal, tools
    heal()
    yield found
    for node in (found.second, found.head):
        tools.end_session(node)
    shutil.rmtree(folder, ignore_errors=True)


def _tools(request) -> SimpleNamespace:
    """The functions of the conftest beside this file, which cannot be imported by name."""
    plugins = request.config.pluginmanager.get_plugins()
    (found,) = [
        each for each in plugins if getattr(each, "__file__", "") == str(Path(__file__).with_name("conftest.py"))
    ]
    return SimpleNamespace(
        started=found.started, free_ports=found.free_ports, end_session=found.end_session, processes=found.processes_of
    )


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(output: Path) -> dict[str, int]:
    """The finished blocks and when they were recorded."""
    folder = Path(f"{output}.ledger/s0")
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} if folder.exists() else {}


def wait_for(true, what: str, seconds: float = TRIAL_S) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.01)


def named(nodes, session: int, name: str) -> list[int]:
    return [pid for pid, command in nodes.tools.processes(session).items() if name in command]


def strike(fault: str, job, nodes) -> None:
    if fault == "actor":
        living = [node.pid for node in (nodes.head, nodes.second) if named(nodes, node.pid, "raylet/raylet")]
        os.kill(
            random.choice([pid for node in living for pid in named(nodes, node, "ray::BlockWorker")]), signal.SIGKILL
        )
    elif fault == "raylet":
        os.kill(named(nodes, nodes.second.pid, "raylet/raylet")[0], signal.SIGKILL)
    elif fault == "driver":
        job.send(signal.SIGKILL)
    else:
        job.send(signal.SIGKILL)
        for node in (nodes.second, nodes.head):
            nodes.tools.end_session(node)


def trials(faults: list[str], start, nodes, folder: Path, arguments: list[object], whole: dict[str, bytes]) -> list:
    """One output, struck by each fault at a random moment of its making; gives the table's line of each."""
    out = folder / "struck.zarr"

    def begin():
        given = [*arguments, "--output", out, "--actors", ACTORS]
        return start(*given, cluster=SimpleNamespace(address=nodes.address), cwd=folder, script=SCRIPT)

    def wait(true) -> None:
        wait_for(lambda: true() or job.process.poll() is not None, lambda: job.out + job.err)

    nodes.heal()
    job, rows, before = begin(), [], dict[str, int]()
    for fault, moment in zip(faults, sorted(random.sample(range(2, BLOCKS - 30), len(faults))), strict=True):
        wait(lambda: len(records(out)) >= moment)  # noqa: B023
        _count_again(rows, before, out)
        strike(fault, job, nodes)
        before, when = records(out), time.monotonic()
        rows.append([fault, len(before), BLOCKS - len(before)])
        if fault in ("driver", "everything"):
            job.wait()
            nodes.heal()
            before, when = records(out), time.monotonic()  # what its actors did before they ended is no loss
            job = begin()
            job.until("to go on after a stop")
        now = len(records(out))
        wait(lambda: len(records(out)) > now)  # noqa: B023
        rows[-1].append(f"{time.monotonic() - when:.1f}")
    job.wait(TRIAL_S)
    assert job.code == 0, job.out + job.err
    _count_again(rows, before, out)
    same = content_of(out) == whole
    shutil.rmtree(out)
    shutil.rmtree(f"{out}.ledger")
    return [[*row, same] for row in rows]


def _count_again(rows: list[list], before: dict[str, int], out: Path) -> None:
    """To the last line, how many blocks that were done when it was struck have been done again since."""
    if rows:
        now = records(out)
        rows[-1].append(sum(now[name] != when for name, when in before.items()))


@pytest.mark.faults
def test_kills_at_random_moments_lose_nothing(start, nodes, tmp_path, capsys):
    arguments = write_inputs(tmp_path, NETWORK, "slow_network.Slow")
    cluster = SimpleNamespace(address=nodes.address)
    out = tmp_path / "whole.zarr"
    job = start(*arguments, "--output", out, "--actors", 1, cluster=cluster, cwd=tmp_path, script=SCRIPT).wait()
    assert job.code == 0, job.out + job.err
    whole, rows = content_of(out), []
    while len(rows) < TRIALS:
        faults = random.sample(FAULTS, len(FAULTS))
        found = trials(faults, start, nodes, tmp_path, arguments, whole)
        with capsys.disabled():
            if not rows:
                print(
                    f"\n{'trial':>5} {'fault':<10} {'done':>5} {'pending':>7} {'goes on':>8} {'redone':>7} equal bytes"
                )
            for number, (fault, done, pending, seconds, again, same) in enumerate(found, start=len(rows)):
                print(f"{number:>5} {fault:<10} {done:>5} {pending:>7} {seconds:>6} s {again:>7} {same}", flush=True)
        rows += found
    assert all(row[5] for row in rows)
    assert all(row[1] > 0 and row[2] > 0 for row in rows), "a strike must meet the job at work"
    assert all(row[4] <= ACTORS * IN_FLIGHT for row in rows)


@pytest.mark.faults
@pytest.mark.parametrize(("how", "words"), [("raise", "this voxel is too much"), ("die", "actors died on it")])
def test_a_voxel_that_breaks_the_network_costs_its_block_alone(start, cluster, tmp_path, how, words):
    import zarr

    arguments = write_inputs(tmp_path, MAGIC, "magic_network.Magic", how=how)
    image = zarr.open_array(tmp_path / "em.zarr")
    image[3, 40, 70] = 255
    given = [*arguments, "--output", tmp_path / "out.zarr", "--actors", ACTORS]
    job = start(*given, cluster=cluster, cwd=tmp_path, script=SCRIPT).wait(TRIAL_S)
    assert job.code == 3, job.out + job.err
    (line,) = [line for line in job.lines if line.startswith("set aside, segmenting: block ")]
    assert "block 1_1_2 (2:4,32:64,64:96)" in line
    assert words in line
    progress = json.loads((tmp_path / "out.zarr.progress.json").read_text())
    assert (progress["state"], progress["set_aside"], progress["done"]) == ("set aside", ["1_1_2"], BLOCKS - 1)
    before = records(tmp_path / "out.zarr")
    image[3, 40, 70] = 9
    again = start(*given, cluster=cluster, cwd=tmp_path, script=SCRIPT).wait(TRIAL_S)
    assert again.code == 0, again.out + again.err
    after = records(tmp_path / "out.zarr")
    assert {name for name in after if before.get(name) != after[name]} == {"1_1_2.json"}


@pytest.mark.faults
def test_a_plan_of_all_of_kasthuri_comes_within_a_minute(start, tmp_path):
    import torch

    from kasthuri_ray.models.unet import build_network

    torch.save(build_network({}).state_dict(), tmp_path / "weights.pt")
    begin = time.monotonic()
    image = "phantom://em?shape=1850,26624,21504"
    given = ["--weights", tmp_path / "weights.pt", "--network", "UNet_2D", "--task", "synapse", "--image", image]
    job = start(*given, "--output", tmp_path / "out.zarr", "--dry-run", "--price-per-hour", 2, script=SCRIPT).wait()
    seconds = time.monotonic() - begin
    assert job.code == 0, job.out + job.err
    assert seconds < 60
    plan = json.loads((tmp_path / "out.zarr.plan.json").read_text())
    assert plan["voxels"] == 1850 * 26624 * 21504
    assert plan["blocks"] == 29 * 13 * 11
    assert plan["computed_twice"] < 0.2
    assert plan["hours"] == pytest.approx(plan["voxels"] / plan["mvoxels_per_second"] / 1e6 / 3600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr.plan.json", "weights.pt"]


@pytest.mark.faults
def test_help_answers_within_a_second():
    root = Path(__file__).resolve().parents[2]
    begin = time.monotonic()
    subprocess.run([sys.executable, SCRIPT, "--help"], cwd=root, check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert time.monotonic() - begin < 1
