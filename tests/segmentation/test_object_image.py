"""The label image of objects that the command writes, and evaluations that read it."""

import shutil

import cc3d
import numpy as np
import pytest
import zarr

from kasthuri_ray.config.settings import EvaluateSettings
from kasthuri_ray.evaluation.block_comparison import ComparisonTotals, compare_block
from kasthuri_ray.evaluation.comparison_inputs import prepare_comparison
from kasthuri_ray.metrics.object_detection import find_objects
from kasthuri_ray.metrics.object_outcomes import object_metrics
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.pyramid import downsample_ids
from kasthuri_ray.output.side_files import read_object_table
from kasthuri_ray.segmentation.object_phases import ObjectsPhase
from kasthuri_ray.segmentation.phases import job_phases

CUT = ("--shard", "2,32,32", "--block", "2,32,64")
FLAGS = ("--object-threshold", "0.95", "--object-extent", "0.6", "--min-size-nm3", 10 * 1080, "--bridge-sections", 1)
SETTINGS = ObjectSettings((0.95,), (0.6,), (10.0,), bridge_sections=1)


@pytest.fixture(scope="module")
def output(local_ray, run_segment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    assert run_segment("--output", folder / "out.zarr", *CUT, *FLAGS, "--save-objects", "--save-mask") == 0
    return folder / "out.zarr"


def read(output, name):
    return np.asarray(zarr.open_group(output, mode="r")[name])


def match(output, annotation, block=None, **settings):
    inputs = prepare_comparison(EvaluateSettings(prediction=str(output), annotation=annotation, **settings))
    totals = ComparisonTotals(inputs.comparison)
    for each in inputs.comparison.blocks(block):
        totals.add(compare_block(inputs.comparison, each))
    return object_metrics(totals.whole.outcomes[1]), inputs.notes


@pytest.fixture
def annotation(output, stores, tmp_path):
    labels = np.roll(read(output, "s0")[0] >= 150, 2, axis=2)
    return stores.zarr(tmp_path / "labels.zarr", labels.astype(np.uint8))


def test_the_command_writes_the_objects_of_the_whole_image_with_the_ids_of_the_table(output, read_json):
    labels, table = find_objects(read(output, "s0"), SETTINGS)
    np.testing.assert_array_equal(read(output, "labels/synapse_objects/s0"), labels)
    rows = read_object_table(f"{output}.synapses.csv")
    assert [row["size_voxels"] for row in rows] == table.size_voxels.tolist()
    assert 3 < len(rows) < cc3d.connected_components(labels > 0, connectivity=26).max() + 10
    group = zarr.open_group(output, mode="r")
    assert group["labels"].attrs["ome"]["labels"] == ["synapse", "synapse_objects"]
    assert group["labels/synapse_objects"].attrs["kasthuri_ray"] == {"objects": len(rows)}
    assert group.attrs["kasthuri_ray"]["objects"]["seed"] == [0.95]
    assert OmeZarrOutput.open(str(output)).spec.mask == "synapse"
    assert read_json(f"{output}.progress.json")["objects"] == len(rows)


def test_the_same_command_leaves_it_and_a_command_without_it_does_not_forget_it(output, segment, read_files):
    before = read_files(output)
    segment("--output", output, *CUT, *FLAGS, "--save-objects", "--save-mask")
    segment("--output", output, *CUT, *FLAGS, "--save-mask")
    assert read_files(output) == before
    refused = segment("--output", output, *CUT, "--save-mask", code=2)
    assert "objects.bridge_sections: 1 -> missing" in refused.err


def test_an_evaluation_reads_the_objects_of_the_label_image(output, annotation, tmp_path):
    rows = read_object_table(f"{output}.synapses.csv")
    matched, notes = match(output, annotation)
    assert any("synapse_objects" in note for note in notes)
    assert matched["num_predicted"] == len(rows)
    assert 0 < matched["recall"] < 1
    for block in [(1, 96, 600), (4, 40, 50)]:
        assert match(output, annotation, block)[0] == matched
    assert match(output, annotation, threshold=0.99)[0] == matched
    part = match(output, annotation, box="1:3,10:80,100:300")[0]
    inside = read(output, "labels/synapse_objects/s0")[1:3, 10:80, 100:300]
    assert part["num_predicted"] == len(np.unique(inside[inside > 0]))
    copy = tmp_path / "copy.zarr"
    shutil.copytree(output, copy)
    shutil.rmtree(copy / "labels/synapse_objects")
    found, notes = match(copy, annotation)
    assert found == matched
    assert not any("synapse_objects" in note for note in notes)


def test_ids_that_are_read_at_another_voxel_size_are_never_averaged(output, stores, tmp_path):
    ids = read(output, "labels/synapse_objects/s0")
    labels = stores.zarr(tmp_path / "labels.zarr", (ids > 0).astype(np.uint8), voxel_size_nm=(27.0, 6.0, 6.0))
    settings = EvaluateSettings(prediction=str(output), annotation=labels, resample=True)
    resampled = prepare_comparison(settings).comparison.object_ids
    np.testing.assert_array_equal(resampled[:], ids)  # the middle of each section lies in the section of its number


def test_a_label_image_that_is_not_complete_is_not_read(output, annotation, tmp_path):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(output, copy)
    del zarr.open_group(copy, mode="r+")["labels/synapse_objects"].attrs["kasthuri_ray"]
    shutil.rmtree(copy / "labels/synapse_objects/s0/c")
    assert match(copy, annotation)[0] == match(output, annotation)[0]


# block by block, without Ray


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((3, 110, 170))


OBJECTS = {
    **{"save_objects": True, "threshold": 0.7, "object_threshold": 0.9, "object_extent": 0.6, "min_sections": 2},
    **{"min_size_nm3": 8 * 1080.0, "bridge_sections": 1, "shard": [1, 32, 32], "block": [2, 32, 64]},
}


def test_the_label_image_of_objects_is_that_of_the_whole_image(run, em, make_job, run_job_here, tmp_path):
    job = make_job(run, tmp_path / "out.zarr", image=em, **OBJECTS)
    finished = run_job_here(job)
    settings = ObjectSettings((0.9,), (0.6,), (8.0,), min_sections=2, bridge_sections=1)
    labels, table = find_objects(read(job.output, "s0"), settings)
    assert 3 < len(table) < len(find_objects(read(job.output, "s0"), ObjectSettings.of_thresholds([0.6]))[1])
    image = read(job.output, "labels/synapse_objects/s0")
    assert image.dtype == np.uint32
    np.testing.assert_array_equal(image, labels)
    (objects, *_) = [phase for phase in job_phases(job) if isinstance(phase, ObjectsPhase)]
    line = objects.finish(finished.written(objects))
    rows = read_object_table(f"{job.output}.synapses.csv")
    assert line.startswith(f"{len(table)} objects: ")
    assert [row["size_voxels"] for row in rows] == table.size_voxels.tolist()
    assert [row["size_voxels"] for row in rows] == np.bincount(image.ravel())[1:].tolist(), "ids are those of the table"
    group = zarr.open_group(job.output, mode="r")["labels"]
    assert group.attrs["ome"]["labels"] == ["synapse_objects"]
    for level in job.levels[1:]:
        coarser = np.asarray(group[f"synapse_objects/{level.name}"])
        finer = np.asarray(group[f"synapse_objects/s{level.number - 1}"])
        np.testing.assert_array_equal(coarser, downsample_ids(finer, level.step))


def test_a_label_image_of_objects_that_was_stopped_ends_with_the_same_bytes(
    run, em, make_job, run_job_here, read_files, tmp_path
):
    jobs = [make_job(run, tmp_path / name / "out.zarr", image=em, save_mask=True, **OBJECTS) for name in "ab"]
    whole, stopped = (run_job_here(job) for job in jobs)
    names = sorted(stopped.ledger.done("object-labels-s0"))
    output, ledger = tmp_path / "b/out.zarr", tmp_path / "b/out.zarr.ledger"
    lost = names[len(names) // 2 :]
    for name in lost:
        for path in (ledger / "object-labels-s0").glob(f"{name}.*"):
            path.unlink()
    for path in (ledger / "ids").iterdir():
        path.unlink()
    for shard in (output / "labels/synapse_objects/s0/c").glob("*/*/*"):
        z, y, x = map(int, shard.parts[-3:])
        if f"{z // 2}_{y}_{x // 2}" in lost:  # blocks of 2 x 1 x 2 shards
            shard.unlink()
    (output / "labels/synapse_objects/zarr.json").unlink()
    run_job_here(jobs[1])
    assert read_files(output) == read_files(tmp_path / "a/out.zarr")
    assert whole.ledger.done("object-labels-s0") == stopped.ledger.done("object-labels-s0")
