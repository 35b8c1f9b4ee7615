"""Segment a volume with a trained network: `python jobs/segment.py --weights outputs/my_run --output out.zarr`."""

import sys
from collections.abc import Sequence
from functools import partial

from kasthuri_ray import cli
from kasthuri_ray.config import defaults

EXAMPLES = """examples:
  python jobs/segment.py --weights outputs/my_run --output out.zarr
  python jobs/segment.py --weights kasthuri://UNet_2D_synapse --output out.zarr
  python jobs/segment.py --weights UNet_2D_synapse.pt --network UNet_2D --task synapse --output s3://bucket/out.zarr
  python jobs/segment.py --weights outputs/my_run --output out.zarr --box 0:100,1000:3000,1000:3000 --dry-run
  python jobs/segment.py --output out.zarr --export part.tif --export-box 0:50,0:1000,0:1000    # of a finished output
"""
ZYX = "Z,Y,X"


def make_parser() -> cli.SettingsParser:
    parser = cli.SettingsParser(prog="segment.py", description=__doc__, epilog=EXAMPLES)
    _add_input_flags(parser)
    _add_output_flags(parser)
    _add_object_flags(parser)
    _add_export_flags(parser)
    _add_processing_flags(parser)
    _add_planning_flags(parser)
    cli.add_settings_flags(parser)
    cli.add_data_access_flags(parser)
    cli.add_compute_flags(parser)
    cli.add_logging_flags(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    keywords = make_parser().keywords(arguments)
    if cli.print_published_weights_if_asked(keywords):
        return cli.DONE
    from kasthuri_ray import api

    result = api.segment(**keywords, resume_command=cli.segment_resume_command(sys.argv[0], arguments))
    return cli.SET_ASIDE if result.num_set_aside else cli.DONE


def _add_input_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("input", "order of axes: z,y,x")
    group.add(
        "--weights",
        nargs="+",
        metavar="RUN|FILE|kasthuri://NAME",
        help="run folder or .pt file (path, https:// or s3://), or published weights, which kasthuri:// lists; of "
        "several runs, such as the folds of a training, the probabilities are averaged",
    )
    group.add("--image", metavar="URI", help="image (default: the one that the run was trained on)")
    group.add(
        "--network", metavar="NAME|FILE", help="network; required if --weights is a bare .pt file (default: the run's)"
    )
    group.add("--task", metavar="NAME|FILE", help="task; required if --weights is a bare .pt file (default: the run's)")
    group.add(
        "--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="half-open region; : for a whole axis (default: the whole image)"
    )
    group.add(
        "--mip", type=int, metavar="N", help="resolution level (default: the one nearest to the training's voxel size)"
    )
    group.add("--voxel-size", metavar=ZYX, help="voxel size in nm (default: from the image's metadata)")
    group.add(
        "--resample", action="store_true", help="read the image with the voxel size that the network was trained at"
    )
    group.add("--allow-empty", action="store_true", help="segment even if nothing of the image is stored in the box")
    group.add("--mask", metavar="URI", help="volume; blocks where it is 0 are skipped")


def _add_output_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("output")
    group.add("--output", metavar="PATH|s3://...", help="OME-Zarr of probabilities; an unfinished one is resumed")
    group.add("--overwrite", action="store_true", help="delete the existing output and start over")
    group.add("--save-mask", action="store_true", help="write a label image of the thresholded probabilities")
    group.add("--objects", action="store_true", help="write a table of the objects, as CSV and Parquet")
    group.add(
        "--save-objects", action="store_true", help="write a label image of the objects with the ids of the table"
    )
    group.add("--precomputed", metavar="PATH|s3://...", help="write a copy as Neuroglancer precomputed")
    group.add(
        "--threshold",
        metavar="P[,P...]",
        help=f"threshold of the mask, or one for each class (default: the run's, else {defaults.THRESHOLD})",
    )
    group.add("--shard", metavar=ZYX, help="shape of a shard, one file each (default: at most 64,1024,1024)")
    group.add("--chunk", metavar=ZYX, help="shape of a chunk, read at once (default: at most 64,256,256)")


def _add_object_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group(
        "objects", "connected pieces (26 neighbours); defaults are the run's, chosen on its val box"
    )
    group.add(
        "--object-threshold",
        metavar="P[,P...]",
        help="probability that an object reaches somewhere (without a run's settings: --threshold)",
    )
    group.add(
        "--object-extent",
        metavar="P[,P...]",
        help="probability from which voxels belong to it (without a run's settings: --threshold)",
    )
    group.add(
        "--min-size-nm3",
        metavar="V[,V...]",
        help="smallest size, in voxels without a voxel size; objects that the box cuts are kept",
    )
    group.add("--min-sections", type=int, metavar="N", help="smallest number of sections; likewise (default: 1)")
    group.add("--bridge-sections", type=int, metavar="N", help="join across gaps of N sections along z (default: 0)")
    group.add(
        "--object-precision",
        type=float,
        metavar="SHARE",
        help="keep the most probable objects, of which this share is right on the run's val box (default: keep all)",
    )


def _add_export_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("export", "a file for Fiji or ilastik; of a finished output it needs no --weights")
    group.add("--export", metavar="FILE", help="write out.tif or out.h5 when all is segmented; the ending says which")
    group.add(
        "--export-box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="half-open, in voxels of the image (default: all of --box)"
    )
    group.add(
        "--export-what",
        choices=["probabilities", "mask", "objects"],
        help=f"what it holds; objects: their ids in the table of --objects (default: {defaults.EXPORT_WHAT})",
    )


def _add_processing_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("processing")
    group.add("--actors", metavar="N|MIN-MAX", help="number of actors (default: as many as the cluster holds)")
    group.add(
        "--gpus-per-actor",
        type=float,
        metavar="F",
        help=f"GPUs per actor; 0.5: two actors on one GPU (default: {defaults.GPUS_PER_ACTOR:g})",
    )
    group.add("--block", metavar=ZYX, help="shape of a block, in whole shards (default: automatic)")
    group.add("--halo", metavar=ZYX, help="context around a block (default: the network's receptive field)")
    group.add("--tile", metavar=ZYX, help="shape of the network input, margins included (default: automatic)")
    group.add("--batch", type=int, metavar="N", help="tiles per batch (default: automatic)")
    group.add("--tta", action="store_true", help="test-time augmentation: average over flips and rotations")
    group.add("--no-skip-blank", action="store_false", dest="skip_blank", help="segment blank regions too")


def _add_planning_flags(parser: cli.SettingsParser) -> None:
    group = parser.add_group("planning")
    group.add("--dry-run", action="store_true", help="estimate time, memory and cost; write only OUTPUT.plan.json")
    price_help = "price of one GPU-hour; on CPUs: hourly machine price divided by the number of actors on it"
    group.add("--price-per-hour", type=float, metavar="PRICE", help=price_help)


run = partial(cli.run_job, main)  # the command kasthuri-segment

if __name__ == "__main__":
    sys.exit(run())
