"""Is this cluster, or this machine, fit for the jobs? `python jobs/check.py --address HOST:6379 --storage s3://...`."""

import sys
from collections.abc import Sequence

from kasthuri_ray.cli import SettingFlags, add_reading_flags, run_job

EXAMPLES = """examples:
  python jobs/check.py
  python jobs/check.py --address 10.0.0.5:6379 --storage s3://bucket/runs --gpus 8
  ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/check.py --storage s3://bucket/runs

Exit codes: 0 fit, 1 not fit, 2 bad input.
"""
OPTIONS = "check"


def make_parser() -> SettingFlags:
    parser = SettingFlags(prog="check.py", description=__doc__, epilog=EXAMPLES)

    def option(group, flag: str, **given) -> None:
        parser.setting(group, flag, OPTIONS, **given)

    group = parser.add_argument_group("what to look at")
    option(group, "--address", metavar="HOST:PORT", help="of Ray (default: RAY_ADDRESS, else this machine alone)")
    option(group, "--storage", metavar="DIR|s3://...", help="where runs will lie (default: outputs)")
    option(group, "--image", metavar="URI|none", help="that every node must read (default: ac4 of BossDB)")
    option(group, "--gpus", type=int, metavar="N", help="that there must be (default: what there is)")
    add_reading_flags(parser, OPTIONS)
    group = parser.add_argument_group("computing")
    option(
        group, "--wait-for-resources", nargs="?", const=600.0, type=float, metavar="SECONDS",
        help="wait for the cluster to grow (600 s if no number is given) before looking",
    )  # fmt: skip
    group = parser.add_argument_group("watching")
    option(group, "--verbose", action="store_true", help="tracebacks and Ray's own lines")
    return parser


def main(given: Sequence[str]) -> int:
    parser = make_parser()
    flags = parser.layer(parser.parse_args(given)).get(OPTIONS, {})
    from kasthuri_ray.check.check import Options, check

    return check(Options(**flags))


if __name__ == "__main__":
    sys.exit(run_job(main))
