"""Search for the network and the settings that suit a task best: `python jobs/tune.py --task synapse`."""

import sys
from collections.abc import Sequence
from functools import partial

from kasthuri_ray import cli
from kasthuri_ray.config import defaults

EXAMPLES = """examples:
  python jobs/tune.py --task synapse
  python jobs/tune.py --task membrane --networks UNet_2D UNet_2D_residual --samples 40 --concurrent 4
  python jobs/tune.py --task synapse --space my_space.json --hours 8
  python jobs/train.py --config outputs/my_sweep/best.json

search space file, for any settings of network, task and train:
  {"network.learning_rate": {"loguniform": [1e-4, 1e-2]}, "network.start_filters": {"choice": [16, 32]},
   "network.n_blocks": {"int": [3, 5]}, "task.foreground_share": {"uniform": [0, 0.75]}}
"""


def make_parser() -> cli.SettingsParser:
    parser = cli.SettingsParser(prog="tune.py", description=__doc__, epilog=EXAMPLES)
    _add_input_flags(parser)
    _add_search_flags(parser)
    _add_output_flags(parser)
    cli.add_settings_flags(parser)
    cli.add_data_access_flags(parser)
    cli.add_compute_flags(parser)
    cli.add_logging_flags(parser, tracked="every trial")
    return parser


def main(arguments: Sequence[str]) -> None:
    keywords = make_parser().keywords(arguments)
    from kasthuri_ray import api

    api.tune(
        **keywords,
        resume_command=lambda name: cli.resume_command(sys.argv[0], arguments, name),
        job_command=partial(cli.job_command, sys.argv[0]),
        return_finished=False,
    )


def _add_input_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("input")
    cli.add_task_flags(group)
    group.add(
        "--networks",
        nargs="+",
        metavar="NAME|FILE",
        help="networks to compare (default: four 2D networks; 3D tasks: UNet_3D)",
    )
    group.add("--space", metavar="FILE", help="search space, JSON, see below (default: the settings that matter most)")
    group.add("--weights", metavar="FILE|RUN", help="initial weights of every trial")


def _add_search_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("search")
    group.add(
        "--metric",
        choices=["val.average_precision", "val.foreground_f1", "val.loss"],
        help=f"metric that ranks epochs and trials (default: {defaults.METRIC})",
    )
    group.add("--search", choices=["random", "grid", "optuna"], help=f"search algorithm (default: {defaults.SEARCH})")
    group.add(
        "--scheduler",
        choices=["asha", "median", "none"],
        help=f"early stopping of poor trials (default: {defaults.SCHEDULER})",
    )
    group.add(
        "--grace", type=int, metavar="EPOCHS", help="epochs before a trial may be stopped (default: network.epochs / 9)"
    )
    group.add(
        "--samples",
        type=int,
        metavar="N",
        help=f"total number of trials (default: {defaults.NUM_TRIALS}; with --hours: as many as fit; grid: all)",
    )
    group.add(
        "--hours", type=float, metavar="H", help="time limit of the sweep, resumed sessions included (default: none)"
    )
    group.add(
        "--concurrent", type=int, metavar="N", help="trials at the same time (default: one per GPU, else one per node)"
    )
    group.add("--num-workers", metavar="N|MIN-MAX", help="training processes per trial (default: 1)")


def _add_output_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("output")
    group.add("--storage", metavar="DIR|s3://...", help=f"folder of all sweeps (default: {defaults.STORAGE})")
    group.add(
        "--name",
        help="name of the sweep; an unfinished one of this name is resumed (default: TASK_sweep_TIME)",
    )
    group.add("--keep", type=int, metavar="N", help=f"keep the weights of the N best trials (default: {defaults.KEEP})")


run = partial(cli.run_job, main)  # the command kasthuri-tune

if __name__ == "__main__":
    sys.exit(run())
