"""The probabilities of several runs are averaged, each with its own grey levels."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from kasthuri_ray.config.settings import SegmentSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.metrics.object_choice import ObjectChoice
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.models.checkpoints import hash_weights, read_checkpoint
from kasthuri_ray.segmentation.ensemble import read_trained_networks
from kasthuri_ray.segmentation.resolved_objects import objects_note, resolve_object_settings
from kasthuri_ray.segmentation.resume import check_same_settings


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((3, 60, 130))


@pytest.fixture(scope="module")
def write_other(write_run):
    """`write_other(folder, seed, ...)` writes a run of the same network with other weights; return its folder."""

    def write(folder, seed, **options):
        run = write_run(folder, **options)
        path = run / "checkpoint/best.pt"
        content = torch.load(path, weights_only=False)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in content["weights"].items():
            if tensor.is_floating_point() and name.endswith("weight") and tensor.ndim > 1:
                tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
        torch.save(content, path)
        return run

    return write


@pytest.fixture(scope="module")
def others(tmp_path_factory, write_other):
    """Return two further runs, of which one has other grey levels and another threshold."""
    folder = tmp_path_factory.mktemp("others")
    bright = {"image_intensity": [30.0, 180.0], "best": {"threshold": 0.7}}
    return [str(write_other(folder / "b", 1)), str(write_other(folder / "c", 2, extra=bright))]


def segment_here(run, em, make_job, run_job_here, output, **settings):
    job = make_job(run, output, image=em, **settings)
    run_job_here(job)
    return job, zarr.open_array(f"{output}/s0", mode="r")[:]


def test_probabilities_are_the_rounded_mean_of_those_of_each_run(run, others, em, make_job, run_job_here, tmp_path):
    # In the same tiles: the last bit of a convolution depends on the shape of the tile.
    blocks = {"block": [1, 32, 64], "shard": [1, 32, 32]}
    alone = [
        segment_here(each, em, make_job, run_job_here, tmp_path / f"{number}.zarr", **blocks)[1].astype(float)
        for number, each in enumerate([run, *others])
    ]
    mean = tmp_path / "mean.zarr"
    job, together = segment_here(run, em, make_job, run_job_here, mean, more_weights=others, **blocks)
    np.testing.assert_array_equal(together, np.floor(np.mean(alone, axis=0) + 0.5))
    assert max(np.abs(each - together).max() for each in alone) > 10
    assert job.record["weights"] == [
        hash_weights(read_checkpoint((Path(each) / "checkpoint/best.pt").read_bytes(), "").weights)
        for each in (run, *others)
    ]
    assert job.record["intensities"] == [[0.0, 255.0], [0.0, 255.0], [30.0, 180.0]]
    assert job.record["threshold"] == pytest.approx((0.4 + 0.4 + 0.7) / 3)


def test_a_line_says_how_many_networks_there_are_and_that_grey_levels_differ(run, others, em, prepare):
    lines = []
    prepare(run, lines, image=em, more_weights=others)
    text = "the probabilities are the mean over 3 networks, each with its own grey levels (2 ranges)"
    assert any(line.startswith(text) for line in lines)
    lines = []
    inputs = prepare(run, lines, image=em, more_weights=others, assignments=["task.image_intensity=[10, 200]"])
    assert {each.intensity for each in inputs.trained.others} == {(10.0, 200.0)} == {inputs.intensity}


def test_a_single_run_is_recorded_as_before(run, em, make_job, tmp_path):
    record = make_job(run, tmp_path / "out.zarr", image=em).record
    assert isinstance(record["weights"], str)
    assert "intensities" not in record


def test_an_output_is_resumed_with_the_same_runs_alone(run, others, em, make_job, tmp_path):
    output = tmp_path / "out.zarr"
    record = make_job(run, output, image=em, more_weights=others).record
    check_same_settings(record, make_job(run, output, image=em, more_weights=others))
    for more in ({}, {"more_weights": others[:1]}):
        with pytest.raises(InputError, match=re.escape("was started with other settings:\n  intensities")):
            check_same_settings(record, make_job(run, output, image=em, **more))
    with pytest.raises(InputError, match="weights"):
        check_same_settings(
            make_job(run, output, image=em).record, make_job(run, output, image=em, more_weights=others)
        )


def test_the_grey_levels_of_every_run_must_fit_the_image(run, write_other, em, prepare, tmp_path):
    dark = write_other(tmp_path / "dark", 5, extra={"image_intensity": [0.0, 4.0]})
    with pytest.raises(InputError, match=r"grey levels"):
        prepare(run, image=em, more_weights=[str(dark)])


def test_object_settings_are_the_means_of_those_of_the_runs_in_any_order(run, write_other, tmp_path):
    choices = [
        ObjectChoice(ObjectSettings((seed,), (extent,), (size,), is_nm3=True), {}, {"synapse": 1}, (30.0, 6.0, 6.0))
        for seed, extent, size in ((0.98, 0.9, 1000.0), (0.5, 0.3, 0.0))
    ]
    runs = [
        str(write_other(tmp_path / f"run{n}", n, extra={"objects": choice.to_plain()}))
        for n, choice in enumerate(choices)
    ]
    for paths in (runs, runs[::-1]):
        trained = read_trained_networks(paths)
        settings = resolve_object_settings(SegmentSettings(), trained, [0.4], ["synapse"], (30.0, 6.0, 6.0))
        assert settings == ObjectSettings((0.74,), (0.6,), (500.0,), is_nm3=True)
    with pytest.raises(InputError, match="mean of several networks; give one run"):
        resolve_object_settings(SegmentSettings(object_precision=0.9), trained, [0.4], ["synapse"], (30.0, 6.0, 6.0))
    without = read_trained_networks([runs[0], str(run)])
    assert resolve_object_settings(SegmentSettings(), without, [0.4], ["synapse"], None).is_plain
    assert objects_note(SegmentSettings(objects=True), without)


def test_runs_that_do_not_fit_together_are_refused(run, others, write_other, tiny_network, tmp_path):
    larger = write_other(tmp_path / "larger", 3, start_filters=8)
    with pytest.raises(InputError, match=r"network.start_filters: 4 and 8"):
        read_trained_networks([str(run), str(larger)])
    membrane = write_other(tmp_path / "membrane", 3, task={"task_type": "membrane"})
    with pytest.raises(InputError, match=r"classes: synapse and membrane"):
        read_trained_networks([str(run), others[0], str(membrane)])
    order = [{"background": 0, "synapse": 1, "mito": 2}, {"background": 0, "mito": 1, "synapse": 2}]
    named = [write_other(tmp_path / f"n{n}", n, task={"labels": labels}, classes=3) for n, labels in enumerate(order)]
    with pytest.raises(InputError, match=r"classes: synapse, mito and mito, synapse"):
        read_trained_networks([str(each) for each in named])
    coarse = write_other(tmp_path / "coarse", 3, extra={"voxel_size_nm": [30.0, 12.0, 12.0]})
    with pytest.raises(InputError, match="trained at voxel sizes of"):
        read_trained_networks([str(run), str(coarse)])
    with pytest.raises(InputError, match="hold the same weights, which would count twice"):
        read_trained_networks([str(run), others[0], others[0]])
    torch.save(tiny_network().state_dict(), tmp_path / "bare.pt")
    with pytest.raises(InputError, match=r"bare.pt holds only weights"):
        read_trained_networks([others[0], str(tmp_path / "bare.pt")])
