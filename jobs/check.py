"""Check whether a cluster is fit for the jobs: `python jobs/check.py --address HOST:6379 --storage s3://...`."""

import sys
from collections.abc import Sequence

from kasthuri_ray import cli

EXAMPLES = """examples:
  python jobs/check.py
  python jobs/check.py --address 10.0.0.5:6379 --storage s3://bucket/runs --gpus 8    # on one of the nodes
  ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/check.py --storage s3://bucket/runs

Exit codes: 0 fit, 1 not fit, 2 bad input.
"""


def make_parser() -> cli.SettingsParser:
    parser = cli.SettingsParser("check", prog="check.py", description=__doc__, epilog=EXAMPLES)
    group = parser.add_group("requirements")
    group.add_setting(
        "--address", metavar="HOST:PORT", help="address of Ray (default: RAY_ADDRESS, else this machine alone)"
    )
    group.add_setting("--storage", metavar="DIR|s3://...", help="folder of all runs (default: outputs)")
    group.add_setting(
        "--image", metavar="URI|none", help="image that every node must be able to read (default: ac4 of BossDB)"
    )
    group.add_setting("--gpus", type=int, metavar="N", help="GPUs that the cluster must have (default: no requirement)")
    cli.add_data_access_flags(parser)
    cli.add_wait_flag(parser.add_group("compute"))
    cli.add_logging_flags(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    flags = make_parser().parse_settings(arguments).get("check", {})
    from kasthuri_ray.config.settings import CheckSettings
    from kasthuri_ray.ray_cluster.cluster_check import check_cluster

    return cli.DONE if check_cluster(CheckSettings(**flags)) else cli.FAILED


if __name__ == "__main__":
    sys.exit(cli.run_job(main))
