"""The whole job in this process, on the Ray of the tests: what it writes, what it refuses, and a dry run."""

import csv
import io
import socket
import time
from pathlib import Path

import cc3d
import numpy as np
import pytest
import torch
import zarr

from kasthuri_ray import cli
from kasthuri_ray.config.loading import GivenSettings
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.pyramid import downsample
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.segmentation import segment as segment_module
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease

CUT = ["--shard", "2,32,32", "--block", "2,32,64"]


# what it writes


def test_probabilities_are_those_of_one_pass(whole_output, large_image, tiny_network, one_pass):
    probabilities = np.asarray(zarr.open_group(whole_output, mode="r")["s0"])
    expected = one_pass(tiny_network(), large_image)
    assert np.abs(probabilities - 255 * expected).max() <= 1


def test_the_levels_of_the_pyramid_lie_on_the_image(whole_output):
    group = zarr.open_group(whole_output, mode="r")
    coarse = np.asarray(group["s1"])
    assert (coarse == downsample(np.asarray(group["s0"]), (1, 2, 2))).all()
    for name, factor in (("s0", 1), ("s1", 2)):
        datasets = {each["path"]: each for each in group.attrs["ome"]["multiscales"][0]["datasets"]}
        scale, translation = datasets[name]["coordinateTransformations"]
        assert scale["scale"] == [1, 30, 6 * factor, 6 * factor]
        assert translation["translation"] == [0, 0, 3 * (factor - 1), 3 * (factor - 1)]


def test_the_label_image_uses_the_threshold_of_the_run_and_objects_are_those_of_the_whole_image(whole_output):
    group = zarr.open_group(whole_output, mode="r")
    probability = np.asarray(group["s0"])[0]
    mask = probability >= 0.4 * 255
    assert (np.asarray(group["labels/synapse/s0"]) == mask).all()
    labels, number = cc3d.connected_components(mask, connectivity=26, return_N=True)
    with open(f"{whole_output}.synapses.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == number > 1
    largest = 1 + int(np.bincount(labels.ravel())[1:].argmax())
    (row,) = [row for row in rows if int(row["size_voxels"]) == (labels == largest).sum()]
    centroid = np.argwhere(labels == largest).mean(0) * (30, 6, 6)
    assert [float(row[f"centroid_{axis}_nm"]) for axis in "zyx"] == pytest.approx(centroid.tolist(), abs=0.01)
    assert float(row["highest_probability"]) == pytest.approx(probability[labels == largest].max() / 255, abs=1e-5)


def test_the_provenance_names_the_inputs_but_no_time_and_no_host(whole_output, large_em):
    record = zarr.open_group(whole_output, mode="r").attrs["kasthuri_ray"]
    assert record["image"] == large_em
    assert record["box"] == "0:4,0:96,0:600"
    assert record["task"]["task_type"] == "synapse"
    assert record["threshold"] == 0.4
    assert record["arithmetic"]["precision"] == "float32"
    text = (whole_output / "zarr.json").read_text()
    assert socket.gethostname() not in text
    assert time.strftime("%Y-%m") not in text


def test_progress_file_and_ledger_show_that_the_job_is_done(whole_output, read_json):
    progress = read_json(f"{whole_output}.progress.json")
    assert progress.pop("mvoxels_per_second") > 0
    with open(f"{whole_output}.synapses.csv") as file:
        num_objects = len(list(csv.DictReader(file)))
    volume = 4 * 96 * 600 * 30 * 6 * 6 / 1e9
    density = pytest.approx(num_objects / volume)
    assert progress == {
        **{"state": "done", "blocks": 60, "done": 60, "skipped": 0, "set_aside": [], "seconds_left": 0.0},
        **{"absent_chunks": 0, "nan_voxels": 0, "chunks": progress["chunks"]},
        **{"objects": num_objects, "imaged_um3": pytest.approx(volume), "objects_per_um3": {"synapse": density}},
    }
    ledger = Ledger.beside(str(whole_output))
    assert len(ledger.done("s0")) == 60
    assert not ledger.storage.exists("lock.json")


def test_the_result_names_output_numbers_and_table(whole_output, run, large_em):
    requested = {
        **{"weights": str(run), "image": large_em, "output": str(whole_output), "precision": "float32"},
        **{"compile": "off", "cache": "none", "shard": [2, 32, 32], "block": [2, 32, 64], "save_mask": True},
        **{"objects": True, "precomputed": str(whole_output.parent / "copy"), "actors": 1},
    }
    lines = io.StringIO()
    result = segment_module.segment_from_flags(
        GivenSettings(flags={"segment": requested}), Reporter(lines), "the same call"
    )
    assert (result.path, result.num_set_aside) == (str(whole_output), 0)
    assert result.metrics.pop("seconds") > 0
    numbers = {"num_blocks": 60, "num_done": 60, "num_skipped": 0}
    assert result.metrics == {**numbers, "mvoxels_per_second": None}
    with open(f"{whole_output}.synapses.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["size_voxels"] for row in result.table] == [int(row["size_voxels"]) for row in rows]
    assert "to resume after a stop: the same call" in lines.getvalue()


def test_two_actors_write_the_same_bytes_as_one(whole_output, segment, tmp_path, read_files):
    lines = segment("--output", tmp_path / "out.zarr", *CUT, "--save-mask", "--actors", 2).lines
    assert lines[0] == lines[-1] == str(tmp_path / "out.zarr")
    assert any(line.startswith("60 blocks of 2 x 32 x 64 (z,y,x), 0 done") for line in lines)
    assert read_files(tmp_path / "out.zarr") == read_files(whole_output)


def test_a_finished_output_is_not_written_again_and_other_settings_are_refused(whole_output, segment, monkeypatch):
    def modification_times():
        return {path: path.stat().st_mtime_ns for path in whole_output.rglob("*") if path.is_file()}

    before = modification_times()
    segment("--output", whole_output, *CUT, "--save-mask")
    assert modification_times() == before
    monkeypatch.setattr(segment_module, "connect_ray", lambda reporter, verbose: pytest.fail("Ray was started"))
    refused = segment("--output", whole_output, *CUT, "--save-mask", "--tta", code=2)
    assert refused.lines == []
    assert "was started with other settings:\n  arithmetic.tta: false -> true\n" in refused.err
    refused = segment("--output", whole_output, *CUT, "--save-mask", "--box", "0:2,:,:", code=2)
    assert 'box: "0:4,0:96,0:600" -> "0:2,0:96,0:600"' in refused.err
    assert modification_times() == before


@pytest.mark.usefixtures("local_ray")
def test_overwrite_starts_over(segment, tmp_path):
    out = tmp_path / "out.zarr"
    small = ["--output", out, "--box", "0:1,0:64,0:64"]
    segment(*small, "--shard", "1,32,32", "--objects")
    segment(*small, "--shard", "1,16,16", code=2)
    segment(*small, "--shard", "1,16,16", "--overwrite")
    assert not Path(f"{out}.synapses.csv").exists()
    assert len(Ledger.beside(str(out)).done("s0")) == 1
    assert zarr.open_group(out, mode="r")["s0"].shards == (1, 1, 16, 16)


# what it refuses, before anything is written


@pytest.fixture
def refuse(segment, tmp_path, monkeypatch):
    """Return `refuse(*arguments, ray=False)`: runs a job that is refused; returns the error.

    Its exit code is 2, it writes nothing, and it starts no Ray unless `ray` is set.
    """
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: object, ray: bool = False) -> str:
        with monkeypatch.context() as patch:
            if not ray:
                patch.setattr(segment_module, "connect_ray", lambda reporter, verbose: pytest.fail("Ray was started"))
            refused = segment(*arguments, "--output", "out.zarr", code=2)
        assert refused.lines == [] or (ray and refused.lines[0] == str(folder / "out.zarr")), refused.lines
        assert list(folder.iterdir()) == []
        return refused.err

    return call


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--weights", "none.pt"], ["none.pt"]),
        (["--weights", "/tmp"], ["--weights: there is no /tmp/checkpoint/best.pt"]),
        (["--network", "UNet_2D_depth"], ["best.pt"]),
        (["--task", "membrane"], ["trained for synapse", "leave --task out"]),
        (["--image", "nowhere.zarr"], ["nowhere.zarr"]),
        (["--mip", "3"], ["mip 3 does not exist"]),
        (["--box", "0:5,:,:"], ["outside the volume", "0:4,0:96,0:600"]),
        (["--voxel-size", "30,9,9"], ["30 x 9 x 9 nm", "30 x 6 x 6 nm", "a difference above 20%"]),
        (["--shard", "2,32,32", "--block", "2,32,40"], ["not a multiple of the shard", "use 32 or 64"]),
        (["--halo", "0,7,8"], ["pooling, 2, along y", "use 6 or 8"]),
        (["--actors", "none"], ["actors", "MIN-MAX"]),
        (["--set", "segment.blok=1,2,3"], ["no setting segment.blok", "did you mean segment.block?"]),
        (["--mask", "none.zarr"], ["none.zarr"]),
        (["--boss", "none.json"], ["--boss none.json"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_an_argument_that_does_not_fit_is_named_in_the_error(refuse, arguments, texts):
    error = refuse(*arguments)
    for text in texts:
        assert text in error


def test_bare_weights_need_a_network_and_a_task(refuse, tiny_network, tmp_path):
    torch.save(tiny_network().state_dict(), tmp_path / "bare.pt")
    for more in ([], ["--network", "UNet_2D"], ["--task", "synapse"]):
        assert "give --network and --task" in refuse("--weights", tmp_path / "bare.pt", *more)


def test_weights_and_output_are_required(segment_main, capsys, run):
    assert cli.run_job(segment_main, []) == 2
    assert "--weights" in capsys.readouterr().err
    assert cli.run_job(segment_main, ["--weights", str(run)]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.usefixtures("local_ray")
def test_a_job_that_does_not_fit_the_cluster_or_the_disk_is_refused(refuse, monkeypatch):
    error = refuse("--actors", 1000, ray=True)
    assert "1000 actors need 250 CPUs, the cluster has 2. Give fewer with --actors" in error
    assert "1 actor needs 1 GPU, the cluster has 0" in refuse("--device", "cuda", ray=True)
    assert "tile (1, 70, 71) has 71 voxels along x" in refuse("--tile", "1,70,71", ray=True)
    monkeypatch.setattr("shutil.disk_usage", lambda path: FullDisk())
    assert ": 0.00 GB free, " in refuse(ray=True)


class FullDisk:
    free = 0


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    cluster = ClusterResources(2, 0, 1)
    with pytest.raises(ValueError, match=f"{tmp_path}/file is a file, where a folder is expected; give another"):
        segment_module._resolve_path(f"{tmp_path}/file/out.zarr", "--output", cluster, dry_run=False)


@pytest.mark.usefixtures("local_ray")
def test_resources_for_more_actors_are_waited_for_as_long_as_requested(refuse):
    assert "(waited 1 s)" in refuse("--actors", 1000, "--wait-for-resources", 1, ray=True)


@pytest.mark.usefixtures("local_ray")
def test_a_block_that_does_not_fit_in_memory_is_refused(refuse, monkeypatch):
    from kasthuri_ray.hardware import Machine
    from kasthuri_ray.segmentation import actor_resources

    small = Machine("cpu", "small", 1 << 29, 2, "avx2", False)
    monkeypatch.setattr(actor_resources, "actor_machine", lambda use_gpu, num_gpus: small)
    assert "the machine has 0.5 GB; give a smaller --block, or --tile" in refuse(ray=True)
    error = refuse("--actors", 3, ray=True)
    assert "3 actors with blocks of (4, 96, 600)" in error
    assert "or fewer --actors" in error


@pytest.mark.usefixtures("local_ray")
def test_anything_else_at_the_path_of_the_output_is_never_overwritten(segment, large_em, tmp_path, read_files):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    before = read_files(Path(large_em))
    for place in (large_em, tmp_path / "notes"):
        for more in ([], ["--overwrite"]):
            refused = segment("--output", place, *more, code=2)
            assert "choose another --output" in refused.err
    assert read_files(Path(large_em)) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes"]


@pytest.mark.usefixtures("local_ray")
def test_an_output_that_a_live_run_writes_is_refused(segment, tmp_path):
    ledger = open_storage(str(tmp_path / "out.zarr.ledger"))
    with Lease.acquire(ledger, heartbeat_s=0.3, report=lambda line: None):
        refused = segment("--output", tmp_path / "out.zarr", code=2)
    assert "is held by another live run: process" in refused.err
    assert "another --output" in refused.err
    assert refused.lines[0] == str(tmp_path / "out.zarr")
    assert "waiting to see whether the run" in refused.lines[1]
    assert not (tmp_path / "out.zarr").exists()


# a dry run


@pytest.mark.usefixtures("local_ray")
def test_a_dry_run_writes_its_plan_and_nothing_else(segment, tmp_path, read_json):
    out = tmp_path / "out.zarr"
    flags = ["--dry-run", "--price-per-hour", 2, "--halo", "0,2,2", "--actors", 1, "--objects"]
    lines = segment("--output", out, *CUT, *flags).lines
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr.plan.json"]
    assert lines[0] == lines[-1] == str(out)
    plan = read_json(f"{out}.plan.json")
    assert (plan["blocks"], plan["done"], plan["voxels"], plan["actors"]) == (60, 0, 4 * 96 * 600, 1)
    assert plan["hours"] == pytest.approx(plan["voxels"] / plan["mvoxels_per_second"] / 1e6 / 3600)
    assert plan["cost"] == pytest.approx(2 * plan["hours"])
    assert plan["gpu_hours"] == 0
    assert plan["halo_error"] > 0
    assert plan["object_hours"] > 0
    assert plan["object_memory_bytes"] > 0
    text = "\n".join(lines)
    assert "60 blocks of 2 x 32 x 64 (z,y,x), 0 done" in text
    assert f"probabilities of a sample by up to {plan['halo_error']:.3f}" in text
    assert " GB free, " in text
