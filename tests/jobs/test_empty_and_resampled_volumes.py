"""`--allow-empty` and `--resample` of the jobs: refused without them; with them, the same as from prepared volumes."""

import json

import numpy as np
import pytest
import zarr

from kasthuri_ray.volumes.opening import open_volume

pytestmark = pytest.mark.slow

EMPTY = slice(8, 12)  # sections of the image of which nothing is stored; the task validates on 8:11


def write(path, voxels, voxel_size_nm, **options):
    """Write an array with a chunk for every four sections."""
    chunks = (4, *voxels.shape[1:])
    stored = zarr.create_array(path, shape=voxels.shape, dtype=voxels.dtype, chunks=chunks, fill_value=0, **options)
    stored.attrs["voxel_size_nm_zyx"] = list(voxel_size_nm)
    stored[:] = voxels
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with an image that lacks sections, and a coarse annotation; and both as they count."""
    folder = tmp_path_factory.mktemp("volumes")
    em, labels = (
        volume.read(volume.bounds)
        for volume in (open_volume(f"phantom://{name}?shape=16,128,128&seed=7") for name in ("em", "membrane"))
    )
    em[EMPTY] = 0
    coarse = labels[:, ::2, ::2]
    write(folder / "sparse.zarr", em, (30, 6, 6))
    write(folder / "zeros.zarr", em, (30, 6, 6), config={"write_empty_chunks": True})
    write(folder / "coarse.zarr", coarse, (30, 12, 12))
    write(folder / "fine.zarr", coarse.repeat(2, 1).repeat(2, 2), (30, 6, 6))
    return folder


@pytest.fixture(scope="module")
def train(start_job, cluster, tiny_flags, folder):
    """Return `train(image, annotation, name, *flags)`, which trains on two volumes of the folder."""

    def run(image: str, annotation: str, name: str, *flags: str):
        volumes = ("--image", folder / image, "--annotation", folder / annotation)
        ranges = ("task.xrange_vol=0,128", "task.yrange_vol=0,128", "task.z_train=0,8", "task.z_val=8,11")
        volumes = (*volumes, "--set", *ranges, "task.z_test=11,16")
        return start_job(*tiny_flags, *volumes, "--storage", folder, "--name", name, *flags, cluster=cluster).wait()

    return run


@pytest.fixture(scope="module")
def trained(train):
    """Train on the sparse image and the coarse annotation."""
    job = train("sparse.zarr", "coarse.zarr", "sparse", "--allow-empty", "--resample")
    assert job.code == 0, job.out + job.err
    return job


def test_a_training_on_an_absent_image_and_a_coarse_annotation_equals_one_on_prepared_volumes(
    trained, train, folder, assert_same_run
):
    for flag, message in (("--resample", "is stored in the val box, 8:11,"), ("--allow-empty", "voxel sizes differ")):
        refused = train("sparse.zarr", "coarse.zarr", "refused", flag)
        assert refused.code == 2, refused.out + refused.err
        assert message in refused.err
    assert not (folder / "refused").exists()
    job = train("zeros.zarr", "fine.zarr", "prepared")
    assert job.code == 0, job.out + job.err
    assert_same_run(folder / "prepared", folder / "sparse")
    absent = f"val: 1 of 1 chunks absent in {folder}/sparse.zarr: their voxels count as its fill value"
    assert absent in trained.out
    assert "absent" not in job.out
    counts = [
        json.loads((folder / name / "metrics.json").read_text())["absent_chunks"] for name in ("sparse", "prepared")
    ]
    assert [each["image"][0] for each in counts] == [2, 0]  # in the val and in the test box


def test_a_segmentation_of_what_is_absent_is_refused_or_written_as_0(trained, start_job, cluster, folder):
    box = f"{EMPTY.start}:{EMPTY.stop},:,:"
    arguments = [
        "--weights",
        folder / "sparse",
        "--output",
        folder / "out.zarr",
        "--box",
        box,
        "--precision",
        "float32",
    ]
    refused = start_job(*arguments, cluster=cluster, script="jobs/segment.py").wait()
    assert refused.code == 2, refused.out + refused.err
    assert f"nothing of {folder}/sparse.zarr is stored in the box" in refused.err
    assert not (folder / "out.zarr").exists()
    job = start_job(*arguments, "--allow-empty", cluster=cluster, script="jobs/segment.py").wait()
    assert job.code == 0, job.out + job.err
    assert "1 of 1 chunks absent" in job.out
    progress = json.loads((folder / "out.zarr.progress.json").read_text())
    assert (progress["absent_chunks"], progress["chunks"]) == (1, 1)
    voxels = zarr.open_array(folder / "out.zarr/s0", mode="r")[:]
    assert voxels.shape == (1, 4, 128, 128)
    assert not voxels.any()


def test_an_evaluation_of_a_fine_prediction_is_that_of_its_means(start_job, cluster, folder):
    labels = zarr.open_array(folder / "coarse.zarr", mode="r")[:] > 0
    predicted = labels.copy()
    predicted[:, :8] = ~labels[:, :8]
    write(folder / "prediction.zarr", (predicted * np.uint8(200)).repeat(2, 1).repeat(2, 2), (30, 6, 6))
    arguments = ["--prediction", folder / "prediction.zarr", "--annotation", folder / "coarse.zarr"]
    arguments += ["--task", "phantom_membrane", "--out", folder / "evaluation"]
    refused = start_job(*arguments, cluster=cluster, script="jobs/evaluate.py").wait()
    assert refused.code == 2, refused.out + refused.err
    assert "voxel sizes differ" in refused.err
    assert not (folder / "evaluation").exists()
    job = start_job(*arguments, "--resample", cluster=cluster, script="jobs/evaluate.py").wait()
    assert job.code == 0, job.out + job.err
    result = json.loads((folder / "evaluation/evaluation.json").read_text())
    assert result["voxels"] == labels.size
    assert result["foreground_f1"] == pytest.approx(2 * (labels & predicted).sum() / (labels.sum() + predicted.sum()))
