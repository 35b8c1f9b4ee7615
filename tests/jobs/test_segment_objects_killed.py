"""jobs/segment.py --save-objects, killed while it writes the label image of the objects."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from kasthuri_ray.models.unet import build_network

pytestmark = pytest.mark.slow

SHAPE, BLOCK = (32, 256, 256), "2,64,64"
NUM_BLOCKS = 16 * 4 * 4
TIMEOUT_S = 900  # of a job: half a minute on an idle machine
NETWORK = {"n_blocks": 2, "start_filters": 4, "outweightfilename": "tiny"}


@pytest.fixture
def arguments(tmp_path):
    """Return the arguments of a job whose output has hundreds of small blocks, with objects across their borders."""
    torch.manual_seed(0)
    torch.save(build_network(NETWORK).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "net.json").write_text(json.dumps(NETWORK))
    image = np.random.default_rng(0).integers(1, 250, SHAPE, np.uint8)
    zarr.create_array(tmp_path / "em.zarr", data=image, chunks=(2, 64, 64))
    weights = ["--weights", tmp_path / "weights.pt", "--network", tmp_path / "net.json", "--task", "synapse"]
    cut = ["--image", tmp_path / "em.zarr", "--shard", BLOCK, "--block", BLOCK, "--precision", "float32"]
    return [*weights, *cut, "--compile", "off", "--cache", "none", "--save-objects"]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def num_labelled(output: Path) -> int:
    """Return how many blocks of the label image are recorded."""
    return len(list(Path(f"{output}.ledger/object-labels-s0").glob("*.json")))


def high_threshold(output: Path) -> float:
    """Return a probability that few of the voxels of the first blocks reach."""
    return float(np.percentile(np.asarray(zarr.open_group(output, mode="r")["s0"])[0, :2], 93)) / 255


def test_a_label_image_whose_job_was_killed_ends_with_the_same_bytes(start_job, arguments, tmp_path):
    whole, killed, probe = (tmp_path / f"{name}.zarr" for name in ("whole", "killed", "probe"))

    def segment(output: Path, *flags: object):
        return start_job(*arguments, "--output", output, *flags, script="jobs/segment.py")

    first = segment(probe, "--box", "0:2,:,:").wait(TIMEOUT_S)
    assert first.code == 0, first.out + first.err
    threshold = f"{high_threshold(probe):.4f}"
    flags = ("--object-extent", threshold, "--object-threshold", threshold)
    first = segment(whole, *flags).wait(TIMEOUT_S)
    assert first.code == 0, first.out + first.err
    assert num_labelled(whole) == NUM_BLOCKS

    job = segment(killed, *flags)
    end = time.monotonic() + TIMEOUT_S
    while num_labelled(killed) < 10:
        assert time.monotonic() < end, job.out + job.err
        assert job.process.poll() is None, job.out + job.err
        time.sleep(0.005)
    job.kill_session()  # SIGKILL for the driver, its Ray and the actors
    done = num_labelled(killed)
    assert 10 <= done < NUM_BLOCKS, "the kill must hit the phase that writes the label image"
    metadata = json.loads((killed / "labels/synapse_objects/zarr.json").read_text())
    assert "kasthuri_ray" not in metadata["attributes"], "it is not marked as complete"

    again = segment(killed, *flags).wait(TIMEOUT_S)
    assert again.code == 0, again.out + again.err
    assert f"object labels: {NUM_BLOCKS - done:,} of {NUM_BLOCKS} blocks to do" in again.out
    assert content_of(killed) == content_of(whole)
    for table in ("synapses.csv", "synapses.parquet"):
        assert Path(f"{killed}.{table}").read_bytes() == Path(f"{whole}.{table}").read_bytes()
    assert len(Path(f"{whole}.synapses.csv").read_text().splitlines()) > 10
