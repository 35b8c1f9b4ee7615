"""Measure speed, memory and accuracy: `python jobs/benchmark.py train`, `segment`, `tune`, `startup`, ..."""

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kasthuri_ray import cli
from kasthuri_ray.benchmarks.predictor_speed import NETWORKS
from kasthuri_ray.config import defaults
from kasthuri_ray.progress import Reporter

EXAMPLES = """examples:
  python jobs/benchmark.py train --quick
  python jobs/benchmark.py segment --data vnc.zarr --weights outputs/my_run
  python jobs/benchmark.py segment --compare before.json
  python jobs/benchmark.py predictor --device cuda
  python jobs/benchmark.py scale
  python jobs/benchmark.py tune
  python jobs/benchmark.py startup
  python jobs/benchmark.py vnc --source groundtruth-drosophila-vnc --output vnc.zarr
  python jobs/benchmark.py accuracy --data vnc.zarr --task synapse --seeds 0 1 2
  python jobs/benchmark.py challenge --data phantom --tasks synapse --networks UNet_2D my_network.json my_weights.pt
"""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that prints a table, and writes its figures to a file.

    Parameters
    ----------
    name : str
        What is typed.
    function : str
        MODULE.FUNCTION of `kasthuri_ray.benchmarks`: it takes a PartRunner and the flags, and returns the lines of the
        table.
    help : str
        What it measures.
    quick : str
        What `--quick` leaves out; without a text there is no such flag.
    add_flags : callable, optional
        Adds the flags that no other benchmark has.
    """

    name: str
    function: str
    help: str
    quick: str = ""
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None

    def add_to(self, kinds: Any) -> None:
        parser = kinds.add_parser(self.name, help=self.help)
        self.add_flags(parser)
        if self.quick:
            parser.add_argument("--quick", action="store_true", help=f"{self.quick}, to test that the benchmark runs")
        parser.add_argument("--out", metavar="FILE", default=f"benchmark_{self.name}.json", help="default: %(default)s")
        parser.add_argument(
            "--compare", metavar="FILE", help="--out of an earlier run: prints ratios of speeds, and fails below 0.95"
        )
        _add_verbose_flag(parser)

    def run(self, options: dict[str, Any], reporter: Reporter) -> None:
        from kasthuri_ray.benchmarks import benchmark_lines
        from kasthuri_ray.benchmarks.harness import PartRunner

        before, parts = options.pop("compare"), PartRunner(reporter, options.pop("verbose"))
        if before is not None:
            benchmark_lines.read_benchmark(before)  # refuses another file before any work
        module, _, function = self.function.partition(".")
        lines = getattr(importlib.import_module(f"kasthuri_ray.benchmarks.{module}"), function)(parts, **options)
        if before is not None:
            benchmark_lines.report_comparison(lines, before, reporter)


def _add_train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="a zarr with em and synapse (default: made from the phantom)")


def _add_segment_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="a zarr with em and labels (default: the phantom is segmented)")
    parser.add_argument(
        "--weights",
        metavar="RUN",
        help="folder of a run of UNet_2D on those labels: measures the effect of reduced precision too",
    )


def _add_predictor_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one"
    )
    names = ", ".join(NETWORKS)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help=names)


def _add_io_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="a zarr with em (default: the phantom is stored)")


def _add_accuracy_flags(parser: argparse.ArgumentParser) -> None:
    tasks = ["membrane", "synapse"]
    add = parser.add_argument
    add("--data", metavar="DIR", default="vnc.zarr", help="vnc.zarr, or the folder that holds it")
    add("--task", dest="tasks", nargs="+", choices=tasks, default=tasks, help="tasks to train (default: both)")
    add(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="N",
        help="one training per task and seed (default: 0 1 2)",
    )
    add(
        "--seed-recipe",
        choices=["steps", "full"],
        default="steps",
        help="the recipe of the challenge, for comparison: time a few of its steps, or train it to the end",
    )


def _add_phantom_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the synthetic volume (default: 0)")


BENCHMARKS = (
    Benchmark(
        "train",
        "training_speed.run_training_benchmark",
        "speed and memory of training, compared with the original challenge code and with target values",
        quick="few steps",
        add_flags=_add_train_flags,
    ),
    Benchmark(
        "segment",
        "segmentation_speed.run_segmentation_benchmark",
        "speed and memory of segmentation, beside the original challenge code, MONAI and chunkflow, in 8 minutes",
        quick="few voxels",
        add_flags=_add_segment_flags,
    ),
    Benchmark(
        "predictor",
        "predictor_speed.run_predictor_benchmark",
        "speed of each network, compared with the limits of the device",
        quick="small blocks",
        add_flags=_add_predictor_flags,
    ),
    Benchmark(
        "scale",
        "scale_speed.run_scale_benchmark",
        "cost of 100,000 blocks and 200 actors for the driver, the ledger and S3; killed and resumed",
        quick="few blocks and actors",
    ),
    Benchmark(
        "io",
        "io_speed.run_io_benchmark",
        "speed of a core that reads each format or writes the output; cores per GPU",
        quick="few voxels",
        add_flags=_add_io_flags,
    ),
    Benchmark(
        "tune",
        "sweep_cost.run_sweep_benchmark",
        "time saved and score lost by early stopping (ASHA), overhead per trial",
        quick="few short trials",
    ),
    Benchmark(
        "startup",
        "startup.run_startup_benchmark",
        "how long tiny jobs take, beside the start of Ray and of one actor",
        quick="each job once",
    ),
    Benchmark(
        "accuracy",
        "accuracy.run_accuracy",
        "accuracy and training time of the defaults on real EM (VNC)",
        add_flags=_add_accuracy_flags,
    ),
    Benchmark(
        "phantom",
        "phantom_difficulty.run_phantom_benchmark",
        "how hard the synthetic volume is to segment, and how fast it is generated",
        add_flags=_add_phantom_flags,
    ),
)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.SettingsParser(prog="benchmark.py", description=__doc__, epilog=EXAMPLES)
    kinds = parser.add_subparsers(
        dest="kind",
        required=True,
        metavar="|".join([*(each.name for each in BENCHMARKS), "challenge", "vnc"]),
        parser_class=argparse.ArgumentParser,
    )
    for each in BENCHMARKS:
        each.add_to(kinds)
    challenge = kinds.add_parser(
        "challenge",
        help="the Kasthuri Challenge's scoreboard: trains every network on every task with several seeds; resumable",
    )
    _add_challenge_flags(challenge)
    vnc = kinds.add_parser("vnc", help="make vnc.zarr from a git checkout of groundtruth-drosophila-vnc")
    vnc.add_argument(
        "--source",
        required=True,
        metavar="CHECKOUT",
        help="git checkout of groundtruth-drosophila-vnc (contains stack1/)",
    )
    vnc.add_argument("--output", default="vnc.zarr", metavar="DIR", help="zarr to write (default: vnc.zarr)")
    for kind in (challenge, vnc):
        _add_verbose_flag(kind)
    return parser


def _add_verbose_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="show the output of the subprocesses, and tracebacks")


def _add_challenge_flags(challenge: argparse.ArgumentParser) -> None:
    add = challenge.add_argument
    add("--data", choices=["vnc", "ac4", "phantom"], default="vnc", help="what is trained and tested on (default: vnc)")
    add("--store", metavar="DIR", default="vnc.zarr", help="vnc.zarr, or the folder that holds it, for --data vnc")
    add(
        "--tasks",
        nargs="+",
        default=["membrane", "synapse"],
        metavar="NAME|FILE",
        help="membrane, synapse, or task files, which bring their own volumes (default: both)",
    )
    add(
        "--networks",
        nargs="+",
        metavar="NAME|FILE|WEIGHTS",
        help="built-in networks, network files, or weights that are only tested: a run folder, a .pt file, or "
        "FILE.pt:NETWORK for a bare state dict of a network other than UNet_2D (default: all built-in 2D networks)",
    )
    add("--seeds", type=int, default=3, metavar="N", help="trainings per network and task (default: 3)")
    add("--no-recipe", action="store_true", help="leave out the challenge's own recipe, which is the first row")
    add("--storage", metavar="DIR|s3://...", default=defaults.STORAGE, help="folder of all boards (default: outputs)")
    add("--name", help="name of the board's folder; runs that stand there are kept (default: challenge_DATA)")
    add(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        dest="assignments",
        metavar="SECTION.KEY=VALUE",
        help="settings of every training, such as network.epochs=24",
    )
    add("--quick", action="store_true", help="few small tiles, to test that the board runs")


def main(arguments: Sequence[str]) -> None:
    options = vars(make_parser().parse_args(arguments))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes of the parts are ended too
    kind, reporter = options.pop("kind"), Reporter()
    if kind == "challenge":
        _run_challenge(options, arguments, reporter)
    elif kind == "vnc":
        _convert_vnc(options["source"], options["output"], reporter)
    else:
        next(each for each in BENCHMARKS if each.name == kind).run(options, reporter)


def _convert_vnc(source: str, output: str, reporter: Reporter) -> None:
    from kasthuri_ray.benchmarks.vnc_dataset import convert_vnc

    convert_vnc(source, output)
    reporter.print_result(output)


def _run_challenge(options: dict[str, Any], arguments: Sequence[str], reporter: Reporter) -> None:
    from kasthuri_ray.benchmarks.challenge import run_challenge
    from kasthuri_ray.benchmarks.challenge_plan import BoardRequest

    options |= {"num_seeds": options.pop("seeds"), "has_recipe": not options.pop("no_recipe")}
    request = BoardRequest(**options)
    run_challenge(request, reporter, cli.resume_command(sys.argv[0], arguments, request.board_name))


run = partial(cli.run_job, main)  # the command kasthuri-benchmark

if __name__ == "__main__":
    sys.exit(run())
