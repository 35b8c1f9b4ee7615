"""The accuracy study needs neither Ray nor pydantic, divides as the product does, resumes, and pools counts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kasthuri_ray.benchmarks import accuracy_fold, accuracy_study
from kasthuri_ray.benchmarks.accuracy_changes import CHANGES
from kasthuri_ray.benchmarks.accuracy_fold import FoldRun, FoldTraining
from kasthuri_ray.benchmarks.accuracy_variants import ADOPTED, VARIANTS, StudyLearner, Variant, ignore_border
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.geometry import Box
from kasthuri_ray.training.compute_plan import ComputePlan
from kasthuri_ray.training.training_job import make_learner_settings

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"start_filters": 2, "n_blocks": 2}
TINY = Variant("tiny", network={**SMALL, "ema": 0.9}, tile=64)
WITHOUT_RAY = """
import sys
sys.modules.update(dict.fromkeys(["ray", "pydantic", "zarr", "tensorstore", "intern"]))  # importing one is an error
from kasthuri_ray.benchmarks import accuracy_fold, accuracy_study
from kasthuri_ray.benchmarks.accuracy_variants import VARIANTS, Variant
accuracy_fold.TILES_PER_EPOCH = accuracy_study.TILES_PER_EPOCH = 4
accuracy_fold.TILE = 64
VARIANTS["tiny"] = Variant("tiny", network={"start_filters": 2, "n_blocks": 2}, tile=64)
arguments = ["--data", sys.argv[1], "--out", sys.argv[2], "--state", sys.argv[2], "--tiles", "4", "--folds", "0"]
accuracy_study.run_study([*arguments, "--variant", "tiny", "--tta"])
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sections with a bright square in each quadrant, which is what is annotated."""
    monkeypatch.setattr(accuracy_fold, "TILES_PER_EPOCH", 8)
    monkeypatch.setattr(accuracy_fold, "TILE", 64)
    truth = np.zeros((2, 128, 128), np.uint8)
    for row in (20, 90):
        for column in (20, 90):
            truth[:, row : row + 12, column : column + 12] = 1
    noise = np.random.default_rng(0).integers(0, 100, truth.shape)
    for name, array in (("em", noise + 120 * truth), ("synapse", truth), ("membrane", truth)):
        np.save(tmp_path / f"{name}.npy", array.astype(np.uint8))
    return tmp_path


def training(data: Path, epochs: int, variant: Variant = TINY) -> FoldTraining:
    return FoldTraining(FoldRun(variant, "synapse", 0, 0, 8 * epochs), data, data / "state")


def test_it_runs_without_ray_and_pydantic(data: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_RAY, str(data), str(data / "out")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    (line,) = (json.loads(line) for line in (data / "out" / "synapse.jsonl").read_text().splitlines())
    assert line["test"]["tp"] + line["test"]["fn"] == line["segmentation_tta"]["tp"] + line["segmentation_tta"]["fn"]
    assert line["segmentation"]["objects"]["true"] == 1


@pytest.mark.parametrize("task", ["synapse", "membrane"])
def test_the_adopted_variant_is_the_default_of_a_training(task: str) -> None:
    settings = resolve_settings(GivenSettings(task, "UNet_2D"))
    learner = StudyLearner(VARIANTS[ADOPTED], task, 0, 30, ComputePlan("float32", False, 1))
    network = settings.network.model_copy(update={"batch_size": 2})
    assert learner.settings == make_learner_settings(network, task)
    assert VARIANTS[ADOPTED].share_on_foreground(task) == settings.task.share_on_foreground


@pytest.mark.slow
def test_every_variant_can_be_trained() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 32, 32), dtype=np.uint8)
    for variant in VARIANTS.values():
        small = replace(variant, network={**variant.network, "start_filters": 8, "n_blocks": 4})
        learner = StudyLearner(small, "synapse", 0, 1, ComputePlan("float32", False, 2))
        tiles = image[:, : small.sections]
        batch = accuracy_fold.TileBatch(tiles, (tiles[:, :1] > 200).astype(np.uint8), np.arange(2))
        loss = learner.train_epoch(0, [batch, batch], [])
        assert 0 < loss < 10, variant.name
        counts, _ = learner.evaluate([batch])
        assert counts.num_voxels == 2 * 32 * 32


def test_a_border_of_the_foreground_is_ignored_on_both_sides() -> None:
    labels = torch.zeros(1, 7, 7, dtype=torch.uint8)
    labels[0, 2:5, 2:5] = 1
    found = ignore_border(labels, 1)[0]
    assert found[3].tolist() == [0, 255, 255, 1, 255, 255, 0]
    assert int((found == 255).sum()) == 24


def test_changed_images_keep_image_and_annotation_in_place() -> None:
    truth = np.zeros((2, 64, 64), np.uint8)
    truth[:, 20:40, 8:20] = 1
    image = (40 + 150 * truth).astype(np.uint8)
    assert np.array_equal(CHANGES["none"].image(image), image)
    for name, change in CHANGES.items():
        changed, moved = change.image(image), change.truth(truth)
        assert changed.shape == moved.shape, name
        middle = (int(changed.min()) + int(changed.max())) / 2
        assert np.mean((changed > middle) == moved) > 0.99, name
        box = change.box(Box((0, 20, 8), (2, 40, 20)))
        assert np.mean(moved[box.slices()]) > 0.9, name


def test_sections_beyond_the_ends_repeat_the_nearest(data: Path) -> None:
    several = training(data, 1, replace(TINY, sections=3))
    batch = next(several._grid_batches(several.grid("test")))
    em = several.image.voxels[:, :64, :64]
    assert np.array_equal(batch.image[0], em[[0, 0, 1]])
    assert np.array_equal(batch.label[1, 0], several.annotation.voxels[1, :64, :64])


def test_a_resumed_run_equals_an_uninterrupted_one(data: Path) -> None:
    whole = training(data, 3)
    for _ in range(3):
        whole.train_epoch()
    expected = whole.results()
    whole.state_file.unlink()
    training(data, 3).train_epoch()
    resumed = training(data, 3)
    while not resumed.is_trained:
        resumed.train_epoch()
    found = resumed.results()
    for record in (expected, found):
        for key in ("seconds", "training_seconds"):
            del record[key]
        for row in record["history"]:
            del row["seconds"]
    assert found == expected
    weights = zip(whole.learner.network.parameters(), resumed.learner.network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_what_is_finished_is_not_run_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "tiny", TINY)
    monkeypatch.setattr(accuracy_study, "TILES_PER_EPOCH", 8)
    arguments = ["--data", str(data), "--out", str(data), "--state", str(data), "--tiles", "8", "--folds", "1", "2"]
    command = [*arguments, "--variant", "tiny"]
    assert accuracy_study.run_study([*command, "--minutes", "0"]) == accuracy_study.NOT_FINISHED
    assert accuracy_study.run_study(command) == 0
    lines = (data / "synapse.jsonl").read_text()
    assert len(lines.splitlines()) == 2
    assert accuracy_study.run_study(command) == 0
    assert (data / "synapse.jsonl").read_text() == lines


def test_folds_are_pooled_as_counts() -> None:
    def line(fold: int, tp: int, fp: int, fn: int, right: int) -> dict:
        objects = {"true": 4, "predicted": 5, "tp_overlap": right}
        test = {"tp": tp, "fp": fp, "fn": fn, "ap": 0.5, "f1": 0.1, "objects": objects}
        return {
            **{"variant": "a", "fold": fold, "seed": 0, "tiles": 8, "parameters": 10, "training_seconds": 2.0},
            **{"val": {"ap": 0.2 * fold, "f1": 0.3}, "test": test},
        }

    row = accuracy_study.pooled_row([line(1, 10, 0, 10, 2), line(2, 40, 10, 0, 4)])
    assert row["F1"] == pytest.approx(2 * 50 / (2 * 50 + 10 + 10))
    assert row["objects F1"] == pytest.approx(2 * 6 / (10 + 8))
    assert row["val AP"] == pytest.approx(0.3)
    table = accuracy_study.study_table([line(1, 10, 0, 10, 2), line(2, 40, 10, 0, 4)])
    assert "| 6/10/8 |" in table.splitlines()[2]
