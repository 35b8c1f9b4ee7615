"""Search the network and the settings that suit a task: `python jobs/tune.py --task synapse`."""

import sys
from collections.abc import Sequence

from kasthuri_ray.cli import SettingFlags, add_computing_flags, add_reading_flags, add_settings_flags, run_job

EXAMPLES = """examples:
  python jobs/tune.py --task synapse
  python jobs/tune.py --task membrane --networks UNet_2D UNet_2D_residual --samples 40 --concurrent 4
  python jobs/tune.py --task synapse --space my_space.json --hours 8
  python jobs/train.py --config outputs/my_sweep/best.json

a space file, of any settings of network, task and train:
  {"network.learning_rate": {"loguniform": [1e-4, 1e-2]}, "network.start_filters": {"choice": [16, 32]},
   "network.n_blocks": {"int": [3, 5]}, "task.foreground_share": {"uniform": [0, 0.75]}}
"""


def make_parser() -> SettingFlags:
    parser = SettingFlags(prog="tune.py", description=__doc__, epilog=EXAMPLES)
    group = parser.add_argument_group("what to search")
    group.add_argument("--task", metavar="NAME|FILE", help="synapse, membrane, phantom_synapse, ... or a task file")
    parser.setting(
        group, "--networks", "tune", nargs="+", metavar="NAME|FILE", help="network files (default: the four 2D ones)"
    )
    parser.setting(group, "--space", "tune", metavar="FILE", help="JSON, see below (default: what matters most)")
    parser.setting(group, "--image", "task", key="image_chan", metavar="URI", help="instead of the task's")
    parser.setting(group, "--annotation", "task", key="annotation_chan", metavar="URI", help="instead of the task's")
    parser.setting(group, "--weights", "train", metavar="FILE|RUN", help="start every trial from these")
    group = parser.add_argument_group("how to search")
    parser.setting(
        group,
        "--metric",
        "network",
        choices=["val.average_precision", "val.foreground_f1", "val.loss"],
        help="by which epochs and trials are compared (default: val.average_precision)",
    )
    parser.setting(
        group, "--search", "tune", choices=["random", "grid", "optuna"], help="what proposes trials (default: optuna)"
    )
    parser.setting(
        group, "--scheduler", "tune", choices=["asha", "median", "none"], help="what stops poor ones (default: asha)"
    )
    parser.setting(group, "--grace", "tune", type=int, metavar="EPOCHS", help="that every trial has (default: a ninth)")
    parser.setting(group, "--samples", "tune", type=int, metavar="N", help="trials in all (default: 20; all of a grid)")
    parser.setting(
        group, "--hours", "tune", type=float, metavar="H", help="end after so much work, all sittings together"
    )
    parser.setting(
        group, "--concurrent", "tune", type=int, metavar="N", help="trials at once (default: one on each GPU or node)"
    )
    parser.setting(group, "--num-workers", "train", metavar="N|MIN-MAX", help="of each trial (default: 1)")
    group = parser.add_argument_group("the sweep")
    parser.setting(group, "--storage", "train", metavar="DIR|s3://...", help="where sweeps lie (default: outputs)")
    parser.setting(group, "--name", "train", help="the same name goes on where it stopped")
    parser.setting(group, "--keep", "tune", type=int, metavar="N", help="trials whose weights stay (default: 3)")
    add_settings_flags(parser)
    add_reading_flags(parser, "train")
    add_computing_flags(parser, "train", precision="network")
    group = parser.add_argument_group("watching")
    parser.setting(group, "--mlflow", "train", metavar="URI", help="log every trial to this MLflow server or file")
    parser.setting(group, "--wandb", "train", metavar="PROJECT", help="log every trial to Weights & Biases")
    parser.setting(group, "--verbose", "train", action="store_true", help="tracebacks and Ray's own lines")
    return parser


def main(given: Sequence[str]) -> None:
    parser = make_parser()
    arguments = parser.parse_args(given)
    layers = {"config": arguments.config, "assignments": arguments.assignments, "flags": parser.layer(arguments)}
    from kasthuri_ray.training.sweep import sweep_as_told

    sweep_as_told(arguments.task, layers, program=sys.argv[0], given=given)


if __name__ == "__main__":
    sys.exit(run_job(main))
