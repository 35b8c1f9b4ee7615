"""Segment a volume with a trained network: `python jobs/segment.py --weights outputs/my_run --output out.zarr`."""

import sys
from collections.abc import Sequence

from kasthuri_ray.cli import SettingFlags, add_computing_flags, add_reading_flags, add_settings_flags, run_job

EXAMPLES = """examples:
  python jobs/segment.py --weights outputs/my_run --output out.zarr
  python jobs/segment.py --weights UNet_2D_synapse.pt --network UNet_2D --task synapse --output s3://bucket/out.zarr
  python jobs/segment.py --weights outputs/my_run --output out.zarr --box 0:100,1000:3000,1000:3000 --dry-run
"""
ZYX = "Z,Y,X"


def make_parser() -> SettingFlags:
    parser = SettingFlags(prog="segment.py", description=__doc__, epilog=EXAMPLES)

    def setting(group, flag: str, **options) -> None:
        parser.setting(group, flag, "segment", **options)

    group = parser.add_argument_group("what to segment, and by what")
    setting(group, "--weights", metavar="RUN|FILE", help="a run's folder, or weights: a path, https or s3")
    setting(group, "--image", metavar="URI", help="default: the image that the task trained on")
    group.add_argument("--network", metavar="NAME|FILE", help="of bare weights; a run says its own")
    group.add_argument("--task", metavar="NAME|FILE", help="of bare weights; a run says its own")
    setting(group, "--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="half-open, in voxels; : is a whole axis (default: all)")
    setting(group, "--mip", type=int, metavar="N", help="resolution (default: nearest to the training's voxel size)")
    setting(group, "--voxel-size", metavar=ZYX, help="in nm, for an image that does not say it")
    setting(group, "--mask", metavar="URI", help="blocks where this volume is 0 are left out")
    group = parser.add_argument_group("what it leaves")
    setting(group, "--output", metavar="PATH|s3://...", help="an OME-Zarr of probabilities; the same goes on")
    setting(group, "--overwrite", action="store_true", help="delete what an earlier segmentation left there")
    setting(group, "--save-mask", action="store_true", help="also a label image of what is above the threshold")
    setting(group, "--objects", action="store_true", help="also a table of the objects above the threshold")
    setting(group, "--precomputed", metavar="PATH|s3://...", help="also a Neuroglancer precomputed copy")
    setting(group, "--threshold", type=float, metavar="P", help="of mask and objects (default: the run's, else 0.5)")
    setting(group, "--shard", metavar=ZYX, help="voxels of a file of the output")
    setting(group, "--chunk", metavar=ZYX, help="voxels that are read at once from it")
    group = parser.add_argument_group("how")
    setting(group, "--actors", metavar="N|MIN-MAX", help="default: what the cluster holds")
    setting(group, "--gpus-per-actor", type=float, metavar="F", help="0.5 puts two on a card")
    setting(group, "--block", metavar=ZYX, help="voxels that an actor does at once: whole shards")
    setting(group, "--halo", metavar=ZYX, help="context around a block (default: as far as the network sees)")
    setting(group, "--tile", metavar=ZYX, help="voxels that the network sees at once, margins included")
    setting(group, "--batch", type=int, metavar="N", help="tiles at once")
    setting(group, "--tta", action="store_true", help="mean over the flips and turns of every tile")
    setting(
        group, "--no-skip-blank", action="store_false", key="skip_blank", help="run the network on blank voxels too"
    )
    group = parser.add_argument_group("planning")
    setting(group, "--dry-run", action="store_true", help="say what it would take, and do nothing")
    setting(
        group,
        "--price-per-hour",
        type=float,
        metavar="PRICE",
        help="of one GPU; without GPUs, of one actor's share of a machine",
    )
    add_settings_flags(parser)
    add_reading_flags(parser, "segment")
    add_computing_flags(parser, "segment", precision="segment")
    group = parser.add_argument_group("watching")
    setting(group, "--verbose", action="store_true", help="tracebacks and Ray's own lines")
    return parser


def main(given: Sequence[str]) -> int:
    parser = make_parser()
    arguments = parser.parse_args(given)
    layers = {"config": arguments.config, "assignments": arguments.assignments, "flags": parser.layer(arguments)}
    from kasthuri_ray.segmentation.segment import segment_as_told

    return segment_as_told(arguments.task, arguments.network, layers, program=sys.argv[0], given=given)


if __name__ == "__main__":
    sys.exit(run_job(main))
