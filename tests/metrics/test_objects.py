"""Objects joined across blocks are those of the whole mask at once, whatever the blocks."""

import csv
import io

import cc3d
import numpy as np
import pytest

from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.components import SIZE, Components, label_block_components, lowest_foreground_value
from kasthuri_ray.metrics.objects import join_objects
from kasthuri_ray.segmentation.segment import write_object_table
from kasthuri_ray.volumes.opening import open_volume

SIZE_NM = (30.0, 6.0, 6.0)


def with_shell(own, bounds):
    return Box(own.start, tuple(n + 1 for n in own.stop)).intersect(bounds)


def labelled(probability, block, threshold=0.5, start=(0, 0, 0), origin=(0, 0, 0)):
    """The components of every block of an array whose first voxel is `start`, in order."""
    bounds = Box.at(start, probability.shape)
    for own in bounds.cells(block, origin):
        yield label_block_components(probability[with_shell(own, bounds).slices(start)], own, threshold)


def table_at_once(probability, threshold=0.5, start=(0, 0, 0)):
    """What cc3d and numpy say of the whole array: rows in the order of the first voxel."""
    labels, number = cc3d.connected_components(probability / 255 >= threshold, connectivity=26, return_N=True)
    rows = []
    for label in range(1, number + 1):
        voxels = np.argwhere(labels == label) + start
        values = probability[labels == label].astype(int)
        box = [bound for axis in voxels.T for bound in (int(axis.min()), int(axis.max()) + 1)]
        rows.append([tuple(voxels[0]), *voxels.mean(0), len(voxels), values.mean() / 255, values.max() / 255, *box])
    return [row[1:] for row in sorted(rows, key=lambda row: row[0])]


def rows_of(table, size=(1.0, 1.0, 1.0), translation=(0.0, 0.0, 0.0)):
    """The table as numbers, without ids, which are checked."""
    found = list(csv.reader(io.StringIO("\n".join(table.rows(size, translation)))))[1:]
    assert [int(row[0]) for row in found] == list(range(1, len(found) + 1))
    return [[float(value) for value in row[1:]] for row in found]


def noise(shape, share, seed=0):
    """Random bytes of which about `share` are at least a half."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < share, rng.integers(128, 256, shape), rng.integers(0, 128, shape)).astype(
        np.uint8
    )


BLOCKS = [(1, 1, 1), (1, 64, 64), (64, 1, 64), (64, 64, 1), (2, 3, 5), (4, 4, 4), (5, 7, 64), (64, 64, 64)]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("share", [0.03, 0.12, 0.6])
def test_any_blocks_give_the_objects_of_the_whole_array(block, share):
    probability = noise((7, 11, 13), share)
    expected = table_at_once(probability)
    assert len(expected) > (10 if share < 0.2 else 0)
    np.testing.assert_allclose(rows_of(join_objects(labelled(probability, block))), expected, atol=6e-4)


def test_objects_that_touch_by_a_corner_that_neither_block_owns_are_one():
    probability = np.zeros((1, 4, 4), np.uint8)
    probability[0, 2, 1] = probability[0, 1, 2] = 200  # the block at 0,0,0 owns neither of these neighbours
    blocks = list(labelled(probability, (1, 2, 2)))
    assert [int(block.stats[:, SIZE].sum()) for block in blocks] == [0, 1, 1, 0]
    assert len(join_objects(blocks)) == 1
    probability[0, 3, 3] = 200
    assert len(join_objects(labelled(probability, (1, 2, 2)))) == 2


def test_synapses_of_the_phantom_are_the_same_objects_in_any_blocks():
    synapse = open_volume("phantom://synapse?shape=24,512,512&seed=3")
    mask = synapse.read(synapse.bounds) > 0
    values = np.random.default_rng(0).integers(128, 256, mask.shape, np.uint8) * mask
    at_once = join_objects(labelled(values, mask.shape))
    assert len(at_once) == cc3d.connected_components(mask, connectivity=26).max() > 5
    for block in [(1, 512, 512), (7, 100, 200), (24, 64, 64), (8, 512, 33)]:
        table = join_objects(labelled(values, block))
        np.testing.assert_array_equal(table.stats, at_once.stats)
    assert {(z1 - z0) for _, _, _, _, _, _, z0, z1, *_ in rows_of(at_once)} - {1.0}, "objects cross sections"


def test_a_volume_may_begin_anywhere_and_blocks_on_any_grid():
    probability = noise((6, 10, 12), 0.1)
    start = (-3, 5, 100_000)
    moved = join_objects(labelled(probability, (4, 4, 4), start=start, origin=(1, -2, 3)))
    np.testing.assert_allclose(rows_of(moved), table_at_once(probability, start=start), atol=6e-4)


def test_blocks_without_objects_may_be_left_out():
    probability = noise((6, 40, 40), 0.001, seed=5)
    probability[2:4, 10:14, 10:30] = 255
    blocks = list(labelled(probability, (2, 8, 8)))
    kept = [block for block in blocks if block.borders.num_labels]
    assert len(kept) < len(blocks) / 2
    np.testing.assert_array_equal(join_objects(kept).stats, join_objects(blocks).stats)


def test_components_travel_as_bytes():
    probability = noise((5, 9, 9), 0.15)
    travelled = (Components.from_bytes(block.to_bytes()) for block in labelled(probability, (2, 4, 5)))
    np.testing.assert_array_equal(join_objects(travelled).stats, join_objects(labelled(probability, (2, 4, 5))).stats)


def test_nothing_gives_an_empty_table():
    table = join_objects(labelled(np.zeros((2, 4, 4), np.uint8), (1, 2, 2)))
    assert len(table) == 0
    assert len(list(table.rows(SIZE_NM))) == 1
    assert len(join_objects([])) == 0


def test_a_threshold_means_what_it_says_of_bytes():
    for threshold in (0.0, 0.2, 0.3, 100 / 255, 0.5, 0.75, 1.0):
        values = np.arange(256, dtype=np.uint8)
        np.testing.assert_array_equal(values >= lowest_foreground_value(threshold), values / 255 >= threshold)
    assert lowest_foreground_value(1.5) == 256


def test_the_table_is_csv_in_nanometers(tmp_path):
    probability = np.zeros((3, 4, 4), np.uint8)
    probability[1, 1, 1:3] = [200, 255]
    probability[1:, 3, 3] = 128
    table = join_objects(labelled(probability, (2, 2, 2), start=(10, 0, 0)))
    write_object_table(table, str(tmp_path / "out.zarr.synapses.csv"), SIZE_NM, (0.0, 600.0, 0.0))
    with open(tmp_path / "out.zarr.synapses.csv") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "id": "1", "centroid_z_nm": "330.000", "centroid_y_nm": "606.000", "centroid_x_nm": "9.000",
        "size_voxels": "2", "mean_probability": "0.892157", "highest_probability": "1.000000",
        "z_start": "11", "z_stop": "12", "y_start": "1", "y_stop": "2", "x_start": "1", "x_stop": "3",
    }  # fmt: skip
    assert second["centroid_z_nm"] == "345.000"
    shifted = next(csv.DictReader(table.rows(SIZE_NM, (0.0, 600.0, 0.0), start=(1000, 20, 3))))
    moved = {"z_start": "1011", "z_stop": "1012", "y_start": "21", "y_stop": "22", "x_start": "4", "x_stop": "6"}
    assert shifted == first | moved
    assert [second[f"z_{end}"] for end in ("start", "stop")] == ["11", "13"]


def test_without_a_voxel_size_the_header_says_voxels():
    table = join_objects(labelled(np.full((1, 1, 3), 255, np.uint8), (1, 1, 1)))
    header, row = table.rows(None)
    assert header.startswith("id,centroid_z_voxels,")
    assert row.startswith("1,0.000,0.000,1.000,3,1.000000,1.000000,")


def test_blocks_out_of_order_and_blocks_that_disagree_are_refused():
    probability = np.full((2, 4, 4), 255, np.uint8)
    blocks = list(labelled(probability, (2, 2, 2)))
    with pytest.raises(ValueError, match="in their order, z slowest: 0:2,0:2,0:2 came after one at"):
        join_objects([blocks[1], blocks[0]])
    other = list(labelled(np.zeros_like(probability), (2, 2, 2)))
    with pytest.raises(ValueError, match="block 0:2,0:2,2:4 and those before it do not show the same voxels"):
        join_objects([blocks[0], other[1]])


def test_what_is_no_block_is_refused():
    with pytest.raises(ValueError, match="uint8, these are float32"):
        label_block_components(np.zeros((1, 1, 1), np.float32), Box.at((0, 0, 0), (1, 1, 1)), 0.5)
    with pytest.raises(ValueError, match=r"\(1, 1, 1\) and its shell have \(3, 1, 1\) voxels"):
        label_block_components(np.zeros((3, 1, 1), np.uint8), Box.at((0, 0, 0), (1, 1, 1)), 0.5)
    with pytest.raises(ValueError, match="not at x 2000000"):
        label_block_components(np.full((1, 1, 1), 255, np.uint8), Box.at((0, 0, 2_000_000), (1, 1, 1)), 0.5)
