"""Look at volumes and results in 3D: `python jobs/view.py --output out.zarr` opens Neuroglancer in the browser.

One server on one port serves the viewer and the voxels, on this machine alone, until Ctrl-C. In the viewer K keeps, R
rejects, and U leaves open the object that is selected; the verdicts are in OUTPUT.reviewed.csv at once.
"""

import sys
import threading
from collections.abc import Sequence
from functools import partial

from kasthuri_ray import cli
from kasthuri_ray.config import defaults

EXAMPLES = """examples:
  python jobs/view.py --output out.zarr                 # image, probabilities, mask, objects, annotation
  python jobs/view.py --run outputs/my_run              # what was trained on, and the network's answer on the test box
  python jobs/view.py --evaluation out.zarr.evaluation  # F, M, W: the next found, missed, wrong object
  python jobs/view.py --image bossdb://Kasthuri/ac4/em --annotation bossdb://Kasthuri/ac4/synapse
  python jobs/view.py --output out.zarr --screenshot out.png --position 50,512,512
  python jobs/view.py --output out.zarr --review 200    # a verdict on 200 objects that are drawn at random
"""


def make_parser() -> cli.SettingsParser:
    parser = cli.SettingsParser(prog="view.py", description=__doc__, epilog=EXAMPLES)
    group = parser.add_group("what is shown", "one of --output, --run and --evaluation, or an image")
    group.add("--output", metavar="PATH|s3://...", help="output of jobs/segment.py, finished or not")
    group.add("--run", metavar="DIR|s3://...", help="folder of a training; its test box is segmented here")
    group.add("--evaluation", metavar="DIR|s3://...", help="folder of an evaluation; jumps from object to object")
    group.add("--image", metavar="URI", help="image (default: that of the output, run or evaluation)")
    group.add("--annotation", metavar="URI", help="annotation of the image (default: that of the task)")
    group = parser.add_group("view")
    group.add(
        "--position", metavar="Z,Y,X",
        help="middle of the view, in voxels of the image as in --box (default: the most confident object, else the "
        "middle)",
    )  # fmt: skip
    group.add("--layout", choices=["xy", "4panel"], help=f"one section, or three and 3D (default: {defaults.LAYOUT})")
    group.add("--review", type=int, metavar="N", help="walk through N objects of --output that are drawn at random")
    group = parser.add_group("pictures and links")
    group.add("--screenshot", metavar="FILE", help="write a PNG and exit; needs Chromium, Chrome or Edge, no display")
    group.add("--size", metavar="W,H", help=f"width and height of the picture in pixels (default: {defaults.WINDOW})")
    group.add(
        "--link", action="store_true",
        help="print the address of a public Neuroglancer and exit; all layers must lie in public storage",
    )  # fmt: skip
    group = parser.add_group("server")
    group.add("--port", type=int, metavar="N", help="port of viewer and data (default: a free one)")
    group.add("--bind", metavar="ADDRESS", help=f"address to listen on (default: {defaults.BIND}, this machine alone)")
    group.add("--browser", metavar="PATH", help="program of the browser (default: an installed one)")
    cli.add_settings_flags(parser)
    cli.add_data_access_flags(parser)
    cli.add_logging_flags(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    keywords = make_parser().keywords(arguments)
    from kasthuri_ray import api

    print(api.view(**keywords), flush=True)
    if not {"screenshot", "link"} & keywords.keys():
        print("Ctrl-C ends the viewer", file=sys.stderr, flush=True)
        wait_for_interrupt()
    return cli.DONE


def wait_for_interrupt() -> None:
    """Return after Ctrl-C."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print(file=sys.stderr)


run = partial(cli.run_job, main)  # the command kasthuri-view

if __name__ == "__main__":
    sys.exit(run())
