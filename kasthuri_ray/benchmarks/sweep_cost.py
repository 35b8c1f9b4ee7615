"""What a sweep is worth and what it costs: `run()` tries the same trials in full, and with poor ones stopped by ASHA,
and trains them once more outside a sweep.

The trials are drawn at random from a space in which there is something to find, on a small phantom, so that all of it
takes some twenty minutes on two cores. The phantom is stored in a zarr first: computing it is not what is measured.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kasthuri_ray.benchmarks.harness import BenchmarkLine, report_lines, run_part
from kasthuri_ray.benchmarks.training_speed import make_store
from kasthuri_ray.config.settings import MIN_BATCH_SIZE

TUNE_PARTS = "kasthuri_ray.benchmarks.sweep_processes"
SPACE = {
    "network.learning_rate": {"loguniform": [1e-6, 3e-2]},
    "network.loss": {"choice": ["dice_ce", "cross_entropy", "focal"]},
    "network.start_filters": {"choice": [4, 8]},
    "network.augmentations": {"choice": ["none", "basic"]},
    "network.normalization": {"choice": ["batch", "group"]},
}
CLOSE, SHARE, SPREAD, COST_S = 0.01, 0.5, 0.05, 5.0  # the goals


@dataclass(frozen=True)
class SweepSize:
    trials: int = 12
    epochs: int = 9
    tiles: int = 64


QUICK = SweepSize(3, 3, 16)


@dataclass
class SweepResults:
    """full, asha: what the two sweeps left (`leaderboard.json`). fits: seconds of each trial outside a sweep, by id."""

    full: dict[str, Any] = field(default_factory=dict)
    asha: dict[str, Any] = field(default_factory=dict)
    fits: dict[str, float] = field(default_factory=dict)


def run_sweep_benchmark(
    quick: bool = False, out: str = "benchmark_tune.json", verbose: bool = False
) -> list[BenchmarkLine]:
    """Measure everything, print the table and write the JSON."""
    size, found = QUICK if quick else SweepSize(), SweepResults()
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        _measure(size, scratch, found, verbose)
    lines = sweep_lines(found)
    report_lines("tune", lines, {"quick": quick, "size": asdict(size), **asdict(found)}, out)
    return lines


def _measure(size: SweepSize, scratch: str, found: SweepResults, verbose: bool) -> None:
    store = make_store(f"{scratch}/phantom.zarr", (20, 256, 256), "membrane")
    Path(scratch, "space.json").write_text(json.dumps(SPACE))
    for name in ("none", "asha"):
        print(f"{size.trials} trials, {'in full' if name == 'none' else 'poor ones stopped by ASHA'}", flush=True)
        given, _ = run_part("sweep", {"layers": sweep_layers(store, size, scratch, name)}, None, verbose, TUNE_PARTS)
        if name == "none":
            found.full = given
        else:
            found.asha = given
        print(f"  {given['seconds']:.0f} s, best {_scores(given)[0]:.3f}", flush=True)
    print("the same trials as runs of their own, Ray already started", flush=True)
    configs = {row["id"]: f"{scratch}/none/trials/{row['id']}/settings.json" for row in found.full["trials"]}
    given, _ = run_part("fits", {"configs": configs, "storage": f"{scratch}/fits"}, None, verbose, TUNE_PARTS)
    found.fits = given["seconds"]


def sweep_layers(store: str, size: SweepSize, scratch: str, scheduler: str) -> dict[str, Any]:
    """The command line of a sweep, as layers of settings."""
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
    return {
        "config": None,
        "assignments": [],
        "flags": {"task": task, "network": network, "train": train, "tune": tune},
    }


def sweep_lines(found: SweepResults) -> list[BenchmarkLine]:
    """The figures held against their goals."""
    full, asha = _scores(found.full), _scores(found.asha)
    epochs, fewer = (sum(row["epochs"] for row in sweep["trials"]) for sweep in (found.full, found.asha))
    more = [row["wall_seconds"] - found.fits[row["id"]] for row in found.full["trials"] if row["id"] in found.fits]
    each = found.full["seconds"] / len(found.full["trials"])
    return [
        BenchmarkLine("1 best of all trials in full", full[0], note=f"val.average_precision, {len(full)} trials"),
        BenchmarkLine("  median", statistics.median(full)),
        BenchmarkLine("  best above the median", full[0] - statistics.median(full), at_least=SPREAD),
        BenchmarkLine("2 best by ASHA", asha[0]),
        BenchmarkLine("  below the best of all", full[0] - asha[0], at_most=CLOSE),
        BenchmarkLine("  share of their epochs", fewer / epochs, at_most=SHARE, note=f"{fewer} of {epochs}"),
        BenchmarkLine("  share of their time", found.asha["seconds"] / found.full["seconds"]),
        BenchmarkLine(
            "3 a run of its own", statistics.median(found.fits.values()), "s", note="median, Ray already started"
        ),
        BenchmarkLine(
            "  a trial", statistics.median(row["wall_seconds"] for row in found.full["trials"]), "s", note="median"
        ),
        BenchmarkLine("  a trial, more than the same run", statistics.median(more), "s", at_most=COST_S, note="median"),
        BenchmarkLine(
            "  a trial, with all that lies between", each, "s", note="the sweep's time over its trials, a mean"
        ),
    ]


def _scores(sweep: dict[str, Any]) -> list[float]:
    """The best first."""
    return sorted((row["score"] for row in sweep["trials"] if row["score"] is not None), reverse=True)
