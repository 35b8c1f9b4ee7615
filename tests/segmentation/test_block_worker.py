"""What an actor does with blocks, without Ray: the result is that of one pass over the whole, however it is cut."""

import threading
import time

import cc3d
import numpy as np
import pytest
import zarr

from kasthuri_ray.errors import NodeUnsuitable, VolumeError
from kasthuri_ray.geometry import Box
from kasthuri_ray.metrics.objects import join_objects
from kasthuri_ray.output.ledger import read_components
from kasthuri_ray.segmentation.segmentation_job import SEGMENT, job_phases, phase_grid
from kasthuri_ray.volumes.opening import open_volume


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run):
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((3, 110, 170))


@pytest.fixture(scope="module")
def em(tmp_path_factory, stores, image):
    return stores.zarr(tmp_path_factory.mktemp("em") / "em.zarr", image)


def array(job, name="s0"):
    return np.asarray(zarr.open_group(job.output, mode="r")[name])


def difference(found, probabilities):
    return np.abs(found.astype(int) - np.rint(255 * probabilities).astype(int)).max()


CUTS = {
    "default": {},
    "small blocks": {"shard": [2, 32, 32], "chunk": [1, 16, 32], "block": [2, 64, 32]},
    "one section": {"shard": [1, 48, 64], "chunk": [1, 48, 32], "block": [1, 96, 64], "tile": (1, 72, 48)},
    "a box": {"box": "1:3,13:101,:", "shard": [1, 32, 32], "block": [2, 32, 96]},
    "a box of one voxel": {"box": "2:3,109:110,5:6"},
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_blocks_equal_one_pass_whatever_they_are(
    run, em, image, tiny_network, oracle, job_of, done_here, tmp_path, cut
):
    expected = oracle(tiny_network(), image)
    assert expected.min() < 0.02
    assert expected.max() > 0.98
    job = job_of(run, tmp_path / "out.zarr", image=em, **cut)
    done_here(job)
    assert difference(array(job), expected[(slice(None), *job.box.slices())]) <= 1


@pytest.mark.parametrize("network", [{"dim": 3}, {"classes": 3}, {"dim": 3, "pool_z": 1}], ids=str)
def test_other_networks(write_run, stores, tiny_network, oracle, job_of, done_here, tmp_path, network):
    run = write_run(tmp_path / "run", **network)
    image = stores.image((20, 40, 56))
    em = stores.zarr(tmp_path / "em.zarr", image)
    job = job_of(run, tmp_path / "out.zarr", image=em, shard=[8, 16, 16], block=[8, 32, 16], box="3:,:,2:50")
    done_here(job)
    expected = oracle(tiny_network(**network), image)
    assert difference(array(job), expected[(slice(None), *job.box.slices())]) <= 1


def test_half_the_halo_does_not_do(run, em, image, tiny_network, oracle, job_of, done_here, tmp_path):
    whole = job_of(run, tmp_path / "whole.zarr", image=em)
    half = [n // 2 // f * f for n, f in zip(whole.halo, whole.reach.factors, strict=True)]
    job = job_of(run, tmp_path / "out.zarr", image=em, halo=half, shard=[1, 32, 32], block=[3, 32, 32])
    done_here(job)
    assert difference(array(job), oracle(tiny_network(), image)) > 1


def test_an_image_that_does_not_begin_at_0(run, image, stores, tiny_network, oracle, job_of, done_here, tmp_path):
    """The pooling grid begins where the image does, and the output lies where the image does."""
    em = stores.precomputed(tmp_path / "em", image, offset=(7, 3, 101))
    job = job_of(run, tmp_path / "out.zarr", image=em, box="8:10,20:100,:", shard=[1, 32, 32], block=[1, 32, 64])
    done_here(job)
    assert job.box == Box((8, 20, 101), (10, 100, 271))
    expected = oracle(tiny_network(), image)[:, 1:3, 17:97, :]
    assert difference(array(job), expected) <= 1
    group = zarr.open_group(job.output, mode="r")
    (dataset,) = group.attrs["ome"]["multiscales"][0]["datasets"]
    scale, translation = dataset["coordinateTransformations"]
    assert scale["scale"] == [1, 30, 6, 6]
    assert translation["translation"] == [0, 8 * 30, 20 * 6, 101 * 6]


def test_grey_levels_of_the_training_become_the_networks(
    write_run, image, stores, tiny_network, oracle, job_of, done_here, tmp_path
):
    run = write_run(tmp_path / "run", about={"image_intensity": [1000.0, 52000.0]})
    em = stores.zarr(tmp_path / "em.zarr", 1000 + 200 * image.astype(np.uint16))
    job = job_of(run, tmp_path / "out.zarr", image=em)
    done_here(job)
    assert difference(array(job), oracle(tiny_network(), image)) <= 1


def test_the_mean_over_turns_does_not_depend_on_blocks_either(run, em, job_of, done_here, tmp_path):
    one = job_of(run, tmp_path / "one.zarr", image=em, tta=True)
    other = job_of(run, tmp_path / "other.zarr", image=em, tta=True, shard=[1, 32, 48], block=[3, 64, 48])
    done_here(one)
    done_here(other)
    plain = job_of(run, tmp_path / "plain.zarr", image=em)
    done_here(plain)
    assert difference(array(one), array(other) / 255) <= 1
    assert difference(array(one), array(plain) / 255) > 10


@pytest.fixture(scope="module")
def wide(tmp_path_factory, stores):
    """An image with a pyramid of two levels, half of it blank."""
    image = stores.image((2, 100, 600))
    image[:, :, 300:] = 0
    image[1, 50, 500] = 9  # but for one voxel
    return image, stores.zarr(tmp_path_factory.mktemp("wide") / "em.zarr", image)


BLANK = {"shard": [2, 32, 32], "chunk": [2, 16, 16]}


def test_what_is_blank_is_0_whatever_the_blocks_and_the_rest_exact(
    run, wide, tiny_network, oracle, job_of, done_here, tmp_path
):
    image, em = wide
    jobs = [
        job_of(run, tmp_path / f"{n}.zarr", image=em, block=block, **BLANK)
        for n, block in enumerate(([2, 32, 32], [2, 64, 96], [2, 128, 608]))
    ]
    todos = [done_here(job) for job in jobs]
    found = [array(job) for job in jobs]
    for other in found[1:]:
        assert ((found[0] == 0) == (other == 0)).all()
        assert difference(found[0], other / 255) <= 1  # tiles of another shape round otherwise
    expected = np.rint(255 * oracle(tiny_network(), image)).astype(int)
    (margin,) = set(jobs[0].halo[1:])
    for chunk in Box((0, 0, 0), (2, 100, 600)).cells((2, 16, 16)):
        z, y, x = chunk.slices()
        seen = image[:, max(0, y.start - margin) : y.stop + margin, max(0, x.start - margin) : x.stop + margin]
        voxels = found[0][(slice(None), z, y, x)].astype(int)
        if seen.any():
            assert np.abs(voxels - expected[(slice(None), z, y, x)]).max() <= 1
        else:
            assert not voxels.any()
    assert todos[0].num_blank(SEGMENT) > 10
    every = job_of(run, tmp_path / "every.zarr", image=em, skip_blank=False, **BLANK)
    done_here(every)
    assert np.abs(array(every).astype(int) - expected).max() <= 1


def test_blank_blocks_are_neither_computed_nor_read_again(
    run, wide, job_of, segmenter_of, done_here, tmp_path, content_of
):
    job = job_of(run, tmp_path / "out.zarr", image=wide[1], block=[2, 32, 32], save_mask=True, objects=True, **BLANK)
    segmenter = segmenter_of(job)
    computed, predict = [], segmenter.predictor.predict

    def watched(voxels, box, block, *more, **others):
        computed.append(block)
        return predict(voxels, box, block, *more, **others)

    segmenter.predictor.predict = watched
    todo = done_here(job, segmenter)
    blank = [index for index in phase_grid(job, SEGMENT) if not todo.done(SEGMENT)["_".join(map(str, index))]]
    assert len(blank) > 10
    assert len(computed) == len(phase_grid(job, SEGMENT)) - len(blank)
    assert not {phase_grid(job, SEGMENT).box(index) for index in blank} & set(computed)
    stored = {name for name in content_of(tmp_path / "out.zarr/s0") if name.startswith("c/")}
    assert len(stored) == len(computed)
    assert todo.num_blank("s1") > 0
    assert len(todo.ledger.done("s1")) == len(phase_grid(job, "s1")) - todo.num_blank("s1")


def test_a_mask_of_another_resolution_leaves_blocks_out(
    run, em, image, stores, tiny_network, oracle, job_of, done_here, tmp_path
):
    mask = np.zeros((3, 28, 43), np.uint16)  # voxels four times as long
    mask[1, 10, 20] = 7  # voxels 40:44 and 80:84
    where = stores.zarr(tmp_path / "mask.zarr", mask, voxel_size=(30, 24, 24))
    job = job_of(run, tmp_path / "out.zarr", image=em, mask=where, shard=[1, 16, 16], block=[1, 16, 16])
    todo = done_here(job)
    computed = [name for name, wrote in todo.done(SEGMENT).items() if wrote]
    assert computed == ["1_2_5"]
    assert job.record["mask"] == where
    expected = oracle(tiny_network(), image)[:, 1, 32:48, 80:96]
    assert difference(array(job)[:, 1, 32:48, 80:96], expected) <= 1
    rest = array(job).copy()
    rest[:, 1, 32:48, 80:96] = 0
    assert not rest.any()
    assert todo.ledger.read(SEGMENT, "0_0_0") == {"outside": True}


def test_mask_and_objects_are_those_of_the_whole(run, em, job_of, done_here, tmp_path):
    job = job_of(
        run,
        tmp_path / "out.zarr",
        image=em,
        save_mask=True,
        objects=True,
        shard=[1, 32, 32],
        block=[2, 32, 64],
        threshold=0.7,
    )
    todo = done_here(job)
    probability = array(job)[0]
    mask = probability >= 0.7 * 255
    assert 0 < mask.mean() < 1
    assert (array(job, "labels/synapse/s0") == mask).all()
    labels, number = cc3d.connected_components(mask, connectivity=26, return_N=True)
    table = join_objects(read_components(todo.ledger, name) for name in todo.written("objects"))
    assert len(table) == number > 3
    assert sorted(table.size_voxels) == sorted(np.bincount(labels.ravel())[1:])


def test_a_precomputed_copy_is_the_same_at_the_same_place(run, em, job_of, done_here, tmp_path):
    job = job_of(
        run, tmp_path / "out.zarr", image=em, copy=str(tmp_path / "copy"), box="1:3,16:100,:", shard=[1, 32, 32]
    )
    done_here(job)
    copy = open_volume(str(tmp_path / "copy"))
    assert copy.bounds == job.box
    assert copy.voxel_size_nm == (30, 6, 6)
    assert (copy.read(copy.bounds) == array(job)[0]).all()


def test_phases_come_in_their_order(run, em, job_of, tmp_path):
    job = job_of(run, tmp_path / "out.zarr", image=em, objects=True, copy=str(tmp_path / "copy"))
    assert job_phases(job) == ["s0", "objects", "precomputed-s0"]


def test_what_fails_names_the_block(run, em, job_of, segmenter_of, tmp_path, monkeypatch):
    segmenter = segmenter_of(job_of(run, tmp_path / "out.zarr", image=em))
    monkeypatch.setattr(segmenter.predictor, "predict", lambda *a, **k: 1 / 0)
    with pytest.raises(RuntimeError, match=r"s0 of block 0:3,0:110,0:170 \(z,y,x\): ZeroDivisionError"):
        segmenter.work("s0", (0, 0, 0))
    assert segmenter.ledger.done("s0") == {}


def test_a_source_that_fails_is_said_as_it_says_it(run, em, job_of, segmenter_of, tmp_path, monkeypatch):
    segmenter = segmenter_of(job_of(run, tmp_path / "out.zarr", image=em))

    def fail(box):
        raise VolumeError(f"em.zarr: the cutout {box} could not be read")

    monkeypatch.setattr(segmenter.job.image, "read", fail)
    with pytest.raises(VolumeError, match="the cutout 0:3,0:110,0:170 could not be read"):
        segmenter.work("s0", (0, 0, 0))


def test_a_machine_that_cannot_do_it_is_unfit(run, em, job_of, changed, segmenter_of, tmp_path):
    job = job_of(run, tmp_path / "out.zarr", image=em)
    with pytest.raises(NodeUnsuitable, match="no CUDA card"):
        segmenter_of(changed(job, arithmetic=changed(job.arithmetic, device="cuda")))


def test_bf16_that_was_not_asked_for_by_name_needs_the_hardware(
    run, em, job_of, changed, segmenter_of, tmp_path, monkeypatch
):
    monkeypatch.setattr("kasthuri_ray.hardware.supports_bf16", lambda device: False)
    job = job_of(run, tmp_path / "out.zarr", image=em)
    half = changed(job, arithmetic=changed(job.arithmetic, precision="bf16"))
    with pytest.raises(NodeUnsuitable, match="begun in bf16"):
        segmenter_of(half)
    segmenter_of(changed(half, emulate_bf16=True))


def test_blocks_in_hand_are_bounded_while_the_next_is_read(run, em, job_of, segmenter_of, tmp_path, monkeypatch):
    """Four calls at once: never more than two cutouts and two results are held, and reading overlaps the network."""
    from kasthuri_ray.output.ome_zarr import OmeZarrOutput

    job = job_of(run, tmp_path / "out.zarr", image=em, shard=[1, 32, 32], block=[1, 32, 32])
    OmeZarrOutput.create(job.output, job.spec)
    segmenter = segmenter_of(job)
    held, most, lock = {"cutouts": 0, "results": 0}, {"cutouts": 0, "results": 0}, threading.Lock()
    overlaps = []

    def count(name, step):
        with lock:
            held[name] += step
            most[name] = max(most[name], held[name])

    fetch, predict, write = segmenter._fetch, segmenter._predict, segmenter._write
    computing = threading.Event()

    def fetched(block):
        overlaps.append(computing.is_set())
        count("cutouts", 1)
        return fetch(block)

    def predicted(cutout, block):
        computing.set()
        time.sleep(0.05)
        found = predict(cutout, block)
        computing.clear()
        count("cutouts", -1)
        count("results", 1)
        return found

    def written(place, probabilities):
        time.sleep(0.12)
        count("results", -1)
        return write(place, probabilities)

    monkeypatch.setattr(segmenter, "_fetch", fetched)
    monkeypatch.setattr(segmenter, "_predict", predicted)
    monkeypatch.setattr(segmenter, "_write", written)
    indices = phase_grid(job, "s0")[:12]
    threads = [
        threading.Thread(target=lambda part: [segmenter.work("s0", index) for index in part], args=(indices[n::4],))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(segmenter.ledger.done("s0")) == 12
    assert most == {"cutouts": 2, "results": 2}
    assert any(overlaps)


def test_a_sample_is_timed_and_a_smaller_halo_measured(run, em, job_of, segmenter_of, tmp_path, content_of):
    whole = segmenter_of(job_of(run, tmp_path / "out.zarr", image=em))
    block = Box((0, 20, 40), (2, 80, 120))
    found = whole.time_tiles(block)
    assert found["seconds"] > 0
    assert found["computed"] > block.num_voxels
    assert found["compression"] >= 1
    assert found["halo_error"] is None
    less = segmenter_of(job_of(run, tmp_path / "less.zarr", image=em, halo=[0, 2, 2]))
    assert less.time_tiles(block)["halo_error"] > 1 / 255
    assert content_of(tmp_path) == {}
