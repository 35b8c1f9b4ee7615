"""Train a network on a task: `python jobs/train.py --task synapse`."""

import sys
from collections.abc import Sequence

from kasthuri_ray.cli import SettingFlags, add_computing_flags, add_reading_flags, add_settings_flags, run_job

EXAMPLES = """examples:
  python jobs/train.py --task phantom_synapse
  python jobs/train.py --task membrane --network UNet_2D_attention --num-workers 4 --set network.epochs=30
  python jobs/train.py --task synapse --image /data/vnc.zarr/em --annotation /data/vnc.zarr/synapse
"""


def make_parser() -> SettingFlags:
    parser = SettingFlags(prog="train.py", description=__doc__, epilog=EXAMPLES)
    group = parser.add_argument_group("what to train")
    group.add_argument("--task", metavar="NAME|FILE", help="synapse, membrane, phantom_synapse, ... or a task file")
    group.add_argument("--network", metavar="NAME|FILE", help="UNet_2D (default), UNet_3D, ... or a network file")
    parser.setting(group, "--image", "task", key="image_chan", metavar="URI", help="instead of the task's")
    parser.setting(group, "--annotation", "task", key="annotation_chan", metavar="URI", help="instead of the task's")
    parser.setting(group, "--weights", "train", metavar="FILE|RUN", help="start from these: a path, https or s3")
    group = parser.add_argument_group("the run")
    parser.setting(group, "--storage", "train", metavar="DIR|s3://...", help="where runs lie (default: outputs)")
    parser.setting(group, "--name", "train", help="the same name goes on where it stopped")
    parser.setting(group, "--num-workers", "train", metavar="N|MIN-MAX", help="default: all GPUs, else 1")
    add_settings_flags(parser)
    add_reading_flags(parser, "train")
    add_computing_flags(parser, "train", precision="network")
    group = parser.add_argument_group("watching")
    parser.setting(group, "--mlflow", "train", metavar="URI", help="log to this MLflow server or file")
    parser.setting(group, "--wandb", "train", metavar="PROJECT", help="log to Weights & Biases")
    parser.setting(group, "--verbose", "train", action="store_true", help="tracebacks and Ray's own lines")
    return parser


def main(given: Sequence[str]) -> None:
    parser = make_parser()
    arguments = parser.parse_args(given)
    flags = parser.layer(arguments)
    from kasthuri_ray.layers import resolve

    settings = resolve(
        arguments.task, arguments.network, config=arguments.config, assignments=arguments.assignments, flags=flags
    )
    from kasthuri_ray.training.fit import fit

    fit(settings, program=sys.argv[0], given=given)


if __name__ == "__main__":
    sys.exit(run_job(main))
