"""Measure speed, memory and accuracy: `python jobs/benchmark.py train`, `segment`, `tune`, `startup`, ..."""

import argparse
import signal
import sys
from collections.abc import Sequence
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


def make_parser() -> argparse.ArgumentParser:
    parser = cli.SettingsParser(prog="benchmark.py", description=__doc__, epilog=EXAMPLES)
    kinds = parser.add_subparsers(
        dest="kind",
        required=True,
        metavar="train|segment|predictor|scale|io|tune|startup|accuracy|challenge|phantom|vnc",
        parser_class=argparse.ArgumentParser,
    )

    train = kinds.add_parser(
        "train", help="speed and memory of training, compared with the original challenge code and with target values"
    )
    train.add_argument("--data", metavar="DIR", help="a zarr with em and synapse (default: made from the phantom)")
    train.add_argument("--quick", action="store_true", help="few steps, to test that the benchmark runs")

    segment = kinds.add_parser(
        "segment",
        help="speed and memory of segmentation, beside the original challenge code, MONAI and chunkflow, in 8 minutes",
    )
    segment.add_argument("--data", metavar="DIR", help="a zarr with em and labels (default: the phantom is segmented)")
    segment.add_argument(
        "--weights",
        metavar="RUN",
        help="folder of a run of UNet_2D on those labels: measures the effect of reduced precision too",
    )
    segment.add_argument("--quick", action="store_true", help="few voxels, to test that the benchmark runs")

    predictor = kinds.add_parser("predictor", help="speed of each network, compared with the limits of the device")
    predictor.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one"
    )
    names = ", ".join(NETWORKS)
    predictor.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help=names
    )
    predictor.add_argument("--quick", action="store_true", help="small blocks, to test that the benchmark runs")

    scale = kinds.add_parser(
        "scale", help="cost of 100,000 blocks and 200 actors for the driver, the ledger and S3; killed and resumed"
    )
    scale.add_argument("--quick", action="store_true", help="few blocks and actors, to test that the benchmark runs")

    reading = kinds.add_parser("io", help="speed of a core that reads each format or writes the output; cores per GPU")
    reading.add_argument("--data", metavar="DIR", help="a zarr with em (default: the phantom is stored)")
    reading.add_argument("--quick", action="store_true", help="few voxels, to test that the benchmark runs")

    tune = kinds.add_parser("tune", help="time saved and score lost by early stopping (ASHA), overhead per trial")
    tune.add_argument("--quick", action="store_true", help="few short trials, to test that the benchmark runs")

    startup = kinds.add_parser("startup", help="how long tiny jobs take, beside the start of Ray and of one actor")
    startup.add_argument("--quick", action="store_true", help="each job once, to test that the benchmark runs")

    accuracy = kinds.add_parser("accuracy", help="accuracy and training time of the defaults on real EM (VNC)")
    accuracy.add_argument("--data", metavar="DIR", default="vnc.zarr", help="vnc.zarr, or the folder that holds it")
    accuracy.add_argument(
        "--task",
        nargs="+",
        choices=["membrane", "synapse"],
        default=["membrane", "synapse"],
        help="tasks to train (default: both)",
    )
    accuracy.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="N",
        help="one training per task and seed (default: 0 1 2)",
    )
    accuracy.add_argument(
        "--seed-recipe",
        choices=["steps", "full"],
        default="steps",
        help="the recipe of the challenge, for comparison: time a few of its steps, or train it to the end",
    )

    challenge = kinds.add_parser(
        "challenge",
        help="the Kasthuri Challenge's scoreboard: trains every network on every task with several seeds; resumable",
    )
    _add_challenge_flags(challenge)

    phantom = kinds.add_parser(
        "phantom", help="how hard the synthetic volume is to segment, and how fast it is generated"
    )
    phantom.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the synthetic volume (default: 0)")

    vnc = kinds.add_parser("vnc", help="make vnc.zarr from a git checkout of groundtruth-drosophila-vnc")
    vnc.add_argument(
        "--source",
        required=True,
        metavar="CHECKOUT",
        help="git checkout of groundtruth-drosophila-vnc (contains stack1/)",
    )
    vnc.add_argument("--output", default="vnc.zarr", metavar="DIR", help="zarr to write (default: vnc.zarr)")

    with_lines = (train, segment, predictor, scale, reading, tune, startup, accuracy, phantom)
    for kind in with_lines:
        name = kind.prog.split()[-1]
        kind.add_argument("--out", metavar="FILE", default=f"benchmark_{name}.json", help="default: %(default)s")
        kind.add_argument(
            "--compare", metavar="FILE", help="--out of an earlier run: prints ratios of speeds, and fails below 0.95"
        )
    for kind in (*with_lines, challenge, vnc):
        kind.add_argument("--verbose", action="store_true", help="show the output of the subprocesses, and tracebacks")
    return parser


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
    from kasthuri_ray.benchmarks import benchmark_lines
    from kasthuri_ray.benchmarks.harness import PartRunner

    kind, reporter, before = options.pop("kind"), Reporter(), options.pop("compare", None)
    if kind == "challenge":
        return _run_challenge(options, arguments, reporter)
    parts = PartRunner(reporter, options.pop("verbose"))
    if before is not None:
        benchmark_lines.read_benchmark(before)  # refuses another file before any work
    lines: Sequence[benchmark_lines.BenchmarkLine] = ()
    if kind == "train":
        from kasthuri_ray.benchmarks import training_speed

        lines = training_speed.run_training_benchmark(parts, **options)
    elif kind == "segment":
        from kasthuri_ray.benchmarks import segmentation_speed

        lines = segmentation_speed.run_segmentation_benchmark(parts, **options)
    elif kind == "predictor":
        from kasthuri_ray.benchmarks import predictor_speed

        lines = predictor_speed.run_predictor_benchmark(parts, **options)
    elif kind == "scale":
        from kasthuri_ray.benchmarks import scale_speed

        lines = scale_speed.run_scale_benchmark(parts, **options)
    elif kind == "io":
        from kasthuri_ray.benchmarks import io_speed

        lines = io_speed.run_io_benchmark(parts, **options)
    elif kind == "tune":
        from kasthuri_ray.benchmarks import sweep_cost

        lines = sweep_cost.run_sweep_benchmark(parts, **options)
    elif kind == "startup":
        from kasthuri_ray.benchmarks import startup

        lines = startup.run_startup_benchmark(parts, **options)
    elif kind == "accuracy":
        from kasthuri_ray.benchmarks import accuracy

        options["tasks"] = options.pop("task")
        lines = accuracy.run_accuracy(parts, **options)
    elif kind == "phantom":
        from kasthuri_ray.benchmarks import phantom_difficulty

        lines = phantom_difficulty.run_phantom_benchmark(reporter, **options)
    else:
        from kasthuri_ray.benchmarks import vnc_dataset

        vnc_dataset.convert_vnc(options["source"], options["output"])
        reporter.print_result(options["output"])
    if before is not None:
        benchmark_lines.report_comparison(lines, before, reporter)


def _run_challenge(options: dict[str, Any], arguments: Sequence[str], reporter: Reporter) -> None:
    from kasthuri_ray.benchmarks.challenge import run_challenge
    from kasthuri_ray.benchmarks.challenge_plan import BoardRequest

    options |= {"num_seeds": options.pop("seeds"), "has_recipe": not options.pop("no_recipe")}
    request = BoardRequest(**options)
    run_challenge(request, reporter, cli.resume_command(sys.argv[0], arguments, request.board_name))


run = partial(cli.run_job, main)  # the command kasthuri-benchmark

if __name__ == "__main__":
    sys.exit(run())
