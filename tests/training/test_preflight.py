"""What is settled before a run begins: its workers and its batches."""

import pytest

from kasthuri_ray.config.loading import resolve_settings
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.training import preflight
from kasthuri_ray.training.preflight import choose_batch_size, most_workers, plan_workers
from kasthuri_ray.training.run_folder import RunFolder


@pytest.mark.parametrize(
    ("given", "gpus", "before", "batch_size", "workers"),
    [
        (None, 0, None, 2, 1),
        ({"num_workers": 4}, 0, None, 4, 4),
        ({"num_workers": "2-8"}, 0, None, 8, 8),
        (None, 6, None, 6, 6),
        (None, 8, 4, 4, 4),  # begun on four GPUs
    ],
)
def test_a_batch_size_that_is_left_open_has_a_tile_for_every_worker(given, gpus, before, batch_size, workers):
    settings = resolve_settings("membrane", "UNet_2D_attention", flags={"train": given or {}})
    cluster = ClusterResources(16, gpus, 1)
    begun = {"network": {"batch_size": before}} if before else None
    settled = choose_batch_size(settings, most_workers(settings, cluster), begun)
    assert settled.network.batch == batch_size
    assert plan_workers(settled, cluster)[0][1] == workers
    fixed = resolve_settings("membrane", "UNet_2D", assignments=["network.batch_size=3"])
    assert choose_batch_size(fixed, most_workers(fixed, cluster), begun) == fixed


def test_a_run_that_goes_on_by_its_name_does_not_need_its_first_weights_again(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    gone = {"weights": str(tmp_path / "gone.pt"), "storage": str(tmp_path / "runs")}
    named = resolve_settings("membrane", "UNet_2D", flags={"train": {**gone, "name": "run"}})
    for settings in (resolve_settings("membrane", "UNet_2D", flags={"train": gone}), named):
        with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
            preflight._start_weights(settings)
    open_storage(str(tmp_path / "runs/run")).write_bytes("checkpoint/last.pt", b"where it stopped")
    assert preflight._start_weights(named) is None


@pytest.fixture
def finished(tmp_path) -> RunFolder:
    """A run of the membrane task that has ended after three epochs."""
    folder = RunFolder(open_storage(str(tmp_path / "runs/a")))
    folder.write_settings(resolve_settings("membrane", "UNet_2D", assignments=["network.epochs=3"]).of_training())
    folder.write_metrics({"epochs": 3})
    return folder


def test_a_finished_run_may_be_trained_for_longer_and_nothing_else(finished):
    preflight.check_run_resumable(finished, resolve_settings("membrane", "UNet_2D", assignments=["network.epochs=5"]))
    for assignments, words in (
        (["network.epochs=3"], r"a is finished, after 3 epochs: .*add --set network\.epochs=6"),
        (["network.epochs=2"], r"other settings:\n  network\.epochs: 3 -> 2"),
        (["network.epochs=5", "network.learning_rate=0.5"], r"network\.learning_rate: 0\.002 -> 0\.5"),
    ):
        with pytest.raises(ValueError, match=words):
            preflight.check_run_resumable(finished, resolve_settings("membrane", "UNet_2D", assignments=assignments))


def test_an_extension_that_was_cut_off_goes_on(finished):
    longer = resolve_settings("membrane", "UNet_2D", assignments=["network.epochs=5"])
    finished.write_settings(longer.of_training())
    preflight.check_run_resumable(finished, longer)


@pytest.mark.parametrize("key", ["task.name", "task.task_type", "network.outweightfilename"])
@pytest.mark.parametrize("value", ["../x", "a/b", "a\nb", ""])
def test_a_name_that_leads_out_of_the_storage_is_refused_before_any_work(key, value):
    section, name = key.split(".")
    settings = resolve_settings("membrane", "UNet_2D", flags={section: {name: value}})
    with pytest.raises(ValueError, match=key):
        preflight.check_run_location(settings)


def test_volumes_of_this_machine_are_known_by_their_whole_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    flags = {"task": {"image_chan": "em.zarr", "annotation_chan": "phantom://membrane?shape=4,64,64"}}
    task = preflight.absolute_volume_paths(resolve_settings("membrane", "UNet_2D", flags=flags)).task
    assert task.image_chan == f"{tmp_path}/em.zarr"
    assert task.annotation_chan == "phantom://membrane?shape=4,64,64"
    boxes = {name: [{"image": "em.zarr", "box": f"{n}:{n + 2},:,:"}] for n, name in enumerate(("train", "val"))}
    flags = {"task": {"boxes": boxes, "annotation_chan": "labels.h5:classes"}}
    task = preflight.absolute_volume_paths(resolve_settings("membrane", "UNet_2D", flags=flags)).task
    assert [region.image for region in task.regions("val")] == [f"{tmp_path}/em.zarr"]
    assert task.annotation_chan == f"{tmp_path}/labels.h5:classes"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert (
        preflight.absolute_volume_paths(resolve_settings("membrane", "UNet_2D", flags=flags)).task.annotation_chan
        == "labels.h5:classes"
    )


def test_a_folder_with_somebody_elses_settings_is_no_run(tmp_path):
    (tmp_path / "settings.json").write_text('{"editor.fontSize": 12}')
    with pytest.raises(ValueError, match="is not that of a run; give another --name"):
        RunFolder(open_storage(str(tmp_path))).read_settings()


def test_one_epoch_is_one_epoch(tmp_path):
    folder = RunFolder(open_storage(str(tmp_path / "runs/a")))
    folder.write_settings(resolve_settings("membrane", "UNet_2D", assignments=["network.epochs=1"]).of_training())
    folder.write_metrics({"epochs": 1})
    with pytest.raises(ValueError, match="is finished, after 1 epoch: "):
        preflight.check_run_resumable(folder, resolve_settings("membrane", "UNet_2D", assignments=["network.epochs=1"]))
