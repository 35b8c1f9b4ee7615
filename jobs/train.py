"""Train a network on a task: `python jobs/train.py --task synapse`."""

import sys
from collections.abc import Sequence
from functools import partial

from kasthuri_ray import cli
from kasthuri_ray.config import defaults

EXAMPLES = """examples:
  python jobs/train.py --task phantom_synapse
  python jobs/train.py --task membrane --network UNet_2D_attention --num-workers 4 --set network.epochs=30
  python jobs/train.py --task synapse --image /data/vnc.zarr/em --annotation /data/vnc.zarr/synapse
"""


def make_parser() -> cli.SettingsParser:
    parser = cli.SettingsParser(prog="train.py", description=__doc__, epilog=EXAMPLES)
    group = parser.add_group("input")
    cli.add_task_flags(group)
    group.add(
        "--network",
        metavar="NAME|FILE",
        help="built-in network (UNet_2D, UNet_2D_attention, UNet_3D, ...) or network file "
        f"(default: {defaults.NETWORK})",
    )
    group.add(
        "--weights",
        metavar="FILE|RUN|kasthuri://NAME",
        help="initial weights: a run folder or .pt file (path, https:// or s3://), or published ones, which "
        "kasthuri:// lists",
    )
    group.add("--voxel-size", metavar="Z,Y,X", help="voxel size of the image in nm (default: from its metadata)")
    group.add(
        "--resample", action="store_true", help="read an annotation of another voxel size on the voxels of the image"
    )
    group.add("--allow-empty", action="store_true", help="train even if nothing of the image is stored in a box")
    group.add(
        "--folds",
        type=int,
        metavar="N",
        help="train N networks, each tested on a part of the volume that it did not see, and pool the scores; 4: the "
        "quadrants of y and x",
    )
    group.add("--fold-axes", choices=["yx", "z"], help="divide the volume into 4 quadrants, or along z (default: yx)")
    group = parser.add_group("output")
    group.add("--storage", metavar="DIR|s3://...", help=f"folder of all runs (default: {defaults.STORAGE})")
    group.add("--name", help="name of the run; an unfinished run of this name is resumed (default: TASK_NETWORK_TIME)")
    cli.add_settings_flags(parser)
    cli.add_data_access_flags(parser)
    group = cli.add_compute_flags(parser)
    group.add("--num-workers", metavar="N|MIN-MAX", help="training processes (default: one per GPU, else 1)")
    cli.add_logging_flags(parser, tracked="the run")
    return parser


def main(arguments: Sequence[str]) -> int:
    keywords = make_parser().keywords(arguments)
    if cli.print_published_weights_if_asked(keywords):
        return cli.DONE
    from kasthuri_ray import api

    api.train(
        **keywords,
        resume_command=lambda name: cli.resume_command(sys.argv[0], arguments, name),
        return_finished=False,
    )
    return cli.DONE


run = partial(cli.run_job, main)  # the command kasthuri-train

if __name__ == "__main__":
    sys.exit(run())
