"""Defaults that several settings share or that `--help` shows; plain Python, so that `--help` imports nothing heavy."""

from __future__ import annotations

from typing import Final

STORAGE: Final = "outputs"
CACHE_SIZE: Final = "20GB"
AUTO: Final = "auto"  # device, precision and compilation
NETWORK: Final = "UNet_2D"  # file, without --network
# Of a sweep, without --networks.
NETWORKS_2D: Final = ("UNet_2D", "UNet_2D_attention", "UNet_2D_residual", "UNet_2D_depth")
NETWORKS_3D: Final = ("UNet_3D",)
METRIC: Final = "val.average_precision"
MIN_BATCH_SIZE: Final = 2  # tiles, where batch_size is None
THRESHOLD: Final = 0.5  # probability, where neither the settings nor the run or the provenance have one
CENTROID_RADIUS_NM: Final = 150.0  # between the centroids of a true and a predicted object that are one
SEGMENT_PLAIN_PERIOD_S: Final = 60.0  # between two lines of progress of a segmentation, outside of a terminal
EXPORT_WHAT: Final = "probabilities"
GPUS_PER_ACTOR: Final = 1.0
SEARCH: Final = "optuna"
SCHEDULER: Final = "asha"
NUM_TRIALS: Final = 20  # without --samples and --hours
KEEP: Final = 3
CHECK_IMAGE: Final = "bossdb://Kasthuri/ac4/em"
WAIT_S: Final = 600.0  # of --wait-for-resources without a number
VOLUME_CHECK: Final = "volume_check"  # folder of the page of check.py --volume
REPORT_FILE: Final = "kasthuri_ray_report.txt"  # of check.py --report without a name
BIND: Final = "127.0.0.1"  # of the viewer: this machine alone
LAYOUT: Final = "xy"
WINDOW: Final = "1200,800"  # pixels of a screenshot
