"""Check whether a cluster is fit for the jobs: `python jobs/check.py --address HOST:6379 --storage s3://...`.

With --volume it checks an image and its annotation instead, without Ray: it prints what is understood of them (format,
axes, size, place, voxel size, values, foreground, alignment), and writes a page with sections of both. With --report it
checks nothing, and writes what a fault report needs.
"""

import sys
from collections.abc import Sequence
from functools import partial

from kasthuri_ray import cli
from kasthuri_ray.config import defaults

EXAMPLES = """examples:
  python jobs/check.py
  python jobs/check.py --address 10.0.0.5:6379 --storage s3://bucket/runs --gpus 8    # on one of the nodes
  ray job submit --address http://HEAD:8265 --working-dir . -- python jobs/check.py --storage s3://bucket/runs
  python jobs/check.py --volume my_em.zarr --annotation my_labels.h5:labels --task my_task.json
  python jobs/check.py --report

Exit codes: 0 fit, 1 not fit, 2 bad input.
"""


def make_parser() -> cli.SettingsParser:
    parser = cli.SettingsParser(prog="check.py", description=__doc__, epilog=EXAMPLES)
    group = parser.add_group("requirements")
    group.add("--address", metavar="HOST:PORT", help="address of Ray (default: RAY_ADDRESS, else this machine alone)")
    group.add("--storage", metavar="DIR|s3://...", help=f"folder of all runs (default: {defaults.STORAGE})")
    group.add("--image", metavar="URI|none", help="image that every node must be able to read (default: ac4 of BossDB)")
    group.add("--gpus", type=int, metavar="N", help="GPUs that the cluster must have (default: no requirement)")
    group = parser.add_group("volume", "a look at the data before any work; the flags above do not apply")
    group.add("--volume", metavar="URI", help="image to check")
    group.add("--annotation", metavar="URI", help="its annotation: labels, foreground, alignment with the image")
    group.add("--task", metavar="NAME|FILE", help="task that defines the labels (default: above 0 is foreground)")
    group.add("--mip", type=int, metavar="N", help="resolution level of the image, 0 is finest (default: the URI's)")
    group.add("--voxel-size", metavar="Z,Y,X", help="voxel size of the image in nm (default: from its metadata)")
    group.add(
        "--out",
        metavar="DIR|s3://...",
        help=f"folder of the page, index.html; an earlier page is replaced (default: {defaults.VOLUME_CHECK})",
    )
    group = parser.add_group("fault report")
    group.add(
        "--report", nargs="?", const=defaults.REPORT_FILE, metavar="FILE",
        help="write versions, machine, settings and the last traceback to this file, without secrets; Ray is not "
        f"started (default: {defaults.REPORT_FILE})",
    )  # fmt: skip
    cli.add_settings_flags(parser)
    cli.add_data_access_flags(parser)
    cli.add_wait_flag(parser.add_group("compute"))
    cli.add_logging_flags(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    flags = make_parser().keywords(arguments)
    from kasthuri_ray import api
    from kasthuri_ray.config.loading import resolve_section
    from kasthuri_ray.config.settings import CheckSettings
    from kasthuri_ray.errors import InputError

    given = api.given_settings("check", flags)
    settings = resolve_section(CheckSettings, given)
    if settings.volume is None and (of_task := given.typed_values("task")):
        raise InputError(f"--set task.{next(iter(of_task))}: there is no volume; give the image with --volume URI")
    if settings.report is not None:
        from kasthuri_ray.ray_cluster.fault_report import write_fault_report

        print(f"Read this file, and attach it to your fault report: {write_fault_report(settings)}")
        return cli.DONE
    from kasthuri_ray.progress import Reporter

    if settings.volume is not None:
        from kasthuri_ray.evaluation.volume_check import check_volume

        is_fit = check_volume(settings, Reporter(), given.typed_values("task"))
        return cli.DONE if is_fit else cli.FAILED
    from kasthuri_ray.ray_cluster.cluster_check import check_cluster

    return cli.DONE if check_cluster(settings, Reporter()) else cli.FAILED


run = partial(cli.run_job, main)  # the command kasthuri-check

if __name__ == "__main__":
    sys.exit(run())
