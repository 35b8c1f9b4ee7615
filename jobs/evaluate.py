"""Say how good a segmentation is: `python jobs/evaluate.py --prediction out.zarr --annotation URI`."""

import sys
from collections.abc import Sequence

from kasthuri_ray.cli import SettingFlags, add_reading_flags, add_reporting_flags, add_waiting_flag, run_job

EXAMPLES = """examples:
  python jobs/evaluate.py --prediction out.zarr --annotation bossdb://Kasthuri/ac4/synapse
  python jobs/evaluate.py --prediction out.zarr --annotation bossdb://Kasthuri/ac4/membrane --instances cells.zarr
  python jobs/evaluate.py --prediction other_tool.h5:probability --task synapse --annotation /data/vnc.zarr/synapse
"""


def make_parser() -> SettingFlags:
    parser = SettingFlags("evaluate", prog="evaluate.py", description=__doc__, epilog=EXAMPLES)
    group = parser.group("what to compare")
    group.setting("--prediction", required=True, metavar="URI", help="probabilities: uint8 (255 is 1) or floats")
    group.setting("--annotation", required=True, metavar="URI", help="the truth; compared where the two overlap in nm")
    group.setting("--task", metavar="NAME|FILE", help="what labels mean (default: as the prediction's provenance says)")
    group.setting("--instances", metavar="URI", help="ids of cells, for ARAND and VOI of those that membranes enclose")
    group.setting("--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="half-open, in voxels of the annotation (default: all)")
    group.setting(
        "--threshold", type=float, metavar="P", help="foreground from here (default: the provenance's, or 0.5)"
    )
    group = parser.group("what it leaves")
    group.setting(
        "--out",
        metavar="DIR|s3://...",
        help="evaluation.json, figures, index.html (default: PREDICTION.evaluation)",
    )
    add_reading_flags(parser)
    add_waiting_flag(parser.group("computing"))
    add_reporting_flags(parser)
    return parser


def main(given: Sequence[str]) -> None:
    parser = make_parser()
    flags = parser.layer(parser.parse_args(given))["evaluate"]
    from kasthuri_ray.config.settings import EvaluateSettings
    from kasthuri_ray.evaluation.evaluate import evaluate

    evaluate(EvaluateSettings(**flags))


if __name__ == "__main__":
    sys.exit(run_job(main))
