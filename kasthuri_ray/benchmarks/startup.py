"""Benchmark of tiny jobs: the seconds that a job takes beside its work, which are mostly those of starting processes.

`run_startup_benchmark` times whole commands on 4 x 256 x 256 voxels of the phantom with UNet_2D, in turns with the
floor: a process that starts Ray and one actor that imports torch. The machine must be quiet. A sweep is timed once:
each of its trials is a figure.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, report_lines
from kasthuri_ray.benchmarks.harness import PartFailed, PartRunner
from kasthuri_ray.benchmarks.training_speed import make_phantom_store

SHAPE = (4, 256, 256)
ROUNDS, QUICK_ROUNDS = 5, 1
TRIALS, QUICK_TRIALS = 4, 2
FLOOR, TRAIN, SEGMENT, EVALUATE, DRY_RUN = "floor", "train", "segment", "evaluate", "dry run"

# Goals: seconds above the floor, and of a trial above the epochs that it trains.
MAX_ABOVE_FLOOR_S = {SEGMENT: 4.0, EVALUATE: 4.0, DRY_RUN: 4.0, TRAIN: 15.0}
MAX_TRIAL_OVERHEAD_S = 5.0

FLOOR_PROGRAM = """
import ray
ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
@ray.remote
class Actor:
    def version(self):
        import torch
        return torch.__version__
print(ray.get(Actor.remote().version.remote()))
"""


@dataclass
class StartupTimes:
    """Seconds of each command, in the order of the rounds, and the trials of a sweep as in its leaderboard.json."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    sweep_seconds: float = 0.0
    trials: list[dict[str, float]] = field(default_factory=list)


def run_startup_benchmark(
    parts: PartRunner, quick: bool = False, out: str = "benchmark_startup.json"
) -> list[BenchmarkLine]:
    """Measure everything, print the table and write the JSON file.

    Parameters
    ----------
    parts : PartRunner
        Shows progress and results.
    quick : bool
        Time each command once, to try whether the benchmark works.
    out : str
        Path of the JSON file, with the seconds of every command.

    Returns
    -------
    list of BenchmarkLine
        Seconds of each command beside the floor.
    """
    times = StartupTimes()
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_benchmark_") as scratch:
        make_phantom_store(f"{scratch}/em.zarr", SHAPE)
        for number in range(QUICK_ROUNDS if quick else ROUNDS):
            _time_round(scratch, number, times, parts.show)
        _time_sweep(scratch, QUICK_TRIALS if quick else TRIALS, times)
    lines = startup_lines(times)
    more = {"quick": quick, "seconds": times.seconds, "sweep_seconds": times.sweep_seconds, "trials": times.trials}
    report_lines("startup", lines, more, out, parts.reporter)
    return lines


def startup_lines(times: StartupTimes) -> list[BenchmarkLine]:
    """Return the figures beside their goals.

    Parameters
    ----------
    times : StartupTimes
        What was measured.

    Returns
    -------
    list of BenchmarkLine
        The floor, each command, what it takes more than the floor, and the trials.
    """
    medians = {name: statistics.median(seconds) for name, seconds in times.seconds.items()}
    count = len(times.seconds[FLOOR])
    lines = [BenchmarkLine("1 floor", medians[FLOOR], "s", note=f"Ray, an actor, torch; median of {count}")]
    for number, (name, limit) in enumerate(MAX_ABOVE_FLOOR_S.items(), 2):
        above = medians[name] - medians[FLOOR]
        lines.append(BenchmarkLine(f"{number} {name}", medians[name], "s"))
        lines.append(BenchmarkLine(f"  {name}, above the floor", above, "s", at_most=limit))
    overheads = [trial["wall_seconds"] - trial["seconds"] for trial in times.trials]
    overhead = statistics.median(overheads)
    return [
        *lines,
        BenchmarkLine("6 a sweep", times.sweep_seconds, "s", note=f"{len(times.trials)} trials, one at a time"),
        BenchmarkLine(
            "  a trial, beside its training", overhead, "s", at_most=MAX_TRIAL_OVERHEAD_S, note="median; its epochs"
        ),
    ]


def _time_round(scratch: str, number: int, times: StartupTimes, show: Callable[[str], None]) -> None:
    """Time each command once; the first round trains the network that all of them use."""
    run, output = f"{scratch}/outputs/run0", f"{scratch}/out{number}.zarr"
    image = [f"--image={scratch}/em.zarr/em"]
    weights = [f"--weights={run}", *image, "--cache=none"]
    commands = {
        FLOOR: [sys.executable, "-c", FLOOR_PROGRAM],
        TRAIN: [*_job("train"), *_training_flags(scratch), f"--name=run{number}"],
        SEGMENT: [*_job("segment"), *weights, f"--output={output}"],
        EVALUATE: [*_job("evaluate"), f"--prediction={output}", f"--annotation={scratch}/em.zarr/synapse"],
        DRY_RUN: [*_job("segment"), *weights, f"--output={scratch}/dry{number}.zarr", "--dry-run"],
    }
    for name, command in commands.items():
        times.seconds.setdefault(name, []).append(time_command(command, scratch))
    show(f"  round {number + 1}: {', '.join(f'{name} {each[-1]:.1f} s' for name, each in times.seconds.items())}")


def _time_sweep(scratch: str, num_trials: int, times: StartupTimes) -> None:
    """Run a sweep of tiny trials, one after the other."""
    space = Path(scratch, "space.json")
    space.write_text(json.dumps({"network.learning_rate": {"loguniform": [1e-4, 1e-2]}}))
    flags = [f"--samples={num_trials}", "--scheduler=none", "--search=random", "--concurrent=1", "--name=sweep"]
    command = [*_job("tune"), *_training_flags(scratch), "--networks=UNet_2D", f"--space={space}", *flags]
    times.sweep_seconds = time_command(command, scratch)
    leaderboard = json.loads(Path(scratch, "outputs/sweep/leaderboard.json").read_text())
    times.trials = [{key: row[key] for key in ("wall_seconds", "seconds")} for row in leaderboard["trials"]]


def _job(name: str) -> list[str]:
    """Return the words that start a job of this package, in a checkout or installed."""
    package = Path(__file__).resolve().parents[1]
    folder = next(each for each in (package.parent / "jobs", package / "jobs") if (each / f"{name}.py").exists())
    return [sys.executable, str(folder / f"{name}.py")]


def _training_flags(scratch: str) -> list[str]:
    """Return the flags of two epochs on two sections, validated and tested on one each."""
    box = ["task.xrange_vol=0,256", "task.yrange_vol=0,256", "task.z_train=0,2", "task.z_val=2,3", "task.z_test=3,4"]
    volumes = [f"--image={scratch}/em.zarr/em", f"--annotation={scratch}/em.zarr/synapse"]
    data = [*volumes, "--cache=none", f"--storage={scratch}/outputs"]
    return ["--task=synapse", *data, "--set", *box, "network.epochs=2"]


def time_command(command: Sequence[str], folder: str) -> float:
    """Return the seconds from the start of a command to its end.

    Parameters
    ----------
    command : sequence of str
        The command.
    folder : str
        Where it runs.

    Returns
    -------
    float
        Seconds.

    Raises
    ------
    PartFailed
        If it fails; the message holds the end of its output.
    """
    start = time.perf_counter()
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    if process.returncode:
        tail = (process.stdout + process.stderr)[-2000:]
        raise PartFailed(f"{' '.join(command)} exited with code {process.returncode}:\n{tail}")
    return seconds
