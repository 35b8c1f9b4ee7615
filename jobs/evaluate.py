"""Say how good a segmentation is: `python jobs/evaluate.py --prediction out.zarr --annotation URI`."""

import sys
from collections.abc import Sequence

from kasthuri_ray.cli import SettingFlags, add_reading_flags, run_job

EXAMPLES = """examples:
  python jobs/evaluate.py --prediction out.zarr --annotation bossdb://Kasthuri/ac4/synapse
  python jobs/evaluate.py --prediction out.zarr --annotation bossdb://Kasthuri/ac4/membrane --instances cells.zarr
  python jobs/evaluate.py --prediction other_tool.h5:probability --task synapse --annotation /data/vnc.zarr/synapse
"""
OPTIONS = "evaluate"


def make_parser() -> SettingFlags:
    parser = SettingFlags(prog="evaluate.py", description=__doc__, epilog=EXAMPLES)

    def option(group, flag: str, **given) -> None:
        parser.setting(group, flag, OPTIONS, **given)

    group = parser.add_argument_group("what to compare")
    option(group, "--prediction", required=True, metavar="URI", help="probabilities: uint8 (255 is 1) or floats")
    option(group, "--annotation", required=True, metavar="URI", help="the truth; compared where the two overlap in nm")
    option(group, "--task", metavar="NAME|FILE", help="what labels mean (default: as the prediction's provenance says)")
    option(group, "--instances", metavar="URI", help="ids of cells, for ARAND and VOI of those that membranes enclose")
    option(group, "--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="half-open, in voxels of the annotation (default: all)")
    option(
        group, "--threshold", type=float, metavar="P", help="foreground from here (default: the provenance's, or 0.5)"
    )
    group = parser.add_argument_group("what it leaves")
    option(
        group,
        "--out",
        metavar="DIR|s3://...",
        help="evaluation.json, figures, index.html (default: PREDICTION.evaluation)",
    )
    add_reading_flags(parser, OPTIONS)
    group = parser.add_argument_group("computing")
    option(
        group, "--wait-for-resources", nargs="?", const=600.0, type=float, metavar="SECONDS",
        help="wait for the cluster to grow (600 s if no number is given) instead of stopping",
    )  # fmt: skip
    group = parser.add_argument_group("watching")
    option(group, "--verbose", action="store_true", help="tracebacks and Ray's own lines")
    return parser


def main(given: Sequence[str]) -> None:
    parser = make_parser()
    flags = parser.layer(parser.parse_args(given))[OPTIONS]
    from kasthuri_ray.evaluation.evaluate import Options, evaluate

    evaluate(Options(**flags))


if __name__ == "__main__":
    sys.exit(run_job(main))
