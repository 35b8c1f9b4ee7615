"""Preparation of a segmentation: network, blocks, halo and provenance, and settings that do not fit."""

import json

import pytest
import torch

from kasthuri_ray.geometry import Box
from kasthuri_ray.inference.inference_settings import InferenceSettings


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((4, 100, 140))


def make_record(inputs):
    return inputs.make_record(InferenceSettings("cpu", "float32", False, 1, (1, 64, 64), 1))


def test_a_run_names_its_network_task_threshold_and_image(write_run, em, prepare, tmp_path):
    run = write_run(tmp_path / "run", task={"image_chan": em})
    lines = []
    inputs = prepare(run, lines)
    assert inputs.image.uri == em
    assert inputs.box == Box((0, 0, 0), (4, 100, 140))
    assert inputs.thresholds == [0.4]
    assert inputs.settings.task.task_type == "synapse"
    assert lines == []
    assert prepare(run, threshold=0.0).thresholds == [0.0]


def test_a_relative_path_of_the_image_is_recorded_as_an_absolute_one(run, em, prepare, monkeypatch):
    folder, _, name = em.rpartition("/")
    monkeypatch.chdir(folder)
    inputs = prepare(run, image=name, mask=name)
    assert (inputs.image.uri, inputs.mask.uri) == (em, em)
    assert make_record(inputs) == make_record(prepare(run, image=em, mask=em))


def test_bare_weights_need_flags_for_network_and_task_and_get_the_default_threshold(
    em, prepare, tiny_network, tmp_path
):
    torch.save(tiny_network().state_dict(), tmp_path / "bare.pt")
    (tmp_path / "net.json").write_text(json.dumps({"n_blocks": 2, "start_filters": 4}))
    lines = []
    inputs = prepare(tmp_path / "bare.pt", lines, task="membrane", network=str(tmp_path / "net.json"), image=em)
    assert inputs.thresholds == [0.5]
    assert lines.pop(0).startswith("the weights state no threshold: the default, 0.5, decides masks and objects")
    assert lines == ["the training voxel size is not stored with the weights: it is not compared with the image's"]


def test_weights_of_another_network_or_task_are_refused(run, em, prepare):
    with pytest.raises(ValueError, match=r"best\.pt"):
        prepare(run, image=em, network="UNet_2D_depth")
    with pytest.raises(ValueError, match=r"for membrane, but .* was trained for synapse \(tiny_task\)"):
        prepare(run, image=em, task="membrane")


def test_levels_of_the_output_are_where_the_image_is(run, stores, prepare, tmp_path):
    em = stores.precomputed(tmp_path / "em", stores.image((2, 600, 80)), offset=(3, 10, 20))
    inputs = prepare(run, image=em, box="4:5,:,30:100")
    first, second = inputs.levels
    assert first.translation == (4 * 30, 10 * 6, 30 * 6)
    assert second.scale == (30, 12, 12)
    assert second.translation == (4 * 30, 10 * 6 + 3, 30 * 6 + 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"box": "0:5,:,:"}, r"--box 0:5,:,: is outside the volume .*, 0:4,0:100,0:140 \(z,y,x\)$"),
        ({"box": "-1:2,:,:"}, "negative indices are refused"),
        ({"box": "2:2,:,:"}, "holds no voxels"),
        ({"shard": [2, 32, 32], "block": [2, 32, 40]}, r"block \(2, 32, 40\) is not a multiple .* use 32 or 64"),
        ({"shard": [2, 40, 40], "chunk": [2, 16, 16]}, r"not a multiple of the chunk .* use 32 or 48"),
        ({"halo": [0, 7, 8]}, r"--halo 0,7,8 is not a multiple of the network's pooling, 2, along y; use 6 or 8"),
        ({"halo": "20"}, "--halo 20: expected three numbers z,y,x, none below 0, such as 64,512,512"),
        ({"tile": "1,64,-64"}, "--tile 1,64,-64: expected three numbers z,y,x"),
        ({"block": "1,064,64"}, "--block 1,064,64: expected three numbers z,y,x"),
        ({"voxel_size": "30,6.,6"}, "--voxel-size 30,6.,6: expected three numbers z,y,x"),
        ({"image": "nowhere.zarr"}, "nowhere.zarr"),
        ({"mask": "nowhere.zarr"}, "nowhere.zarr"),
        ({"boss": "none.json"}, "--boss none.json"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_a_setting_that_does_not_fit_is_an_error_that_names_it(run, em, prepare, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(run, **{"image": em} | flags)


def test_the_background_labels_of_the_run_are_recorded_for_an_evaluation(write_run, em, prepare, tmp_path):
    assert "background" not in make_record(prepare(write_run(tmp_path / "plain"), image=em))["task"]
    run = write_run(tmp_path / "run", task={"background": [2**64 - 1]})
    assert make_record(prepare(run, image=em))["task"]["background"] == [2**64 - 1]


def test_a_smaller_halo_is_used_with_a_warning_and_a_larger_one_is_reduced_to_the_receptive_field(run, em, prepare):
    lines = []
    margin = prepare(run, image=em).halo
    smaller = prepare(run, lines, image=em, halo=[0, 2, margin[2]])
    assert smaller.halo == (0, 2, margin[2])
    assert f"smaller than the receptive field, {margin}" in lines[0]
    larger = prepare(run, lines, image=em, halo=[0, 64, 64])
    assert larger.halo == margin
    assert "more context cannot change the result" in lines[1]


def test_the_record_changes_with_every_setting_that_changes_the_output_and_with_no_other(run, em, prepare):
    record = make_record(prepare(run, image=em))
    assert record == json.loads(json.dumps(record))
    same = ({"actors": 3}, {"cache_size": "1GB"}, {"verbose": True}, {"device": "cpu"}, {"objects": True})
    for flags in (*same, {"precomputed": "/x"}, {"price_per_hour": 3.0}, {"wait_for_resources": 5.0}):
        assert make_record(prepare(run, image=em, **flags)) == record
    other = ({"box": "0:2,:,:"}, {"shard": [2, 32, 32]}, {"chunk": [4, 50, 70]}, {"halo": [0, 2, 2]})
    for flags in (*other, {"threshold": 0.9}, {"save_mask": True}, {"skip_blank": False}, {"mask": em}):
        assert make_record(prepare(run, image=em, **flags)) != record
