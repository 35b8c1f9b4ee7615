"""Long tests of jobs/segment.py: actors, nodes and drivers are killed, and the output keeps its bytes."""

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
ACTORS, IN_FLIGHT = 2, 3  # blocks that each actor holds at most
TRIAL_S = 400
SCRIPT = "jobs/segment.py"
# Blocks slow enough that a fault always hits a running job.
NETWORK = """
import time
import torch
from torch import nn

class Slow(nn.Module):
    def __init__(self, in_channels=1, classes=2):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, classes, 3, padding=1)

    def forward(self, image):
        time.sleep(0.02 if image.dtype == torch.float32 else 0)  # not while the receptive field is measured
        return self.layer(image)
"""
# A network that raises, or ends its process, on a voxel value that the other images do not contain.
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
            raise RuntimeError("bad voxel")
        return self.layer(image)
"""


def write_inputs(folder: Path, code: str, model: str, **model_args: object) -> list[object]:
    """Write an image, a user network and its weights; return the arguments that name them."""
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
def nodes(clean_env, process_tools):
    """Start a cluster of two nodes, `head` and `second`, each a session of processes; `restart` replaces dead nodes."""
    folder = Path(tempfile.mkdtemp(prefix="kr", dir="/tmp"))
    path = f"{Path(sys.executable).parent}:{clean_env['PATH']}"
    env = clean_env | {"PATH": path, "RAY_AUTH_MODE": "disabled"}
    nodes = SimpleNamespace(head=None, second=None, address="", number=0)
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory", str(100 * 2**20)]

    def start_head() -> None:
        nodes.number += 1
        port, client_port = process_tools.free_ports(2)
        nodes.address = f"127.0.0.1:{port}"
        command = [*ray, "--head", "--port", port, "--num-cpus", "2", "--include-dashboard", "false"]
        command += ["--ray-client-server-port", client_port, "--temp-dir", str(folder / str(nodes.number))]
        nodes.head = process_tools.run_ray_start(command, env, folder / "head.log")

    def start_second() -> None:
        command = [*ray, "--address", nodes.address, "--num-cpus", "2"]
        nodes.second = process_tools.run_ray_start(command, env, folder / "second.log")

    def is_alive(node: subprocess.Popen | None) -> bool:
        """Return whether the node has a raylet: `ray start` itself ends a moment after it."""
        return node is not None and node.poll() is None and bool(find_processes(nodes, node.pid, "raylet/raylet"))

    def restart() -> None:
        """Start the nodes that are dead; both if the head is."""
        head_is_alive = is_alive(nodes.head)
        for node in (nodes.head, nodes.second):
            if node is not None and not (head_is_alive and is_alive(node)):
                process_tools.kill_session(node)
        if not head_is_alive:
            start_head()
        if not is_alive(nodes.second):
            start_second()

    nodes.restart, nodes.tools = restart, process_tools
    restart()
    yield nodes
    for node in (nodes.second, nodes.head):
        process_tools.kill_session(node)
    shutil.rmtree(folder, ignore_errors=True)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def records(output: Path) -> dict[str, int]:
    """Return the records of the finished blocks and their times."""
    folder = Path(f"{output}.ledger/s0")
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} if folder.exists() else {}


def wait_for(condition, message, timeout_s: float = TRIAL_S) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, message()
        time.sleep(0.01)


def find_processes(nodes, session: int, name: str) -> list[int]:
    return [pid for pid, command in nodes.tools.session_processes(session).items() if name in command]


def inject(fault: str, job, nodes) -> None:
    if fault == "actor":
        alive = [node.pid for node in (nodes.head, nodes.second) if find_processes(nodes, node.pid, "raylet/raylet")]
        actors = [pid for node in alive for pid in find_processes(nodes, node, "ray::BlockWorker")]
        os.kill(random.choice(actors), signal.SIGKILL)
    elif fault == "raylet":
        os.kill(find_processes(nodes, nodes.second.pid, "raylet/raylet")[0], signal.SIGKILL)
    elif fault == "driver":
        job.send_signal(signal.SIGKILL)
    else:
        job.send_signal(signal.SIGKILL)
        for node in (nodes.second, nodes.head):
            nodes.tools.kill_session(node)


def run_trials(
    faults: list[str], start_job, nodes, folder: Path, arguments: list[object], expected: dict[str, bytes]
) -> list:
    """Segment one volume with each fault at a random moment; return a row of the table for each fault."""
    out = folder / "disturbed.zarr"

    def start():
        flags = [*arguments, "--output", out, "--actors", ACTORS]
        return start_job(*flags, cluster=SimpleNamespace(address=nodes.address), cwd=folder, script=SCRIPT)

    def wait(condition) -> None:
        wait_for(lambda: condition() or job.process.poll() is not None, lambda: job.out + job.err)

    nodes.restart()
    job, rows, before = start(), [], dict[str, int]()
    for fault, moment in zip(faults, sorted(random.sample(range(2, BLOCKS - 30), len(faults))), strict=True):
        wait(lambda: len(records(out)) >= moment)  # noqa: B023
        _append_repeated(rows, before, out)
        inject(fault, job, nodes)
        before, fault_time = records(out), time.monotonic()
        rows.append([fault, len(before), BLOCKS - len(before)])
        if fault in ("driver", "everything"):
            job.wait()
            nodes.restart()
            before, fault_time = records(out), time.monotonic()  # includes what the actors did before they ended
            job = start()
            job.wait_for_line("to resume after a stop")
        now = len(records(out))
        wait(lambda: len(records(out)) > now)  # noqa: B023
        rows[-1].append(f"{time.monotonic() - fault_time:.1f}")
    job.wait(TRIAL_S)
    assert job.code == 0, job.out + job.err
    _append_repeated(rows, before, out)
    same = content_of(out) == expected
    shutil.rmtree(out)
    shutil.rmtree(f"{out}.ledger")
    return [[*row, same] for row in rows]


def _append_repeated(rows: list[list], before: dict[str, int], out: Path) -> None:
    """Append to the last row how many blocks that were finished at the fault have been repeated since."""
    if rows:
        now = records(out)
        rows[-1].append(sum(now[name] != time_ns for name, time_ns in before.items()))


@pytest.mark.faults
def test_kills_at_random_moments_do_not_change_the_output(start_job, nodes, tmp_path, capsys):
    arguments = write_inputs(tmp_path, NETWORK, "slow_network.Slow")
    cluster = SimpleNamespace(address=nodes.address)
    out = tmp_path / "whole.zarr"
    job = start_job(*arguments, "--output", out, "--actors", 1, cluster=cluster, cwd=tmp_path, script=SCRIPT).wait()
    assert job.code == 0, job.out + job.err
    expected, rows = content_of(out), []
    while len(rows) < TRIALS:
        faults = random.sample(FAULTS, len(FAULTS))
        new_rows = run_trials(faults, start_job, nodes, tmp_path, arguments, expected)
        with capsys.disabled():
            if not rows:
                header = f"{'trial':>5} {'fault':<10} {'done':>5} {'pending':>7} {'resumed':>8} {'repeated':>8}"
                print(f"\n{header} equal bytes")
            for number, (fault, done, pending, seconds, repeated, same) in enumerate(new_rows, start=len(rows)):
                print(f"{number:>5} {fault:<10} {done:>5} {pending:>7} {seconds:>6} s {repeated:>8} {same}", flush=True)
        rows += new_rows
    assert all(row[5] for row in rows)
    assert all(row[1] > 0 and row[2] > 0 for row in rows), "a fault must hit a running job"
    assert all(row[4] <= ACTORS * IN_FLIGHT for row in rows)


@pytest.mark.faults
@pytest.mark.parametrize(("how", "reason"), [("raise", "bad voxel"), ("die", "actors died on it")])
def test_a_voxel_that_breaks_the_network_sets_only_its_block_aside(start_job, cluster, tmp_path, how, reason):
    import zarr

    arguments = write_inputs(tmp_path, MAGIC, "magic_network.Magic", how=how)
    image = zarr.open_array(tmp_path / "em.zarr")
    image[3, 40, 70] = 255
    flags = [*arguments, "--output", tmp_path / "out.zarr", "--actors", ACTORS]
    job = start_job(*flags, cluster=cluster, cwd=tmp_path, script=SCRIPT).wait(TRIAL_S)
    assert job.code == 3, job.out + job.err
    (line,) = [line for line in job.lines if line.startswith("set aside, segmenting: block ")]
    assert "block 1_1_2 (2:4,32:64,64:96)" in line
    assert reason in line
    progress = json.loads((tmp_path / "out.zarr.progress.json").read_text())
    assert (progress["state"], progress["set_aside"], progress["done"]) == ("set aside", ["1_1_2"], BLOCKS - 1)
    before = records(tmp_path / "out.zarr")
    image[3, 40, 70] = 9
    retried = start_job(*flags, cluster=cluster, cwd=tmp_path, script=SCRIPT).wait(TRIAL_S)
    assert retried.code == 0, retried.out + retried.err
    after = records(tmp_path / "out.zarr")
    assert {name for name in after if before.get(name) != after[name]} == {"1_1_2.json"}


@pytest.mark.faults
def test_the_whole_kasthuri_volume_is_planned_within_a_minute(start_job, tmp_path):
    import torch

    from kasthuri_ray.models.unet import build_network

    torch.save(build_network({}).state_dict(), tmp_path / "weights.pt")
    start = time.monotonic()
    image = "phantom://em?shape=1850,26624,21504"
    flags = ["--weights", tmp_path / "weights.pt", "--network", "UNet_2D", "--task", "synapse", "--image", image]
    job = start_job(*flags, "--output", tmp_path / "out.zarr", "--dry-run", "--price-per-hour", 2, script=SCRIPT).wait()
    seconds = time.monotonic() - start
    assert job.code == 0, job.out + job.err
    assert seconds < 60
    plan = json.loads((tmp_path / "out.zarr.plan.json").read_text())
    assert plan["voxels"] == 1850 * 26624 * 21504
    assert plan["blocks"] == 29 * 13 * 11
    assert plan["computed_twice"] < 0.2
    assert plan["hours"] == pytest.approx(plan["voxels"] / plan["mvoxels_per_second"] / 1e6 / 3600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr.plan.json", "weights.pt"]


@pytest.mark.faults
def test_help_is_printed_within_a_second():
    root = Path(__file__).resolve().parents[2]
    seconds = []
    for _ in range(3):  # another process of the tests may keep the machine busy
        start = time.monotonic()
        subprocess.run([sys.executable, SCRIPT, "--help"], cwd=root, check=True, stdout=subprocess.DEVNULL, timeout=60)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 1
