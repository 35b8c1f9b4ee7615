"""Compare a segmentation with an annotation: `python jobs/evaluate.py --prediction out.zarr --annotation URI`."""

import sys
from collections.abc import Sequence

from kasthuri_ray import cli

EXAMPLES = """examples:
  python jobs/evaluate.py --prediction out.zarr --annotation bossdb://Kasthuri/ac4/synapse
  python jobs/evaluate.py --prediction out.zarr --annotation bossdb://Kasthuri/ac4/membrane --instances cells.zarr
  python jobs/evaluate.py --prediction other_tool.h5:probability --task synapse --annotation /data/vnc.zarr/synapse
"""


def make_parser() -> cli.SettingsParser:
    parser = cli.SettingsParser("evaluate", prog="evaluate.py", description=__doc__, epilog=EXAMPLES)
    group = parser.add_group("input")
    group.add_setting(
        "--prediction", required=True, metavar="URI", help="probabilities, as floats or as uint8 (255 is 1)"
    )
    group.add_setting(
        "--annotation",
        required=True,
        metavar="URI",
        help="ground truth; only the overlapping region (aligned in nm) is compared",
    )
    group.add_setting(
        "--task", metavar="NAME|FILE", help="task that defines the labels (default: from the prediction's provenance)"
    )
    group.add_setting("--instances", metavar="URI", help="cell ids, for ARAND and VOI of the cells between membranes")
    group.add_setting(
        "--box", metavar="Z0:Z1,Y0:Y1,X0:X1", help="half-open, in voxels of the annotation (default: the whole overlap)"
    )
    group.add_setting(
        "--threshold",
        type=float,
        metavar="P",
        help="probability from which a voxel is foreground (default: from the prediction's provenance, else 0.5)",
    )
    group = parser.add_group("output")
    group.add_setting(
        "--out",
        metavar="DIR|s3://...",
        help="folder for metrics, figures and index.html (default: PREDICTION.evaluation)",
    )
    cli.add_data_access_flags(parser)
    cli.add_wait_flag(parser.add_group("compute"))
    cli.add_logging_flags(parser)
    return parser


def main(arguments: Sequence[str]) -> None:
    flags = make_parser().parse_settings(arguments)["evaluate"]
    from kasthuri_ray.config.settings import EvaluateSettings
    from kasthuri_ray.evaluation.evaluate import evaluate

    evaluate(EvaluateSettings(**flags))


if __name__ == "__main__":
    sys.exit(cli.run_job(main))
