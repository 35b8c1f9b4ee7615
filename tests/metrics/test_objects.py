"""Objects joined across blocks equal those of the whole mask, whatever the blocks."""

import csv
import io

import cc3d
import numpy as np
import pytest
from pyarrow import parquet

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.class_map import lowest_value
from kasthuri_ray.metrics.components import CLASS, SIZE, Components, label_block_components
from kasthuri_ray.metrics.object_columns import csv_lines, object_columns
from kasthuri_ray.metrics.objects import join_objects
from kasthuri_ray.output.side_files import write_object_table
from kasthuri_ray.volumes.opening import open_volume

SIZE_NM = (30.0, 6.0, 6.0)
FAR = Box((-1000, -1000, -1000), (1000, 1000, 1_000_000))  # nothing touches its faces


def with_shell(own, bounds):
    return Box(own.start, tuple(n + 1 for n in own.stop)).intersect(bounds)


def block_components(probability, block, threshold=0.5, start=(0, 0, 0), origin=(0, 0, 0)):
    """Yield the components of every block, in order, of an array whose first voxel is `start`."""
    bounds = Box.at(start, probability.shape)
    for own in bounds.cells(block, origin):
        values = probability[with_shell(own, bounds).slices(start)]
        yield label_block_components(values >= lowest_value(threshold), own, values)[0]


def rows_of_whole_array(probability, threshold=0.5, start=(0, 0, 0)):
    """Return the rows that cc3d and numpy find in the whole array, in the order of the first voxel."""
    labels, number = cc3d.connected_components(probability / 255 >= threshold, connectivity=26, return_N=True)
    rows = []
    for label in range(1, number + 1):
        voxels = np.argwhere(labels == label) + start
        values = probability[labels == label].astype(int)
        box = [bound for axis in voxels.T for bound in (int(axis.min()), int(axis.max()) + 1)]
        rows.append([tuple(voxels[0]), *voxels.mean(0), len(voxels), values.mean() / 255, values.max() / 255, *box])
    return [row[1:] for row in sorted(rows, key=lambda row: row[0])]


def rows_of_table(table, size=(1.0, 1.0, 1.0), translation=(0.0, 0.0, 0.0)):
    """Return the rows of a table as numbers, without their ids, which are checked."""
    rows = list(csv.reader(io.StringIO("\n".join(csv_lines(object_columns(table, FAR, size, translation))))))[1:]
    assert [int(row[0]) for row in rows] == list(range(1, len(rows) + 1))
    return [[float(value) for value in row[1:13]] for row in rows]


def noise(shape, share, seed=0):
    """Return random bytes, of which about `share` are probabilities of at least a half."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < share, rng.integers(128, 256, shape), rng.integers(0, 128, shape)).astype(
        np.uint8
    )


BLOCKS = [(1, 1, 1), (1, 64, 64), (64, 1, 64), (64, 64, 1), (2, 3, 5), (4, 4, 4), (5, 7, 64), (64, 64, 64)]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("share", [0.03, 0.12, 0.6])
def test_objects_are_the_same_for_all_block_shapes(block, share):
    probability = noise((7, 11, 13), share)
    expected = rows_of_whole_array(probability)
    assert len(expected) > (10 if share < 0.2 else 0)
    np.testing.assert_allclose(rows_of_table(join_objects(block_components(probability, block))), expected, atol=6e-4)


def test_voxels_that_touch_at_a_corner_between_blocks_are_one_object():
    probability = np.zeros((1, 4, 4), np.uint8)
    probability[0, 2, 1] = probability[0, 1, 2] = 200  # the block at 0,0,0 owns neither of these neighbours
    blocks = list(block_components(probability, (1, 2, 2)))
    assert [int(block.stats[:, SIZE].sum()) for block in blocks] == [0, 1, 1, 0]
    assert len(join_objects(blocks)) == 1
    probability[0, 3, 3] = 200
    assert len(join_objects(block_components(probability, (1, 2, 2)))) == 2


def test_synapses_of_the_phantom_are_the_same_objects_for_all_block_shapes():
    synapse = open_volume("phantom://synapse?shape=24,512,512&seed=3")
    mask = synapse.read(synapse.bounds) > 0
    values = np.random.default_rng(0).integers(128, 256, mask.shape, np.uint8) * mask
    whole = join_objects(block_components(values, mask.shape))
    assert len(whole) == cc3d.connected_components(mask, connectivity=26).max() > 5
    for block in [(1, 512, 512), (7, 100, 200), (24, 64, 64), (8, 512, 33)]:
        table = join_objects(block_components(values, block))
        np.testing.assert_array_equal(table.stats, whole.stats)
    assert {(z1 - z0) for _, _, _, _, _, _, z0, z1, *_ in rows_of_table(whole)} - {1.0}, "objects cross sections"


def test_the_first_voxel_and_the_grid_of_blocks_may_be_anywhere():
    probability = noise((6, 10, 12), 0.1)
    start = (-3, 5, 100_000)
    moved = join_objects(block_components(probability, (4, 4, 4), start=start, origin=(1, -2, 3)))
    np.testing.assert_allclose(rows_of_table(moved), rows_of_whole_array(probability, start=start), atol=6e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_touching_objects_of_two_classes_stay_two_for_all_block_shapes(block):
    classes = np.random.default_rng(0).choice(4, (7, 11, 13), p=[0.9, 0.04, 0.03, 0.03]).astype(np.uint8)
    classes[2:5, 3:9, 3:6], classes[2:5, 3:9, 6:9] = 1, 2  # side by side
    bounds, probability = Box.at((0, 0, 0), classes.shape), noise(classes.shape, 0.5)
    blocks = [
        label_block_components(classes[box.slices()], own, probability[box.slices()])[0]
        for own in bounds.cells(block, (0, 0, 0))
        for box in [with_shell(own, bounds)]
    ]
    table = join_objects(Components.from_bytes(each.to_bytes()) for each in blocks)
    expected = {}
    for number in (1, 2, 3):
        only = np.where(classes == number, np.maximum(probability, 1), 0)
        for row in rows_of_whole_array(only, threshold=1 / 255):
            expected[tuple(row[6:])] = (number, row[3])
    lines = list(csv.DictReader(csv_lines(object_columns(table, bounds, class_names=["a", "b", "c"]))))
    boxes = [tuple(int(line[f"{axis}_{end}"]) for axis in "zyx" for end in ("start", "stop")) for line in lines]
    sizes = [("abc".index(line["class"]) + 1, int(line["size_voxels"])) for line in lines]
    assert sorted(zip(boxes, sizes, strict=True)) == sorted(expected.items())
    assert table.stats[:, CLASS].tolist() == [number for number, _ in sizes]


def test_components_that_were_written_before_there_were_classes_are_of_class_1():
    block = next(block_components(noise((5, 9, 9), 0.15), (5, 9, 9)))
    with np.load(io.BytesIO(block.to_bytes())) as file:
        arrays = {name: file[name] for name in file.files}
    old = io.BytesIO()
    np.savez_compressed(old, **arrays | {"stats": arrays["stats"][:, :CLASS]})
    np.testing.assert_array_equal(Components.from_bytes(old.getvalue()).stats, block.stats)


def test_blocks_without_labels_may_be_left_out():
    probability = noise((6, 40, 40), 0.001, seed=5)
    probability[2:4, 10:14, 10:30] = 255
    blocks = list(block_components(probability, (2, 8, 8)))
    kept = [block for block in blocks if block.borders.num_labels]
    assert len(kept) < len(blocks) / 2
    np.testing.assert_array_equal(join_objects(kept).stats, join_objects(blocks).stats)


def test_components_survive_serialization():
    probability = noise((5, 9, 9), 0.15)
    blocks = list(block_components(probability, (2, 4, 5)))
    read = (Components.from_bytes(block.to_bytes()) for block in blocks)
    np.testing.assert_array_equal(join_objects(read).stats, join_objects(blocks).stats)


def test_without_objects_the_table_is_empty():
    table = join_objects(block_components(np.zeros((2, 4, 4), np.uint8), (1, 2, 2)))
    assert len(table) == 0
    assert len(list(csv_lines(object_columns(table, FAR, SIZE_NM)))) == 1
    assert len(join_objects([])) == 0


def test_the_table_is_written_as_csv_in_nanometers(tmp_path):
    probability = np.zeros((3, 4, 4), np.uint8)
    probability[1, 1, 1:3] = [200, 255]
    probability[1:, 3, 3] = 128
    table = join_objects(block_components(probability, (2, 2, 2), start=(10, 0, 0)))
    bounds = Box.at((10, 0, 0), probability.shape)
    columns = object_columns(table, bounds, SIZE_NM, (0.0, 600.0, 0.0))
    write_object_table(str(tmp_path / "out.zarr.synapses.csv"), columns)
    with open(tmp_path / "out.zarr.synapses.csv") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "id": "1", "centroid_z_nm": "330.000", "centroid_y_nm": "606.000", "centroid_x_nm": "9.000",
        "size_voxels": "2", "mean_probability": "0.892157", "highest_probability": "1.000000",
        "z_start": "11", "z_stop": "12", "y_start": "1", "y_stop": "2", "x_start": "1", "x_stop": "3",
        "size_nm3": "2160.000", "score": "0.892157", "cut": "0",
    }  # fmt: skip
    assert second["centroid_z_nm"] == "345.000"
    shifted = next(
        csv.DictReader(csv_lines(object_columns(table, bounds, SIZE_NM, (0.0, 600.0, 0.0), start=(1000, 20, 3))))
    )
    moved = {"z_start": "1011", "z_stop": "1012", "y_start": "21", "y_stop": "22", "x_start": "4", "x_stop": "6"}
    assert shifted == first | moved
    assert [second[f"z_{end}"] for end in ("start", "stop")] == ["11", "13"]
    assert second["cut"] == "1", "it touches the face"
    stored = parquet.read_table(tmp_path / "out.zarr.synapses.parquet").to_pylist()
    assert [list(row) for row in stored] == [list(first), list(second)]
    assert [row["cut"] for row in stored] == [False, True]
    assert [row["size_nm3"] for row in stored] == [2160.0, float(second["size_nm3"])]


def test_without_a_voxel_size_centroids_are_in_voxels():
    table = join_objects(block_components(np.full((1, 1, 3), 255, np.uint8), (1, 1, 1)))
    header, row = csv_lines(object_columns(table, FAR))
    assert header.startswith("id,centroid_z_voxels,")
    assert row.startswith("1,0.000,0.000,1.000,3,1.000000,1.000000,")
    assert row.endswith(",,1.000000,0"), "the size in nm^3 is not known"


def test_blocks_out_of_order_and_blocks_that_differ_where_they_meet_are_refused():
    probability = np.full((2, 4, 4), 255, np.uint8)
    blocks = list(block_components(probability, (2, 2, 2)))
    with pytest.raises(ValueError, match="in order, z slowest: 0:2,0:2,0:2 came after one at"):
        join_objects([blocks[1], blocks[0]])
    other = list(block_components(np.zeros_like(probability), (2, 2, 2)))
    with pytest.raises(ValueError, match="block 0:2,0:2,2:4 and the blocks before it differ in the voxels"):
        join_objects([blocks[0], other[1]])
