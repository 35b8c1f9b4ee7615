"""What the defaults reach on real EM: U-Nets trained on VNC by each task's defaults, on sections that they never saw,
beside the seed's recipe. `run()` trains them all; see `vnc` for where VNC is to be had.

Train z 0-14, val 14-17 (which chooses epoch and threshold), test 17-20; all x and y in tiles of 256 x 256.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks import vnc
from kasthuri_ray.benchmarks.harness import BenchmarkLine, report_lines, run_part
from kasthuri_ray.config.loading import resolve_settings

GOALS = {"membrane": 0.885, "synapse": 0.55}
MOST_TIME = 0.4  # of the seed's recipe
EPOCHS, TILES = 8, 224
RECIPE_STEPS = 4  # timed before and again after the trainings


def run_accuracy(
    data: str = "vnc.zarr",
    tasks: Sequence[str] = ("membrane", "synapse"),
    seeds: Sequence[int] = (0, 1, 2),
    seed_recipe: str = "steps",
    out: str = "benchmark_accuracy.json",
    verbose: bool = False,
) -> list[BenchmarkLine]:
    """Train each task with each seed, print the table and write the JSON.

    data: vnc.zarr, or the folder that holds it. seed_recipe: `steps` times some of its steps and reckons the rest,
    `full` trains it. Raises FileNotFoundError that says where VNC is to be had.
    """
    store = find_store(data)
    print(f"{store}: {vnc.CITATION}; {vnc.SOURCE}, {vnc.LICENCE}", flush=True)
    lines, more = [], {}
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        for task in tasks:
            found = _measure(task, store, seeds, seed_recipe == "full", scratch, verbose)
            lines += check_accuracy(task, found)
            more[task] = found
    report_lines("accuracy", lines, more, out)
    return lines


def find_store(data: str) -> str:
    """The path of vnc.zarr, given itself or the folder it lies in."""
    for path in (Path(data), Path(data) / "vnc.zarr"):
        if (path / "em").is_dir():
            return str(path)
    raise FileNotFoundError(f"{data} holds no vnc.zarr. {vnc.TO_BE_HAD}")


def accuracy_settings(task: str, store: str, seed: int, storage: str) -> dict[str, Any]:
    """The defaults of `task`, on VNC."""
    there: dict[str, Any] = {
        "image_chan": f"{store}/em",
        "annotation_chan": f"{store}/{task}",
        "xrange_vol": [0, 1024],
        "yrange_vol": [0, 1024],
        "z_train": [0, 14],
        "z_val": [14, 17],
        "z_test": [17, 20],
    }
    network = {"epochs": EPOCHS, "tiles_per_epoch": TILES, "seed": seed}
    train = {"storage": storage, "name": f"{task}_{seed}", "cache": "none"}
    return resolve_settings(task, "UNet_2D", flags={"task": there, "network": network, "train": train}).model_dump(
        mode="json"
    )


def _measure(
    task: str, store: str, seeds: Sequence[int], whole: bool, scratch: str, verbose: bool
) -> dict[str, list[dict[str, Any]]]:
    """What each training and each look at the recipe gave."""
    recipes, runs = [_recipe(task, store, whole, scratch, verbose)], []
    for seed in seeds:
        given, usage = run_part(
            "pipeline", {"settings": accuracy_settings(task, store, seed, scratch)}, verbose=verbose
        )
        metrics = json.loads(Path(given["path"], "metrics.json").read_text())
        figures = {"seed": seed, **metrics["test"], "best_epoch": metrics["best_epoch"], "seconds": given["seconds"]}
        runs.append({**figures, "trainer_peak": usage.trainer_peak})
        print(f"  {task}, seed {seed}: F1 {figures['foreground_f1']:.4f} in {given['seconds']:.0f} s", flush=True)
    if not whole:
        recipes.append(_recipe(task, store, whole, scratch, verbose))
    return {"runs": runs, "seed_recipe": recipes}


def _recipe(task: str, store: str, whole: bool, scratch: str, verbose: bool) -> dict[str, Any]:
    arguments = {"settings": accuracy_settings(task, store, 0, scratch), "steps": RECIPE_STEPS, "whole": whole}
    found, _ = run_part("recipe", arguments, verbose=verbose)
    print(f"  {task}, the seed's recipe: {found['seconds']:.0f} s{'' if whole else ' reckoned'}", flush=True)
    return found


def check_accuracy(task: str, found: dict[str, list[dict[str, Any]]]) -> list[BenchmarkLine]:
    """The medians of a task, held against their goals."""
    scores = [each["foreground_f1"] for each in found["runs"]]
    seconds = statistics.median(each["seconds"] for each in found["runs"])
    recipe = statistics.median(each["seconds"] for each in found["seed_recipe"])
    each = ", ".join(f"{score:.4f}" for score in scores)
    lines = [
        BenchmarkLine(f"{task}: test F1", statistics.median(scores), at_least=GOALS[task], note=f"median of {each}"),
        BenchmarkLine("  seconds", seconds, "s", note="the whole command, compiling included"),
        BenchmarkLine("  seconds of the seed's recipe", recipe, "s", note="validation after each epoch included"),
        BenchmarkLine("  of the seed's recipe", seconds / recipe, at_most=MOST_TIME),
    ]
    if "foreground_f1" in found["seed_recipe"][0]:
        lines.append(BenchmarkLine("  test F1 of the seed's recipe", found["seed_recipe"][0]["foreground_f1"]))
    return lines
