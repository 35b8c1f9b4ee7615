"""Accuracy of the defaults on real EM: U-Nets trained on VNC with the defaults of each task, beside the seed's recipe.

The networks are tested on sections that they never saw. See `vnc_dataset` for where to get VNC.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks import vnc_dataset
from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, report_lines
from kasthuri_ray.benchmarks.harness import PartRunner
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.errors import InputNotFound

MIN_F1 = {"membrane": 0.885, "synapse": 0.55}
MAX_TIME_RATIO = 0.4  # to the seed's recipe

# All x and y, in tiles of 256 x 256; the validation box chooses epoch and threshold.
SPLITS = {"z_train": [0, 14], "z_val": [14, 17], "z_test": [17, 20]}
AREA = {"xrange_vol": [0, 1024], "yrange_vol": [0, 1024]}
EPOCHS, TILES = 8, 224
RECIPE_STEPS = 4  # timed before the trainings, and again after them


def run_accuracy(
    parts: PartRunner,
    data: str = "vnc.zarr",
    tasks: Sequence[str] = ("membrane", "synapse"),
    seeds: Sequence[int] = (0, 1, 2),
    seed_recipe: str = "steps",
    out: str = "benchmark_accuracy.json",
) -> list[BenchmarkLine]:
    """Train each task with each seed, print the table and write the JSON file.

    Parameters
    ----------
    parts : PartRunner
        Runs the trainings.
    data : str
        vnc.zarr, or the folder that holds it.
    tasks : sequence of str
        membrane, synapse, or both.
    seeds : sequence of int
        Seeds of the trainings of each task.
    seed_recipe : str
        `steps` times some steps of the seed's recipe and computes the time of a training from them; `full` trains it.
    out : str
        JSON file to write: the scores of each training.

    Returns
    -------
    list of BenchmarkLine
        Medians of F1 and of the training times.

    Raises
    ------
    InputNotFound
        If `data` is not VNC; the message says where to get it.
    """
    store = find_store(data)
    parts.show(f"{store}: {vnc_dataset.CITATION}; {vnc_dataset.SOURCE}, {vnc_dataset.LICENCE}")
    lines, results = [], {}
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        for task in tasks:
            results[task] = _measure(task, store, seeds, seed_recipe == "full", scratch, parts)
            lines += accuracy_lines(task, results[task])
    report_lines("accuracy", lines, results, out, parts.reporter)
    return lines


def find_store(data: str) -> str:
    """Return the path of vnc.zarr; `data` is the path itself or that of the folder around it."""
    for path in (Path(data), Path(data) / "vnc.zarr"):
        if (path / "em").is_dir():
            return str(path)
    raise InputNotFound(f"{data} holds no vnc.zarr. {vnc_dataset.DOWNLOAD_HINT}")


def accuracy_settings(task: str, store: str, seed: int, storage: str) -> dict[str, Any]:
    """Return the defaults of `task` for VNC, as plain values."""
    flags: dict[str, dict[str, Any]] = {
        "task": {"image_chan": f"{store}/em", "annotation_chan": f"{store}/{task}", **AREA, **SPLITS},
        "network": {"epochs": EPOCHS, "tiles_per_epoch": TILES, "seed": seed},
        "train": {"storage": storage, "name": f"{task}_{seed}", "cache": "none"},
    }
    return resolve_settings(GivenSettings(task, "UNet_2D", flags=flags)).model_dump(mode="json")


def _measure(
    task: str, store: str, seeds: Sequence[int], whole: bool, scratch: str, parts: PartRunner
) -> dict[str, list[dict[str, Any]]]:
    """Return the results of each training, and of each time that the seed's recipe ran."""
    recipes, runs = [_measure_recipe(task, store, whole, scratch, parts)], []
    for seed in seeds:
        settings = accuracy_settings(task, store, seed, scratch)
        training, usage = parts.run("pipeline", {"settings": settings})
        metrics = json.loads(Path(training["path"], "metrics.json").read_text())
        scores = {"seed": seed, **metrics["test"], "best_epoch": metrics["best_epoch"]}
        runs.append({**scores, "seconds": training["seconds"], "trainer_peak": usage.trainer_peak})
        parts.show(f"  {task}, seed {seed}: F1 {scores['foreground_f1']:.4f} in {training['seconds']:.0f} s")
    if not whole:
        recipes.append(_measure_recipe(task, store, whole, scratch, parts))
    return {"runs": runs, "seed_recipe": recipes}


def _measure_recipe(task: str, store: str, whole: bool, scratch: str, parts: PartRunner) -> dict[str, Any]:
    arguments = {"settings": accuracy_settings(task, store, 0, scratch), "steps": RECIPE_STEPS, "whole": whole}
    result, _ = parts.run("recipe", arguments)
    estimated = "" if whole else ", estimated from its steps"
    parts.show(f"  {task}, the seed's recipe: {result['seconds']:.0f} s{estimated}")
    return result


def accuracy_lines(task: str, results: dict[str, list[dict[str, Any]]]) -> list[BenchmarkLine]:
    """Return the medians of a task beside their goals."""
    scores = [run["foreground_f1"] for run in results["runs"]]
    seconds = statistics.median(run["seconds"] for run in results["runs"])
    recipe_seconds = statistics.median(run["seconds"] for run in results["seed_recipe"])
    note = f"median of {', '.join(f'{score:.4f}' for score in scores)}"
    lines = [
        BenchmarkLine(f"{task}: test F1", statistics.median(scores), at_least=MIN_F1[task], note=note),
        BenchmarkLine("  seconds", seconds, "s", note="the whole command, with compiling"),
        BenchmarkLine("  seconds of the seed's recipe", recipe_seconds, "s", note="with validation after each epoch"),
        BenchmarkLine("  of the seed's recipe", seconds / recipe_seconds, at_most=MAX_TIME_RATIO),
    ]
    if "foreground_f1" in results["seed_recipe"][0]:
        lines.append(BenchmarkLine("  test F1 of the seed's recipe", results["seed_recipe"][0]["foreground_f1"]))
    return lines
