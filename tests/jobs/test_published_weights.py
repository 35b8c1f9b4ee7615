"""Weights that the challenge published, in the real jobs: an S3 server has them, and a BossDB server the volumes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from kasthuri_ray.storage.published_files import KNOWN_NAMES
from kasthuri_ray.volumes.opening import open_volume

pytestmark = pytest.mark.slow

SEED = Path(__file__).parents[1] / "models" / "seed_unet"
NO_NETWORK = {"KASTHURI_WEIGHTS_URL": "http://127.0.0.1:9"}
BOX = "86:94,300:396,320:416"  # the challenge trained on sections 0 to 79, and validated on 80 to 89


@pytest.fixture
def boss_file(boss_server, tmp_path):
    """Return a file of BossDB options: at its server the challenge's volumes show the phantom."""
    for name in ("em", "synapse"):
        boss_server.add(f"Kasthuri/ac4/{name}", {0: open_volume(f"phantom://{name}?shape=100,1024,1024&seed=3")})
    path = tmp_path / "boss.json"
    path.write_text(json.dumps(boss_server.options))
    return path


@pytest.fixture
def segment(start_job, cluster, published_weights, boss_file, tmp_path):
    """Return `segment(weights, output, *flags)`, which segments a box and returns voxels and provenance."""

    def run(weights, output, *flags):
        arguments = ["--weights", weights, "--output", tmp_path / output, "--box", BOX, "--boss", boss_file, *flags]
        job = start_job(*arguments, script="jobs/segment.py", cluster=cluster, env=published_weights).wait()
        assert job.code == 0, job.out + job.err
        group = zarr.open_group(tmp_path / output, mode="r")
        return group["s0"][:], group.attrs["kasthuri_ray"]

    return run


def test_a_name_implies_network_task_image_and_grey_range_and_its_boxes_are_learnt_from(
    segment, start_job, cluster, boss_file, tmp_path
):
    voxels, record = segment("kasthuri://unet_2d_attention_SYNAPSE", "named.zarr")
    assert record["image"] == "bossdb://Kasthuri/ac4/em/0"
    assert record["task"]["name"] == "synapse_task"
    assert (record["network"]["model_type"], record["network"]["start_filters"]) == ("attention", 4)
    assert record["intensity"] == [0, 255]

    (tmp_path / "network.json").write_text(json.dumps({"model_type": "attention", "start_filters": 4}))
    file, network = SEED / "UNet_2D_attention.pt", tmp_path / "network.json"
    bare, _ = segment(file, "bare.zarr", "--network", network, "--task", "synapse")
    np.testing.assert_array_equal(voxels, bare)
    assert len(np.unique(voxels)) > 5

    arguments = ["--prediction", tmp_path / "named.zarr", "--annotation", "bossdb://Kasthuri/ac4/synapse"]
    job = start_job(*arguments, "--boss", boss_file, script="jobs/evaluate.py", cluster=cluster).wait()
    assert job.code == 0, job.out + job.err
    result = json.loads((tmp_path / "named.zarr.evaluation" / "evaluation.json").read_text())
    assert (result["learnt_from"]["share"], result["learnt_from"]["known"]) == (0.5, True)


def test_flags_win_over_what_a_name_implies(segment):
    voxels, _ = segment("kasthuri://UNet_2D_synapse", "implied.zarr")
    flags = ["--image", "phantom://em?shape=100,512,512&seed=3", "--set", "task.image_intensity=[40,200]"]
    other, record = segment("kasthuri://UNet_2D_synapse", "given.zarr", *flags)
    assert record["image"].startswith("phantom://em?")
    assert record["intensity"] == [40, 200]
    assert (voxels != other).mean() > 0.1


def test_a_training_starts_from_published_weights(start_job, cluster, published_weights, tiny_task, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(tiny_task))
    small = ["network.epochs=1", "network.tiles_per_epoch=8", "network.batch_size=4", "network.learning_rate=1e-8"]
    arguments = ["--task", tmp_path / "task.json", "--weights", "kasthuri://unet_2d_residual_membrane"]
    arguments += ["--storage", tmp_path, "--name", "tuned", "--set", *small]
    job = start_job(*arguments, cluster=cluster, env=published_weights).wait()
    assert job.code == 0, job.out + job.err
    settings = json.loads((tmp_path / "tuned" / "settings.json").read_text())
    assert settings["network"]["model_type"] == "residual"
    assert [run["run"] for run in settings["learnt_from"]["runs"]] == ["tuned", "kasthuri://UNet_2D_residual_membrane"]
    start = torch.load(SEED / "UNet_2D_residual.pt", weights_only=True)
    (file,) = (tmp_path / "tuned").glob("*_membrane.pt")
    end = torch.load(file, weights_only=True)
    for name in ("down_blocks.0.conv1.weight", "up_blocks.2.res_block.conv2.weight", "conv_final.weight"):
        torch.testing.assert_close(end[name], start[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("script", ["jobs/segment.py", "jobs/train.py"])
def test_the_names_are_listed(start_job, published_weights, script):
    job = start_job("--weights", "kasthuri://", script=script, env=published_weights).wait()
    assert job.code == 0, job.err
    assert job.lines[1:] == [f"  kasthuri://{name}" for name in sorted(KNOWN_NAMES)]
    job = start_job("--weights", "KASTHURI://", script=script, env=NO_NETWORK).wait()
    assert job.code == 0, job.err
    assert [line.strip() for line in job.lines[1:9]] == [f"kasthuri://{name}" for name in sorted(KNOWN_NAMES)]
    assert "the bucket of the published weights cannot be reached (ConnectionError)" in job.lines[9]


def test_weights_that_changed_or_cannot_be_reached_are_one_sentence(
    start_job, published_weights, put_published, no_ray, tmp_path
):
    def run(env, *flags):
        env = {**published_weights, "KASTHURI_CACHE": str(tmp_path / "cache"), **no_ray, **env}
        return start_job(*flags, script="jobs/segment.py", env=env, cwd=tmp_path).wait()

    flags = ["--weights", "kasthuri://UNet_2D_synapse", "--output", "out.zarr", "--image", "phantom://em?shape=8,64,64"]
    unknown = run({}, "--weights", "kasthuri://UNet_3D_synapse", "--output", "out.zarr")
    assert unknown.code == 2
    assert "no such weights; there are UNet_2D_attention_membrane, " in unknown.err
    absent = run(NO_NETWORK, *flags)
    assert absent.code == 1
    assert "the bucket of the published weights cannot be reached" in absent.err
    run({}, *flags)
    put_published("UNet_2D_synapse.pt", (SEED / "UNet_2D_depth.pt").read_bytes())
    changed = run({}, *flags)
    assert changed.code == 2
    assert "its checksum changed" in changed.err
    for job in (unknown, absent, changed):
        assert "Traceback" not in job.err
        assert len(job.err.strip().splitlines()) == 1, job.err
    assert not (tmp_path / "out.zarr").exists()
