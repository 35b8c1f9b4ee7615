"""What is settled before a run begins: its workers and its batches."""

import pytest

from kasthuri_ray.layers import resolve
from kasthuri_ray.resources import Cluster
from kasthuri_ray.storage import open_storage
from kasthuri_ray.training import fit
from kasthuri_ray.training.fit import plan_workers, settle_batch_size
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
    settings = resolve("membrane", "UNet_2D_attention", flags={"train": given or {}})
    cluster = Cluster(16, gpus, 1)
    begun = {"network": {"batch_size": before}} if before else None
    settled = settle_batch_size(settings, cluster, begun)
    assert settled.network.batch == batch_size
    assert plan_workers(settled, cluster)[0][1] == workers
    fixed = resolve("membrane", "UNet_2D", assignments=["network.batch_size=3"])
    assert settle_batch_size(fixed, cluster, begun) == fixed


def test_a_run_that_goes_on_by_its_name_does_not_need_its_first_weights_again(tmp_path):
    gone = {"weights": str(tmp_path / "gone.pt")}
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        fit._start_weights(resolve("membrane", "UNet_2D", flags={"train": gone}))
    weights, lacking = fit._start_weights(resolve("membrane", "UNet_2D", flags={"train": {**gone, "name": "run"}}))
    assert weights is None
    assert "gone.pt" in str(lacking)


@pytest.fixture
def finished(tmp_path) -> RunFolder:
    """A run of the membrane task that has ended after three epochs."""
    folder = RunFolder(open_storage(str(tmp_path / "runs/a")))
    folder.write_settings(resolve("membrane", "UNet_2D", assignments=["network.epochs=3"]).of_training())
    folder.write_metrics({"epochs": 3})
    return folder


def test_a_finished_run_may_be_trained_for_longer_and_nothing_else(finished):
    fit.check_resumable(finished, resolve("membrane", "UNet_2D", assignments=["network.epochs=5"]))
    for assignments, words in (
        (["network.epochs=3"], r"a is finished, after 3 epochs: .*add --set network\.epochs=6"),
        (["network.epochs=2"], r"other settings:\n  network\.epochs: 3 -> 2"),
        (["network.epochs=5", "network.learning_rate=0.5"], r"network\.learning_rate: 0\.002 -> 0\.5"),
    ):
        with pytest.raises(ValueError, match=words):
            fit.check_resumable(finished, resolve("membrane", "UNet_2D", assignments=assignments))


def test_an_extension_that_was_cut_off_goes_on(finished):
    longer = resolve("membrane", "UNet_2D", assignments=["network.epochs=5"])
    finished.write_settings(longer.of_training())
    fit.check_resumable(finished, longer)
