"""Compare a segmentation with an annotation: `python jobs/evaluate.py --prediction out.zarr --annotation URI`."""

import sys
from collections.abc import Sequence
from functools import partial

from kasthuri_ray import cli
from kasthuri_ray.config import defaults

EXAMPLES = """examples:
  python jobs/evaluate.py --prediction out.zarr --annotation bossdb://Kasthuri/ac4/synapse
  python jobs/evaluate.py --prediction out.zarr --annotation bossdb://Kasthuri/ac4/membrane --instances cells.zarr
  python jobs/evaluate.py --prediction out.zarr --reviewed out.zarr.reviewed.csv
  python jobs/evaluate.py --prediction other_tool.h5:probability --task synapse --annotation /data/vnc.zarr/synapse
"""


def make_parser() -> cli.SettingsParser:
    parser = cli.SettingsParser(prog="evaluate.py", description=__doc__, epilog=EXAMPLES)
    group = parser.add_group("input")
    group.add("--prediction", required=True, metavar="URI", help="probabilities, as floats or as uint8 (255 is 1)")
    group.add(
        "--annotation",
        metavar="URI",
        help="ground truth; only the overlapping region (aligned in nm) is compared",
    )
    group.add(
        "--reviewed",
        metavar="FILE",
        help="verdicts of jobs/view.py --review in place of an annotation: prints the precision with a 95%% interval",
    )
    group.add(
        "--task", metavar="NAME|FILE", help="task that defines the labels (default: from the prediction's provenance)"
    )
    group.add("--instances", metavar="URI", help="cell ids, for ARAND and VOI of the cells between membranes")
    group.add(
        "--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="half-open, in voxels of the annotation (default: the whole overlap)"
    )
    group.add(
        "--threshold",
        metavar="P[,P...]",
        help="probability from which a voxel is foreground, or one for each class (default: from the prediction's "
        f"provenance, else {defaults.THRESHOLD})",
    )
    group.add(
        "--voxel-size",
        metavar="Z,Y,X",
        help="voxel size of prediction and annotation in nm (default: from their metadata)",
    )
    group.add(
        "--resample",
        action="store_true",
        help="read a prediction of another voxel size on the voxels of the annotation",
    )
    group = parser.add_group("output")
    group.add(
        "--out",
        metavar="DIR|s3://...",
        help="folder for metrics, figures and index.html; the same evaluation is replaced (default: "
        "PREDICTION.evaluation)",
    )
    group.add("--overwrite", action="store_true", help="replace an evaluation of other volumes or settings too")
    cli.add_settings_flags(parser)
    cli.add_data_access_flags(parser)
    cli.add_wait_flag(parser.add_group("compute"))
    cli.add_logging_flags(parser)
    return parser


def main(arguments: Sequence[str]) -> None:
    keywords = make_parser().keywords(arguments)
    from kasthuri_ray import api

    api.evaluate(**keywords)


run = partial(cli.run_job, main)  # the command kasthuri-evaluate

if __name__ == "__main__":
    sys.exit(run())
