"""What earlier commits left resumes as it was begun, or is refused in a sentence; README.md says what that is.

Weights and voxels are not compared bit for bit: those stored here come from another processor, whose sums round
differently. What was done before the kill must stay as it is, bit for bit.
"""

import contextlib
import csv
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import cc3d
import numpy as np
import pytest
import torch
import zarr

from kasthuri_ray import cli
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.lease import Lease

HERE = Path(__file__).resolve().parent
COMMITS = sorted(path.parent for path in HERE.glob("*/commands.json"))
THRESHOLD = 128  # the grey level of `--threshold 0.5`
NUM_BLOCKS = 32
ROUNDING = 1  # grey level


class LeftBehind:
    """A copy of what a commit left, in which its commands are typed again."""

    def __init__(self, commit: Path, folder: Path, mains: dict[str, Callable]) -> None:
        self.commit, self.folder, self.mains = commit, folder, mains
        self.commands = json.loads((commit / "commands.json").read_text())
        with tarfile.open(commit / "artefacts.tar.xz") as archive:
            archive.extractall(folder, filter="data")

    def repeat(self, name: str, *more: str, code: int = 0) -> SimpleNamespace:
        return self.run(*self.commands[name], *more, code=code)

    def run(self, job: str, *flags: str, code: int = 0) -> SimpleNamespace:
        """Run a job in the folder, check its exit code, and return what it printed, as `out` and `err`."""
        out, err = io.StringIO(), io.StringIO()
        streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with patch.dict(os.environ), contextlib.chdir(self.folder), streams[0], streams[1]:
            exit_code = cli.run_job(self.mains[job], list(flags))
        printed = SimpleNamespace(out=out.getvalue(), err=err.getvalue())
        assert exit_code == code, printed.out + printed.err
        return printed

    def files(self, pattern: str) -> dict[Path, tuple[int, bytes]]:
        """Return the files of a pattern, each with the time of its last change and its content."""
        paths = [path for path in self.folder.glob(pattern) if path.is_file()]
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    def read_json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def edit_json(self, name: str, edit: Callable[[Any], object]) -> None:
        content = self.read_json(name)
        edit(content)
        (self.folder / name).write_text(json.dumps(content))

    def edit_checkpoint(self, name: str, edit: Callable[[Any], object]) -> None:
        content = torch.load(self.folder / name, weights_only=True)
        edit(content)
        torch.save(content, self.folder / name)

    def history(self, run: str) -> list[dict[str, str]]:
        with (self.folder / "runs" / run / "history.csv").open() as file:
            return list(csv.DictReader(file))

    def weights(self, run: str) -> torch.Tensor:
        """Return the weights after a run's last epoch, in one vector, without the statistics of batches."""
        weights = torch.load(self.folder / "runs" / run / "checkpoint/last.pt", weights_only=True)["weights"]
        return torch.cat([value.flatten() for name, value in weights.items() if name.endswith(("weight", "bias"))])


@pytest.fixture(scope="module")
def mains(load_module) -> dict[str, Callable]:
    """Return the main functions of the jobs, which run in this process: all share its Ray."""
    return {job: load_module(HERE.parents[1] / f"jobs/{job}.py").main for job in ("train", "tune", "segment")}


@pytest.fixture(scope="module", params=COMMITS, ids=[commit.name for commit in COMMITS])
def unpack(request, local_ray, mains, tmp_path_factory) -> Callable[[], LeftBehind]:
    """Return `unpack()`: a new copy of what a commit left."""
    return lambda: LeftBehind(request.param, tmp_path_factory.mktemp("left"), mains)


@pytest.fixture
def left(unpack) -> LeftBehind:
    return unpack()


# runs


@pytest.mark.slow
def test_a_killed_run_resumes_after_its_last_epoch_and_ends_as_the_uninterrupted_run(left):
    before, killed, whole = left.history("killed"), left.weights("killed"), left.weights("finished")
    printed = left.repeat("killed")
    assert re.findall(r"^epoch (\d+)  ", printed.out, re.MULTILINE) == ["3", "4"]
    history = left.history("killed")
    assert len(before) == 2
    assert history[:2] == before
    for row, expected in zip(history, left.history("finished"), strict=True):
        for name in ("epoch", "train.loss", "val.loss", "learning_rate"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=5e-3), name
    assert (left.weights("killed") - whole).norm() < 0.02 * (killed - whole).norm()
    assert left.read_json("runs/killed/metrics.json")["epochs"] == 4
    assert "the run killed is finished, after 4 epochs" in left.repeat("killed", code=2).err


@pytest.mark.slow
def test_a_finished_run_is_extended(left):
    before = left.history("finished")
    printed = left.repeat("finished", "--set", "network.epochs=5")
    assert re.findall(r"^epoch (\d+)  ", printed.out, re.MULTILINE) == ["5"]
    assert left.history("finished")[:4] == before


def forget_settings(*sections: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Remove settings that an older commit did not know."""
    for section in sections:
        for key in keys:
            section.pop(key, None)


def test_a_run_whose_record_lacks_new_settings_or_has_other_versions_is_the_same_run(left):
    def make_older(record: dict[str, Any]) -> None:
        forget_settings(record["task"], keys=("z_gap", "ignore_label"))
        forget_settings(record["network"], keys=("metric", "pool_z"))
        forget_settings(record["train"], keys=("weights", "wandb"))
        record["versions"], record["git_commit"] = {"torch": "2.6.0"}, None

    left.edit_json("runs/finished/settings.json", make_older)
    assert "the run finished is finished, after 4 epochs" in left.repeat("finished", code=2).err


def test_a_lock_of_another_machine_is_taken_over_once_it_is_stale(left):
    lines: list[str] = []
    with Lease.acquire(open_storage(str(left.folder)), heartbeat_s=0.05, stale_after_s=0.3, report=lines.append):
        assert left.read_json("lock.json")["host"] != "another"
    assert lines == [f"waiting to see whether the run that holds {left.folder.name!r} is still alive ..."]


# sweeps


@pytest.fixture(scope="module")
def sweep(unpack) -> SimpleNamespace:
    """Resume the killed sweep by its name alone."""
    left = unpack()
    before = left.files("runs/sweep/trials/0000/*.csv"), left.history("sweep/trials/0001")
    return SimpleNamespace(left=left, before=before, printed=left.run("tune", "--name", "sweep", "--storage", "runs"))


@pytest.mark.slow
def test_a_killed_sweep_resumes_by_its_name_and_no_trial_runs_twice(sweep):
    left, (done, interrupted) = sweep.left, sweep.before
    assert f"trial 0001 resumes after epoch {len(interrupted)}" in sweep.printed.out
    assert "trial 0000" not in sweep.printed.out.split("the best of")[0]
    assert left.files("runs/sweep/trials/0000/*.csv") == done
    assert left.history("sweep/trials/0001")[: len(interrupted)] == interrupted
    expected = json.loads((left.commit / "trials.json").read_text())
    trials = sorted(left.read_json("runs/sweep/leaderboard.json")["trials"], key=lambda trial: trial["number"])
    for trial, other in zip(trials, expected, strict=True):
        assert {key: trial[key] for key in other} == {**other, "score": pytest.approx(other["score"], rel=0.1)}
    assert len(trials) == 3


@pytest.mark.slow
def test_a_sweep_whose_record_lacks_new_settings_or_has_other_versions_is_the_same_sweep(sweep):
    def make_older(record: dict[str, Any]) -> None:
        networks = record["sweep"]["networks"].values()
        forget_settings(record["task"], keys=("z_gap",))
        forget_settings(record["train"], keys=("wandb",))
        forget_settings(record["tune"], keys=("seed", "keep"))
        forget_settings(*networks, keys=("pool_z",))
        record["versions"] = {"torch": "2.6.0"}

    sweep.left.edit_json("runs/sweep/settings.json", make_older)
    printed = sweep.left.run("tune", "--name", "sweep", "--storage", "runs", code=2)
    assert "the sweep sweep is finished: 3 trials have been run" in printed.err


# segmentations


@pytest.fixture(scope="module")
def whole(unpack) -> Path:
    """Segment in one go, with the weights of the finished run; return the path of the output."""
    left = unpack()
    left.repeat("half", "--output", "whole.zarr")
    return left.folder / "whole.zarr"


@pytest.mark.parametrize(
    ("name", "phase"), [("half", "s0"), pytest.param("labelled", "objects", marks=pytest.mark.slow)]
)
def test_a_killed_segmentation_resumes_with_the_missing_blocks_alone(left, whole, name, phase):
    output, ledger = left.folder / f"{name}.zarr", f"{name}.zarr.ledger"
    assert 0 < len(left.files(f"{ledger}/{phase}/*")) < NUM_BLOCKS
    done = left.files(f"{ledger}/*/*")
    shards = [output / "s0/c/0" / path.stem.replace("_", "/") for path in done if path.parent.name == "s0"]
    voxels = {path: content for path, content in left.files(f"{name}.zarr/s0/c/**/*").items() if path in shards}
    left.repeat(name)
    progress = left.read_json(f"{name}.zarr.progress.json")
    assert (progress["state"], progress["blocks"], progress["done"]) == ("done", NUM_BLOCKS, NUM_BLOCKS)
    assert len(voxels) == len(shards)
    for before, after in ((done, left.files(f"{ledger}/*/*")), (voxels, left.files(f"{name}.zarr/s0/c/**/*"))):
        assert {path: after[path] for path in before} == before
    assert_same_output(output, whole)


def assert_same_output(output: Path, whole: Path) -> None:
    """Assert that an output has the voxels of another one, and the mask and the objects that follow from its own."""
    probabilities, expected = (zarr.open_group(path, mode="r")["s0"][0] for path in (output, whole))
    assert np.abs(probabilities.astype(int) - expected).max() <= ROUNDING
    assert np.ptp(expected) > 100
    mask = probabilities >= THRESHOLD
    assert (np.asarray(zarr.open_group(output, mode="r")["labels/synapse/s0"]).astype(bool) == mask).all()
    sizes = np.bincount(cc3d.connected_components(mask, connectivity=26).ravel())[1:]
    with open(f"{output}.synapses.csv") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["size_voxels"]) for row in rows) == sorted(sizes)
    assert len(rows) > 10


def test_a_segmentation_whose_record_lacks_new_settings_or_has_other_versions_is_the_same_one(left):
    def make_older(record: dict[str, Any]) -> None:
        forget_settings(record["task"], keys=("ignore_label",))
        forget_settings(record["network"], keys=("pool_z",))
        forget_settings(record["arithmetic"], keys=("tta",))
        forget_settings(record, keys=("mask",))
        record["versions"] = {"kasthuri_ray": "0.0.1", "torch": "2.6.0"}

    def make_older_checkpoint(content: dict[str, Any]) -> None:
        forget_settings(content["settings"]["task"], keys=("z_gap",))
        forget_settings(content["settings"]["network"], keys=("metric", "pool_z"))

    left.edit_json("half.zarr.ledger/settings.json", make_older)
    left.edit_checkpoint("runs/finished/checkpoint/best.pt", make_older_checkpoint)
    printed = left.repeat("half", "--dry-run")
    assert "torch 2.6.0" in printed.out
    assert left.read_json("half.zarr.plan.json")["done"] == len(left.files("half.zarr.ledger/s0/*"))


def test_the_weights_of_a_finished_run_are_those_of_its_best_checkpoint(left):
    bare, best = (
        torch.load(left.folder / "runs/finished" / name, weights_only=True)
        for name in ("UNet_2D_synapse.pt", "checkpoint/best.pt")
    )
    assert bare.keys() == best["weights"].keys()
    assert all(torch.equal(bare[name], best["weights"][name]) for name in bare)


# records of later commits


@pytest.mark.parametrize(
    ("name", "file", "section", "message"),
    [
        ("finished", "runs/finished/settings.json", "network", "the run finished was started with other settings"),
        ("killed", "runs/killed/settings.json", "train", "the run killed was started with other settings"),
        ("sweep", "runs/sweep/settings.json", "tune", "the sweep sweep was started with other settings"),
        ("half", "half.zarr.ledger/settings.json", "task", "half.zarr was started with other settings"),
        ("half", "half.zarr.ledger/settings.json", "arithmetic", "was started by another version of this program"),
    ],
)
def test_a_setting_that_this_commit_does_not_know_is_refused(left, name, file, section, message):
    left.edit_json(file, lambda record: record[section].update(future=3))
    before = left.files("**/*")
    printed = left.repeat(name, code=2)
    assert message in printed.err
    assert "future" in printed.err or section == "arithmetic"
    assert left.files("**/*") == before


def test_weights_with_a_setting_that_this_commit_does_not_know_are_refused(left):
    left.edit_checkpoint(
        "runs/finished/checkpoint/best.pt", lambda content: content["settings"]["network"].update(future=3)
    )
    assert "best.pt: no setting network.future" in left.repeat("half", code=2).err
