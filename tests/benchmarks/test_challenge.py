"""The challenge's scoreboard as a job: what takes part, what is refused, and that no run is done twice."""

import csv
import functools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from kasthuri_ray.benchmarks import challenge, challenge_runs
from kasthuri_ray.benchmarks.challenge import run_challenge
from kasthuri_ray.benchmarks.challenge_plan import RECIPE, BoardRequest, plan_board
from kasthuri_ray.benchmarks.challenge_runs import BoardRunner, num_concurrent_runs
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import InputError, InputNotFound, WorkFailed
from kasthuri_ray.models.unet import build_network
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.resources import ClusterResources

NETWORK = {"n_blocks": 2, "start_filters": 4, "learning_rate": 0.01, "loss": "dice_ce", "outweightfilename": "small"}
TASK = {
    **{"name": "tiny_task", "task_type": "synapse", "tile_size": [64, 64], "threshold": True},
    "image_chan": "phantom://em?shape=8,256,288&seed=0",
    "annotation_chan": "phantom://synapse?shape=8,256,288&seed=0",
    **{"xrange_vol": [0, 256], "yrange_vol": [0, 256], "z_train": [0, 5], "z_val": [5, 6], "z_test": [6, 8]},
}


@pytest.fixture
def network(tmp_path: Path) -> str:
    """Return the file of a small network of one's own."""
    file = tmp_path / "small.json"
    file.write_text(json.dumps(NETWORK))
    return str(file)


def quick_board(folder: Path, *networks: str, **more: Any) -> BoardRequest:
    (folder / "tiny_task.json").write_text(json.dumps(TASK))
    given: dict[str, Any] = {"tasks": [str(folder / "tiny_task.json")], "num_seeds": 2, "quick": True, "name": "board"}
    return BoardRequest(networks=list(networks), storage=str(folder), **{**given, **more})


def no_ray(*_: object) -> None:
    raise AssertionError("Ray was started")


def test_by_default_every_2d_network_and_the_recipe_take_part_in_both_tasks() -> None:
    entries = plan_board(BoardRequest(data="phantom", quick=True, num_seeds=3))
    names = {entry.contestant for entry in entries}
    assert {RECIPE, "UNet_2D", "UNet_2D_attention", "UNet_2D_depth", "UNet_2D_residual"} <= names
    assert "UNet_3D" not in names
    assert entries[0].contestant == RECIPE
    assert len(entries) == 2 * 3 * len(names)
    assert {entry.task for entry in entries} == {"membrane", "synapse"}


def test_a_network_file_of_ones_own_takes_part_by_its_name(tmp_path, network) -> None:
    entries = plan_board(quick_board(tmp_path, network, "UNet_2D"))
    assert [entry.name for entry in entries] == [
        *(f"tiny_{RECIPE}_{seed}" for seed in (0, 1)),
        *("tiny_small_0", "tiny_small_1", "tiny_UNet_2D_0", "tiny_UNet_2D_1"),
    ]
    small = entries[2]
    assert small.settings.network.start_filters == 4
    assert small.num_parameters == sum(each.numel() for each in build_network(NETWORK).parameters())
    assert [entry.settings.network.seed for entry in entries[2:4]] == [0, 1]
    recipe = entries[0].settings.network
    assert (recipe.epochs, recipe.tiles_per_epoch) == (small.settings.network.epochs, 8)


def test_weights_take_part_by_their_name_and_are_not_trained(tmp_path, network) -> None:
    torch.save(build_network(NETWORK).state_dict(), tmp_path / "mine.pt")
    (entry,) = plan_board(quick_board(tmp_path, f"{tmp_path}/mine.pt:{network}", has_recipe=False))
    assert (entry.name, entry.seed, entry.weights) == ("tiny_mine", None, f"{tmp_path}/mine.pt")
    with pytest.raises(InputError, match=r"mine\.pt"):
        plan_board(quick_board(tmp_path, f"{tmp_path}/mine.pt", has_recipe=False))  # not those of UNet_2D


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"networks": ["UNet_2E"]}, InputNotFound, "--networks UNet_2E"),
        ({"networks": ["absent.pt"]}, InputNotFound, "absent.pt"),
        ({"networks": ["UNet_2D", "UNet_2D"]}, InputError, "two would be called UNet_2D"),
        ({"tasks": ["synapsis"]}, InputError, "did you mean synapse"),
        ({"tasks": ["TASK", "TASK"]}, InputError, "name each task once"),
        ({"data": "vnc", "store": "nowhere"}, InputNotFound, "nowhere holds no vnc.zarr"),
        ({"num_seeds": 0}, InputError, "--seeds 0"),
        ({"assignments": ["network.epoch=3"]}, InputError, "did you mean network.epochs"),
        ({"name": "a/b"}, InputError, "--name 'a/b'"),
    ],
)
def test_bad_input_is_refused_before_ray_starts_and_nothing_is_written(
    tmp_path, monkeypatch, changes, error, text
) -> None:
    monkeypatch.setattr(challenge, "connect_ray", no_ray)
    (tmp_path / "tiny_task.json").write_text(json.dumps(TASK))
    if "TASK" in changes.get("tasks", ()):
        changes = {"tasks": [str(tmp_path / "tiny_task.json")] * 2}
    request = BoardRequest(
        **{"data": "phantom", "networks": ["UNet_2D"], "quick": True, "storage": str(tmp_path / "runs"), **changes}
    )
    with pytest.raises(error, match=text):
        run_challenge(request, Reporter(), "")
    assert not (tmp_path / "runs").exists()


def test_trainings_run_side_by_side_on_the_gpus_or_nodes_of_the_cluster(tmp_path, network) -> None:
    entries = plan_board(quick_board(tmp_path, network))
    assert num_concurrent_runs(entries, ClusterResources(cpus=2, gpus=0, nodes=1)) == 1
    assert num_concurrent_runs(entries, ClusterResources(cpus=64, gpus=8, nodes=2)) == 8
    assert num_concurrent_runs(entries, ClusterResources(cpus=64, gpus=0, nodes=3)) == 3


def test_a_run_that_fails_does_not_stop_those_beside_it_and_is_named_at_the_end(tmp_path, network, monkeypatch) -> None:
    entries = plan_board(quick_board(tmp_path, network, num_seeds=4, has_recipe=False))
    both, trained, tested = threading.Barrier(2, timeout=60), list[str](), list[str]()

    def train(settings: Settings, reporter: Reporter, command: object) -> None:
        both.wait()  # passes only while two are trained at the same time
        trained.append(str(settings.train.name))
        if settings.network.seed == 1:
            raise WorkFailed("the disk is full\nto resume: ...")
        if settings.network.seed == 2:
            raise ZeroDivisionError("no step")

    monkeypatch.setattr(challenge_runs, "train", train)
    monkeypatch.setattr(BoardRunner, "_test", lambda self, entry, reporter: tested.append(entry.name))
    runner = BoardRunner(str(tmp_path), ClusterResources(cpus=4, gpus=0, nodes=2), Reporter(), "", lambda: None)
    with pytest.raises(WorkFailed, match="2 runs of the board failed") as caught:
        runner.run(entries)
    assert sorted(trained) == [f"tiny_small_{seed}" for seed in range(4)]
    assert tested == ["tiny_small_0", "tiny_small_3"]
    assert "tiny_small_1: the disk is full" in str(caught.value)
    assert "tiny_small_2: ZeroDivisionError: no step" in str(caught.value)


@pytest.mark.slow
def test_a_board_is_trained_once_grows_by_name_and_refuses_other_settings(
    local_ray, tmp_path, network, monkeypatch, capsys
) -> None:
    board = tmp_path / "board"
    one_seed = functools.partial(quick_board, tmp_path, num_seeds=1)
    run_challenge(one_seed(network, "UNet_2D"), Reporter(), "the command")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == out[-1] == str(board)
    rows = list(csv.DictReader((board / "scoreboard.csv").open()))
    assert [(row["network"], row["runs"]) for row in rows[:1]] == [(RECIPE, "1")]
    assert {row["network"] for row in rows} == {RECIPE, "small", "UNet_2D"}
    for row in rows:
        for key in ("voxel_f1", "iou", "average_precision", "object_f1"):
            assert 0 <= float(row[key]) <= 1
        assert all(float(row[key]) > 0 for key in ("parameters", "tiles_per_second", "mvoxels_per_second"))
        assert row["voxel_f1_low"] == ""  # one seed has no interval
    assert (board / "scoreboard.html").exists()
    assert "| small | 1 |" in (board / "scoreboard.md").read_text()

    results = {file: file.stat().st_mtime_ns for file in (board / "results").iterdir()}
    assert len(results) == 3
    with monkeypatch.context() as patched:
        patched.setattr(challenge, "connect_ray", no_ray)
        run_challenge(one_seed(network, "UNet_2D"), Reporter(), "the command")
        assert "all 3 runs stand" in capsys.readouterr().out
        with pytest.raises(InputError, match="begun with other settings"):
            run_challenge(one_seed(network, assignments=["network.epochs=2"]), Reporter(), "")
        Path(network).write_text(json.dumps(NETWORK | {"learning_rate": 0.02}))
        with pytest.raises(InputError, match=r"network\.learning_rate: 0\.01 -> 0\.02"):
            run_challenge(one_seed(network), Reporter(), "")
        Path(network).write_text(json.dumps(NETWORK))

    # The weights of a run, named on the command line, score as the run did.
    (tmp_path / "again").mkdir()
    again = tmp_path / "again/copied.pt"
    again.write_bytes((board / "tiny_small_0/checkpoint/best.pt").read_bytes())
    (board / "results/tiny_small_0.json").unlink()
    run_challenge(one_seed(network, str(again)), Reporter(), "the command")
    assert "tiny_small_0: is trained already" in capsys.readouterr().out
    figures = {
        name: json.loads((board / f"results/{name}.json").read_text())["figures"]
        for name in ("tiny_copied", "tiny_small_0")
    }
    for key in ("voxel_f1", "iou", "average_precision", "object_f1", "parameters"):
        assert figures["tiny_copied"][key] == figures["tiny_small_0"][key]
    assert figures["tiny_copied"]["tiles_per_second"] is None
    unchanged = {file for file, time in results.items() if file.stat().st_mtime_ns == time}
    assert {file.stem for file in set(results) - unchanged} == {"tiny_small_0"}
    names = [row["network"] for row in csv.DictReader((board / "scoreboard.csv").open())]
    assert sorted(names) == sorted([RECIPE, "small", "copied", "UNet_2D"])
