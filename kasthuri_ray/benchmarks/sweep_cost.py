"""Benchmark of sweeps: what stopping poor trials early saves and loses, and what a trial costs beside a plain run.

`run_sweep_benchmark` runs the same trials in full and with ASHA, which stops poor ones early, and trains each once more
outside of a sweep. The trials are drawn at random from a space whose settings matter, on a small phantom, so that all
of it takes some twenty minutes on two cores. The phantom is stored in a zarr first: its computation is not measured.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, report_lines
from kasthuri_ray.benchmarks.harness import PartRunner
from kasthuri_ray.benchmarks.training_speed import make_phantom_store
from kasthuri_ray.config.defaults import MIN_BATCH_SIZE

SWEEP_PARTS = "kasthuri_ray.benchmarks.sweep_processes"

# Goals. The spread between the best trial and the median shows that the search has something to find.
MIN_SPREAD = 0.05
MAX_SCORE_LOSS = 0.01
MAX_EPOCH_SHARE = 0.5
MAX_TRIAL_OVERHEAD_S = 5.0

SPACE = {
    "network.learning_rate": {"loguniform": [1e-6, 3e-2]},
    "network.loss": {"choice": ["dice_ce", "cross_entropy", "focal"]},
    "network.start_filters": {"choice": [4, 8]},
    "network.augmentations": {"choice": ["none", "basic"]},
    "network.normalization": {"choice": ["batch", "group"]},
}


@dataclass(frozen=True)
class SweepSize:
    """How much is searched."""

    trials: int = 12
    epochs: int = 9
    tiles: int = 64


QUICK = SweepSize(3, 3, 16)


@dataclass
class SweepResults:
    """Content of leaderboard.json of both sweeps, and the seconds of each trial outside of a sweep, by id."""

    full: dict[str, Any] = field(default_factory=dict)
    asha: dict[str, Any] = field(default_factory=dict)
    fits: dict[str, float] = field(default_factory=dict)


def run_sweep_benchmark(
    parts: PartRunner, quick: bool = False, out: str = "benchmark_tune.json"
) -> list[BenchmarkLine]:
    """Measure everything, print the table and write the JSON file.

    Parameters
    ----------
    parts : PartRunner
        Runs the sweeps.
    quick : bool
        Run few short trials, to try whether the benchmark works.
    out : str
        Path of the JSON file, with both leaderboards.

    Returns
    -------
    list of BenchmarkLine
        Scores and durations of the sweeps.
    """
    size, results = QUICK if quick else SweepSize(), SweepResults()
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        _measure(size, scratch, results, parts)
    lines = sweep_lines(results)
    report_lines("tune", lines, {"quick": quick, "size": asdict(size), **asdict(results)}, out, parts.reporter)
    return lines


def _measure(size: SweepSize, scratch: str, results: SweepResults, parts: PartRunner) -> None:
    store = make_phantom_store(f"{scratch}/phantom.zarr", (20, 256, 256), "membrane")
    Path(scratch, "space.json").write_text(json.dumps(SPACE))
    for name in ("none", "asha"):
        parts.show(f"{size.trials} trials, {'in full' if name == 'none' else 'poor ones stopped by ASHA'}")
        flags = sweep_flags(store, size, scratch, name)
        leaderboard, _ = parts.run("sweep", {"flags": flags}, module=SWEEP_PARTS)
        if name == "none":
            results.full = leaderboard
        else:
            results.asha = leaderboard
        parts.show(f"  {leaderboard['seconds']:.0f} s, best {_scores(leaderboard)[0]:.3f}")
    parts.show("the same trials as runs of their own, with Ray already started")
    configs = {row["id"]: f"{scratch}/none/trials/{row['id']}/settings.json" for row in results.full["trials"]}
    runs, _ = parts.run("fits", {"configs": configs, "storage": f"{scratch}/fits"}, module=SWEEP_PARTS)
    results.fits = runs["seconds"]


def sweep_flags(store: str, size: SweepSize, scratch: str, scheduler: str) -> dict[str, Any]:
    """Return the settings that the command line of such a sweep has, by section."""
    task = {
        **{"image_chan": f"{store}/em", "annotation_chan": f"{store}/membrane", "task_type": "membrane"},
        **{"xrange_vol": [0, 256], "yrange_vol": [0, 256], "z_train": [0, 14], "z_val": [14, 17], "z_test": [17, 20]},
        **{"tile_size": [128, 128], "threshold": False},
    }
    network = {"epochs": size.epochs, "tiles_per_epoch": size.tiles, "batch_size": MIN_BATCH_SIZE, "n_blocks": 3}
    train = {"storage": scratch, "name": scheduler, "cache": "none", "compile": "off"}
    tune = {
        **{"networks": ["UNet_2D"], "space": f"{scratch}/space.json", "search": "random", "scheduler": scheduler},
        **{"samples": size.trials, "concurrent": 1},
    }
    return {"task": task, "network": network, "train": train, "tune": tune}


def sweep_lines(results: SweepResults) -> list[BenchmarkLine]:
    """Return the figures beside their goals."""
    full, asha, trials = _scores(results.full), _scores(results.asha), results.full["trials"]
    epochs, asha_epochs = (sum(row["epochs"] for row in sweep["trials"]) for sweep in (results.full, results.asha))
    trial_seconds = statistics.median(row["wall_seconds"] for row in trials)
    run_seconds = statistics.median(results.fits.values())
    overheads = [row["wall_seconds"] - results.fits[row["id"]] for row in trials if row["id"] in results.fits]
    overhead, spread = statistics.median(overheads), full[0] - statistics.median(full)
    seconds = results.full["seconds"] / len(trials)
    return [
        BenchmarkLine("1 best of all trials in full", full[0], note=f"val.average_precision, {len(full)} trials"),
        BenchmarkLine("  median", statistics.median(full)),
        BenchmarkLine("  best above the median", spread, at_least=MIN_SPREAD),
        BenchmarkLine("2 best by ASHA", asha[0]),
        BenchmarkLine("  below the best of all", full[0] - asha[0], at_most=MAX_SCORE_LOSS),
        BenchmarkLine(
            "  share of their epochs",
            asha_epochs / epochs,
            at_most=MAX_EPOCH_SHARE,
            note=f"{asha_epochs} of {epochs}",
        ),
        BenchmarkLine("  share of their time", results.asha["seconds"] / results.full["seconds"]),
        BenchmarkLine("3 a run of its own", run_seconds, "s", note="median, Ray already started"),
        BenchmarkLine("  a trial", trial_seconds, "s", note="median"),
        BenchmarkLine("  a trial, more than the same run", overhead, "s", at_most=MAX_TRIAL_OVERHEAD_S, note="median"),
        BenchmarkLine(
            "  a trial, with the time between trials", seconds, "s", note="mean, the sweep's time over its trials"
        ),
    ]


def _scores(leaderboard: dict[str, Any]) -> list[float]:
    """Return the scores of the trials, the best first."""
    return sorted((row["score"] for row in leaderboard["trials"] if row["score"] is not None), reverse=True)
