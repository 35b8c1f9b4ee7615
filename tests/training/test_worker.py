"""A run from the first epoch to the final report, in this process and without Ray Train."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import zarr

from kasthuri_ray import process_resources
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.hardware import CPU_KINDS, RULES
from kasthuri_ray.models.checkpoints import read_checkpoint
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.training import worker
from kasthuri_ray.training.preflight import prepare_training
from kasthuri_ray.training.training_job import EVALUATE, STOP, WorkerContext
from kasthuri_ray.volumes.opening import open_volume

LABELS = "annotation_chan"
PHANTOM = {
    "image_chan": "phantom://em?shape=16,128,128&seed=7",
    LABELS: "phantom://membrane?shape=16,128,128&seed=7",
    **{"xrange_vol": [0, 128], "yrange_vol": [0, 128], "z_train": [0, 8], "z_val": [8, 11]},
    "tile_size": [64, 64],
    "task_type": "membrane",
}
OWN_NETWORK = """
from torch import nn

class MyNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 1))

    def forward(self, image):
        return self.layers(image)
"""


@pytest.fixture
def train_locally(local_ray, tmp_path, monkeypatch):
    """`train_locally(task, network, report, **train)` returns the run's folder and all messages."""
    monkeypatch.setattr(
        process_resources, "configure_allocator", lambda: True
    )  # it would also affect all tests that follow
    monkeypatch.setenv("KASTHURI_THREADS", "1")  # faster for such small tensors
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(task: dict, network: dict, report=lambda history: None, **train: object) -> tuple[Path, list[str]]:
        Path("task.json").write_text(json.dumps(task))
        Path("net.json").write_text(json.dumps({"epochs": 1, "batch_size": 4, "tiles_per_epoch": 8, **network}))
        settings = resolve_settings(GivenSettings("task.json", "net.json", flags={"train": {"cache": "none", **train}}))
        prepared, folder = prepare_training(settings), tmp_path / "run"
        messages = list(prepared.notes)
        job = prepared.make_job(prepared.settings, str(folder), "the next command")
        device = torch.device("cpu")
        context = WorkerContext(0, 1, 1, device, report=report, show=lambda message: messages.append(str(message)))
        threads = torch.get_num_threads()
        try:
            worker.train_worker(job, context)
        finally:
            torch.set_num_threads(threads)
        return folder, messages

    return run


def test_a_network_from_the_current_folder_trains_without_test_annotation(train_locally, tmp_path):
    (tmp_path / "my_nets.py").write_text(OWN_NETWORK)
    folder, messages = train_locally(PHANTOM, {"model": "my_nets.MyNet", "model_args": {"width": 4}})
    assert any("no annotation for test" in line for line in messages)
    assert "no annotation for test" in (folder / "index.html").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"] is None
    assert sum(map(sum, metrics["val"]["confusion"])) == 3 * 128 * 128
    assert torch.load(folder / "net_membrane.pt", weights_only=True)["layers.0.weight"].shape == (4, 1, 3, 3)


def test_a_finished_run_can_be_extended_by_more_epochs(train_locally):
    small = {"n_blocks": 2, "start_filters": 4, "epochs": 2}
    folder, _ = train_locally(PHANTOM, small)
    before = (folder / "history.csv").read_text().splitlines()
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 2
    train_locally(PHANTOM, {**small, "epochs": 3})
    after = (folder / "history.csv").read_text().splitlines()
    assert after[:3] == before
    assert len(after) == 4
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 3


@pytest.mark.slow
def test_the_figures_with_test_time_augmentation_stand_beside_those_of_the_default_segmentation(train_locally):
    task = {
        **{"image_chan": "phantom://em?shape=8,256,288&seed=0", LABELS: "phantom://synapse?shape=8,256,288&seed=0"},
        **{"xrange_vol": [0, 256], "yrange_vol": [0, 256], "z_train": [0, 5], "z_val": [5, 6], "z_test": [6, 8]},
        **{"task_type": "synapse", "tile_size": [64, 64]},
    }
    small = {"n_blocks": 2, "start_filters": 4, "epochs": 2, "learning_rate": 0.01, "precision": "float32"}
    folder, _ = train_locally(task, small, test_tta="on")
    metrics = json.loads((folder / "metrics.json").read_text())
    test, augmented = metrics["test"], metrics["test_tta"]
    assert augmented.keys() == test.keys() - {"learnt_from", "unseen"}
    assert augmented["threshold"] == test["threshold"]
    assert sum(map(sum, augmented["confusion"])) == sum(map(sum, test["confusion"])) == 2 * 256 * 256
    assert augmented["objects"]["num_true"] == test["objects"]["num_true"]
    assert augmented["average_precision"] != test["average_precision"]
    page = (folder / "index.html").read_text()
    assert f"F1\n{augmented['foreground_f1']:.3f}, average precision {augmented['average_precision']:.3f}" in page
    train_locally(task, small | {"epochs": 3}, test_tta="off")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test_tta"] is None
    assert not (folder / "test_tta_results.npz").exists()


def test_a_run_that_was_stopped_can_be_resumed_or_evaluated_as_it_is(train_locally):
    network = {"n_blocks": 2, "start_filters": 4, "epochs": 4, "learning_rate": 0.01}
    whole, _ = train_locally(PHANTOM, network)
    history = (whole / "history.csv").read_text().splitlines()
    shutil.rmtree(whole)
    reported_epochs: list[int] = []

    def report(history: list[dict]) -> str | None:
        reported_epochs.append(len(history))
        return STOP if len(history) == 2 else None

    folder, _ = train_locally(PHANTOM, network, report)
    assert reported_epochs == [1, 2]
    assert len((folder / "history.csv").read_text().splitlines()) == 3
    assert not (folder / "metrics.json").exists()
    train_locally(PHANTOM, network, report)  # resumed, it reports before it trains, and is stopped again
    assert reported_epochs == [1, 2, 2]
    train_locally(PHANTOM, network, lambda history: EVALUATE)
    assert len((folder / "history.csv").read_text().splitlines()) == 3
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 2
    train_locally(PHANTOM, network)
    without_times = [row.split(",")[:6] for row in (folder / "history.csv").read_text().splitlines()]
    assert without_times == [row.split(",")[:6] for row in history]


@pytest.mark.parametrize("kind", CPU_KINDS)
def test_a_run_keeps_the_rule_of_its_processor_and_resumes_by_it_on_another_one_or_not_at_all(
    train_locally, monkeypatch, kind
):
    small = {"n_blocks": 2, "start_filters": 4, "tiles_per_epoch": 4, "epochs": 2}
    monkeypatch.setenv("KASTHURI_CPU", kind)
    folder, _ = train_locally(PHANTOM, small, lambda history: STOP)  # after its first epoch
    plan = read_checkpoint((folder / "checkpoint/last.pt").read_bytes(), "last.pt").resume["plan"]
    rule = RULES[kind]
    kept = (kind, rule.precision, rule.trains_channels_last)
    assert (plan["kind"], plan["precision"], plan["channels_last"]) == kept
    monkeypatch.setenv("KASTHURI_CPU", "avx2")
    if rule.precision == "bf16":
        with pytest.raises(InputError, match="in bf16, which this one, of kind avx2, does not have"):
            train_locally(PHANTOM, small)
        return
    _, messages = train_locally(PHANTOM, small, lambda history: STOP)
    assert any("the run continues as it was begun" in line for line in messages) == (kind != "avx2")


def test_the_best_epoch_is_the_best_by_the_metric_of_the_settings(train_locally):
    network = {"n_blocks": 2, "start_filters": 4, "epochs": 4, "learning_rate": 0.05}
    for metric, column, choose in (("val.loss", 2, min), ("val.foreground_f1", 3, max)):
        folder, _ = train_locally(PHANTOM, {**network, "metric": metric})
        rows = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()[1:]]
        best = choose(rows, key=lambda row, column=column: float(row[column]))
        assert json.loads((folder / "metrics.json").read_text())["best_epoch"] == int(best[0])
        shutil.rmtree(folder)


def test_training_on_real_em_starts_from_given_weights(train_locally, test_data, tmp_path):
    small = {"n_blocks": 2, "start_filters": 4}
    torch.manual_seed(5)
    initial = build_network(small).state_dict()
    torch.save(initial, tmp_path / "published.pt")
    vnc = test_data / "vnc.zarr"
    real = {
        "image_chan": f"file://{vnc}/|zarr3:em",
        "annotation_chan": f"{vnc}/synapse",
        **{"xrange_vol": [0, 256], "yrange_vol": [0, 256], "z_train": [0, 14], "z_val": [14, 15], "z_test": [17, 18]},
        "tile_size": [64, 64],
        "task_type": "synapse",
    }
    folder, _ = train_locally(real, {**small, "learning_rate": 1e-12}, weights=str(tmp_path / "published.pt"))
    final = torch.load(folder / "net_synapse.pt", weights_only=True)
    assert final.keys() == initial.keys()
    # At this learning rate only the statistics of the normalization change, so training did start from these weights.
    for name in (name for name in initial if "running" not in name and "num_batches" not in name):
        torch.testing.assert_close(final[name], initial[name], rtol=0, atol=1e-6)
    assert any(not torch.equal(final[name], initial[name]) for name in initial if "running" in name)
    assert sum(map(sum, json.loads((folder / "metrics.json").read_text())["test"]["confusion"])) == 256 * 256


def test_a_3d_network_trains_on_tiles_of_several_sections_and_blank_chunks_are_reported(train_locally, tmp_path):
    em, membrane = (open_volume(PHANTOM[key]).read(Box((0, 0, 0), (16, 128, 128))) for key in ("image_chan", LABELS))
    em[12:, :64, :64] = 0
    for name, array in (("em", em), ("membrane", membrane)):
        zarr.create_array(tmp_path / f"{name}.zarr", data=array, chunks=(4, 64, 64))
    stored = {"image_chan": str(tmp_path / "em.zarr"), LABELS: str(tmp_path / "membrane.zarr")}
    task = {**PHANTOM, **stored, "z_val": [8, 12], "z_test": [12, 16], "volume_z": 4, "tile_size": [32, 32]}
    folder, _ = train_locally(task, {"dim": 3, "n_blocks": 2, "start_filters": 4})
    metrics = json.loads((folder / "metrics.json").read_text())
    assert sum(map(sum, metrics["test"]["confusion"])) == 4 * 128 * 128
    assert metrics["blank_chunks"] == 1
    assert "nothing but zeros" in (folder / "index.html").read_text()


def test_a_validation_box_without_foreground_causes_a_warning_and_the_lowest_loss_is_kept(train_locally, tmp_path):
    labels = open_volume(PHANTOM[LABELS]).read(Box((0, 0, 0), (16, 128, 128)))
    labels[8:] = 0
    zarr.create_array(tmp_path / "labels.zarr", data=labels, chunks=(1, 64, 64))
    small = {"n_blocks": 2, "start_filters": 4, "epochs": 3, "learning_rate": 0.01}
    folder, messages = train_locally({**PHANTOM, LABELS: str(tmp_path / "labels.zarr")}, small)
    assert len([line for line in messages if "holds no foreground" in line]) == 1
    assert "holds no foreground" in (folder / "index.html").read_text()
    rows = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()[1:]]
    best = min(rows, key=lambda row: float(row[2]))
    assert json.loads((folder / "metrics.json").read_text())["best_epoch"] == int(best[0])


def test_a_run_that_finds_objects_has_the_same_weights_and_scores_whenever_its_end_is_written_again(train_locally):
    task = PHANTOM | {"z_test": [11, 16], "task_type": "synapse"}  # what is annotated does not matter
    small = {"n_blocks": 2, "start_filters": 8, "epochs": 2, "tiles_per_epoch": 64, "learning_rate": 0.02}
    folder, messages = train_locally(task, small)
    best, metrics = folder / "checkpoint/best.pt", json.loads((folder / "metrics.json").read_text())
    written = read_checkpoint(best.read_bytes(), "best.pt")
    assert written.temperature == metrics["temperature"]
    assert written.best["threshold"] == metrics["test"]["threshold"] == metrics["val"]["threshold"]
    assert any("logits are divided by" in line for line in messages) == (metrics["temperature"] > 1)
    last = read_checkpoint((folder / "checkpoint/last.pt").read_bytes(), "last.pt")
    assert last.temperature is None
    if last.best["epoch"] == 2:
        name = "conv_final.weight"
        assert torch.equal(written.weights[name] * metrics["temperature"], last.weights[name])
    for damage in (lambda: None, best.unlink):  # killed after best.pt was written, and before
        damage()
        train_locally(task, small)
        again = json.loads((folder / "metrics.json").read_text())
        timed = {"seconds", "tiles_per_second", "wait_share"}
        assert {key: again[key] for key in again.keys() - timed} == {
            key: metrics[key] for key in metrics.keys() - timed
        }
        found = read_checkpoint(best.read_bytes(), "best.pt")
        assert all(torch.equal(found.weights[name], value) for name, value in written.weights.items())
        assert (found.temperature, found.objects) == (written.temperature, written.objects)
