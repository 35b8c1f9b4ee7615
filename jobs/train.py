"""Train a network on a task: `python jobs/train.py --task synapse`."""

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
  python jobs/train.py --task phantom_synapse
  python jobs/train.py --task membrane --network UNet_2D_attention --num-workers 4 --set network.epochs=30
  python jobs/train.py --task synapse --image /data/vnc.zarr/em --annotation /data/vnc.zarr/synapse
"""


def make_parser() -> SettingFlags:
    parser = SettingFlags("train", prog="train.py", description=__doc__, epilog=EXAMPLES)
    group = parser.group("what to train")
    add_task_flags(group)
    group.flag("--network", metavar="NAME|FILE", help="UNet_2D (default), UNet_3D, ... or a network file")
    group.setting("--weights", metavar="FILE|RUN", help="start from these: a path, https or s3")
    group = parser.group("the run")
    group.setting("--storage", metavar="DIR|s3://...", help="where runs lie (default: outputs)")
    group.setting("--name", help="the same name goes on where it stopped")
    group.setting("--num-workers", metavar="N|MIN-MAX", help="default: all GPUs, else 1")
    add_settings_flags(parser)
    add_reading_flags(parser)
    add_computing_flags(parser, precision="network")
    add_reporting_flags(parser, logged="the run")
    return parser


def main(given: Sequence[str]) -> None:
    parser = make_parser()
    arguments = parser.parse_args(given)
    from kasthuri_ray.config.loading import resolve_settings

    settings = resolve_settings(arguments.task, arguments.network, **parser.layers(arguments))
    from kasthuri_ray.training.train import train

    train(settings, lambda name: resume_command(sys.argv[0], given, name))


if __name__ == "__main__":
    sys.exit(run_job(main))
