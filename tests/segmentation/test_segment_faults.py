"""Faults during a job: a killed actor, a broken chunk of the image, and an image of broken chunks."""

import os
import shlex
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.pyramid import downsample

TIMEOUT_S = 300  # of one job, which takes seconds on a quiet machine
CUT = ["--shard", "2,32,32", "--block", "2,32,64"]


def actor_pids() -> list[int]:
    """Return the process ids of the actors that this test's Ray started."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_actor = (folder / "cmdline").read_bytes().startswith(b"ray::BlockWorker")
            if is_actor and is_descendant(int(folder.name)):
                pids.append(int(folder.name))
        except OSError:
            continue
    return pids


def is_descendant(pid: int) -> bool:
    """Return whether this process started `pid`, directly or not."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def block_times(output: Path) -> dict[str, int]:
    """Return when each record of a finished block was written."""
    return {path.name: path.stat().st_mtime_ns for path in Path(f"{output}.ledger/s0").iterdir()}


def kill_an_actor(output: Path) -> dict[str, int]:
    """Kill an actor once two blocks are done; return the records of the blocks that were done by then."""
    folder = Path(f"{output}.ledger/s0")
    wait_for(lambda: folder.exists() and len(list(folder.iterdir())) >= 2, "two blocks")
    os.kill(max(actor_pids()), signal.SIGKILL)
    return block_times(output)


def test_a_killed_actor_is_replaced_and_the_bytes_are_the_same(whole_output, segment, tmp_path, read_files):
    out, kills = tmp_path / "out.zarr", []
    killer = threading.Thread(target=lambda: kills.append(kill_an_actor(out)), daemon=True)
    killer.start()
    lines = segment("--output", out, *CUT, "--save-mask", "--actors", 1).lines
    killer.join(10)
    (done_before,) = kills
    assert len(done_before) >= 2
    assert 60 - len(done_before) > 3
    done_after = block_times(out)
    assert sum(done_after[name] != when for name, when in done_before.items()) <= 3
    assert any("died: its process ended suddenly" in line for line in lines)
    assert read_files(out) == read_files(whole_output)


@pytest.fixture
def broken_em(large_em, tmp_path):
    """Return a copy of the image with one chunk that cannot be read, and a function that repairs it."""
    copy = tmp_path / "em.zarr"
    shutil.copytree(large_em, copy)
    chunk = copy / "c/1/1/3"  # 2:4, 64:96, 192:256
    content = chunk.read_bytes()
    chunk.write_bytes(b"no chunk" + content[8:])
    return copy, lambda: chunk.write_bytes(content)


@pytest.mark.usefixtures("local_ray")
def test_blocks_that_cannot_be_read_are_set_aside_and_the_next_run_does_only_them(
    segment, broken_em, tmp_path, read_json
):
    image, repair = broken_em
    out = tmp_path / "out.zarr"
    flags = ["--shard", "2,32,64", "--block", "2,96,64", "--actors", 1, "--objects"]
    lines = segment("--image", image, "--output", out, *flags, code=3).lines
    set_aside = [line for line in lines if line.startswith("set aside, segmenting: block ")]
    names = [line.split()[4] for line in set_aside]
    assert sorted(names) == ["1_0_2", "1_0_3", "1_0_4"]  # the halos of the neighbours reach into the chunk
    assert all("raised 3 times: " in line and "em.zarr" in line for line in set_aside)
    assert "3 blocks are set aside" in lines[-2]
    assert lines[-1] == str(out)
    progress = read_json(f"{out}.progress.json")
    assert progress["state"] == "set aside"
    assert sorted(progress["set_aside"]) == sorted(names)
    assert progress["done"] == 17
    record = Ledger.beside(str(out)).blocks_set_aside("s0")["1_0_3"]
    assert record["box"] == "2:4,0:96,192:256"
    assert "block_worker.py" in record["traceback"]
    assert not Path(f"{out}.synapses.csv").exists()
    assert any("the object table is not written yet: some blocks were set aside" in line for line in lines)

    repair()
    before = block_times(out)
    segment("--image", image, "--output", out, *flags)
    after = block_times(out)
    assert {name for name in after if after[name] != before.get(name)} == {f"{name}.json" for name in names}
    assert Ledger.beside(str(out)).blocks_set_aside("s0") == {}
    assert read_json(f"{out}.progress.json")["state"] == "done"
    group = zarr.open_group(out, mode="r")
    assert (np.asarray(group["s1"]) == downsample(np.asarray(group["s0"]), (1, 2, 2))).all()
    assert Path(f"{out}.synapses.csv").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_fault_of_every_block_stops_the_job_early(segment, large_em, tmp_path, read_json):
    shutil.copytree(large_em, tmp_path / "em.zarr")
    for chunk in (tmp_path / "em.zarr/c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"no chunk")
    out = tmp_path / "out.zarr"
    stopped = segment("--image", tmp_path / "em.zarr", "--output", out, *CUT, "--actors", 1, code=1)
    assert "none was done, so the cause is probably not in the blocks" in stopped.err
    command = stopped.err.strip().splitlines()[-1].removeprefix("to resume: ")
    assert shlex.split(command)[0] == "python"
    assert read_json(f"{out}.progress.json")["state"] == "failed"
    assert len([line for line in stopped.lines if " is set aside: " in line]) < 20
