"""What a worker makes of blocks, without Ray: the result of one pass over the whole image, whatever the blocks are."""

import threading
import time

import cc3d
import numpy as np
import pytest
import zarr

from kasthuri_ray.errors import InputError, NodeUnsuitable, VolumeError
from kasthuri_ray.geometry import Box
from kasthuri_ray.hardware import CPU_KINDS, RULES
from kasthuri_ray.metrics.objects import join_objects
from kasthuri_ray.output.ledger import read_components
from kasthuri_ray.volumes.opening import open_volume


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((3, 110, 170))


def read_array(job, name="s0"):
    return np.asarray(zarr.open_group(job.output, mode="r")[name])


def max_difference(array, probabilities):
    """Return the largest difference between uint8 probabilities and probabilities, in steps of 1/255."""
    return np.abs(array.astype(int) - np.rint(255 * probabilities).astype(int)).max()


CUTS = {
    "default": {},
    "small blocks": {"shard": [2, 32, 32], "chunk": [1, 16, 32], "block": [2, 64, 32]},
    "one section": {"shard": [1, 48, 64], "chunk": [1, 48, 32], "block": [1, 96, 64], "tile": (1, 72, 48)},
    "a box": {"box": "1:3,13:101,:", "shard": [1, 32, 32], "block": [2, 32, 96]},
    "a box of one voxel": {"box": "2:3,109:110,5:6"},
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_blocks_of_any_shape_equal_one_pass(
    run, em, image, tiny_network, one_pass, make_job, run_job_here, tmp_path, cut
):
    expected = one_pass(tiny_network(), image)
    assert expected.min() < 0.02
    assert expected.max() > 0.98
    job = make_job(run, tmp_path / "out.zarr", image=em, **cut)
    run_job_here(job)
    assert max_difference(read_array(job), expected[(slice(None), *job.box.slices())]) <= 1


@pytest.mark.parametrize("network", [{"dim": 3}, {"classes": 3}, {"dim": 3, "pool_z": 1}], ids=str)
def test_blocks_of_other_networks_equal_one_pass(
    write_run, stores, tiny_network, one_pass, make_job, run_job_here, tmp_path, network
):
    run = write_run(tmp_path / "run", **network)
    image = stores.image((20, 40, 56))
    em = stores.zarr(tmp_path / "em.zarr", image)
    job = make_job(run, tmp_path / "out.zarr", image=em, shard=[8, 16, 16], block=[8, 32, 16], box="3:,:,2:50")
    run_job_here(job)
    expected = one_pass(tiny_network(**network), image)
    assert max_difference(read_array(job), expected[(slice(None), *job.box.slices())]) <= 1


def test_half_of_the_halo_is_not_enough(run, em, image, tiny_network, one_pass, make_job, run_job_here, tmp_path):
    whole = make_job(run, tmp_path / "whole.zarr", image=em)
    half = [n // 2 // f * f for n, f in zip(whole.halo, whole.receptive_field.factors, strict=True)]
    job = make_job(run, tmp_path / "out.zarr", image=em, halo=half, shard=[1, 32, 32], block=[3, 32, 32])
    run_job_here(job)
    assert max_difference(read_array(job), one_pass(tiny_network(), image)) > 1


def test_the_output_of_an_image_with_an_offset_is_at_the_same_place(
    run, image, stores, tiny_network, one_pass, make_job, run_job_here, tmp_path
):
    """The pooling grid begins at the first voxel of the image, whatever its offset."""
    em = stores.precomputed(tmp_path / "em", image, offset=(7, 3, 101))
    job = make_job(run, tmp_path / "out.zarr", image=em, box="8:10,20:100,:", shard=[1, 32, 32], block=[1, 32, 64])
    run_job_here(job)
    assert job.box == Box((8, 20, 101), (10, 100, 271))
    expected = one_pass(tiny_network(), image)[:, 1:3, 17:97, :]
    assert max_difference(read_array(job), expected) <= 1
    group = zarr.open_group(job.output, mode="r")
    (dataset,) = group.attrs["ome"]["multiscales"][0]["datasets"]
    scale, translation = dataset["coordinateTransformations"]
    assert scale["scale"] == [1, 30, 6, 6]
    assert translation["translation"] == [0, 8 * 30, 20 * 6, 101 * 6]


def test_an_image_of_16_bits_is_scaled_by_the_grey_levels_of_the_training(
    write_run, image, stores, tiny_network, one_pass, make_job, run_job_here, tmp_path
):
    run = write_run(tmp_path / "run", extra={"image_intensity": [1000.0, 52000.0]})
    em = stores.zarr(tmp_path / "em.zarr", 1000 + 200 * image.astype(np.uint16))
    job = make_job(run, tmp_path / "out.zarr", image=em)
    run_job_here(job)
    assert max_difference(read_array(job), one_pass(tiny_network(), image)) <= 1


def test_the_mean_over_flips_and_turns_does_not_depend_on_the_blocks(run, em, make_job, run_job_here, tmp_path):
    one = make_job(run, tmp_path / "one.zarr", image=em, tta=True)
    other = make_job(run, tmp_path / "other.zarr", image=em, tta=True, shard=[1, 32, 48], block=[3, 64, 48])
    run_job_here(one)
    run_job_here(other)
    plain = make_job(run, tmp_path / "plain.zarr", image=em)
    run_job_here(plain)
    assert max_difference(read_array(one), read_array(other) / 255) <= 1
    assert max_difference(read_array(one), read_array(plain) / 255) > 10


@pytest.fixture(scope="module")
def half_blank(tmp_path_factory, stores):
    """Return an image of two pyramid levels, blank on one side but for one voxel, and its path."""
    image = stores.image((2, 100, 600))
    image[:, :, 300:] = 0
    image[1, 50, 500] = 9
    return image, stores.zarr(tmp_path_factory.mktemp("half_blank") / "em.zarr", image)


SMALL_CHUNKS = {"shard": [2, 32, 32], "chunk": [2, 16, 16]}


def test_chunks_that_see_only_blank_voxels_are_0_and_all_others_are_exact(
    run, half_blank, tiny_network, one_pass, make_job, run_job_here, tmp_path
):
    image, em = half_blank
    jobs = [
        make_job(run, tmp_path / f"{n}.zarr", image=em, block=block, **SMALL_CHUNKS)
        for n, block in enumerate(([2, 32, 32], [2, 64, 96], [2, 128, 608]))
    ]
    trackers = [run_job_here(job) for job in jobs]
    arrays = [read_array(job) for job in jobs]
    for other in arrays[1:]:
        assert ((arrays[0] == 0) == (other == 0)).all()
        assert max_difference(arrays[0], other / 255) <= 1  # tiles of another shape are rounded differently
    expected = np.rint(255 * one_pass(tiny_network(), image)).astype(int)
    (margin,) = set(jobs[0].halo[1:])
    for chunk in Box((0, 0, 0), (2, 100, 600)).cells((2, 16, 16)):
        z, y, x = chunk.slices()
        seen = image[:, max(0, y.start - margin) : y.stop + margin, max(0, x.start - margin) : x.stop + margin]
        voxels = arrays[0][(slice(None), z, y, x)].astype(int)
        if seen.any():
            assert np.abs(voxels - expected[(slice(None), z, y, x)]).max() <= 1
        else:
            assert not voxels.any()
    assert len([1 for wrote in trackers[0].ledger.done("s0").values() if not wrote]) > 10
    all_computed = make_job(run, tmp_path / "all.zarr", image=em, skip_blank=False, **SMALL_CHUNKS)
    run_job_here(all_computed)
    assert np.abs(read_array(all_computed).astype(int) - expected).max() <= 1


def test_blank_blocks_are_neither_computed_nor_read_by_later_phases(
    run, half_blank, make_job, make_worker, run_job_here, tmp_path, read_files
):
    job = make_job(
        run, tmp_path / "out.zarr", image=half_blank[1], block=[2, 32, 32], save_mask=True, objects=True, **SMALL_CHUNKS
    )
    worker = make_worker(job)
    predictor, network, coarse = worker.segmenter.predictors[0], worker.phases["s0"], worker.phases["s1"]
    computed, predict = [], predictor.predict

    def logged_predict(part, block, *more):
        computed.append(block)
        return predict(part, block, *more)

    predictor.predict = logged_predict
    finished = run_job_here(job, worker)
    blank = [index for index in network.grid if not finished.done(network)["_".join(map(str, index))]]
    assert len(blank) > 10
    assert len(computed) == len(network.grid) - len(blank)
    assert not {network.grid.box(index) for index in blank} & set(computed)
    stored = {name for name in read_files(tmp_path / "out.zarr/s0") if name.startswith("c/")}
    assert len(stored) == len(computed)
    assert finished.num_blank(coarse) > 0
    assert len(finished.ledger.done("s1")) == len(coarse.grid) - finished.num_blank(coarse)


def test_blocks_outside_a_mask_of_another_resolution_are_not_segmented(
    run, em, image, stores, tiny_network, one_pass, make_job, run_job_here, tmp_path
):
    mask = np.zeros((3, 28, 43), np.uint16)  # voxels four times as long
    mask[1, 10, 20] = 7  # voxels 40:44 and 80:84
    mask_path = stores.zarr(tmp_path / "mask.zarr", mask, voxel_size_nm=(30, 24, 24))
    job = make_job(run, tmp_path / "out.zarr", image=em, mask=mask_path, shard=[1, 16, 16], block=[1, 16, 16])
    finished = run_job_here(job)
    computed = [name for name, wrote in finished.ledger.done("s0").items() if wrote]
    assert computed == ["1_2_5"]
    assert job.record["mask"] == mask_path
    expected = one_pass(tiny_network(), image)[:, 1, 32:48, 80:96]
    assert max_difference(read_array(job)[:, 1, 32:48, 80:96], expected) <= 1
    rest = read_array(job).copy()
    rest[:, 1, 32:48, 80:96] = 0
    assert not rest.any()
    assert finished.ledger.read("s0", "0_0_0") == {"outside": True}


def test_label_image_and_objects_are_those_of_the_whole_image(run, em, make_job, run_job_here, phases_of, tmp_path):
    extras = {"save_mask": True, "objects": True, "threshold": 0.7}
    job = make_job(run, tmp_path / "out.zarr", image=em, shard=[1, 32, 32], block=[2, 32, 64], **extras)
    finished = run_job_here(job)
    mask = read_array(job)[0] >= 0.7 * 255
    assert 0 < mask.mean() < 1
    assert (read_array(job, "labels/synapse/s0") == mask).all()
    labels, number = cc3d.connected_components(mask, connectivity=26, return_N=True)
    table = join_objects(read_components(finished.ledger, name) for name in finished.written(phases_of(job)["objects"]))
    assert len(table) == number > 3
    assert sorted(table.size_voxels) == sorted(np.bincount(labels.ravel())[1:])


def test_a_precomputed_copy_holds_the_same_voxels_at_the_same_place(run, em, make_job, run_job_here, tmp_path):
    job = make_job(
        run, tmp_path / "out.zarr", image=em, copy=str(tmp_path / "copy"), box="1:3,16:100,:", shard=[1, 32, 32]
    )
    run_job_here(job)
    copy = open_volume(str(tmp_path / "copy"))
    assert copy.bounds == job.box
    assert copy.voxel_size_nm == (30, 6, 6)
    assert (copy.read(copy.bounds) == read_array(job)[0]).all()


def test_an_error_names_the_block(run, em, make_job, make_worker, tmp_path, monkeypatch):
    worker = make_worker(make_job(run, tmp_path / "out.zarr", image=em))
    monkeypatch.setattr(worker.segmenter.predictors[0], "predict", lambda *a, **k: 1 / 0)
    with pytest.raises(RuntimeError, match=r"s0 of block 0:3,0:110,0:170 \(z,y,x\): ZeroDivisionError"):
        worker.work("s0", (0, 0, 0))
    assert worker.ledger.done("s0") == {}


def test_an_error_of_the_image_keeps_its_message(run, em, make_job, make_worker, tmp_path, monkeypatch):
    worker = make_worker(make_job(run, tmp_path / "out.zarr", image=em))

    def fail(box):
        raise VolumeError(f"em.zarr: the cutout {box} could not be read")

    monkeypatch.setattr(worker.segmenter.job.image, "read", fail)
    with pytest.raises(VolumeError, match="the cutout 0:3,0:110,0:170 could not be read"):
        worker.work("s0", (0, 0, 0))


def test_a_machine_without_the_device_of_the_job_is_unsuitable(run, em, make_job, changed, make_worker, tmp_path):
    job = make_job(run, tmp_path / "out.zarr", image=em)
    with pytest.raises(NodeUnsuitable, match="no CUDA GPU"):
        make_worker(changed(job, inference=changed(job.inference, device="cuda")))


def with_precision(settings, precision):
    return settings.model_copy(update={"segment": settings.segment.model_copy(update={"precision": precision})})


@pytest.mark.parametrize("kind", CPU_KINDS)
def test_bf16_that_was_not_requested_by_name_needs_bf16_arithmetic(
    run, em, make_job, changed, make_worker, tmp_path, monkeypatch, kind
):
    monkeypatch.setenv("KASTHURI_CPU", kind)
    job = make_job(run, tmp_path / "out.zarr", image=em)
    bf16 = changed(job, inference=changed(job.inference, precision="bf16"))
    if RULES[kind].precision == "bf16":
        make_worker(bf16)
    else:
        with pytest.raises(NodeUnsuitable, match=f"started in bf16, which .*, a processor of kind {kind}, does not"):
            make_worker(bf16)
    make_worker(changed(bf16, settings=with_precision(job.settings, "bf16")))


def test_an_actor_holds_two_cutouts_and_two_results_at_most_and_reads_while_the_network_runs(
    run, em, make_job, make_worker, tmp_path, monkeypatch
):
    from kasthuri_ray.output.ome_zarr import OmeZarrOutput

    job = make_job(run, tmp_path / "out.zarr", image=em, shard=[1, 32, 32], block=[1, 32, 32])
    OmeZarrOutput.create(job.output, job.spec)
    worker = make_worker(job)
    held, highest, lock = {"cutouts": 0, "results": 0}, {"cutouts": 0, "results": 0}, threading.Lock()
    read_while_computing = []

    def count(name, step):
        with lock:
            held[name] += step
            highest[name] = max(highest[name], held[name])

    segmenter, network = worker.segmenter, worker.phases["s0"]
    fetch, predict, write = segmenter.fetch, segmenter.predict, network.write
    is_computing = threading.Event()

    def counted_fetch(block):
        read_while_computing.append(is_computing.is_set())
        count("cutouts", 1)
        return fetch(block)

    def counted_predict(cutout, block):
        is_computing.set()
        time.sleep(0.05)
        probabilities = predict(cutout, block)
        is_computing.clear()
        count("cutouts", -1)
        count("results", 1)
        return probabilities

    def counted_write(block, probabilities):
        time.sleep(0.12)
        count("results", -1)
        return write(block, probabilities)

    monkeypatch.setattr(segmenter, "fetch", counted_fetch)
    monkeypatch.setattr(segmenter, "predict", counted_predict)
    monkeypatch.setattr(network, "write", counted_write)
    indices = network.grid[:12]
    threads = [
        threading.Thread(target=lambda part: [worker.work("s0", index) for index in part], args=(indices[n::4],))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(worker.ledger.done("s0")) == 12
    assert highest == {"cutouts": 2, "results": 2}
    assert any(read_while_computing)


def test_a_sample_is_timed_and_the_error_of_a_smaller_halo_is_measured(
    run, em, make_job, make_worker, tmp_path, read_files
):
    worker = make_worker(make_job(run, tmp_path / "out.zarr", image=em))
    block = Box((0, 20, 40), (2, 80, 120))
    timing = worker.time_tiles(block)
    assert timing["seconds"] > 0
    assert timing["computed_voxels"] > block.num_voxels
    assert timing["compression"] >= 1
    assert timing["halo_error"] is None
    smaller = make_worker(make_job(run, tmp_path / "less.zarr", image=em, halo=[0, 2, 2]))
    assert smaller.time_tiles(block)["halo_error"] > 1 / 255
    assert read_files(tmp_path) == {}


def test_voxels_of_nan_are_written_as_0_and_counted_and_change_no_other_block(
    run, image, stores, tiny_network, one_pass, make_job, run_job_here, tmp_path
):
    floats = image.astype(np.float32)
    floats[0, :40, :60] = np.nan
    floats[2] = np.nan
    em = stores.zarr(tmp_path / "em.zarr", floats)
    more = {"assignments": ["task.image_intensity=[0,255]"], "shard": [1, 32, 32], "block": [1, 32, 64]}
    job = make_job(run, tmp_path / "out.zarr", image=em, **more)
    finished = run_job_here(job)
    written, missing = read_array(job), np.isnan(floats)
    assert not written[:, missing].any()
    expected = one_pass(tiny_network(), np.nan_to_num(floats).astype(np.uint8))
    assert max_difference(written[:, 1], expected[:, 1]) <= 1
    assert np.abs(written.astype(int) - np.rint(255 * expected)).max(0)[0][~missing[0]].max() <= 1
    records = [finished.ledger.read("s0", name) for name in finished.ledger.done("s0")]
    assert sum(record.get("nan_voxels", 0) for record in records) == missing.sum()


def test_absent_chunks_are_counted_in_the_records_of_the_blocks(run, image, make_job, run_job_here, prepare, tmp_path):
    array = zarr.create_array(tmp_path / "em.zarr", data=image, chunks=(1, 32, 32), zarr_format=2)
    array.attrs["voxel_size_nm_zyx"] = [30, 6, 6]
    for name in ("0.0.0", "0.1.2", "2.3.5"):
        (tmp_path / "em.zarr" / name).unlink()
    more = {"image": str(tmp_path / "em.zarr"), "shard": [1, 32, 32], "block": [1, 64, 96]}
    finished = run_job_here(make_job(run, tmp_path / "out.zarr", **more))
    records = [finished.ledger.read("s0", name) for name in finished.ledger.done("s0")]
    assert sum(record.get("absent_chunks", 0) for record in records) == 3
    with pytest.raises(InputError, match=r"nothing of .*em.zarr is stored in the box, 0:1,32:64,64:96 .*--allow-empty"):
        prepare(run, image=more["image"], box="0:1,32:64,64:96")
    prepare(run, image=more["image"], box="0:1,32:64,64:96", allow_empty=True)
