"""Search for the network and the settings that suit a task best: `python jobs/tune.py --task synapse`."""

import sys
from collections.abc import Sequence

from kasthuri_ray import cli

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
    parser = cli.SettingsParser("tune", prog="tune.py", description=__doc__, epilog=EXAMPLES)
    _add_input_flags(parser)
    _add_search_flags(parser)
    _add_output_flags(parser)
    cli.add_settings_flags(parser)
    cli.add_data_access_flags(parser, "train")
    cli.add_compute_flags(parser, "train", precision="network")
    cli.add_logging_flags(parser, "train", tracked="every trial")
    return parser


def main(arguments: Sequence[str]) -> None:
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    from kasthuri_ray.tuning.tune import tune

    tune(parsed.task, parser.overrides(parsed), lambda name: cli.resume_command(sys.argv[0], arguments, name))


def _add_input_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("input")
    cli.add_task_flags(group)
    group.add_setting(
        "--networks",
        nargs="+",
        metavar="NAME|FILE",
        help="networks to compare (default: four 2D networks; 3D tasks: UNet_3D)",
    )
    group.add_setting(
        "--space", metavar="FILE", help="search space, JSON, see below (default: the settings that matter most)"
    )
    group.add_setting("--weights", "train", metavar="FILE|RUN", help="initial weights of every trial")


def _add_search_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("search")
    group.add_setting(
        "--metric",
        "network",
        choices=["val.average_precision", "val.foreground_f1", "val.loss"],
        help="metric that ranks epochs and trials (default: val.average_precision)",
    )
    group.add_setting("--search", choices=["random", "grid", "optuna"], help="search algorithm (default: optuna)")
    group.add_setting(
        "--scheduler", choices=["asha", "median", "none"], help="early stopping of poor trials (default: asha)"
    )
    group.add_setting(
        "--grace", type=int, metavar="EPOCHS", help="epochs before a trial may be stopped (default: network.epochs / 9)"
    )
    group.add_setting(
        "--samples",
        type=int,
        metavar="N",
        help="total number of trials (default: 20; with --hours: as many as fit; grid: all)",
    )
    group.add_setting(
        "--hours", type=float, metavar="H", help="time limit of the sweep, resumed sessions included (default: none)"
    )
    group.add_setting(
        "--concurrent", type=int, metavar="N", help="trials at the same time (default: one per GPU, else one per node)"
    )
    group.add_setting("--num-workers", "train", metavar="N|MIN-MAX", help="training processes per trial (default: 1)")


def _add_output_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("output")
    group.add_setting("--storage", "train", metavar="DIR|s3://...", help="folder of all sweeps (default: outputs)")
    group.add_setting(
        "--name",
        "train",
        help="name of the sweep; an unfinished one of this name is resumed (default: TASK_sweep_TIME)",
    )
    group.add_setting("--keep", type=int, metavar="N", help="keep the weights of the N best trials (default: 3)")


if __name__ == "__main__":
    sys.exit(cli.run_job(main))
