"""Files beside an output: their names and their content."""

import json
from pathlib import Path

import numpy as np

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.components import label_block_components
from kasthuri_ray.metrics.object_columns import object_columns
from kasthuri_ray.metrics.objects import join_objects
from kasthuri_ray.output.side_files import (
    object_table_path,
    read_object_table,
    remove_side_files,
    write_object_table,
    write_plan,
    write_progress,
)
from kasthuri_ray.storage.folder import open_storage


def test_the_table_of_objects_is_named_after_what_it_holds():
    assert object_table_path("/data/out.zarr", ["synapse"]) == "/data/out.zarr.synapses.csv"
    assert object_table_path("/data/out.zarr", ["membrane"]) == "/data/out.zarr.objects.csv"


def test_the_plan_is_written_beside_the_output(output):
    write_plan(output, {"blocks": 3, "hours": None})
    folder = open_storage(output.rpartition("/")[0])
    assert folder.list_files() == ["out.zarr.plan.json"]
    assert folder.read_bytes("out.zarr.plan.json") == b'{\n  "blocks": 3,\n  "hours": null\n}\n'


def test_a_table_of_objects_is_read_as_rows_of_numbers(output):
    voxels = np.zeros((2, 4, 4), np.uint8)
    voxels[0, 1, 1:3] = 255
    voxels[1, 3, 3] = 204
    components = label_block_components(voxels > 0, Box((0, 0, 0), voxels.shape), voxels)[0]
    path = f"{output}.objects.csv"
    bounds = Box((0, 0, 0), voxels.shape)
    write_object_table(path, object_columns(join_objects([components]), bounds, (30.0, 4.0, 4.0), start=(7, 0, 0)))
    first, second = read_object_table(path)
    assert {name: first[name] for name in ("id", "size_voxels", "z_start", "x_stop")} == {
        **{"id": 1, "size_voxels": 2, "z_start": 7, "x_stop": 3}
    }
    assert (first["centroid_x_nm"], first["mean_probability"]) == (6.0, 1.0)
    assert second["highest_probability"] == 0.8
    assert (first["size_nm3"], first["score"], first["cut"]) == (960.0, 1.0, 1)
    write_object_table(path, object_columns(join_objects([components]), bounds))
    assert read_object_table(path)[0]["size_nm3"] is None
    write_object_table(path, object_columns(join_objects([]), bounds))
    assert read_object_table(path) == []
    names = ['synapse, "asymmetric"', "synapse\nsymmetric"]
    write_object_table(path, object_columns(join_objects([components]), bounds, class_names=names))
    assert [(row["id"], row["class"]) for row in read_object_table(path)] == [(1, names[0]), (2, names[0])]


def test_progress_and_table_are_removed_and_the_plan_stays(output):
    write_progress(output, {"state": "done"})
    write_plan(output, {})
    folder = open_storage(output.rpartition("/")[0])
    folder.write_bytes("out.zarr.synapses.csv", b"id\n")
    folder.write_bytes("out.zarr.synapses.parquet", b"")
    remove_side_files(output, ["synapse"])
    assert folder.list_files() == ["out.zarr.plan.json"]
    remove_side_files(output, ["synapse"])


def test_progress_is_written_whole_over_an_earlier_one(output):
    write_progress(output, {"state": "running", "blocks": 3})
    write_progress(output, {"state": "done", "blocks": 3, "seconds_left": None})
    path, name = output.rpartition("/")[0], "out.zarr.progress.json"
    folder = open_storage(path)
    assert folder.list_files() == [name]
    assert json.loads(folder.read_bytes(name)) == {"state": "done", "blocks": 3, "seconds_left": None}
    if not output.startswith("s3"):
        assert [file.name for file in Path(path).iterdir()] == [name]
