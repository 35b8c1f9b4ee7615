"""Is this cluster, or this machine, fit for the jobs? `python jobs/check.py --address HOST:6379 --storage s3://...`."""

import sys
from collections.abc import Sequence

from kasthuri_ray.cli import (
    DONE,
    FAILED,
    SettingFlags,
    add_reading_flags,
    add_reporting_flags,
    add_waiting_flag,
    run_job,
)

EXAMPLES = """examples:
  python jobs/check.py
  python jobs/check.py --address 10.0.0.5:6379 --storage s3://bucket/runs --gpus 8    # on one of its nodes
  ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/check.py --storage s3://bucket/runs

Exit codes: 0 fit, 1 not fit, 2 bad input.
"""


def make_parser() -> SettingFlags:
    parser = SettingFlags("check", prog="check.py", description=__doc__, epilog=EXAMPLES)
    group = parser.group("what to look at")
    group.setting("--address", metavar="HOST:PORT", help="of Ray (default: RAY_ADDRESS, else this machine alone)")
    group.setting("--storage", metavar="DIR|s3://...", help="where runs will lie (default: outputs)")
    group.setting("--image", metavar="URI|none", help="that every node must read (default: ac4 of BossDB)")
    group.setting("--gpus", type=int, metavar="N", help="that there must be (default: what there is)")
    add_reading_flags(parser)
    add_waiting_flag(parser.group("computing"))
    add_reporting_flags(parser)
    return parser


def main(given: Sequence[str]) -> int:
    parser = make_parser()
    flags = parser.layer(parser.parse_args(given)).get("check", {})
    from kasthuri_ray.config.settings import CheckSettings
    from kasthuri_ray.ray_cluster.fitness_check import check_cluster

    return DONE if check_cluster(CheckSettings(**flags)) else FAILED


if __name__ == "__main__":
    sys.exit(run_job(main))
