"""Search the network and the settings that suit a task: `python jobs/tune.py --task synapse`."""

import sys
from collections.abc import Sequence

from kasthuri_ray.cli import (
    SettingFlags,
    add_computing_flags,
    add_reading_flags,
    add_reporting_flags,
    add_settings_flags,
    add_task_flags,
    resume_command,
    run_job,
)

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
    parser = SettingFlags("tune", prog="tune.py", description=__doc__, epilog=EXAMPLES)
    group = parser.group("what to search")
    add_task_flags(group)
    group.setting("--networks", nargs="+", metavar="NAME|FILE", help="network files (default: the four 2D ones)")
    group.setting("--space", metavar="FILE", help="JSON, see below (default: what matters most)")
    group.setting("--weights", "train", metavar="FILE|RUN", help="start every trial from these")
    group = parser.group("how to search")
    group.setting(
        "--metric",
        "network",
        choices=["val.average_precision", "val.foreground_f1", "val.loss"],
        help="by which epochs and trials are compared (default: val.average_precision)",
    )
    group.setting("--search", choices=["random", "grid", "optuna"], help="what proposes trials (default: optuna)")
    group.setting("--scheduler", choices=["asha", "median", "none"], help="what stops poor ones (default: asha)")
    group.setting("--grace", type=int, metavar="EPOCHS", help="that every trial has (default: a ninth)")
    group.setting("--samples", type=int, metavar="N", help="trials in all (default: 20; all of a grid)")
    group.setting("--hours", type=float, metavar="H", help="end after so much work, all sittings together")
    group.setting("--concurrent", type=int, metavar="N", help="trials at once (default: one on each GPU or node)")
    group.setting("--num-workers", "train", metavar="N|MIN-MAX", help="of each trial (default: 1)")
    group = parser.group("the sweep")
    group.setting("--storage", "train", metavar="DIR|s3://...", help="where sweeps lie (default: outputs)")
    group.setting("--name", "train", help="the same name goes on where it stopped")
    group.setting("--keep", type=int, metavar="N", help="trials whose weights stay (default: 3)")
    add_settings_flags(parser)
    add_reading_flags(parser, "train")
    add_computing_flags(parser, "train", precision="network")
    add_reporting_flags(parser, "train", logged="every trial")
    return parser


def main(given: Sequence[str]) -> None:
    parser = make_parser()
    arguments = parser.parse_args(given)
    from kasthuri_ray.tuning.tune import tune

    tune(arguments.task, parser.layers(arguments), lambda name: resume_command(sys.argv[0], given, name))


if __name__ == "__main__":
    sys.exit(run_job(main))
