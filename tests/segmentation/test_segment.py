"""The whole job in this process, on the Ray of the tests: what it leaves, what it refuses, what it survives."""

import csv
import os
import shlex
import signal
import threading
import time
from pathlib import Path

import cc3d
import numpy as np
import pytest
import torch
import zarr

from kasthuri_ray import cli
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.pyramid import downsample
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.segmentation import segment as segment_module
from kasthuri_ray.storage.folder import Storage
from kasthuri_ray.storage.lease import Lease

PATIENCE_S = 300  # for one job: seconds on a quiet machine
CUT = ["--shard", "2,32,32", "--block", "2,32,64"]
PLAIN = ["--precision", "float32", "--compile", "off", "--cache", "none"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run):
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((4, 96, 600))


@pytest.fixture(scope="module")
def em(tmp_path_factory, stores, image):
    return stores.zarr(tmp_path_factory.mktemp("em") / "em.zarr", image)


@pytest.fixture(scope="module")
def module_job(segment_main, run, em):
    """`module_job(*arguments)` runs the job here; gives its exit code."""

    def go(*arguments: object) -> int:
        given = [str(word) for word in (*PLAIN, *arguments)]
        weights = [] if "--weights" in given else ["--weights", str(run)]
        image = [] if "--image" in given else ["--image", em]
        return cli.run_job(segment_main, [*weights, *image, *given])

    return go


@pytest.fixture
def job(module_job, capsys):
    """`job(*arguments, code=0)` runs it here and gives the lines that it printed."""

    def go(*arguments: object, code: int = 0) -> list[str]:
        found = module_job(*arguments)
        said = capsys.readouterr()
        assert found == code, said.out + said.err
        assert "Traceback" not in said.out + said.err
        go.err = said.err
        return said.out.splitlines()

    return go


@pytest.fixture(scope="module")
def whole(ray_here, module_job, tmp_path_factory):
    """An output with all that a job can leave, made at once by one actor; its path."""
    folder = tmp_path_factory.mktemp("whole")
    also = ["--save-mask", "--objects", "--precomputed", folder / "copy"]
    assert module_job("--output", folder / "out.zarr", *CUT, *also, "--actors", 1) == 0
    return folder / "out.zarr"


# what it leaves


def test_probabilities_are_those_of_one_pass(whole, image, tiny_network, oracle):
    found = np.asarray(zarr.open_group(whole, mode="r")["s0"])
    expected = oracle(tiny_network(), image)
    assert np.abs(found - 255 * expected).max() <= 1


def test_the_pyramid_lies_on_the_image(whole):
    group = zarr.open_group(whole, mode="r")
    coarse = np.asarray(group["s1"])
    assert (coarse == downsample(np.asarray(group["s0"]), (1, 2, 2))).all()
    for name, factor in (("s0", 1), ("s1", 2)):
        datasets = {each["path"]: each for each in group.attrs["ome"]["multiscales"][0]["datasets"]}
        scale, translation = datasets[name]["coordinateTransformations"]
        assert scale["scale"] == [1, 30, 6 * factor, 6 * factor]
        assert translation["translation"] == [0, 0, 3 * (factor - 1), 3 * (factor - 1)]


def test_the_mask_is_at_the_runs_threshold_and_objects_are_those_of_the_whole(whole):
    group = zarr.open_group(whole, mode="r")
    probability = np.asarray(group["s0"])[0]
    mask = probability >= 0.4 * 255
    assert (np.asarray(group["labels/synapse/s0"]) == mask).all()
    labels, number = cc3d.connected_components(mask, connectivity=26, return_N=True)
    with open(f"{whole}.synapses.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == number > 1
    largest = 1 + int(np.bincount(labels.ravel())[1:].argmax())
    (row,) = [row for row in rows if int(row["size_voxels"]) == (labels == largest).sum()]
    centre = np.argwhere(labels == largest).mean(0) * (30, 6, 6)
    assert [float(row[f"centroid_{axis}_nm"]) for axis in "zyx"] == pytest.approx(centre.tolist(), abs=0.01)
    assert float(row["highest_probability"]) == pytest.approx(probability[labels == largest].max() / 255, abs=1e-5)


def test_provenance_tells_no_time_and_no_host(whole, em):
    import socket

    record = zarr.open_group(whole, mode="r").attrs["kasthuri_ray"]
    assert record["image"] == em
    assert record["box"] == "0:4,0:96,0:600"
    assert record["task"]["task_type"] == "synapse"
    assert record["threshold"] == 0.4
    assert record["arithmetic"]["precision"] == "float32"
    text = (whole / "zarr.json").read_text()
    assert socket.gethostname() not in text
    assert time.strftime("%Y-%m") not in text


def test_progress_and_ledger_say_that_it_is_done(whole, read_json):
    progress = read_json(f"{whole}.progress.json")
    assert progress.pop("mvoxels_per_second") > 0
    assert progress == {
        **{"state": "done", "blocks": 60, "done": 60, "skipped": 0, "set_aside": [], "seconds_left": 0.0}
    }
    ledger = Ledger.beside(str(whole))
    assert len(ledger.done("s0")) == 60
    assert not ledger.storage.exists("lock.json")


def test_two_actors_and_other_blocks_at_the_same_shards_give_the_same_bytes(whole, job, tmp_path, content_of):
    lines = job("--output", tmp_path / "out.zarr", *CUT, "--save-mask", "--actors", 2)
    assert lines[0] == lines[-1] == str(tmp_path / "out.zarr")
    assert any(line.startswith("60 blocks of 2 x 32 x 64 (z,y,x), 0 done") for line in lines)
    assert content_of(tmp_path / "out.zarr") == content_of(whole)


def test_a_finished_output_is_not_done_again_and_other_settings_are_refused(whole, job, content_of):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    job("--output", whole, *CUT, "--save-mask")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before
    assert job("--output", whole, *CUT, "--save-mask", "--tta", code=2) == [str(whole)]
    assert "was begun with other settings:\n  arithmetic.tta: false -> true\n" in job.err
    job("--output", whole, *CUT, "--save-mask", "--box", "0:2,:,:", code=2)
    assert 'box: "0:4,0:96,0:600" -> "0:2,0:96,0:600"' in job.err
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before


def test_overwrite_begins_anew(ray_here, job, tmp_path):
    out = tmp_path / "out.zarr"
    small = ["--output", out, "--box", "0:1,0:64,0:64"]
    job(*small, "--shard", "1,32,32", "--objects")
    job(*small, "--shard", "1,16,16", code=2)
    job(*small, "--shard", "1,16,16", "--overwrite")
    assert not Path(f"{out}.synapses.csv").exists()
    assert len(Ledger.beside(str(out)).done("s0")) == 1
    assert zarr.open_group(out, mode="r")["s0"].shards == (1, 1, 16, 16)


# what it refuses, before anything is written


@pytest.fixture
def refused(job, tmp_path, monkeypatch):
    """`refused(*arguments)` of a job for which no Ray may start: exit code 2, nothing written; gives what it said."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def go(*arguments: object, ray: bool = False) -> str:
        with monkeypatch.context() as patch:
            if not ray:
                patch.setattr(segment_module, "connect_ray", lambda verbose: pytest.fail("Ray was started"))
            lines = job(*arguments, "--output", "out.zarr", code=2)
        assert lines == [] or (ray and lines[0] == str(here / "out.zarr")), lines
        assert list(here.iterdir()) == []
        return job.err

    return go


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "none.pt"], ["none.pt"]),
        (["--weights", "/tmp"], ["--weights /tmp", "checkpoint/best.pt"]),
        (["--network", "UNet_2D_depth"], ["best.pt"]),
        (["--task", "membrane"], ["trained for synapse", "leave --task out"]),
        (["--image", "nowhere.zarr"], ["nowhere.zarr"]),
        (["--mip", "3"], ["mip 3 was asked for"]),
        (["--box", "0:5,:,:"], ["outside the volume", "0:4,0:96,0:600"]),
        (["--voxel-size", "30,9,9"], ["30 x 9 x 9 nm", "30 x 6 x 6 nm", "more than 20% off"]),
        (["--shard", "2,32,32", "--block", "2,32,40"], ["not a multiple of the shard", "use 32 or 64"]),
        (["--halo", "0,7,8"], ["pooling, 2, along y", "use 6 or 8"]),
        (["--actors", "none"], ["actors", "MIN-MAX"]),
        (["--set", "segment.blok=1,2,3"], ["no setting segment.blok", "did you mean block?"]),
        (["--mask", "none.zarr"], ["none.zarr"]),
        (["--boss", "none.json"], ["--boss none.json"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_what_is_given_wrongly_is_named(refused, arguments, words):
    said = refused(*arguments)
    for word in words:
        assert word in said


def test_bare_weights_need_a_network_and_a_task(refused, tiny_network, tmp_path):
    torch.save(tiny_network().state_dict(), tmp_path / "bare.pt")
    for more in ([], ["--network", "UNet_2D"], ["--task", "synapse"]):
        assert "give --network and --task" in refused("--weights", tmp_path / "bare.pt", *more)


def test_weights_and_an_output_must_be_said(segment_main, capsys, run):
    assert cli.run_job(segment_main, []) == 2
    assert "--weights" in capsys.readouterr().err
    assert cli.run_job(segment_main, ["--weights", str(run)]) == 2
    assert "--output" in capsys.readouterr().err


def test_what_depends_on_the_cluster_is_refused_as_well(ray_here, refused, monkeypatch):
    assert "1000 actors need 250 CPUs, the cluster has 2. Give fewer with --actors" in refused(
        "--actors", 1000, ray=True
    )
    assert "1 actor needs 1 GPU, the cluster has 0" in refused("--device", "cuda", ray=True)
    assert "tile (1, 70, 71) has 71 voxels along x" in refused("--tile", "1,70,71", ray=True)
    monkeypatch.setattr("kasthuri_ray.segmentation.resume.shutil.disk_usage", lambda path: Full())
    assert "has room for 0.00 GB" in refused(ray=True)


class Full:
    free = 0


def test_an_output_where_no_file_can_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"since {tmp_path}/file is a file; give another --output"):
        segment_module._resolve_place(f"{tmp_path}/file/out.zarr", "--output", ClusterResources(2, 0, 1), dry_run=False)


def test_more_actors_than_there_is_room_for_are_waited_for(ray_here, refused):
    said = refused("--actors", 1000, "--wait-for-resources", 1, ray=True)
    assert "(waited 1 s)" in said


def test_a_block_that_does_not_fit_in_memory_is_refused(ray_here, refused, monkeypatch):
    from kasthuri_ray.hardware import Machine
    from kasthuri_ray.segmentation import actor_resources

    small = Machine("cpu", "small", 1 << 29, 2, False, False)
    monkeypatch.setattr(actor_resources, "actor_machine", lambda gpu, gpus: small)
    said = refused(ray=True)
    assert "a machine here has 0.5 GB; give a smaller --block, or --tile" in said
    said = refused("--actors", 3, ray=True)
    assert "3 actors with blocks of (4, 96, 600)" in said
    assert "or fewer --actors" in said


def test_an_output_that_is_something_else_is_never_written_over(ray_here, job, em, tmp_path, content_of):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    before = content_of(Path(em))
    for place in (em, tmp_path / "notes"):
        for more in ([], ["--overwrite"]):
            job("--output", place, *more, code=2)
            assert "choose another --output" in job.err
    assert content_of(Path(em)) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes"]


def test_a_live_run_holds_its_output(ray_here, job, tmp_path):
    ledger = Storage(str(tmp_path / "out.zarr.ledger"))
    with Lease.acquire(ledger, heartbeat_s=0.3, say=lambda line: None):
        lines = job("--output", tmp_path / "out.zarr", code=2)
    assert "is held by another live run: process" in job.err
    assert "another --output" in job.err
    assert lines[0] == str(tmp_path / "out.zarr")
    assert "waiting to see whether the run" in lines[1]
    assert not (tmp_path / "out.zarr").exists()


# a dry run


def test_a_dry_run_leaves_its_plan_and_nothing_else(ray_here, job, tmp_path, read_json):
    out = tmp_path / "out.zarr"
    lines = job("--output", out, *CUT, "--dry-run", "--price-per-hour", 2, "--halo", "0,2,2", "--actors", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr.plan.json"]
    assert lines[0] == lines[-1] == str(out)
    plan = read_json(f"{out}.plan.json")
    assert (plan["blocks"], plan["done"], plan["voxels"], plan["actors"]) == (60, 0, 4 * 96 * 600, 1)
    assert plan["hours"] == pytest.approx(plan["voxels"] / plan["mvoxels_per_second"] / 1e6 / 3600)
    assert plan["cost"] == pytest.approx(2 * plan["hours"])
    assert plan["gpu_hours"] == 0
    assert plan["halo_error"] > 0
    text = "\n".join(lines)
    assert "60 blocks of 2 x 32 x 64 (z,y,x), 0 done" in text
    assert f"probabilities of a sample by up to {plan['halo_error']:.3f}" in text
    assert "has room for" in text


# what it survives


def actors() -> list[int]:
    """The ids of the actors' processes on this machine that are children of this test's Ray."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::BlockWorker") and ours(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def ours(pid: int) -> bool:
    """Whether this process began it, or began who did."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False


def wait_for(true, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def strike(output: Path, kill, num_blocks=60) -> dict:
    """Waits until blocks are done and calls `kill`; gives what was done by then, with the times of the records."""
    folder = Path(f"{output}.ledger/s0")
    wait_for(lambda: folder.exists() and len(list(folder.iterdir())) >= 2, "two blocks")
    kill()
    done = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    return {"done": done, "pending": num_blocks - len(done)}


def num_redone(output: Path, struck: dict) -> int:
    """How many blocks that were done when it struck were done again."""
    folder = Path(f"{output}.ledger/s0")
    return sum((folder / name).stat().st_mtime_ns != when for name, when in struck["done"].items())


def test_a_killed_actor_is_replaced_and_the_bytes_are_the_same(whole, job, tmp_path, content_of):
    out, struck = tmp_path / "out.zarr", []
    killer = threading.Thread(
        target=lambda: struck.append(strike(out, lambda: os.kill(max(actors()), signal.SIGKILL))), daemon=True
    )
    killer.start()
    lines = job("--output", out, *CUT, "--save-mask", "--actors", 1)
    killer.join(10)
    (found,) = struck
    assert len(found["done"]) >= 2
    assert found["pending"] > 3
    assert num_redone(out, found) <= 3
    assert any("died: its process ended suddenly" in line for line in lines)
    assert content_of(out) == content_of(whole)


@pytest.fixture
def broken(em, tmp_path):
    """A copy of the image with one chunk that cannot be read, and what mends it."""
    import shutil

    copy = tmp_path / "em.zarr"
    shutil.copytree(em, copy)
    chunk = copy / "c/1/1/3"  # 2:4, 64:96, 192:256
    whole = chunk.read_bytes()
    chunk.write_bytes(b"no chunk" + whole[8:])
    return copy, lambda: chunk.write_bytes(whole)


def test_a_block_that_cannot_be_done_is_set_aside_and_the_next_run_does_it_alone(
    ray_here, job, broken, tmp_path, read_json
):
    image, mend = broken
    out = tmp_path / "out.zarr"
    cut = ["--shard", "2,32,64", "--block", "2,96,64", "--actors", 1, "--objects"]
    lines = job("--image", image, "--output", out, *cut, code=3)
    aside = [line for line in lines if line.startswith("set aside, segmenting: block ")]
    names = [line.split()[4] for line in aside]
    assert sorted(names) == ["1_0_2", "1_0_3", "1_0_4"]  # the neighbours' halos reach into it
    assert all("raised 3 times: " in line and "em.zarr" in line for line in aside)
    assert "3 blocks are set aside" in lines[-2]
    assert lines[-1] == str(out)
    progress = read_json(f"{out}.progress.json")
    assert progress["state"] == "set aside"
    assert sorted(progress["set_aside"]) == sorted(names)
    assert progress["done"] == 17
    told = Ledger.beside(str(out)).aside("s0")["1_0_3"]
    assert told["box"] == "2:4,0:96,192:256"
    assert "block_worker.py" in told["traceback"]
    assert not Path(f"{out}.synapses.csv").exists()
    assert any("objects are joined once every block is done" in line for line in lines)

    mend()
    folder = Path(f"{out}.ledger/s0")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    job("--image", image, "--output", out, *cut)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {f"{name}.json" for name in names}
    assert Ledger.beside(str(out)).aside("s0") == {}
    assert read_json(f"{out}.progress.json")["state"] == "done"
    group = zarr.open_group(out, mode="r")
    assert (np.asarray(group["s1"]) == downsample(np.asarray(group["s0"]), (1, 2, 2))).all()
    assert Path(f"{out}.synapses.csv").exists()


def test_a_fault_of_every_block_stops_the_job_early(ray_here, job, em, tmp_path, read_json):
    import shutil

    shutil.copytree(em, tmp_path / "em.zarr")
    for chunk in (tmp_path / "em.zarr/c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"no chunk")
    out = tmp_path / "out.zarr"
    lines = job("--image", tmp_path / "em.zarr", "--output", out, *CUT, "--actors", 1, code=1)
    assert "none was done, so the fault is hardly in the blocks" in job.err
    again = job.err.strip().splitlines()[-1].removeprefix("to go on: ")
    assert shlex.split(again)[0] == "python"
    assert read_json(f"{out}.progress.json")["state"] == "failed"
    tried = [line for line in lines if " is set aside: " in line]
    assert len(tried) < 20
