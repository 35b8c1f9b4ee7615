"""Segment a volume with a trained network: `python jobs/segment.py --weights outputs/my_run --output out.zarr`."""

import sys
from collections.abc import Sequence

from kasthuri_ray.cli import (
    DONE,
    SET_ASIDE,
    SettingFlags,
    add_computing_flags,
    add_reading_flags,
    add_reporting_flags,
    add_settings_flags,
    run_job,
    segment_resume_command,
)

EXAMPLES = """examples:
  python jobs/segment.py --weights outputs/my_run --output out.zarr
  python jobs/segment.py --weights UNet_2D_synapse.pt --network UNet_2D --task synapse --output s3://bucket/out.zarr
  python jobs/segment.py --weights outputs/my_run --output out.zarr --box 0:100,1000:3000,1000:3000 --dry-run
"""
ZYX = "Z,Y,X"


def make_parser() -> SettingFlags:
    parser = SettingFlags("segment", prog="segment.py", description=__doc__, epilog=EXAMPLES)
    group = parser.group("what to segment, and by what")
    group.setting("--weights", metavar="RUN|FILE", help="a run's folder, or weights: a path, https or s3")
    group.setting("--image", metavar="URI", help="default: the image that the task trained on")
    group.flag("--network", metavar="NAME|FILE", help="of bare weights; a run says its own")
    group.flag("--task", metavar="NAME|FILE", help="of bare weights; a run says its own")
    group.setting("--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="half-open, in voxels; : is a whole axis (default: all)")
    group.setting("--mip", type=int, metavar="N", help="resolution (default: nearest to the training's voxel size)")
    group.setting("--voxel-size", metavar=ZYX, help="in nm, for an image that does not say it")
    group.setting("--mask", metavar="URI", help="blocks where this volume is 0 are left out")
    group = parser.group("what it leaves")
    group.setting("--output", metavar="PATH|s3://...", help="an OME-Zarr of probabilities; the same goes on")
    group.setting("--overwrite", action="store_true", help="delete what an earlier segmentation left there")
    group.setting("--save-mask", action="store_true", help="also a label image of what is above the threshold")
    group.setting("--objects", action="store_true", help="also a table of the objects above the threshold")
    group.setting("--precomputed", metavar="PATH|s3://...", help="also a Neuroglancer precomputed copy")
    group.setting("--threshold", type=float, metavar="P", help="of mask and objects (default: the run's, else 0.5)")
    group.setting("--shard", metavar=ZYX, help="voxels of a file of the output")
    group.setting("--chunk", metavar=ZYX, help="voxels that are read at once from it")
    group = parser.group("how")
    group.setting("--actors", metavar="N|MIN-MAX", help="default: what the cluster holds")
    group.setting("--gpus-per-actor", type=float, metavar="F", help="0.5 puts two on a card")
    group.setting("--block", metavar=ZYX, help="voxels that an actor does at once: whole shards")
    group.setting("--halo", metavar=ZYX, help="context around a block (default: as far as the network sees)")
    group.setting("--tile", metavar=ZYX, help="voxels that the network sees at once, margins included")
    group.setting("--batch", type=int, metavar="N", help="tiles at once")
    group.setting("--tta", action="store_true", help="mean over the flips and turns of every tile")
    group.setting("--no-skip-blank", action="store_false", key="skip_blank", help="run the network on blank voxels too")
    group = parser.group("planning")
    group.setting("--dry-run", action="store_true", help="say what it would take, and do nothing")
    group.setting(
        "--price-per-hour",
        type=float,
        metavar="PRICE",
        help="of one GPU; without GPUs, of one actor's share of a machine",
    )
    add_settings_flags(parser)
    add_reading_flags(parser)
    add_computing_flags(parser)
    add_reporting_flags(parser)
    return parser


def main(given: Sequence[str]) -> int:
    parser = make_parser()
    arguments = parser.parse_args(given)
    from kasthuri_ray.segmentation.segment import segment_from_flags

    again = segment_resume_command(sys.argv[0], given)
    result = segment_from_flags(arguments.task, arguments.network, parser.layers(arguments), again)
    return SET_ASIDE if result.num_set_aside else DONE


if __name__ == "__main__":
    sys.exit(run_job(main))
