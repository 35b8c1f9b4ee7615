"""Train a network on a task: `python jobs/train.py --task synapse`."""

import sys
from collections.abc import Sequence

from kasthuri_ray import cli

EXAMPLES = """examples:
  python jobs/train.py --task phantom_synapse
  python jobs/train.py --task membrane --network UNet_2D_attention --num-workers 4 --set network.epochs=30
  python jobs/train.py --task synapse --image /data/vnc.zarr/em --annotation /data/vnc.zarr/synapse
"""


def make_parser() -> cli.SettingsParser:
    parser = cli.SettingsParser("train", prog="train.py", description=__doc__, epilog=EXAMPLES)
    group = parser.add_group("input")
    cli.add_task_flags(group)
    group.add_flag(
        "--network",
        metavar="NAME|FILE",
        help="built-in network (UNet_2D, UNet_2D_attention, UNet_3D, ...) or network file (default: UNet_2D)",
    )
    group.add_setting(
        "--weights", metavar="FILE|RUN", help="initial weights: a run folder or .pt file; path, https:// or s3://"
    )
    group = parser.add_group("output")
    group.add_setting("--storage", metavar="DIR|s3://...", help="folder of all runs (default: outputs)")
    group.add_setting(
        "--name", help="name of the run; an unfinished run of this name is resumed (default: TASK_NETWORK_TIME)"
    )
    cli.add_settings_flags(parser)
    cli.add_data_access_flags(parser)
    group = cli.add_compute_flags(parser, precision="network")
    group.add_setting("--num-workers", metavar="N|MIN-MAX", help="training processes (default: one per GPU, else 1)")
    cli.add_logging_flags(parser, tracked="the run")
    return parser


def main(arguments: Sequence[str]) -> None:
    parser = make_parser()
    parsed = parser.parse_args(arguments)
    from kasthuri_ray.config.loading import resolve_settings

    settings = resolve_settings(parsed.task, parsed.network, **parser.overrides(parsed))
    from kasthuri_ray.training.train import train

    train(settings, lambda name: cli.resume_command(sys.argv[0], arguments, name))


if __name__ == "__main__":
    sys.exit(cli.run_job(main))
